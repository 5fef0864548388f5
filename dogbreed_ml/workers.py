"""Worker processes that run trials at once, each with its own journal and tracking store open.

The parent hands out one trial at a time and hears when it starts and ends; a worker that dies takes one trial with it.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Literal

import optuna

from dogbreed_ml.config import TrackingConfig
from dogbreed_ml.errors import SearchError, TrackingError
from dogbreed_ml.samplers import build_pruner, build_sampler
from dogbreed_ml.studies import open_journal
from dogbreed_ml.tracking import Terminated, Tracker, raise_terminated
from dogbreed_ml.trials import TrialPlan, TrialRecord, run_trial

logger = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 15.0
"""How long a worker may take to end its run when it is told to stop."""


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker process is made from; picklable."""

    plan: TrialPlan
    journal_path: Path
    study_name: str
    tracking_uri: str
    tracking: TrackingConfig
    limit_threads: Callable[[int], None]
    num_threads: int


@dataclass(frozen=True)
class Message:
    """What a worker says."""

    kind: Literal["started", "done", "refused"]
    number: int | None = None
    record: TrialRecord | None = None
    reason: str = ""


@dataclass(frozen=True)
class Death:
    """A worker that ended while it had a trial."""

    number: int | None
    """The trial, where it had one already."""
    cause: str


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    is_busy: bool = False
    number: int | None = None
    has_answered: bool = False


def limit_torch_threads(num_threads: int) -> None:
    """Workers that share the cores would slow each other down if each took all of them."""
    import torch

    torch.set_num_threads(num_threads)


class WorkerPool:
    """`num_workers` processes; leaving the with statement stops them, with SIGTERM where they are busy."""

    def __init__(self, spec: WorkerSpec, num_workers: int):
        self._spec = spec
        self._context = multiprocessing.get_context("spawn")
        self._num_made = 0
        self._workers: list[_Worker] = []
        self._num_workers = num_workers

    def __enter__(self) -> "WorkerPool":
        self._workers = [self._new_worker() for _ in range(self._num_workers)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            self._stop(worker)

    @property
    def num_busy(self) -> int:
        return sum(worker.is_busy for worker in self._workers)

    def start_trial(self) -> bool:
        """Lets an idle worker run one more trial; False where all are busy."""
        for worker in self._workers:
            if not worker.is_busy:
                worker.is_busy = True
                worker.number = None
                # Where it has died, the next wait sees that.
                with contextlib.suppress(BrokenPipeError):
                    worker.connection.send(True)
                return True
        return False

    def ended(self) -> Iterator[TrialRecord | Death]:
        """Waits until something happened, and yields the trials that ended and the workers that died with one."""
        busy = [worker for worker in self._workers if worker.is_busy]
        ready = set(wait([each for worker in busy for each in (worker.connection, worker.process.sentinel)]))
        for worker in busy:
            if worker.connection in ready:
                record = self._heard(worker)
                if record is not None:
                    yield record
            elif worker.process.sentinel in ready:
                yield self._buried(worker)

    def _heard(self, worker: _Worker) -> TrialRecord | Death | None:
        try:
            message: Message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            return self._buried(worker)
        worker.has_answered = True
        if message.kind == "refused":
            raise TrackingError(message.reason)
        if message.kind == "started":
            worker.number = message.number
            return None
        worker.is_busy = False
        return message.record

    def _buried(self, worker: _Worker) -> Death:
        worker.process.join()
        cause = f"the worker process ended with {_render_exit(worker.process.exitcode)}"
        if not worker.has_answered:
            raise SearchError(f"A worker could not start its first trial: {cause}; the lines above say why.")
        logger.warning("%s, trial %s", cause, "-" if worker.number is None else worker.number)
        worker.connection.close()
        self._workers[self._workers.index(worker)] = self._new_worker()
        return Death(worker.number, cause)

    def _new_worker(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(theirs, self._spec, self._num_made),
            name=f"dogbreed-worker-{self._num_made}",
            # A daemon may have no processes that load its images.
            daemon=False,
        )
        process.start()
        # Ours alone is left open, so that the worker's end is closed when the worker dies.
        theirs.close()
        self._num_made += 1
        return _Worker(process, ours)

    def _stop(self, worker: _Worker) -> None:
        if worker.is_busy:
            worker.process.terminate()
        else:
            with contextlib.suppress(OSError):
                worker.connection.send(False)
        worker.process.join(_STOP_TIMEOUT_S)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.connection.close()
        worker.process.close()


def _render_exit(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit status {code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"signal {signal.Signals(-code).name}{hint}"


def _work(connection: Connection, spec: WorkerSpec, worker: int) -> None:
    """The worker process: runs a trial each time it is told to, until it is told to stop."""
    # Ctrl-C and a closed terminal reach the whole group; the parent decides and tells us by SIGTERM.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, raise_terminated)
    _end_with_parent()
    spec.limit_threads(spec.num_threads)
    storage = open_journal(spec.journal_path)
    config = spec.plan.config
    study = optuna.load_study(study_name=spec.study_name, storage=storage, pruner=build_pruner(config))
    # Worker 0 is the parent itself in a search without workers.
    study.sampler = build_sampler(config.search, worker=worker + 1, num_earlier_trials=len(study.trials))
    try:
        with Tracker.attach(spec.tracking_uri, config=spec.tracking) as tracker:
            while connection.recv():
                record = run_trial(
                    study, spec.plan, tracker, on_start=lambda number: connection.send(Message("started", number))
                )
                connection.send(Message("done", record.number, record))
    except TrackingError as error:
        connection.send(Message("refused", reason=str(error)))
    except (Terminated, EOFError, BrokenPipeError):
        return


def _end_with_parent() -> None:
    """A parent that is killed takes its workers along: what they did would be done again by the next command."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="dogbreed-parent-watch", daemon=True).start()
