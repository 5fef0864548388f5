"""What the local SageMaker adds to each training job of a tuning job, beside the script alone."""

import io
import subprocess
import sys
import tarfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.results import BenchmarkError, Goal, Result, each
from benchmarks.settings import Settings
from sagemaker_jobs.local.service import LocalSageMaker
from sagemaker_jobs.local.service import Settings as ServerSettings

_SCRIPT = """
import sys
values = dict(zip(sys.argv[1::2], sys.argv[2::2]))
for epoch in range(3):
    print(f"epoch={epoch} accuracy={float(values['--lr']) * (epoch + 1)}", flush=True)
"""
_BUCKET = "benchmark-tuning"
_IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:2.6-cpu-py312"
_DEADLINE_S = 600.0
_POLL_S = 0.005


def measure(settings: Settings) -> Result:
    """A tuning job of 20 training jobs, one after the other, for two strategies; and the same jobs without a tuner."""
    num_jobs = 4 if settings.is_quick else 20
    folder = settings.folder("local-tuning")
    bare = _bare_seconds(folder, settings.environment.get("PATH", ""), num_jobs)
    server_settings = ServerSettings(environment={"PATH": settings.environment.get("PATH", "")})
    with LocalSageMaker(folder / "server", settings=server_settings) as server:
        client, s3 = _clients(server.url)
        program = _upload(s3)
        alone = _alone_seconds(client, program, num_jobs)
        costs = {name: _job_seconds(client, program, name, num_jobs) for name in ("Random", "Bayesian")}
        client.close()
        s3.close()
    script = median(bare)
    figures = [
        each("the script alone", bare, "s"),
        each("create_training_job until it is Completed", alone, "s"),
    ]
    for name, seconds in costs.items():
        overheads = [each_s - script for each_s in seconds]
        figures.append(
            each(f"{name}: added to each training job of a tuning job", overheads, "s", goal=Goal("at most", 0.5))
        )
    notes = (
        f"{num_jobs} training jobs, MaxParallelTrainingJobs 1, a script without imports that prints three values.",
        "What is added: from one training job's creation to the next one's, less the median of the script alone; "
        "download, upload, logs, metrics and the choice of the next values are in it.",
    )
    return Result("local_tuning", "the overhead of a tuning job's training jobs", tuple(figures), notes)


def _bare_seconds(folder: Path, path: str, count: int) -> list[float]:
    """The same script as a plain process."""
    script_path = folder / "train.py"
    script_path.write_text(_SCRIPT)
    seconds = []
    for _ in range(count):
        start = perf_counter()
        subprocess.run(
            [sys.executable, str(script_path), "--lr", "0.1"], env={"PATH": path}, capture_output=True, check=True
        )
        seconds.append(perf_counter() - start)
    return seconds


def _clients(url: str) -> tuple[Any, Any]:
    import boto3

    session = boto3.session.Session(aws_access_key_id="local", aws_secret_access_key="local", region_name="us-west-2")
    return session.client("sagemaker", endpoint_url=url), session.client("s3", endpoint_url=url)


def _upload(s3: Any) -> dict[str, str]:
    """The hyperparameters of script mode."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo("train.py")
        member.size = len(_SCRIPT.encode())
        tar.addfile(member, io.BytesIO(_SCRIPT.encode()))
    s3.create_bucket(Bucket=_BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    s3.put_object(Bucket=_BUCKET, Key="sourcedir.tar.gz", Body=archive.getvalue())
    return {"sagemaker_program": "train.py", "sagemaker_submit_directory": f"s3://{_BUCKET}/sourcedir.tar.gz"}


def _definition() -> dict[str, Any]:
    """What CreateTrainingJob and a tuning job's definition share."""
    return {
        "AlgorithmSpecification": {
            "TrainingImage": _IMAGE,
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "accuracy", "Regex": "accuracy=([0-9.]+)"}],
        },
        "RoleArn": "arn:aws:iam::123456789012:role/sagemaker",
        "OutputDataConfig": {"S3OutputPath": f"s3://{_BUCKET}/output"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
    }


def _alone_seconds(client: Any, program: dict[str, str], count: int) -> list[float]:
    seconds = []
    for number in range(count):
        name = f"alone-{number}"
        start = perf_counter()
        client.create_training_job(TrainingJobName=name, HyperParameters={**program, "lr": "0.1"}, **_definition())
        _wait(lambda name=name: client.describe_training_job(TrainingJobName=name)["TrainingJobStatus"])
        seconds.append(perf_counter() - start)
    return seconds


def _job_seconds(client: Any, program: dict[str, str], strategy: str, count: int) -> list[float]:
    """From the creation of each training job to the next one's, and of the last to the tuning job's end."""
    name = f"bench-{strategy.lower()}"
    ranges = {"ContinuousParameterRanges": [{"Name": "lr", "MinValue": "0.001", "MaxValue": "1"}]}
    client.create_hyper_parameter_tuning_job(
        HyperParameterTuningJobName=name,
        HyperParameterTuningJobConfig={
            "Strategy": strategy,
            "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "accuracy"},
            "ResourceLimits": {"MaxNumberOfTrainingJobs": count, "MaxParallelTrainingJobs": 1},
            "ParameterRanges": ranges,
            "RandomSeed": 0,
        },
        TrainingJobDefinition={**_definition(), "StaticHyperParameters": program},
    )
    key = {"HyperParameterTuningJobName": name}
    _wait(lambda: client.describe_hyper_parameter_tuning_job(**key)["HyperParameterTuningJobStatus"])
    pages = client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(**key)
    jobs = [job for page in pages for job in page["TrainingJobSummaries"]]
    if len(jobs) != count or any(job["TrainingJobStatus"] != "Completed" for job in jobs):
        raise BenchmarkError(f"{name}: {count} training jobs must be Completed, got {jobs}.")
    end = client.describe_hyper_parameter_tuning_job(**key)["HyperParameterTuningEndTime"]
    moments = [*sorted(job["CreationTime"] for job in jobs), end]
    return [(after - before).total_seconds() for before, after in pairwise(moments)]


def _wait(status: Any) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while (now := status()) not in ("Completed", "Failed", "Stopped"):
        if time.monotonic() > deadline:
            raise BenchmarkError(f"A job is still {now} after {_DEADLINE_S:.0f} s.")
        time.sleep(_POLL_S)
    if now != "Completed":
        raise BenchmarkError(f"A job of the benchmark must be Completed, got {now}.")
