"""A local SageMaker for tests: `pytest_plugins = ["sagemaker_jobs.local.fixture"]`, then ask for `local_sagemaker`.

A process of its own, for the whole session: neither its threads nor moto's buckets are those of the tests.
"""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from sagemaker_jobs.local import command

_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.02


@dataclass(frozen=True)
class RunningServer:
    """What a test needs to know of it."""

    url: str
    environment: dict[str, str]
    """AWS_ENDPOINT_URL and the like, for monkeypatch.setenv or a subprocess."""
    project_dir: Path
    process: "subprocess.Popen[bytes]"

    def process_tree(self) -> list[psutil.Process]:
        """The server and all that it runs, now."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def order_faults(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """POST /local/faults: the order as `Faults.apply` has it, `{}` for none; what is left of all, and the hits."""
        request = urllib.request.Request(f"{self.url}/local/faults", data=json.dumps(dict(order)).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            left: dict[str, Any] = json.loads(answer.read())
        return left

    def client(self, service: str) -> Any:
        """A boto3 client of it; close it in the test."""
        # Not at the top: every test session would wait for it.
        import boto3

        return boto3.client(
            service, endpoint_url=self.url, region_name=self.environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip


def start_server(project_dir: Path, *flags: str) -> RunningServer:
    """A child process on a free port; the caller ends it with stop_server()."""
    arguments = ["sagemaker-local", "start", "--foreground", "--port", "0", *flags]
    # The packages that this module belongs to, whether they are installed or lie in a checkout.
    root = str(Path(__file__).resolve().parents[2])
    program = (
        f"import sys; sys.path.insert(0, {root!r}); from dogbreed_ml.cli import main; sys.exit(main({arguments!r}))"
    )
    log_path = project_dir / "server.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=project_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while (server := command.find(project_dir)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise RuntimeError(f"The local SageMaker did not start: {log_path.read_text(errors='replace')[-2000:]}")
        time.sleep(_POLL_S)
    return RunningServer(server.url, dict(server.environment), project_dir, process)


def stop_server(server: RunningServer) -> None:
    """SIGTERM; SIGKILL where that is not enough."""
    server.process.terminate()
    try:
        server.process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def local_sagemaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for all tests: give jobs and buckets names of their own."""

    server = start_server(tmp_path_factory.mktemp("local-sagemaker"), "--stop-grace-s", "2")
    yield server
    stop_server(server)
