"""`dogbreed sagemaker-local`: one detached server per project folder, found again through a file in it.

Loads neither moto nor boto3 but in the server itself.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dogbreed_ml.errors import ConfigError, DataError
from dogbreed_ml.files import write_whole

logger = logging.getLogger(__name__)

FOLDER = Path(".dogbreed") / "sagemaker-local"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
_STATE_NAME = "server.json"
_LOG_NAME = "server.log"
_POLL_S = 0.02
_ENDED = ("Completed", "Failed", "Stopped")
# What jobs may see of the user's environment; pip's own settings, so that requirements.txt is found where pip finds it.
_PASSED_ON = (
    "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CERT", "PIP_TRUSTED_HOST",
    "SSL_CERT_FILE",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The flags of `start`."""

    host: str
    port: int
    """0 takes any free one."""
    num_parallel_jobs: int | None
    """None is the number of cores."""
    stop_grace_s: float
    skip_requirements: bool

    def to_flags(self) -> list[str]:
        flags = ["--host", self.host, "--port", str(self.port), "--stop-grace-s", str(self.stop_grace_s)]
        if self.num_parallel_jobs is not None:
            flags += ["--num-parallel-jobs", str(self.num_parallel_jobs)]
        return [*flags, *(["--skip-requirements"] if self.skip_requirements else [])]


@dataclass(frozen=True)
class Server:
    """A server that runs, as its file says."""

    pid: int
    created_s: float
    """When the process began, by the system's clock: a later process may have the same id."""
    url: str
    environment: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {"url": self.url, "pid": self.pid, "environment": dict(self.environment)}

    def render(self) -> str:
        """Lines for `eval`; no value holds a character that a shell would read otherwise."""
        return "\n".join(f"export {name}={value}" for name, value in self.environment.items())


@dataclass(frozen=True)
class Stopped:
    """What `stop` did."""

    url: str | None

    def to_dict(self) -> dict[str, Any]:
        return {"stopped": self.url is not None, "url": self.url}

    def render(self) -> str:
        return f"{self.url} is stopped" if self.url else "no local SageMaker runs for this folder"


@dataclass(frozen=True)
class Status:
    """Whether a server runs, and what the records say."""

    url: str | None
    resources: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    """Kind -> (name, status), by name."""

    def to_dict(self) -> dict[str, Any]:
        resources = {kind: dict(rows) for kind, rows in self.resources.items()}
        return {"running": self.url is not None, "url": self.url, "resources": resources}

    def render(self) -> str:
        lines = [f"running at {self.url}" if self.url else "not running"]
        for kind, rows in self.resources.items():
            lines += [f"{kind} {name}: {status}" for name, status in rows]
        return "\n".join(lines)


@dataclass(frozen=True)
class Logs:
    """What a training job printed, by log file."""

    job: str
    texts: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {"job": self.job, "logs": dict(self.texts)}

    def render(self) -> str:
        if len(self.texts) == 1:
            return next(iter(self.texts.values())).rstrip("\n")
        return "\n".join(f"==> {name} <==\n{text.rstrip()}" for name, text in self.texts.items())


def start(project_dir: Path, options: Options, environment: Mapping[str, str]) -> Server:
    """Starts a detached server, or finds the one that runs; returns once it answers. Raises DataError."""
    root_dir = project_dir / FOLDER
    root_dir.mkdir(parents=True, exist_ok=True)
    if running := find(project_dir):
        return running
    command = [sys.executable, "-m", "dogbreed_ml", "sagemaker-local", "start", "--foreground", *options.to_flags()]
    own = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
    own |= {name: value for name, value in environment.items() if name in ("AWS_DEFAULT_REGION", "AWS_REGION")}
    log_path = root_dir / _LOG_NAME
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=project_dir, env=own, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        if (server := find(project_dir)) and server.pid == process.pid:
            # It outlives this process; nobody will wait for it here.
            process.returncode = 0
            return server
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
            raise DataError(f"The local SageMaker did not start: {' '.join(lines[-3:])} ({log_path})")
        time.sleep(_POLL_S)


def serve(project_dir: Path, options: Options, environment: Mapping[str, str]) -> None:
    """Is the server, until KeyboardInterrupt; raises ConfigError where one runs already."""
    import filelock
    import psutil

    from sagemaker_jobs.local.service import LOOPBACK, LocalSageMaker, Settings

    root_dir = project_dir / FOLDER
    root_dir.mkdir(parents=True, exist_ok=True)
    region = environment.get("AWS_DEFAULT_REGION") or environment.get("AWS_REGION") or Settings.region
    settings = Settings(
        region=region,
        num_parallel_jobs=options.num_parallel_jobs or os.cpu_count() or 1,
        stop_grace_s=options.stop_grace_s,
        requirements="skip" if options.skip_requirements else "install",
        environment={name: environment[name] for name in _PASSED_ON if name in environment},
    )
    try:
        lock = filelock.FileLock(root_dir / "lock", timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise ConfigError(f"A local SageMaker runs for {project_dir} already; stop it first.") from error
    state_path = root_dir / _STATE_NAME
    try:
        with LocalSageMaker(root_dir, host=options.host, port=options.port, settings=settings) as server:
            if options.host not in LOOPBACK:
                logger.warning("%s is not loopback: whoever reaches it runs programs on this machine.", options.host)
            me = psutil.Process()
            state = {
                "pid": me.pid, "created_s": me.create_time(), "url": server.url,
                "environment": server.client_environment(),
            }  # fmt: skip
            write_whole(state_path, json.dumps(state))
            logger.info("local SageMaker at %s, state in %s", server.url, root_dir)
            threading.Event().wait()
    finally:
        state_path.unlink(missing_ok=True)
        lock.release()


def stop(project_dir: Path) -> Stopped:
    """SIGTERM, and SIGKILL where that does not end it; either way nothing of it is left."""
    import psutil

    server = find(project_dir)
    if server is None:
        return Stopped(None)
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(server.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except psutil.TimeoutExpired:
            logger.warning("The local SageMaker (process %d) ignores SIGTERM and is killed.", server.pid)
            process.kill()
            process.wait(STOP_TIMEOUT_S)
    return Stopped(server.url)


def status(project_dir: Path) -> Status:
    """Reads the records on disk; what a gone server left alive is said to have Failed, as the next one will write."""
    root_dir = project_dir / FOLDER
    server = find(project_dir)
    resources: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((root_dir / "records").glob("*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found = [value for name, value in record.items() if name.endswith("Status") and name != "ProfilingStatus"]
        state = str(record.get("TrainingJobStatus") or (found or [""])[0])
        if server is None and path.parent.name.endswith("job") and state not in _ENDED:
            state = "Failed (the server ended)"
        resources.setdefault(path.parent.name, []).append((path.stem, state))
    return Status(server.url if server else None, resources)


def logs(project_dir: Path, job: str) -> Logs:
    """Raises ConfigError for a job that has none."""
    folder = project_dir / FOLDER / "logs"
    known = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if job not in known:
        raise ConfigError(f"{job} is no training job with logs here; there are: {', '.join(known) or 'none'}.")
    paths = sorted((folder / job).glob("*.log"))
    return Logs(job, {path.stem: path.read_text(encoding="utf-8", errors="replace") for path in paths})


def find(project_dir: Path) -> Server | None:
    """The server of a project folder, where its process is alive."""
    import psutil

    try:
        state = json.loads((project_dir / FOLDER / _STATE_NAME).read_text(encoding="utf-8"))
        if psutil.Process(state["pid"]).create_time() != state["created_s"]:
            return None
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return Server(**state)
