"""Where a run comes from: the process, the commit, the versions. Reads this machine, writes nothing."""

import getpass
import os
import platform
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from dogbreed_ml.config import NOT_RECORDED

HOST_TAG, PID_TAG, PROCESS_START_TAG = "dogbreed.host", "dogbreed.pid", "dogbreed.process_start"

_PACKAGES = ("dogbreed-ml", "mlflow", "numpy", "openvino", "optuna", "torch", "torchvision")
_ENVIRONMENT_FLAG = "--sagemaker.environment"
# The boot time that process start times are counted from moves by a second when the clock is set.
_START_TOLERANCE_S = 2.0


@cache
def process_tags() -> dict[str, str]:
    """The tags by which a later command knows whether this process still lives."""
    return {
        HOST_TAG: socket.gethostname(),
        PID_TAG: str(os.getpid()),
        PROCESS_START_TAG: f"{psutil.Process().create_time():.2f}",
    }


def is_gone(tags: Mapping[str, str]) -> bool:
    """Whether the process that `process_tags` described ran on this host and has ended."""
    if tags.get(HOST_TAG) != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(tags[PID_TAG]))
        started = abs(process.create_time() - float(tags[PROCESS_START_TAG])) <= _START_TOLERANCE_S
        return not started or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (KeyError, ValueError, psutil.AccessDenied):
        return False


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def shown_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line as it may be recorded: of sagemaker.environment, which may hold secrets, the flag alone."""
    shown: list[str] = []
    for argument in arguments:
        is_value = bool(shown) and shown[-1].startswith(_ENVIRONMENT_FLAG) and "=" not in shown[-1]
        if is_value:
            argument = NOT_RECORDED
        elif argument.startswith(_ENVIRONMENT_FLAG) and "=" in argument:
            argument = f"{argument.partition('=')[0]}={NOT_RECORDED}"
        shown.append(argument)
    return shown


def render_command(argv: Sequence[str]) -> str:
    """The command line as a person types it: the program by its name, arguments quoted where needed."""
    if not argv:
        return ""
    program = Path(argv[0])
    name = "python -m dogbreed_ml" if program.name == "__main__.py" else program.name
    return " ".join([name, *map(shlex.quote, argv[1:])])


def environment_tags(*, project_dir: Path, argv: Sequence[str], seed: int) -> dict[str, str]:
    """Commit and dirtiness, seed, versions, host and the command line, as MLflow tags."""
    command = render_command(argv)
    tags = {
        "dogbreed.command": command,
        "dogbreed.seed": str(seed),
        "dogbreed.python": platform.python_version(),
        "dogbreed.platform": platform.platform(),
        "dogbreed.num_cores": str(os.cpu_count()),
    }
    for package in _PACKAGES:
        try:
            tags[f"version.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return {**tags, **git_tags(project_dir)}


def git_tags(project_dir: Path) -> dict[str, str]:
    """Commit, branch and whether tracked files differ from the commit; nothing outside a git checkout."""
    commit = _git(project_dir, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = _git(project_dir, "status", "--porcelain", "--untracked-files=no")
    branch = _git(project_dir, "rev-parse", "--abbrev-ref", "HEAD")
    return {
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.branch": branch or "",
        "dogbreed.git_dirty": "unknown" if changes is None else str(bool(changes)).lower(),
    }


def _git(project_dir: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=project_dir, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
