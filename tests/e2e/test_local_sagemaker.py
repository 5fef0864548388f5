"""`dogbreed sagemaker-local` as a user types it, and what a crash of the server leaves behind."""

import io
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from local_jobs import BUCKET, REGION, job_request

from sagemaker_jobs.local.fixture import RunningServer, start_server, stop_server

ROOT = Path(__file__).parents[2]
FOREVER = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
time.sleep(1000)
"""


def _dogbreed(project_dir: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dogbreed_ml", "sagemaker-local", *arguments]
    return subprocess.run(command, cwd=project_dir, env=environment, capture_output=True, text=True, timeout=120)


def _exports(text: str) -> dict[str, str]:
    """What a shell's `eval` makes of the output."""
    script = f"eval {shlex.quote(text)} && env -0"
    environment = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env={}).stdout
    return dict(line.split("=", 1) for line in environment.split("\0") if line.startswith("AWS_"))


def _client(environment: Mapping[str, str], service: str = "sagemaker") -> Any:
    return boto3.client(
        service, endpoint_url=environment["AWS_ENDPOINT_URL"], region_name=environment["AWS_DEFAULT_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"], aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip


def _start_job(environment: Mapping[str, str], name: str, script: str) -> None:
    """Plain boto3, as in a tutorial."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        member = tarfile.TarInfo("train.py")
        member.size = len(script)
        archive.addfile(member, io.BytesIO(script.encode()))
    s3, sagemaker = _client(environment, "s3"), _client(environment)
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket=BUCKET, Key="source.tar.gz", Body=content.getvalue())
    sagemaker.create_training_job(**job_request(name, f"s3://{BUCKET}/source.tar.gz"))
    s3.close()
    sagemaker.close()


def _printed(project_dir: Path, job: str) -> list[str]:
    """The words that a job has printed, as soon as there are any."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = _dogbreed(project_dir, "logs", job)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()
        time.sleep(0.1)
    raise AssertionError(f"{job} printed nothing: {done.stderr}")


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_gone(pids: list[int], timeout_s: float = 20.0) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while (left := [pid for pid in pids if _is_alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RunningServer]:
    server = start_server(tmp_path)
    yield server
    stop_server(server)


def test_command_starts_serves_and_stops(tmp_path: Path) -> None:
    started = _dogbreed(tmp_path, "start", "--port", "0")
    try:
        assert started.returncode == 0, started.stderr
        environment = _exports(started.stdout)
        assert set(environment) == {
            "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
        }  # fmt: skip
        assert environment["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
        assert '"' not in started.stdout
        assert "'" not in started.stdout
        again = _dogbreed(tmp_path, "start")
        assert again.stdout == started.stdout
        _start_job(environment, "greets", "print('hello', 'from', 'the', 'job')")
        assert _printed(tmp_path, "greets") == ["hello", "from", "the", "job"]
        assert f"running at {environment['AWS_ENDPOINT_URL']}" in _dogbreed(tmp_path, "status").stdout
        unknown = _dogbreed(tmp_path, "logs", "nobody")
        assert (unknown.returncode, unknown.stdout) == (2, "")
        assert "nobody is no training job with logs here; there are: greets." in unknown.stderr
    finally:
        stopped = _dogbreed(tmp_path, "stop")
    assert "is stopped" in stopped.stdout
    assert "not running\ntraining-job greets: Completed" in _dogbreed(tmp_path, "status").stdout
    assert _printed(tmp_path, "greets") == ["hello", "from", "the", "job"]
    assert "no local SageMaker runs" in _dogbreed(tmp_path, "stop").stdout


def test_command_that_cannot_start_says_why(tmp_path: Path, server: RunningServer) -> None:
    other = tmp_path / "other"
    other.mkdir()
    failed = _dogbreed(other, "start", "--port", server.url.rpartition(":")[2])
    assert failed.returncode == 1
    assert "did not start" in failed.stderr
    assert "cannot be listened on" in failed.stderr


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_server_that_ends_takes_its_jobs_along(tmp_path: Path, number: signal.Signals) -> None:
    server = start_server(tmp_path)
    try:
        _start_job(server.environment, "endless", FOREVER)
        pids = [int(word) for word in _printed(tmp_path, "endless")]
        family = [each.pid for each in server.process_tree()]
        assert set(pids) <= set(family)
        server.process.send_signal(number)
        server.process.wait(30)
        assert _wait_gone([*pids, *family]) == []
    finally:
        stop_server(server)
    assert "Failed" in _dogbreed(tmp_path, "status").stdout
    server = start_server(tmp_path)
    try:
        client = _client(server.environment)
        job = client.describe_training_job(TrainingJobName="endless")
        client.close()
        assert job["TrainingJobStatus"] == "Failed"
        assert "the local SageMaker ended while the job ran" in job["FailureReason"]
        assert _printed(tmp_path, "endless") == list(map(str, pids))
    finally:
        stop_server(server)


def test_address_that_is_not_loopback_is_warned_of(tmp_path: Path) -> None:
    server = start_server(tmp_path, "--host", "0.0.0.0")
    try:
        assert "0.0.0.0 is not loopback" in (tmp_path / "server.log").read_text()
        assert server.url.startswith("http://127.0.0.1:")
    finally:
        stop_server(server)


@pytest.mark.parametrize("name", ["shared-1", "shared-2"])
def test_session_fixture_is_one_server_for_all_tests(local_sagemaker: RunningServer, name: str) -> None:
    s3, client = local_sagemaker.client("s3"), local_sagemaker.client("sagemaker")
    buckets = [each["Name"] for each in s3.list_buckets()["Buckets"]]
    assert (name == "shared-2") == ("shared-1" in buckets)
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": client.meta.region_name})
    assert client.list_training_jobs()["TrainingJobSummaries"] == []
    s3.close()
    client.close()


def test_second_server_on_one_folder_is_refused(tmp_path: Path, server: RunningServer) -> None:
    refused = _dogbreed(tmp_path, "start", "--foreground", "--port", "0")
    assert refused.returncode == 2
    assert "runs for" in refused.stderr


@pytest.mark.parametrize("num_jobs", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_many_small_jobs_are_all_completed_and_leave_nothing(server: RunningServer, num_jobs: int) -> None:
    _start_job(server.environment, "warm-up", "print('done')")
    client = _client(server.environment)
    _wait_completed(client, 1)
    before = psutil.Process(server.process.pid).memory_info().rss
    for number in range(num_jobs):
        client.create_training_job(**job_request(f"small-{number}", f"s3://{BUCKET}/source.tar.gz"))
    _wait_completed(client, num_jobs + 1)
    client.close()
    assert [each for each in server.process_tree() if each.status() == psutil.STATUS_ZOMBIE] == []
    assert _wait_gone([each.pid for each in server.process_tree()[1:]]) == []
    # 200 jobs: their records, logs and artifacts, all in memory.
    assert psutil.Process(server.process.pid).memory_info().rss - before < 40 * 2**20


def _wait_completed(client: Any, num_jobs: int) -> None:
    deadline = time.monotonic() + 240
    while True:
        pages = client.get_paginator("list_training_jobs").paginate()
        statuses = [job["TrainingJobStatus"] for page in pages for job in page["TrainingJobSummaries"]]
        if statuses == ["Completed"] * num_jobs:
            return
        assert "Failed" not in statuses
        assert time.monotonic() < deadline, statuses
        time.sleep(0.1)


def test_help_loads_neither_torch_nor_moto() -> None:
    program = """
import contextlib, io, sys
from dogbreed_ml.cli import main
for arguments in (["--help"], ["sagemaker-local", "--help"], ["sagemaker-local", "status"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main(arguments)
print([name for name in ("torch", "moto", "boto3", "mlflow") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
