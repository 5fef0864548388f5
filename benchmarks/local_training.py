"""How soon a training job of the local SageMaker runs, and what 200 of them leave behind in its server."""

import io
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil

from benchmarks.processes import anon_bytes
from benchmarks.results import BenchmarkError, Goal, Result, each
from benchmarks.settings import Settings
from sagemaker_jobs.local.fixture import RunningServer, start_server, stop_server

_SCRIPT = "import os, time\nopen(os.environ['SM_OUTPUT_DATA_DIR'] + '/first', 'w').write(repr(time.time()))\n"
_BUCKET = "benchmark-training"
_IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:2.6-cpu-py312"
_DEADLINE_S = 900.0
_POLL_S = 0.02
_MIB = 2**20


def measure(settings: Settings) -> Result:
    """20 jobs one after the other, then 200 handed in at once, all over HTTP to a server process of its own."""
    num_alone, num_many = (3, 10) if settings.is_quick else (20, 200)
    server = start_server(settings.folder("local-training"))
    try:
        starts, ends = _one_by_one(server, num_alone)
        memory_mib, wall_s, num_lost, num_zombies = _many(server, num_many)
    finally:
        stop_server(server)
    figures = (
        each("create_training_job to the script's first line", starts, "s", goal=Goal("at most", 1.0)),
        each("create_training_job until it is Completed", ends, "s"),
        each(f"{num_many} jobs handed in at once, per job", [wall_s / num_many], "s"),
        each(f"jobs of {num_many} that did not complete", [num_lost], "", goal=Goal("at most", 0)),
        each("zombie processes after them", [num_zombies], "", goal=Goal("at most", 0)),
        each(f"the server's memory after {num_many} jobs / before", [memory_mib[1] / memory_mib[0]], "x"),
        each("the server's memory before", [memory_mib[0]], "MiB"),
    )
    notes = (
        "A script without imports, no input channels, the source archive from S3; the client is boto3 in this process.",
        "What grows with each job is its record, its logs and its artifacts, all of which moto and the server keep.",
    )
    return Result("local_training", "training jobs of the local SageMaker", figures, notes)


def _one_by_one(server: RunningServer, num_jobs: int) -> tuple[list[float], list[float]]:
    client, s3 = server.client("sagemaker"), server.client("s3")
    s3.create_bucket(Bucket=_BUCKET, CreateBucketConfiguration={"LocationConstraint": client.meta.region_name})
    s3.put_object(Bucket=_BUCKET, Key="source.tar.gz", Body=_archive("train.py", _SCRIPT))
    starts, ends = [], []
    for number in range(num_jobs):
        name, before = f"alone-{number}", time.time()
        client.create_training_job(**_request(name))
        _wait(client, name)
        ends.append(client.describe_training_job(TrainingJobName=name)["TrainingEndTime"].timestamp() - before)
        answer = s3.get_object(Bucket=_BUCKET, Key=f"output/{name}/output/output.tar.gz")
        starts.append(float(_member(answer["Body"].read(), "first")) - before)
    client.close()
    s3.close()
    return starts, ends


def _many(server: RunningServer, num_jobs: int) -> tuple[tuple[float, float], float, int, int]:
    """(the server's memory before and after), seconds in all, jobs lost, zombies."""
    client = server.client("sagemaker")
    names = [f"many-{number}" for number in range(num_jobs)]
    before, start = _memory_mib(server), monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: client.create_training_job(**_request(name)), names))
    lost = sum(_wait(client, name) != "Completed" for name in names)
    wall_s = monotonic() - start
    zombies = [each for each in _tree(server) if each.status() == psutil.STATUS_ZOMBIE]
    client.close()
    return (before, _memory_mib(server)), wall_s, lost, len(zombies)


def _wait(client: Any, name: str) -> str:
    deadline = monotonic() + _DEADLINE_S
    while True:
        status = str(client.describe_training_job(TrainingJobName=name)["TrainingJobStatus"])
        if status in ("Completed", "Failed", "Stopped"):
            return status
        if monotonic() > deadline:
            raise BenchmarkError(f"Training job {name} is {status} after {_DEADLINE_S:.0f} s.")
        sleep(_POLL_S)


def _memory_mib(server: RunningServer) -> float:
    size = anon_bytes(server.process.pid)
    if size is None:
        raise BenchmarkError("The server's memory cannot be read: it is gone, or the system has no /proc.")
    return size / _MIB


def _tree(server: RunningServer) -> list[psutil.Process]:
    return [*server.process_tree(), *psutil.Process().children(recursive=True)]


def _request(name: str) -> dict[str, Any]:
    return {
        "TrainingJobName": name,
        "RoleArn": "arn:aws:iam::123456789012:role/benchmark",
        "AlgorithmSpecification": {"TrainingImage": _IMAGE, "TrainingInputMode": "File"},
        "HyperParameters": {
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": f"s3://{_BUCKET}/source.tar.gz",
        },
        "OutputDataConfig": {"S3OutputPath": f"s3://{_BUCKET}/output"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    }


def _archive(name: str, text: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
    return content.getvalue()


def _member(content: bytes, name: str) -> str:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        file = archive.extractfile(Path(name).as_posix())
        if file is None:
            raise BenchmarkError(f"output.tar.gz has no {name}.")
        return file.read().decode()
