"""Which job a command started, written down before it is: so that no job is ever started twice."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from dogbreed_ml.config import ExperimentConfig, config_hash
from dogbreed_ml.files import write_whole

logger = logging.getLogger(__name__)

LAUNCHES_DIR = ".dogbreed/sagemaker"

Verb = Literal["train", "tune", "features"]

_MAX_NAMES: dict[Verb, int] = {"train": 63, "tune": 32, "features": 63}
"""SageMaker's limits of a training job's name and of a tuning job's."""
_KEY_LENGTH = 6
_TIME_LENGTH = len("2611211136490")


@dataclass(frozen=True)
class Launch:
    """A job of this project's folder that has not been brought home yet."""

    name: str
    region: str
    is_created: bool = False
    """Whether SageMaker confirmed it; before that, its request may or may not have arrived."""


@dataclass(frozen=True)
class LaunchFile:
    """The file of one verb, config, data set and store."""

    path: Path

    @classmethod
    def of(cls, project_dir: Path, verb: Verb, config: ExperimentConfig, *, scope: str) -> "LaunchFile":
        """`scope` is whatever else makes two jobs different: data fingerprint, tracking store, endpoint."""
        return cls(project_dir / LAUNCHES_DIR / f"{verb}-{config_key(config, scope)}.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One command at a time finds or starts the job; another that wants the same says so, waits, and finds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process uploads for this job, or brings it home: waiting for %s", lock.lock_file)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def load(self) -> Launch | None:
        try:
            return Launch(**json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def save(self, launch: Launch) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(asdict(launch)))

    def clear(self, name: str) -> None:
        """Once this job is brought home, or never began: the same command then starts a new one.

        Another job stays known: the same command, given elsewhere meanwhile, may have started it.
        """
        launch = self.load()
        if launch is not None and launch.name == name:
            self.path.unlink(missing_ok=True)


def config_key(config: ExperimentConfig, scope: str = "") -> str:
    """12 hex digits of what a job does."""
    return hashlib.sha256(f"{config_hash(config)} {scope}".encode()).hexdigest()[:12]


def job_name(config: ExperimentConfig, verb: Verb, *, key: str, at: datetime) -> str:
    """`quickstart-train-1a2b3c-2611211136490`: the experiment's name gives way where the limit is near.

    The time goes down to tenths of a second, so that the same config may run again: no job ends sooner.
    """
    return f"{job_prefix(config.name, verb)}{key[:_KEY_LENGTH]}-{at:%y%m%d%H%M%S}{at.microsecond // 100_000}"


def job_prefix(experiment: str, verb: Verb) -> str:
    """What the names of all jobs of this experiment and verb begin with: `quickstart-train-`, `quicks-tune-`."""
    rest = f"-{verb}-"
    room = _MAX_NAMES[verb] - len(rest) - _KEY_LENGTH - len("-") - _TIME_LENGTH
    return f"{experiment[:room].rstrip('-')}{rest}"
