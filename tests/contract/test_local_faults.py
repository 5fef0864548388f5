"""Faults on order as boto3 sees them, and what the server and its jobs do not see of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from local_jobs import BUCKET, job_request, make_bucket, put_source, wait_ended

from sagemaker_jobs.local.fixture import RunningServer
from sagemaker_jobs.local.service import LocalSageMaker, Settings

ONCE = Config(retries={"total_max_attempts": 1})
"""Faults are seen as they come; boto3 tries most of them again by itself."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSageMaker]:
    with LocalSageMaker(tmp_path_factory.mktemp("sagemaker"), settings=Settings(num_parallel_jobs=2)) as server:
        make_bucket(server)
        yield server


@pytest.fixture(scope="module")
def session() -> Any:
    return boto3.session.Session(aws_access_key_id="testing", aws_secret_access_key="testing", region_name="us-west-2")


@pytest.fixture(autouse=True)
def _cleared(server: LocalSageMaker) -> Iterator[None]:
    yield
    server.faults.clear()


@pytest.fixture
def clients(server: LocalSageMaker, session: Any) -> Iterator[Any]:
    made: dict[str, Any] = {}

    def client(name: str, config: Config = ONCE) -> Any:
        key = f"{name} {id(config)}"
        if key not in made:
            made[key] = session.client(name, endpoint_url=server.url, config=config)
        return made[key]

    yield client
    for each in made.values():
        each.close()


def _code(call: Any, **params: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as failed:
        call(**params)
    response = failed.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def test_throttled_call_is_answered_as_aws_does_and_tried_again_by_boto3(server: LocalSageMaker, clients: Any) -> None:
    server.faults.throttle("ListTrainingJobs", times=2)
    assert _code(clients("sagemaker").list_training_jobs) == ("ThrottlingException", 400)
    answer = clients("sagemaker", Config(retries={"mode": "standard"})).list_training_jobs()
    assert answer["ResponseMetadata"]["RetryAttempts"] == 1
    assert server.faults.hits() == {"throttle": 2}


def test_s3_fails_for_the_caller_alone(server: LocalSageMaker, clients: Any) -> None:
    source = put_source(server, {"train.py": "import os\nopen(os.environ['SM_MODEL_DIR'] + '/m', 'w').close()"})
    server.faults.fail_s3(times=1)
    server.faults.fail_s3(times=2, code="InternalError")
    put = clients("s3").put_object
    assert _code(put, Bucket=BUCKET, Key="k", Body=b"x" * 100_000) == ("SlowDown", 503)
    assert _code(put, Bucket=BUCKET, Key="k", Body=b"x") == ("InternalError", 500)
    # The job fetches its source and uploads its model while S3 would fail for the caller.
    clients("sagemaker").create_training_job(**job_request("inside", source))
    assert wait_ended(server, "inside")["TrainingJobStatus"] == "Completed"
    assert server.faults.describe()["fail_s3"] == ["InternalError"]
    assert _code(clients("s3").head_object, Bucket=BUCKET, Key="k") == ("500", 500)
    assert put(Bucket=BUCKET, Key="k", Body=b"x")["ETag"]


def test_expired_token_is_said_in_every_protocol_until_cleared(server: LocalSageMaker, clients: Any) -> None:
    server.faults.expire_token()
    for _ in range(2):
        assert _code(clients("sagemaker").list_training_jobs) == ("ExpiredTokenException", 400)
    invoke = clients("sagemaker-runtime").invoke_endpoint
    assert _code(invoke, EndpointName="any", Body=b"")[0] == "ExpiredTokenException"
    assert _code(clients("s3").list_buckets) == ("ExpiredToken", 400)
    assert _code(clients("sts").get_caller_identity) == ("ExpiredToken", 403)
    assert _code(clients("logs").describe_log_groups)[0] == "ExpiredTokenException"
    assert _code(clients("cloudwatch").list_metrics)[0] == "ExpiredTokenException"
    server.faults.clear()
    assert clients("sagemaker").list_training_jobs()["TrainingJobSummaries"] is not None


def test_dropped_connections_are_a_lost_network_until_cleared_over_http(server: LocalSageMaker, clients: Any) -> None:
    url = f"{server.url}/local/faults"
    assert httpx.post(url, json={"drop_connections": True}).json()["drop_connections"] is True
    for call in (clients("sagemaker").list_training_jobs, clients("s3").list_buckets):
        with pytest.raises(BotoCoreError, match="Connection was closed|Could not connect"):
            call()
    # The door itself stays open.
    assert httpx.get(url).json()["hits"] == {"drop_connections": 2}
    assert httpx.post(url, json={"clear": True}).json()["drop_connections"] is False
    assert clients("s3").list_buckets()["Buckets"]
    refused = httpx.post(url, json={"drop": True})
    assert (refused.status_code, refused.json()["__type"]) == (400, "ValidationException")
    assert httpx.post(url, json={"clear": True}, headers={"Origin": "http://evil"}).status_code == 403


def test_service_that_nobody_has_here_is_refused_at_once(clients: Any) -> None:
    prices = clients("pricing", Config(retries={"mode": "standard"}))
    with pytest.raises(ClientError, match="The local SageMaker has no prices") as refused:
        prices.get_products(ServiceCode="AmazonSageMaker")
    assert refused.value.response["ResponseMetadata"]["RetryAttempts"] == 0


def test_lost_answer_leaves_the_job_created(server: LocalSageMaker, clients: Any, tmp_path: Path) -> None:
    source = put_source(server, {"train.py": "print('once')"})
    server.faults.lose_answer("CreateTrainingJob")
    # boto3 tries a lost connection again, and then meets its own job.
    call = clients("sagemaker", Config(retries={"mode": "standard"})).create_training_job
    assert _code(call, **job_request("lost-answer", source))[0] == "ResourceInUse"
    assert wait_ended(server, "lost-answer")["TrainingJobStatus"] == "Completed"
    assert server.faults.hits() == {"lose_answer": 1}


def test_server_process_of_the_fixture_takes_orders(local_sagemaker: RunningServer) -> None:
    assert local_sagemaker.order_faults({"fail_s3": {"times": 1}})["fail_s3"] == ["SlowDown"]
    s3 = local_sagemaker.client("s3")
    assert s3.list_buckets()["ResponseMetadata"]["RetryAttempts"] == 1
    s3.close()
    assert local_sagemaker.order_faults({})["hits"] == {"fail_s3": 1}
    local_sagemaker.order_faults({"clear": True})
