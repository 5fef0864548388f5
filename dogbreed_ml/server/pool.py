"""The workers and the queue before them: bounded, first come first served, a dead worker replaced by the next.

Runs on the event loop's thread alone, hence no locks.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.context import SpawnProcess
from time import monotonic

from dogbreed_ml.errors import ServingError
from dogbreed_ml.server.messages import (
    Failed,
    Message,
    Ready,
    Recognised,
    Refused,
    Unreadable,
    job_header,
    read_message,
)
from dogbreed_ml.server.metrics import Metrics
from dogbreed_ml.server.settings import ServerSettings
from dogbreed_ml.server.worker import WorkerSpec, work

logger = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 5.0
"""How long a worker may take to notice that its socket is closed."""
_MAX_PAUSE_S = 30.0
"""The longest pause before a worker that dies again and again is started once more."""
_WATCH_S = 1.0
_HUNG_AFTER = 2.0
"""A worker that has jobs and says nothing for so many times deploy.timeout_s is killed."""


class QueueFull(Exception):
    """There is no room for the images of this request."""


class WorkerDied(Exception):
    """The worker that had the image is gone."""


class WorkerFailed(Exception):
    """The worker ran into a fault of its own on this image."""


class UnreadableImage(Exception):
    """The image cannot be decoded; the message is the reason."""


@dataclass(eq=False)
class _Job:
    data: bytes
    answer: "asyncio.Future[Recognised]"


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    jobs: dict[int, _Job] = field(default_factory=dict)
    """What it has and has not answered, by number."""
    ready: Ready | None = None
    heard_at: float = field(default_factory=monotonic)


class Pool:
    """`deploy.num_workers` processes behind one queue."""

    def __init__(self, settings: ServerSettings, metrics: Metrics):
        self._settings = settings
        self._metrics = metrics
        deploy = settings.deploy
        # A worker decodes the next batch while it recognises this one.
        self._window = 2 * deploy.max_batch_size
        self._waiting: deque[_Job] = deque()
        self._workers: list[_Worker | None] = [None] * deploy.num_workers
        self._tasks: list[asyncio.Task[None]] = []
        self._next_number = 0
        self._first_ready: asyncio.Future[Ready] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether every worker has run the model once since the start, and one at least can now."""
        return self._first_ready is not None and self._first_ready.done() and any(map(_is_ready, self._workers))

    @property
    def ready(self) -> Ready | None:
        """What the first worker said when it was ready; None while one has yet to warm up."""
        started = self._first_ready
        return started.result() if started is not None and started.done() and not started.exception() else None

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= self._settings.deploy.queue_size

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        return sum(len(worker.jobs) for worker in self._workers if worker is not None)

    @property
    def worker_pids(self) -> list[int]:
        """Of those that can answer now."""
        return [worker.process.pid or 0 for worker in self._workers if worker is not None and worker.ready is not None]

    def start(self) -> None:
        """Starts the workers; `wait_ready` says when they are warm."""
        self._first_ready = asyncio.get_running_loop().create_future()
        shares = _shares_of_cores(len(self._workers))
        for slot, cores in enumerate(shares):
            spec = WorkerSpec(self._settings.checkpoint_path, self._settings.deploy, cores)
            self._tasks.append(asyncio.create_task(self._keep(slot, spec), name=f"worker {slot}"))
        self._tasks.append(asyncio.create_task(self._watch(), name="watch"))

    async def wait_ready(self) -> Ready:
        """Waits until every worker is warm; raises ServingError where one cannot load the model."""
        if self._first_ready is None:
            raise RuntimeError("start() comes first")
        return await asyncio.shield(self._first_ready)

    async def stop(self) -> None:
        """Ends the workers; what they had is answered with WorkerDied."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            if worker is not None:
                await self._bury(worker)

    def submit(self, images: Sequence[bytes]) -> "list[asyncio.Future[Recognised]]":
        """Queues all of the images or, with QueueFull, none. A future that is cancelled gives its place back."""
        room = self._settings.deploy.queue_size - len(self._waiting) + self._num_free()
        if len(images) > room:
            raise QueueFull
        jobs = [_Job(data, asyncio.get_running_loop().create_future()) for data in images]
        for job in jobs:
            job.answer.add_done_callback(partial(self._forget, job))
        self._waiting.extend(jobs)
        self._dispatch()
        return [job.answer for job in jobs]

    def _num_free(self) -> int:
        return sum(self._window - len(worker.jobs) for worker in self._workers if worker is not None and worker.ready)

    def _forget(self, job: _Job, done: "asyncio.Future[Recognised]") -> None:
        if done.cancelled():
            with contextlib.suppress(ValueError):
                self._waiting.remove(job)

    def _dispatch(self) -> None:
        """Hands what waits to the worker that has least to do, as long as one has room."""
        while self._waiting:
            ready = [worker for worker in self._workers if worker is not None and worker.ready is not None]
            worker = min(ready, key=lambda each: len(each.jobs), default=None)
            if worker is None or len(worker.jobs) >= self._window:
                return
            job = self._waiting.popleft()
            number = self._next_number
            self._next_number += 1
            if not worker.jobs:
                worker.heard_at = monotonic()
            worker.jobs[number] = job
            worker.writer.write(job_header(number, job.data))
            worker.writer.write(job.data)

    async def _keep(self, slot: int, spec: WorkerSpec) -> None:
        """Keeps one worker running, the next as soon as one is dead."""
        num_deaths = 0
        while True:
            worker = self._workers[slot] = await _spawn(spec, slot)
            while (message := await read_message(worker.reader)) is not None:
                worker.heard_at = monotonic()
                if isinstance(message, Ready):
                    num_deaths = 0
                self._hear(worker, message)
                self._dispatch()
            self._workers[slot] = None
            cause = await self._bury(worker)
            self._end_start(ServingError(f"A worker could not start: {cause}; the lines above say why."))
            num_deaths += 1
            pause_s = 0.0 if num_deaths == 1 else min(2.0 ** (num_deaths - 2), _MAX_PAUSE_S)
            logger.error("worker %d: %s; another is started in %.0f s", worker.process.pid, cause, pause_s)
            self._metrics.restarts.inc()
            await asyncio.sleep(pause_s)

    def _hear(self, worker: _Worker, message: Message) -> None:
        match message:
            case Ready():
                worker.ready = message
                if all(map(_is_ready, self._workers)) and self._first_ready and not self._first_ready.done():
                    self._first_ready.set_result(message)
            case Refused():
                self._end_start(ServingError(message.reason))
            case Recognised():
                self._metrics.observe(message)
                if (job := worker.jobs.pop(message.number)) and not job.answer.done():
                    job.answer.set_result(message)
            case Unreadable():
                _fail(worker.jobs.pop(message.number), UnreadableImage(message.reason))
            case Failed():
                _fail(worker.jobs.pop(message.number), WorkerFailed())

    def _end_start(self, error: ServingError) -> None:
        """Before all are ready the first failure ends the start; later it changes nothing."""
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_exception(error)

    async def _bury(self, worker: _Worker) -> str:
        """Fails what a worker had, ends its process, and says how that ended."""
        for job in worker.jobs.values():
            _fail(job, WorkerDied())
        worker.jobs.clear()
        worker.ready = None
        worker.writer.close()
        with contextlib.suppress(OSError):
            await worker.writer.wait_closed()
        await asyncio.to_thread(worker.process.join, _STOP_TIMEOUT_S)
        if worker.process.is_alive():
            worker.process.kill()
            await asyncio.to_thread(worker.process.join)
        code = worker.process.exitcode or 0
        return f"the process was killed by signal {-code}" if code < 0 else f"the process ended with {code}"

    async def _watch(self) -> None:
        """Kills a worker that has jobs and has long said nothing: a stopped process, a decoder that never returns."""
        patience_s = _HUNG_AFTER * self._settings.deploy.timeout_s
        while True:
            await asyncio.sleep(_WATCH_S)
            for worker in self._workers:
                if worker is not None and worker.jobs and monotonic() - worker.heard_at > patience_s:
                    logger.error("worker %d has said nothing for %.0f s", worker.process.pid, patience_s)
                    # At once, so that nothing more is handed to it while its end is on the way.
                    worker.ready = None
                    worker.process.kill()


async def _spawn(spec: WorkerSpec, slot: int) -> _Worker:
    ours, theirs = socket.socketpair()
    process = multiprocessing.get_context("spawn").Process(
        target=work, args=(theirs, spec), name=f"dogbreed-server-{slot}", daemon=True
    )
    await asyncio.to_thread(process.start)
    # Ours alone is left open, so that the worker's end is closed when the worker dies.
    theirs.close()
    reader, writer = await asyncio.open_connection(sock=ours)
    return _Worker(process, reader, writer)


def _shares_of_cores(num_workers: int) -> list[tuple[int, ...]]:
    """Each worker's cores: all of them for one, a share for each of several, all again where there are too few."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if num_workers == 1 or len(cores) < num_workers:
        return [()] * num_workers
    return [tuple(cores[slot::num_workers]) for slot in range(num_workers)]


def _is_ready(worker: _Worker | None) -> bool:
    return worker is not None and worker.ready is not None


def _fail(job: _Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
