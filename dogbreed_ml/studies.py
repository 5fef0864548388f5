"""Where Optuna keeps a study while it runs: a journal file that survives `kill -9`.

Working state, not record: all that a person wants to see is in MLflow.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage

from dogbreed_ml.cloudconfig import HostingConfig, SagemakerConfig
from dogbreed_ml.config import ExperimentConfig, TrackingConfig, config_hash
from dogbreed_ml.policies import DeployConfig, ProfileConfig, PromotionConfig

VARYING = (
    "search.num_trials",
    "search.timeout_s",
    "search.num_parallel",
    "search.ensemble",
    *(f"profile.{field.name}" for field in dataclasses.fields(ProfileConfig)),
    *(f"tracking.{field.name}" for field in dataclasses.fields(TrackingConfig)),
    *(f"promotion.{field.name}" for field in dataclasses.fields(PromotionConfig)),
    *(f"deploy.{field.name}" for field in dataclasses.fields(DeployConfig)),
    "search.features_on",
    *(f"sagemaker.{field.name}" for field in dataclasses.fields(SagemakerConfig)),
    *(f"hosting.{field.name}" for field in dataclasses.fields(HostingConfig)),
)
"""What may change between two commands of one search: nothing that a trial's result depends on."""


class _KernelLock(JournalFileOpenLock):
    """A lock that the kernel frees when its holder dies; Optuna's own waits 30 s for a dead one."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        # Contended by workers that append for under a millisecond each.
        self._kernel_lock = FileLock(f"{path}.lock", poll_interval=0.002)

    def acquire(self) -> bool:
        self._kernel_lock.acquire()
        return True

    def release(self) -> None:
        self._kernel_lock.release()


class _Journal(JournalFileBackend):
    """Optuna's journal without its fsync at each of a trial's nine lines (5 ms each on a busy disk).

    What was written survives the death of the process; after a power cut the file may end earlier, and the trials
    that it does not know of are run again.
    """

    def __init__(self, path: Path, lock: _KernelLock):
        super().__init__(str(path), lock_obj=lock)
        self._path, self._kernel_lock = path, lock

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        self._kernel_lock.acquire()
        try:
            with self._path.open("ab") as journal:
                journal.write(content.encode())
        finally:
            self._kernel_lock.release()


def study_path(config: ExperimentConfig, *, fingerprint: str, tracking_uri: str, project_dir: Path) -> Path:
    """The journal of all searches with this config over this data and store."""
    store = hashlib.sha256(tracking_uri.encode()).hexdigest()[:16]
    name = f"{config.name}-{config_hash(config, without=VARYING)}-{fingerprint}.log"
    return project_dir / ".dogbreed" / "studies" / store / name


def open_journal(path: Path) -> JournalStorage:
    """Opens or makes a journal; any number of processes may have it open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _KernelLock(path)
    lock.acquire()
    try:
        _drop_torn_line(path)
    finally:
        lock.release()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(_Journal(path, lock))


def _drop_torn_line(path: Path) -> None:
    """Cuts off a last line without its end: one more append would join it, and no line after it could be read."""
    if not path.exists():
        return
    with path.open("rb+") as journal:
        content = journal.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            journal.truncate(whole)
