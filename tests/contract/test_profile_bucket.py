"""A SageMaker job's profiler files in a bucket of moto's server, reached through AWS_ENDPOINT_URL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from profilerfiles import steps, write_machine, write_trace
from s3server import s3_client

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.errors import DataError
from dogbreed_ml.pipeline.profiled import judge_source


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_client(monkeypatch, bucket="jobs") as client:
        yield client


def test_a_jobs_files_are_judged_from_its_bucket(client: Any, tmp_path: Path) -> None:
    job_dir = tmp_path / "job"
    write_machine(job_dir, gpus={"gpu0": [3.0] * 1100}, cpus={"cpu0": [97.0] * 1100})
    write_trace(job_dir, steps([100_000] * 500))
    for path in job_dir.rglob("*.json"):
        client.upload_file(str(path), "jobs", f"job-1/profiler-output/{path.relative_to(job_dir).as_posix()}")
    context = Context(project_dir=tmp_path / "project")
    summary = judge_source("s3://jobs/job-1/profiler-output", ExperimentConfig(), context=context)
    assert {verdict.rule for verdict in summary.verdicts if verdict.status == "IssuesFound"} >= {"CPUBottleneck"}
    assert summary.figures["profiler/num_steps"] == 500
    with pytest.raises(DataError, match=r"has no files that end in \.csv, \.json, \.tfevents, \.ts\."):
        judge_source("s3://jobs/job-2", ExperimentConfig(), context=context)
