"""Serverless and asynchronous endpoints, and endpoints that are given other weights and counts while they answer."""

import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from endpointmodels import BUCKET, ECHO, Client, wait_for

from sagemaker_jobs.local.shapes import check_answer

WAITING = """
import os, time
def model_fn(model_dir): return None
def transform_fn(model, body, content_type, accept):
    if body in (b"error", "error"): raise ValueError("no dog at all")
    while body in (b"wait", "wait") and not os.path.exists(os.environ["GATE"]): time.sleep(0.01)
    return body if isinstance(body, bytes) else body.encode(), content_type
"""
"""Answers with what it was asked; `wait` once the file of $GATE is there."""


def _deploy(client: Client, name: str, *, variant: dict[str, Any], gate: Any = "", **config: Any) -> dict[str, Any]:
    client.create_model(name, code=WAITING, Environment={"GATE": str(gate)})
    client.sagemaker.create_endpoint_config(
        EndpointConfigName=name, ProductionVariants=[{"VariantName": name, "ModelName": name, **variant}], **config
    )
    client.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    description = client.settled(name)
    check_answer("sagemaker", "DescribeEndpoint", client.server.endpoints.describe_endpoint({"EndpointName": name}))
    return description


def _count(client: Client, name: str) -> int:
    return len({each["pid"] for each in client.server.endpoints.servers(name)} - {None})


def test_serverless_endpoint_answers_max_concurrency_at_once_and_throttles_the_rest(
    client: Client, tmp_path: Any
) -> None:
    serverless = {"MemorySizeInMB": 2048, "MaxConcurrency": 2}
    gate = tmp_path / "gate"
    description = _deploy(client, "few", variant={"ServerlessConfig": serverless}, gate=gate)
    (summary,) = description["ProductionVariants"]
    assert summary["CurrentServerlessConfig"] == serverless
    assert "CurrentInstanceCount" not in summary
    assert client.invoke("few", b"x", ContentType="text/plain") == b"x"
    session = boto3.session.Session(
        region_name="us-west-2", aws_access_key_id="testing", aws_secret_access_key="testing"
    )
    once = session.client(
        "sagemaker-runtime", endpoint_url=client.server.url, config=Config(retries={"total_max_attempts": 1})
    )
    with ThreadPoolExecutor(max_workers=3) as pool:
        calls = [
            pool.submit(once.invoke_endpoint, EndpointName="few", Body=b"wait", ContentType="text/plain")
            for _ in range(3)
        ]
        # Two wait for the gate: the one that is answered before was refused.
        refused = next(as_completed(calls))
        gate.touch()
    with pytest.raises(ClientError) as error:
        refused.result()
    assert error.value.response["Error"]["Code"] == "ThrottlingException"
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 429
    assert [call.result()["Body"].read() for call in calls if call is not refused] == [b"wait", b"wait"]
    once.close()
    client.sagemaker.update_endpoint_weights_and_capacities(
        EndpointName="few",
        DesiredWeightsAndCapacities=[{"VariantName": "few", "ServerlessUpdateConfig": {"MaxConcurrency": 5}}],
    )
    assert client.settled("few")["ProductionVariants"][0]["CurrentServerlessConfig"]["MaxConcurrency"] == 5


