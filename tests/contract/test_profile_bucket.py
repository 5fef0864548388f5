"""A SageMaker job's profiler files in a bucket of moto's server, reached through AWS_ENDPOINT_URL."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from profilerfiles import steps, write_machine, write_trace

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.errors import DataError
from dogbreed_ml.pipeline.profiled import judge_source


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    try:
        # moto keeps its buckets for the life of the process.
        urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
        client = boto3.session.Session().client("s3")
        client.create_bucket(Bucket="jobs")
        yield client
        client.close()
    finally:
        server.stop()


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
