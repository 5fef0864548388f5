"""InvokeEndpoint through plain boto3: what reaches the model, what comes back, and what is written down of it."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from endpointmodels import BUCKET, Client, refused, serving, wait_for

from sagemaker_jobs.local.hosting import HostingSettings


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
    code, message = refused(client.runtime.invoke_endpoint, EndpointName="weighted", Body=b"", TargetVariant="nobody")
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
    with pytest.raises(client.runtime.exceptions.ModelError) as caught:
        client.invoke("errors", ContentType="text/refused")
    error = caught.value.response
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
    code_and_message = refused(client.runtime.invoke_endpoint, EndpointName="limits", Body=b"x" * (megabytes_6 + 1))
    assert code_and_message[0] == "ValidationError"
    assert "length less than or equal to 6291456" in code_and_message[1]
    with pytest.raises(client.runtime.exceptions.ModelError, match="The response is larger than 6291456 bytes"):
        client.invoke("limits", Accept=f"n/{megabytes_6 + 1}")


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


def test_fifty_invocations_at_once_are_all_answered(client: Client) -> None:
    client.create_model("many")
    client.create_config("many", "many", InitialInstanceCount=2)
    client.sagemaker.create_endpoint(EndpointName="many", EndpointConfigName="many")
    client.settled("many")
    assert len(set(client.pids("many"))) == 2
    start = threading.Barrier(50)

    def call() -> bytes:
        start.wait()
        return client.invoke("many")

    with ThreadPoolExecutor(max_workers=50) as pool:
        answers = [future.result() for future in [pool.submit(call) for _ in range(50)]]
    assert answers == [b"many"] * 50


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
    assert seen["AWS_ACCESS_KEY_ID"] == client.server.container_environment()["AWS_ACCESS_KEY_ID"]
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
        code, message = refused(client.sagemaker.create_endpoint, EndpointName="two", EndpointConfigName="sleepy")
        assert code == "ResourceLimitExceeded"
        assert "'ml.m5.large for endpoint usage' is 1 Instances" in message
