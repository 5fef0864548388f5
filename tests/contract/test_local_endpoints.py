"""Endpoints of the local SageMaker through plain boto3: real processes behind them, answers and errors as AWS's."""

import importlib.util
import json
import os
import signal
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError
from endpointmodels import BUCKET, ECHO, FAST, PYTORCH, ROLE, Client, pack, serving, wait_for

from sagemaker_jobs.local.hosting import HostingSettings
from sagemaker_jobs.local.shapes import check_answer


@pytest.fixture(scope="module")
def root_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sagemaker")


@pytest.fixture(scope="module")
def client(root_dir: Path) -> Iterator[Client]:
    with serving(root_dir) as client:
        yield client


@pytest.fixture(autouse=True)
def _no_endpoint_left(client: Client) -> Iterator[None]:
    yield
    for endpoint in client.sagemaker.list_endpoints()["Endpoints"]:
        client.delete(endpoint["EndpointName"])


def _pids(client: Client, name: str) -> list[int]:
    return [each["pid"] for each in client.server.endpoints.servers(name)]


def _refused(call: Any, **params: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as refused:
        call(**params)
    error = refused.value.response["Error"]
    return error["Code"], error["Message"]


def test_endpoint_is_created_described_listed_invoked_and_deleted(client: Client) -> None:
    endpoints = client.server.endpoints
    description = client.deploy("whole")
    assert description["EndpointStatus"] == "InService"
    for operation, answer in (
        ("DescribeModel", endpoints.describe_model({"ModelName": "whole"})),
        ("ListModels", endpoints.list_models({})),
        ("DescribeEndpointConfig", endpoints.describe_endpoint_config({"EndpointConfigName": "whole"})),
        ("ListEndpointConfigs", endpoints.list_endpoint_configs({})),
        ("DescribeEndpoint", endpoints.describe_endpoint({"EndpointName": "whole"})),
        ("ListEndpoints", endpoints.list_endpoints({})),
    ):
        check_answer("sagemaker", operation, answer)
    assert [each["VariantName"] for each in description["ProductionVariants"]] == ["whole"]
    assert client.sagemaker.list_endpoints(StatusEquals="InService")["Endpoints"][0]["EndpointName"] == "whole"
    assert client.sagemaker.list_endpoints(StatusEquals="Failed")["Endpoints"] == []
    assert client.invoke("whole") == b"whole"
    pids = _pids(client, "whole")
    assert all(psutil.pid_exists(pid) for pid in pids)
    client.delete("whole")
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert _refused(client.runtime.invoke_endpoint, EndpointName="whole", Body=b"") == (
        "ValidationError",
        "Endpoint whole of account 123456789012 not found.",
    )
    client.sagemaker.delete_endpoint_config(EndpointConfigName="whole")
    client.sagemaker.delete_model(ModelName="whole")
    assert client.sagemaker.list_models(NameContains="whole")["Models"] == []


def test_invocation_passes_bytes_types_and_attributes_through(client: Client) -> None:
    code = """
def model_fn(model_dir): return None
def input_fn(body, content_type): return content_type.encode() + b"|" + body
def predict_fn(data, model): return data
def output_fn(prediction, accept, context):
    context.set_response_header(0, "X-Amzn-SageMaker-Custom-Attributes", "seen=1")
    return prediction, accept
"""
    client.deploy("bytes", code=code)
    body = bytes(range(256)) * 4000
    answer = client.runtime.invoke_endpoint(
        EndpointName="bytes", Body=body, ContentType="image/jpeg", Accept="image/png", CustomAttributes="trace=1"
    )
    assert answer["Body"].read() == b"image/jpeg|" + body
    assert answer["ContentType"] == "image/png"
    assert answer["CustomAttributes"] == "seen=1"
    assert answer["InvokedProductionVariant"] == "bytes"


def test_variants_share_by_weight_and_are_called_by_name(client: Client) -> None:
    client.create_model("heavy")
    client.create_model("light")
    variant = {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    client.sagemaker.create_endpoint_config(
        EndpointConfigName="weighted",
        ProductionVariants=[
            {"VariantName": "heavy", "ModelName": "heavy", "InitialVariantWeight": 3, **variant},
            {"VariantName": "light", "ModelName": "light", "InitialVariantWeight": 1, **variant},
        ],
    )
    client.sagemaker.create_endpoint(EndpointName="weighted", EndpointConfigName="weighted")
    client.settled("weighted")
    answers = [client.invoke("weighted") for _ in range(100)]
    # Five standard deviations of 100 draws at 3 in 4 are 22.
    assert 53 < answers.count(b"heavy") < 97
    assert answers.count(b"heavy") + answers.count(b"light") == 100
    assert {client.invoke("weighted", TargetVariant="light") for _ in range(5)} == {b"light"}
    code, message = _refused(client.runtime.invoke_endpoint, EndpointName="weighted", Body=b"", TargetVariant="nobody")
    assert code == "ValidationError"
    assert "Variant nobody not found" in message


def test_model_error_carries_the_containers_answer(client: Client) -> None:
    code = """
class Refused(Exception):
    status_code, message = 422, "not a dog"
def model_fn(model_dir): return None
def transform_fn(model, body, content_type, accept):
    if content_type == "text/refused": raise Refused
    raise RuntimeError("broken")
"""
    client.deploy("errors", code=code)
    with pytest.raises(client.runtime.exceptions.ModelError) as refused:
        client.invoke("errors", ContentType="text/refused")
    error = refused.value.response
    assert error["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert error["OriginalStatusCode"] == 422
    assert error["OriginalMessage"].startswith("not a dog")
    assert 'Received client error (422) from primary with message "not a dog' in error["Error"]["Message"]
    assert "group=/aws/sagemaker/Endpoints/errors in account 123456789012" in error["Error"]["Message"]
    with pytest.raises(client.runtime.exceptions.ModelError, match=r"Received server error \(500\)") as broken:
        client.invoke("errors", ContentType="text/other")
    assert broken.value.response["OriginalMessage"].startswith("broken")


def test_payload_is_limited_in_both_directions(client: Client) -> None:
    code = """
def model_fn(model_dir): return None
def transform_fn(model, body, content_type, accept): return b"x" * int(accept.split("/")[1]), "a/b"
"""
    client.deploy("limits", code=code)
    megabytes_6 = 6 * 2**20
    assert len(client.invoke("limits", b"x" * megabytes_6, Accept=f"n/{megabytes_6}")) == megabytes_6
    code_and_message = _refused(client.runtime.invoke_endpoint, EndpointName="limits", Body=b"x" * (megabytes_6 + 1))
    assert code_and_message[0] == "ValidationError"
    assert "length less than or equal to 6291456" in code_and_message[1]
    with pytest.raises(client.runtime.exceptions.ModelError, match="The response is larger than 6291456 bytes"):
        client.invoke("limits", Accept=f"n/{megabytes_6 + 1}")


def test_broken_model_fails_the_endpoint_with_its_last_words(client: Client) -> None:
    description = client.deploy("broken", code="def model_fn(model_dir):\n    raise OSError('no weights here')")
    assert description["EndpointStatus"] == "Failed"
    assert "production variant broken did not pass the ping health check" in description["FailureReason"]
    assert "no weights here" in description["FailureReason"]
    assert _pids(client, "broken") == []
    assert _refused(client.runtime.invoke_endpoint, EndpointName="broken", Body=b"")[0] == "ValidationError"


@pytest.mark.parametrize(
    ("name", "archive", "reason"),
    [
        ("no-tar", b"no tar", "is no tar archive"),
        ("escaping", pack({"../escaped.txt": "x"}), "is refused: '../escaped.txt' would be extracted to"),
        ("missing", None, "cannot be fetched"),
    ],
)
def test_model_data_that_cannot_be_had_fails_the_endpoint(
    client: Client, root_dir: Path, name: str, archive: bytes | None, reason: str
) -> None:
    if archive is not None:
        client.s3.put_object(Bucket=BUCKET, Key=f"{name}.tar.gz", Body=archive)
    container = {"Image": PYTORCH, "ModelDataUrl": f"s3://{BUCKET}/{name}.tar.gz"}
    client.sagemaker.create_model(ModelName=name, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    client.create_config(name, name)
    client.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    description = client.settled(name)
    assert description["EndpointStatus"] == "Failed"
    assert description["FailureReason"].startswith("The model could not be prepared: ")
    assert reason in description["FailureReason"]
    assert not list(root_dir.rglob("escaped.txt"))


def test_model_data_may_be_a_prefix(client: Client) -> None:
    client.s3.put_object(Bucket=BUCKET, Key="unpacked/code/inference.py", Body=ECHO.encode())
    client.s3.put_object(Bucket=BUCKET, Key="unpacked/answer.txt", Body=b"from a prefix")
    s3 = {"S3Uri": f"s3://{BUCKET}/unpacked/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    container = {"Image": PYTORCH, "ModelDataSource": {"S3DataSource": s3}}
    client.sagemaker.create_model(ModelName="unpacked", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    client.create_config("unpacked", "unpacked")
    client.sagemaker.create_endpoint(EndpointName="unpacked", EndpointConfigName="unpacked")
    client.settled("unpacked")
    assert client.invoke("unpacked") == b"from a prefix"


def test_requests_are_refused_in_awss_words(client: Client) -> None:
    sagemaker = client.sagemaker
    client.create_model("words")
    client.create_config("words", "words")
    arn = "arn:aws:sagemaker:us-west-2:123456789012"
    invalid = "ValidationException"
    assert _refused(sagemaker.describe_model, ModelName="gone") == (
        invalid,
        f'Could not find model "{arn}:model/gone".',
    )
    assert _refused(sagemaker.delete_endpoint_config, EndpointConfigName="gone") == (
        invalid,
        f'Could not find endpoint configuration "{arn}:endpoint-config/gone".',
    )
    for call in (sagemaker.describe_endpoint, sagemaker.delete_endpoint):
        assert _refused(call, EndpointName="gone") == (invalid, f'Could not find endpoint "{arn}:endpoint/gone".')
    assert _refused(sagemaker.create_endpoint, EndpointName="e", EndpointConfigName="gone")[0] == invalid
    container = {"Image": PYTORCH, "ModelDataUrl": f"s3://{BUCKET}/x"}
    assert _refused(sagemaker.create_model, ModelName="words", PrimaryContainer=container, ExecutionRoleArn=ROLE) == (
        invalid,
        f'Cannot create already existing model "{arn}:model/words".',
    )
    code, message = _refused(sagemaker.create_endpoint, EndpointName="-bad-", EndpointConfigName="words")
    assert code == invalid
    assert message.startswith("1 validation error detected: Value '-bad-' at 'endpointName' failed to satisfy")
    code, message = _refused(
        sagemaker.create_model,
        ModelName="other",
        PrimaryContainer={**container, "Image": "1.dkr.ecr.us-west-2.amazonaws.com/xgboost:1"},
        ExecutionRoleArn=ROLE,
    )
    assert (code, "cannot serve image" in message) == (invalid, True)


def test_operations_of_the_second_slice_are_refused_by_name(client: Client) -> None:
    client.deploy("second")
    weights = [{"VariantName": "second", "DesiredWeight": 2.0}]
    code, message = _refused(
        client.sagemaker.update_endpoint_weights_and_capacities,
        EndpointName="second",
        DesiredWeightsAndCapacities=weights,
    )
    assert (code, "UpdateEndpointWeightsAndCapacities" in message) == ("ValidationException", True)
    code, message = _refused(
        client.runtime.invoke_endpoint_async, EndpointName="second", InputLocation=f"s3://{BUCKET}/x"
    )
    assert (code, "InvokeEndpointAsync" in message) == ("ValidationException", True)


def test_captured_data_are_in_s3_in_sagemakers_schema(client: Client) -> None:
    client.create_model("captured")
    capture = {
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"s3://{BUCKET}/capture",
        "CaptureOptions": [{"CaptureMode": "InputAndOutput"}],
        "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
    }
    client.create_config("captured", "captured", capture=capture)
    client.sagemaker.create_endpoint(EndpointName="captured", EndpointConfigName="captured")
    description = client.settled("captured")
    assert description["DataCaptureConfig"]["CaptureStatus"] == "Started"
    client.invoke("captured", b'{"a": 1}', ContentType="application/json", InferenceId="mine")
    with pytest.raises(client.runtime.exceptions.ModelError):
        client.invoke("captured", b"error")
    client.invoke("captured", b"\xff", ContentType="image/jpeg")
    now = datetime.now(UTC)
    events = client.captured(f"capture/captured/captured/{now:%Y}", 2)
    assert [event["captureData"]["endpointInput"]["data"] for event in events] == ['{"a": 1}', "/w=="]
    assert events[0]["captureData"]["endpointOutput"]["observedContentType"] == "text/plain"
    assert events[0]["eventMetadata"]["inferenceId"] == "mine"


def test_metrics_and_output_are_in_cloudwatch(client: Client) -> None:
    client.deploy("watched")
    for body in (b"", b"", b"error"):
        if body:
            with pytest.raises(client.runtime.exceptions.ModelError):
                client.invoke("watched", body, ContentType="text/plain")
        else:
            client.invoke("watched")

    def read() -> dict[str, float]:
        now = datetime.now(UTC)
        sums = {}
        for name in ("Invocations", "Invocation4XXErrors", "Invocation5XXErrors", "ModelLatency"):
            answer = client.cloudwatch.get_metric_statistics(
                Namespace="AWS/SageMaker", MetricName=name, Period=3600, Statistics=["Sum"],
                Dimensions=[{"Name": "EndpointName", "Value": "watched"}, {"Name": "VariantName", "Value": "watched"}],
                StartTime=now - timedelta(minutes=5), EndTime=now + timedelta(minutes=5),
            )  # fmt: skip
            sums[name] = sum(point["Sum"] for point in answer["Datapoints"])
        return sums

    sums = wait_for(read, lambda sums: sums["Invocations"] == 3)
    assert (sums["Invocation4XXErrors"], sums["Invocation5XXErrors"]) == (0, 1)
    assert 0 < sums["ModelLatency"] < 10e6

    def lines() -> list[str]:
        group = "/aws/sagemaker/Endpoints/watched"
        streams = [each["logStreamName"] for each in client.logs.describe_log_streams(logGroupName=group)["logStreams"]]
        assert [name.startswith("watched/i-") for name in streams] == [True]
        events = client.logs.get_log_events(logGroupName=group, logStreamName=streams[0])["events"]
        return [event["message"] for event in events]

    assert wait_for(lines, bool)[-1] == "ValueError: the model does not like this"


def test_killed_process_is_started_again(client: Client) -> None:
    client.deploy("killed")
    (pid,) = _pids(client, "killed")
    os.kill(pid, signal.SIGKILL)
    errors = set()

    def call() -> bytes | None:
        try:
            return client.invoke("killed")
        except ClientError as error:
            errors.add(error.response["Error"]["Code"])
            return None

    # The process may still be dying when the first answer comes.
    wait_for(lambda: _pids(client, "killed"), lambda pids: pids not in ([pid], [None]))
    assert wait_for(call, bool) == b"killed"
    assert errors <= {"ModelError", "ServiceUnavailable"}
    assert client.sagemaker.describe_endpoint(EndpointName="killed")["EndpointStatus"] == "InService"


def test_fifty_invocations_at_once_are_all_answered(client: Client) -> None:
    client.create_model("many")
    client.create_config("many", "many", InitialInstanceCount=2)
    client.sagemaker.create_endpoint(EndpointName="many", EndpointConfigName="many")
    client.settled("many")
    assert len(set(_pids(client, "many"))) == 2
    start = threading.Barrier(50)

    def call() -> bytes:
        start.wait()
        return client.invoke("many")

    with ThreadPoolExecutor(max_workers=50) as pool:
        answers = [future.result() for future in [pool.submit(call) for _ in range(50)]]
    assert answers == [b"many"] * 50


def test_endpoint_may_be_deleted_while_it_is_created(client: Client) -> None:
    client.create_model("slow", code="import time\ndef model_fn(model_dir): time.sleep(60)")
    client.create_config("slow", "slow")
    client.sagemaker.create_endpoint(EndpointName="slow", EndpointConfigName="slow")
    assert client.sagemaker.describe_endpoint(EndpointName="slow")["EndpointStatus"] == "Creating"
    code, _ = _refused(client.sagemaker.update_endpoint, EndpointName="slow", EndpointConfigName="slow")
    assert code == "ValidationException"
    client.delete("slow")
    assert not [each for each in psutil.Process().children(recursive=True) if "handlers.py" in " ".join(each.cmdline())]


def test_model_sees_the_local_credentials_and_what_its_container_sets(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the user's own")
    code = """
import json, os
def model_fn(model_dir): return dict(os.environ)
def transform_fn(model, body, content_type, accept): return json.dumps(model), accept
"""
    client.deploy("seen", code=code, Environment={"MY_SETTING": "1", "AWS_ACCESS_KEY_ID": "theirs"})
    seen = json.loads(client.invoke("seen"))
    assert seen["MY_SETTING"] == "1"
    assert seen["AWS_ENDPOINT_URL"] == client.server.url
    assert seen["AWS_ACCESS_KEY_ID"] == client.server.client_environment()["AWS_ACCESS_KEY_ID"]
    assert "AWS_SESSION_TOKEN" not in seen
    assert "DOGBREED_DATA_DIR" not in seen


def test_slow_model_and_instance_limit_have_awss_errors(tmp_path: Path) -> None:
    hosting = HostingSettings(invocation_timeout_s=0.2, max_instances=1, ping_timeout_s=20)
    code = """
import time
def model_fn(model_dir): return None
def transform_fn(model, body, content_type, accept): time.sleep(2)
"""
    with serving(tmp_path, hosting=hosting) as client:
        client.deploy("sleepy", code=code)
        with pytest.raises(client.runtime.exceptions.ModelError, match="Your invocation timed out while waiting"):
            client.invoke("sleepy")
        code, message = _refused(client.sagemaker.create_endpoint, EndpointName="two", EndpointConfigName="sleepy")
        assert code == "ResourceLimitExceeded"
        assert "'ml.m5.large for endpoint usage' is 1 Instances" in message


def test_server_that_ends_leaves_no_process_and_a_failed_endpoint(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.deploy("orphan")
        (pid,) = _pids(client, "orphan")
    assert not psutil.pid_exists(pid)
    with serving(tmp_path, hosting=FAST) as client:
        description = client.sagemaker.describe_endpoint(EndpointName="orphan")
        assert description["EndpointStatus"] == "Failed"
        assert "has ended" in description["FailureReason"]
        client.delete("orphan")
        assert client.deploy("orphan-2")["EndpointStatus"] == "InService"


def test_requirements_of_a_model_are_installed_for_it_alone(client: Client, tmp_path: Path) -> None:
    package = tmp_path / "tiny-1.0-py3-none-any.whl"
    _write_wheel(package, "tiny_requirement", "ANSWER = 'installed'\n")
    code = """
import os, sys, tiny_requirement
def model_fn(model_dir): return tiny_requirement.ANSWER
def transform_fn(model, body, content_type, accept): return model, accept
"""
    archive = pack({"code/inference.py": code, "code/requirements.txt": f"{package}\n"})
    client.s3.put_object(Bucket=BUCKET, Key="requires.tar.gz", Body=archive)
    container = {"Image": PYTORCH, "ModelDataUrl": f"s3://{BUCKET}/requires.tar.gz"}
    client.sagemaker.create_model(ModelName="requires", PrimaryContainer=container, ExecutionRoleArn=ROLE)
    client.create_config("requires", "requires")
    client.sagemaker.create_endpoint(EndpointName="requires", EndpointConfigName="requires")
    assert "FailureReason" not in client.settled("requires")
    assert client.invoke("requires") == b"installed"
    assert importlib.util.find_spec("tiny_requirement") is None


def _write_wheel(path: Path, module: str, code: str) -> None:
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}.py", code)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{module}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
