"""Training jobs for tests of the local SageMaker: tiny scripts, sent as a user would send them."""

import io
import tarfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3

from sagemaker_jobs.local.service import LocalSageMaker
from sagemaker_jobs.local.shapes import check_answer

ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"
IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:2.6-cpu-py312"
BUCKET = "dogs-bucket"
ENDED = ("Completed", "Failed", "Stopped")
REGION = "us-west-2"


# One for all tests: each session reads and parses SageMaker's model anew, 0.3 s.
_SESSION = boto3.session.Session(aws_access_key_id="testing", aws_secret_access_key="testing")


def make_client(server: LocalSageMaker, service: str = "sagemaker") -> Any:
    environment = server.client_environment()
    return _SESSION.client(service, endpoint_url=server.url, region_name=environment["AWS_DEFAULT_REGION"])


def make_bucket(server: LocalSageMaker, name: str = BUCKET) -> None:
    """Empty, whatever an earlier server of this process left in it: moto keeps its buckets."""
    s3 = server.cloud.s3
    if name in [each["Name"] for each in s3.list_buckets()["Buckets"]]:
        for key in server.cloud.keys(f"s3://{name}"):
            s3.delete_object(Bucket=name, Key=key)
        return
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})


def put_source(server: LocalSageMaker, files: Mapping[str, str | bytes], key: str = "sourcedir.tar.gz") -> str:
    """Uploads a source archive; returns its URI."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in files.items():
            data = text.encode() if isinstance(text, str) else text
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    server.cloud.s3.put_object(Bucket=BUCKET, Key=key, Body=content.getvalue())
    return f"s3://{BUCKET}/{key}"


def write_source(target: Path, script: str) -> Path:
    """A source archive of this script alone, as a file."""
    with tarfile.open(target, "w:gz") as archive:
        member = tarfile.TarInfo("train.py")
        member.size = len(script.encode())
        archive.addfile(member, io.BytesIO(script.encode()))
    return target


def job_request(name: str, source_uri: str, **changes: Any) -> dict[str, Any]:
    """A request for `train.py` of the source archive; `hyperparameters` are the script's own."""
    hyperparameters = {
        "sagemaker_program": "train.py",
        "sagemaker_submit_directory": source_uri,
        **changes.pop("hyperparameters", {}),
    }
    specification = {"TrainingImage": IMAGE, "TrainingInputMode": "File", **changes.pop("specification", {})}
    return {
        "TrainingJobName": name,
        "RoleArn": ROLE,
        "HyperParameters": hyperparameters,
        "AlgorithmSpecification": specification,
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/output"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        **changes,
    }


def run_script(server: LocalSageMaker, name: str, script: str, **changes: Any) -> dict[str, Any]:
    """Runs train.py to its end; the job's description."""
    server.training.create_training_job(job_request(name, put_source(server, {"train.py": script}), **changes))
    return wait_ended(server, name)


def describe(server: LocalSageMaker, name: str) -> dict[str, Any]:
    """DescribeTrainingJob, checked against botocore's model."""
    answer = server.training.describe_training_job({"TrainingJobName": name})
    check_answer("sagemaker", "DescribeTrainingJob", answer)
    return answer


def wait_ended(server: LocalSageMaker, name: str, timeout_s: float = 60.0) -> dict[str, Any]:
    return wait_until(server, name, lambda job: job["TrainingJobStatus"] in ENDED, timeout_s)


def wait_until(server: LocalSageMaker, name: str, condition: Any, timeout_s: float = 60.0) -> dict[str, Any]:
    """Waits until `condition` holds for the job's description; returns that."""
    if not server.records.wait_for(lambda: condition(describe(server, name)), timeout_s):
        raise AssertionError(f"{name} did not get there within {timeout_s} s: {describe(server, name)}")
    return describe(server, name)


def wait_for_log(server: LocalSageMaker, name: str, text: str, timeout_s: float = 30.0) -> None:
    """Waits until the job has printed `text`."""
    deadline = time.monotonic() + timeout_s
    while text not in read_log(server, name):
        if time.monotonic() > deadline:
            raise AssertionError(f"{name} did not print {text!r}: {read_log(server, name)!r}")
        time.sleep(0.02)


def read_log(server: LocalSageMaker, name: str) -> str:
    """What the job printed, from its log files."""
    paths = sorted(Path(server.root_dir, "logs", name).glob("*.log"))
    return "".join(path.read_text(encoding="utf-8") for path in paths)


def log_messages(server: LocalSageMaker, name: str) -> list[str]:
    """What the job printed, from CloudWatch Logs."""
    group = "/aws/sagemaker/TrainingJobs"
    streams = server.cloud.logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=f"{name}/")
    messages = []
    for stream in streams["logStreams"]:
        token: dict[str, str] = {}
        while True:
            page = server.cloud.logs.get_log_events(
                logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True, **token
            )
            messages += [event["message"] for event in page["events"]]
            if not page["events"]:
                break
            token = {"nextToken": page["nextForwardToken"]}
    return messages


def fetch_tar(server: LocalSageMaker, uri: str) -> dict[str, bytes]:
    """The files of a tar.gz in S3."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    content = server.cloud.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {}
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                files[member.name] = file.read()
    return files


def make_wheel(name: str) -> bytes:
    """A package with one constant, as pip takes it."""
    content = io.BytesIO()
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr(f"{name}.py", "NAME = 'Xolo'\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return content.getvalue()