def test_asynchronous_endpoint_answers_in_s3(client: Client) -> None:
    output = {"S3OutputPath": f"s3://{BUCKET}/answers", "S3FailurePath": f"s3://{BUCKET}/failures/"}
    variant = {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    description = _deploy(client, "later", variant=variant, AsyncInferenceConfig={"OutputConfig": output})
    assert description["AsyncInferenceConfig"]["OutputConfig"] == output
    client.s3.put_object(Bucket=BUCKET, Key="asked/dog.jpg", Body=b"\xff\xd8 dog" * 2_000_000)
    client.s3.put_object(Bucket=BUCKET, Key="asked/none.jpg", Body=b"error")
    ask = client.runtime.invoke_endpoint_async
    good = ask(
        EndpointName="later", InputLocation=f"s3://{BUCKET}/asked/dog.jpg", ContentType="image/jpeg", InferenceId="mine"
    )
    bad = ask(EndpointName="later", InputLocation=f"s3://{BUCKET}/asked/none.jpg", ContentType="text/plain")
    gone = ask(EndpointName="later", InputLocation=f"s3://{BUCKET}/asked/gone.jpg")
    assert good["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert good["InferenceId"] == "mine"
    assert bad["InferenceId"] != gone["InferenceId"]
    assert good["OutputLocation"].startswith(f"s3://{BUCKET}/answers/")
    assert good["FailureLocation"].startswith(f"s3://{BUCKET}/failures/")

    # More than an invocation that waits may bring back.
    content, content_type = _written(client, good["OutputLocation"])
    assert (content, content_type) == (b"\xff\xd8 dog" * 2_000_000, "image/jpeg")
    assert b"no dog at all" in _written(client, bad["FailureLocation"])[0]
    assert b"gone.jpg could not be served" in _written(client, gone["FailureLocation"])[0]
    assert _keys(client, "answers/") == [good["OutputLocation"].partition(f"{BUCKET}/")[2]]
    with pytest.raises(ClientError, match="later is asynchronous; use InvokeEndpointAsync"):
        client.invoke("later")
    with pytest.raises(ClientError, match="must be at s3://BUCKET/KEY"):
        ask(EndpointName="later", InputLocation="https://elsewhere/x")


def _keys(client: Client, prefix: str) -> list[str]:
    return [each["Key"] for each in client.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())]


def _written(client: Client, uri: str) -> tuple[bytes, str]:
    key = uri.partition(f"{BUCKET}/")[2]
    wait_for(lambda: _keys(client, key), bool)
    answer = client.s3.get_object(Bucket=BUCKET, Key=key)
    return answer["Body"].read(), answer["ContentType"]


def test_asynchronous_requests_that_wait_go_with_their_endpoint(client: Client, tmp_path: Any) -> None:
    config = {
        "OutputConfig": {"S3OutputPath": f"s3://{BUCKET}/unanswered"},
        "ClientConfig": {"MaxConcurrentInvocationsPerInstance": 1},
    }
    variant = {"InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    _deploy(client, "dropped", variant=variant, gate=tmp_path / "never", AsyncInferenceConfig=config)
    client.s3.put_object(Bucket=BUCKET, Key="asked/wait", Body=b"wait")
    for _ in range(3):
        accepted = client.runtime.invoke_endpoint_async(
            EndpointName="dropped", InputLocation=f"s3://{BUCKET}/asked/wait", ContentType="text/plain"
        )
        assert "FailureLocation" not in accepted
    client.delete("dropped")
    assert _keys(client, "unanswered/") == []
    client.deploy("plain", code=ECHO)
    with pytest.raises(ClientError, match="plain is not asynchronous"):
        client.runtime.invoke_endpoint_async(EndpointName="plain", InputLocation=f"s3://{BUCKET}/asked/wait")


def test_weights_and_counts_change_while_every_call_is_answered(client: Client) -> None:
    for name in ("old", "new"):
        client.create_model(name)
    client.create_config("mixed", "old", "new")
    client.sagemaker.create_endpoint(EndpointName="mixed", EndpointConfigName="mixed")
    client.settled("mixed")
    ended, failed = threading.Event(), []

    def call() -> None:
        while not ended.is_set():
            try:
                client.invoke("mixed")
            except ClientError as error:
                failed.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        client.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName="mixed",
            DesiredWeightsAndCapacities=[
                {"VariantName": "old", "DesiredWeight": 0},
                {"VariantName": "new", "DesiredWeight": 1, "DesiredInstanceCount": 3},
            ],
        )
        answer = client.server.endpoints.describe_endpoint({"EndpointName": "mixed"})
        check_answer("sagemaker", "DescribeEndpoint", answer)
        description = client.settled("mixed")
        assert _count(client, "mixed") == 4
        assert {client.invoke("mixed") for _ in range(20)} == {b"new"}
        client.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName="mixed", DesiredWeightsAndCapacities=[{"VariantName": "new", "DesiredInstanceCount": 1}]
        )
        client.settled("mixed")
    finally:
        ended.set()
        caller.join()
    assert failed == []
    assert answer["EndpointStatus"] in ("Updating", "InService")
    assert answer["ProductionVariants"][1]["DesiredInstanceCount"] == 3
    counts = {each["VariantName"]: each["CurrentInstanceCount"] for each in description["ProductionVariants"]}
    assert counts == {"old": 1, "new": 3}
    assert _count(client, "mixed") == 2
    with pytest.raises(ClientError, match="no variants nobody"):
        client.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName="mixed", DesiredWeightsAndCapacities=[{"VariantName": "nobody", "DesiredWeight": 1}]
        )
    with pytest.raises(ClientError, match="request delta of 98 Instances"):
        client.sagemaker.update_endpoint_weights_and_capacities(
            EndpointName="mixed", DesiredWeightsAndCapacities=[{"VariantName": "new", "DesiredInstanceCount": 99}]
        )
    assert client.sagemaker.describe_endpoint(EndpointName="mixed")["EndpointStatus"] == "InService"


def test_instance_that_does_not_come_up_leaves_the_endpoint_as_it_was(client: Client, tmp_path: Any) -> None:
    code = """
import os
def model_fn(model_dir):
    if os.path.exists(os.environ["GATE"]): raise OSError("no room left")
def transform_fn(model, body, content_type, accept): return b"here", "text/plain"
"""
    client.deploy("full", code=code, Environment={"GATE": str(tmp_path / "gate")})
    (tmp_path / "gate").touch()
    more = [{"VariantName": "full", "DesiredInstanceCount": 3}]
    update = client.sagemaker.update_endpoint_weights_and_capacities
    update(EndpointName="full", DesiredWeightsAndCapacities=more)
    description = client.settled("full")
    assert description["EndpointStatus"] == "InService"
    assert "no room left" in description["FailureReason"]
    assert description["ProductionVariants"][0]["DesiredInstanceCount"] == 1
    assert _count(client, "full") == 1
    assert client.invoke("full") == b"here"
    # It is not in the way of the next one, nor of a deletion meanwhile.
    (tmp_path / "gate").unlink()
    update(EndpointName="full", DesiredWeightsAndCapacities=more)
    client.delete("full")
