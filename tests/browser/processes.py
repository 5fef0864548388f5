"""What a person has running: a search that the project itself made, and MLflow's server with its UI on it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SEARCH_TIMEOUT_S = 240
SERVER_TIMEOUT_S = 120
STOP_TIMEOUT_S = 15


def run_search(project_dir: Path, *flags: str) -> dict[str, Any]:
    """Runs `dogbreed tune FLAGS --json` in a project folder and returns what it answered."""
    command = [sys.executable, "-m", "dogbreed_ml", "tune", *flags, "--json"]
    process = subprocess.run(
        command, cwd=project_dir, env=_environment(), capture_output=True, text=True, timeout=SEARCH_TIMEOUT_S
    )
    assert process.returncode == 0, process.stderr
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


@contextmanager
def serve_ui(project_dir: Path) -> Iterator[str]:
    """Serves the MLflow UI on a project's store; yields its address, which ends with a slash."""
    url = f"http://127.0.0.1:{_free_port()}/"
    log_path = project_dir / "server.log"
    where = ["--backend-store-uri", f"sqlite:///{project_dir / 'mlflow.db'}", "--host", "127.0.0.1"]
    command = [sys.executable, "-m", "mlflow", "server", *where, "--port", url.split(":")[-1][:-1], "--workers", "1"]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=project_dir,
            # Without its job workers, seven processes that a page of runs does not use.
            env={**_environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for_health(process, url, log_path)
        yield url
    finally:
        _stop_group(process)


def _environment() -> dict[str, str]:
    """The machine's own, but no tracking store, credentials or proxy of its user, and no usage data sent."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "AWS_")) and not name.lower().endswith("_proxy")
    }
    python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": python_path, "MLFLOW_DISABLE_TELEMETRY": "true", "NO_PROXY": "127.0.0.1,localhost"}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for_health(process: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + SERVER_TIMEOUT_S
    while True:
        try:
            with opener.open(f"{url}health", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError):
            waits = process.poll() is None and time.monotonic() < deadline
            assert waits, f"MLflow's server did not come up: {log_path.read_text()[-2000:]}"
            time.sleep(0.1)


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """Ends the server with the workers that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_TIMEOUT_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
