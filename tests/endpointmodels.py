"""A local SageMaker for tests of endpoints: model archives of a few lines, and the calls that each test makes."""

import contextlib
import io
import json
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.exceptions import ClientError

from sagemaker_jobs.local.hosting import HostingSettings
from sagemaker_jobs.local.service import LocalSageMaker, Settings

BUCKET = "endpoint-models"
PYTORCH = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"
ROLE = "arn:aws:iam::123456789012:role/sagemaker"
TIMEOUT_S = 30.0

Value = TypeVar("Value")

ECHO = """
import os
def model_fn(model_dir):
    return open(os.path.join(model_dir, "answer.txt")).read()
def transform_fn(model, body, content_type, accept):
    if body in (b"error", "error"):
        raise ValueError("the model does not like this")
    return model, "text/plain"
"""
"""Answers every request with the archive's answer.txt."""

FAST = HostingSettings(
    ping_timeout_s=20, invocation_timeout_s=10, publish_interval_s=0.1, alarm_interval_s=0.1, idle_alarm_interval_s=0.2
)


def pack(files: Mapping[str, str | bytes]) -> bytes:
    """A tar.gz with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Client:
    """boto3 clients of one server, and its usual calls in short."""

    def __init__(self, server: LocalSageMaker):
        self.server = server
        # Its own credentials: a fixture of a whole module is made before the test's environment is.
        session = boto3.session.Session(
            region_name="us-west-2", aws_access_key_id="testing", aws_secret_access_key="testing"
        )
        self.s3, self.sagemaker, self.runtime, self.cloudwatch, self.logs = (
            session.client(name, endpoint_url=server.url)
            for name in ("s3", "sagemaker", "sagemaker-runtime", "cloudwatch", "logs")
        )

    def close(self) -> None:
        for client in (self.s3, self.sagemaker, self.runtime, self.cloudwatch, self.logs):
            client.close()

    def create_model(self, name: str, *, code: str = ECHO, answer: str | None = None, **container: Any) -> None:
        """A model that answers with `answer`, by default its own name."""
        archive = pack({"code/inference.py": code, "answer.txt": answer or name})
        self.s3.put_object(Bucket=BUCKET, Key=f"{name}/model.tar.gz", Body=archive)
        primary = {"Image": PYTORCH, "ModelDataUrl": f"s3://{BUCKET}/{name}/model.tar.gz", **container}
        self.sagemaker.create_model(ModelName=name, PrimaryContainer=primary, ExecutionRoleArn=ROLE)

    def create_config(self, name: str, *models: str, capture: Mapping[str, Any] | None = None, **variant: Any) -> None:
        """An endpoint config with a variant for each model, of its name."""
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=name,
            ProductionVariants=[
                {
                    "VariantName": model, "ModelName": model,
                    "InstanceType": "ml.m5.large", "InitialInstanceCount": 1, **variant,
                }
                for model in models
            ],
            **({"DataCaptureConfig": dict(capture)} if capture else {}),
        )  # fmt: skip

    def deploy(self, name: str, **options: Any) -> dict[str, Any]:
        """Model, endpoint config and endpoint of one name; returns the endpoint's description when it has settled."""
        self.create_model(name, **options)
        self.create_config(name, name)
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        return self.settled(name)

    def settled(self, name: str) -> dict[str, Any]:
        """Waits until the endpoint is no longer being created or updated."""

        def describe() -> dict[str, Any]:
            answer: dict[str, Any] = self.sagemaker.describe_endpoint(EndpointName=name)
            return answer

        return wait_for(
            describe, lambda answer: answer["EndpointStatus"] not in ("Creating", "Updating", "RollingBack")
        )

    def delete(self, name: str) -> None:
        """Deletes the endpoint and waits until it is gone."""
        self.sagemaker.delete_endpoint(EndpointName=name)
        wait_for(
            lambda: [each["EndpointName"] for each in self.sagemaker.list_endpoints()["Endpoints"]],
            lambda names: name not in names,
        )

    def pids(self, name: str) -> list[int]:
        """The processes behind an endpoint."""
        return [each["pid"] for each in self.server.endpoints.servers(name)]

    def invoke(self, name: str, body: bytes = b"", **members: Any) -> bytes:
        answer = self.runtime.invoke_endpoint(EndpointName=name, Body=body, **members)
        content: bytes = answer["Body"].read()
        return content

    def captured(self, prefix: str, count: int) -> list[dict[str, Any]]:
        """The captured events below a prefix, as soon as there are `count`."""

        def read() -> list[dict[str, Any]]:
            keys = [each["Key"] for each in self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())]
            bodies = [self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys]
            return [json.loads(line) for body in bodies for line in body.splitlines()]

        return wait_for(read, lambda events: len(events) >= count)


def refused(call: Any, **params: Any) -> tuple[str, str]:
    """Code and message of the error with which a boto3 call is refused."""
    try:
        call(**params)
    except ClientError as error:
        told = error.response["Error"]
        return told["Code"], told["Message"]
    raise AssertionError(f"{params} was not refused")


def wait_for(look: Callable[[], Value], is_done: Callable[[Value], bool]) -> Value:
    """Looks until it is done; the last look's value."""
    deadline = time.monotonic() + TIMEOUT_S
    while not is_done(value := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {TIMEOUT_S:g} s; the last look saw {value}")
        time.sleep(0.02)
    return value


@contextmanager
def serving(root_dir: Path, *, hosting: HostingSettings = FAST, path: str = "") -> Iterator[Client]:
    """A server with the bucket of models; `path` is the PATH that its processes see."""
    settings = Settings(hosting=hosting, environment={"PATH": path} if path else {})
    with LocalSageMaker(root_dir, settings=settings) as server:
        client = Client(server)
        # moto keeps its buckets for the life of the process.
        with contextlib.suppress(client.s3.exceptions.BucketAlreadyOwnedByYou):
            client.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        try:
            yield client
        finally:
            client.close()
