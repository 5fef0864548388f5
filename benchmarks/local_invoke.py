"""What InvokeEndpoint of the local SageMaker adds to calling the server behind the endpoint."""

import io
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from time import perf_counter
from typing import Any

from benchmarks.results import BenchmarkError, Figure, Goal, Result, each
from benchmarks.settings import Settings
from sagemaker_jobs.local.service import LocalSageMaker
from sagemaker_jobs.local.service import Settings as ServerSettings

_MODEL = """
def model_fn(model_dir):
    return None
def transform_fn(model, body, content_type, accept):
    return b"boxer", "text/plain"
"""
_BUCKET = "benchmark-invoke"
_IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"
_CAPTURE = {
    "InitialSamplingPercentage": 100,
    "DestinationS3Uri": f"s3://{_BUCKET}/captured",
    "CaptureOptions": [{"CaptureMode": "InputAndOutput"}],
}
_PHOTOGRAPH_BYTES = 100_000
_DEADLINE_S = 60.0


def measure(settings: Settings) -> Result:
    """Pairs of calls, one straight to the server and one through boto3, for a small and a photograph's payload."""
    count = 5 if settings.is_quick else 20
    folder = settings.folder("local-invoke")
    figures: list[Figure] = []
    path = settings.environment.get("PATH", "")
    with (
        LocalSageMaker(folder / "server", settings=ServerSettings(environment={"PATH": path})) as server,
        closing(_client(server.url, "sagemaker")) as sagemaker,
        closing(_client(server.url, "sagemaker-runtime")) as runtime,
    ):
        with closing(_client(server.url, "s3")) as s3:
            s3.create_bucket(Bucket=_BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
            s3.put_object(Bucket=_BUCKET, Key="model.tar.gz", Body=pack(_MODEL))
        for name, options in (("plain", {}), ("captured", {"DataCaptureConfig": _CAPTURE})):
            created_s = _deploy(sagemaker, name, options)
            url = server.endpoints.servers(name)[0]["url"]
            if name == "plain":
                figures.append(each("CreateEndpoint until InService", [created_s], "s"))
                figures += _figures("100 bytes", url, runtime, name, b"x" * 100, count)
                figures += _figures("100 kB", url, runtime, name, b"x" * _PHOTOGRAPH_BYTES, count)
            else:
                figures += _figures("100 kB, all captured", url, runtime, name, b"x" * _PHOTOGRAPH_BYTES, count)
    notes = (
        f"{count} pairs each, after 5 that do not count; the model answers at once, both connections are kept.",
        "boto3's own work, signing and parsing, is in what InvokeEndpoint adds.",
    )
    return Result("local_invoke", "what InvokeEndpoint adds", tuple(figures), notes)


def _client(url: str, service: str) -> Any:
    import boto3

    session = boto3.session.Session(aws_access_key_id="local", aws_secret_access_key="local", region_name="us-west-2")
    return session.client(service, endpoint_url=url)


def pack(code: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo("code/inference.py")
        member.size = len(code.encode())
        archive.addfile(member, io.BytesIO(code.encode()))
    return buffer.getvalue()


def _deploy(sagemaker: Any, name: str, options: dict[str, Any]) -> float:
    """Seconds until the endpoint is in service."""
    sagemaker.create_model(
        ModelName=name,
        PrimaryContainer={"Image": _IMAGE, "ModelDataUrl": f"s3://{_BUCKET}/model.tar.gz"},
        ExecutionRoleArn="arn:aws:iam::123456789012:role/sagemaker",
    )
    variant = {"VariantName": "v", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], **options)
    start = perf_counter()
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    deadline = time.monotonic() + _DEADLINE_S
    while (status := sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"]) == "Creating":
        if time.monotonic() > deadline:
            raise BenchmarkError(f"The endpoint is still {status} after {_DEADLINE_S:.0f} s.")
        time.sleep(0.005)
    if status != "InService":
        raise BenchmarkError(f"The endpoint must be InService, got {status}.")
    return perf_counter() - start


def _figures(label: str, url: str, runtime: Any, name: str, body: bytes, count: int) -> list[Figure]:
    """The two calls of each pair follow each other, so that what slows one slows both."""
    import urllib3

    with urllib3.PoolManager() as pool:

        def straight() -> bytes:
            return pool.request("POST", f"{url}/invocations", body=body, headers={"Content-Type": "image/jpeg"}).data

        def invoke() -> bytes:
            answer = runtime.invoke_endpoint(EndpointName=name, Body=body, ContentType="image/jpeg")
            content: bytes = answer["Body"].read()
            return content

        for _ in range(5):
            straight()
            invoke()
        pairs = [(_milliseconds(straight), _milliseconds(invoke)) for _ in range(count)]
    added = [through - direct for direct, through in pairs]
    return [
        each(f"{label}: the server behind the endpoint", [direct for direct, _ in pairs], "ms"),
        each(f"{label}: added by InvokeEndpoint", added, "ms", goal=Goal("at most", 4)),
    ]


def _milliseconds(call: Callable[[], bytes]) -> float:
    start = perf_counter()
    answer = call()
    seconds = perf_counter() - start
    if answer != b"boxer":
        raise BenchmarkError(f"The model of the benchmark must answer boxer, got {answer[:80]!r}.")
    return seconds * 1000
