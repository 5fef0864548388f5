"""Samples the machine's use in a thread, into smdebug's system files.

Each sample: every CPU core, memory, I/O wait, disk and network throughput, this process's own workers, and each GPU's
utilisation and memory where NVML finds one.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TextIO

import psutil

from dogbreed_ml.profiling.formats import render_sample, system_path
from dogbreed_ml.profiling.recordings import WORKER_PREFIX
from dogbreed_ml.profiling.timeline import Clock

logger = logging.getLogger(__name__)

FIRST_SAMPLE_S: Final = 0.05
"""Utilisation is measured between two moments: the first sample is taken so long after the start."""

_FILE_S: Final = 60.0
"""Seconds of one file, as SageMaker's agent has it."""

_CHILDREN_EVERY: Final = 4
"""Samples between two looks for new worker processes: it reads every process of the machine."""


class Sample(NamedTuple):
    """One figure of one moment."""

    kind: str
    name: str
    dimension: str
    value: float


class SystemSampler:
    """A thread that samples until `stop`, with a first sample at the start and a last one at the end."""

    def __init__(self, root: Path, *, interval_ms: float, clock: Clock, node: str = "algo-1", has_process: bool = True):
        """Writes under `root`/system; nothing is sampled before `start`.

        `has_process`: this process's own memory and workers are sampled too, because it is the one that trains.
        """
        self._root = root
        self._interval_s = interval_ms / 1000
        self._clock = clock
        self._node = node
        self._has_process = has_process
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._file: TextIO | None = None
        self._file_start_s = 0.0
        self.num_ticks = 0
        self.notes: list[str] = []
        """What was not sampled, one sentence each; after `stop`."""

    def start(self) -> None:
        """Returns once the readers are ready; the first sample follows within FIRST_SAMPLE_S."""
        self._meters = _Meters(has_process=self._has_process)
        self._open(self._clock.now_s())
        self._thread = threading.Thread(target=self._run, name="dogbreed-profile-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Takes the last sample, ends the thread and closes the file; a second call does nothing."""
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join()
        self._thread = None
        self.notes += self._meters.close()
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        due = time.monotonic() + FIRST_SAMPLE_S
        try:
            while not self._stopped.wait(min(max(0.0, due - time.monotonic()), threading.TIMEOUT_MAX)):
                self._tick()
                # From the moment it was due, so that the interval does not stretch by the cost of a sample.
                due = max(due + self._interval_s, time.monotonic())
            self._tick()
        # A full disk, a process that may not be looked at: the training goes on, and the report says so.
        except (OSError, psutil.Error) as error:
            self.notes.append(f"The machine was not sampled any more after {self.num_ticks} samples: {error}.")

    def _tick(self) -> None:
        now_s = self._clock.now_s()
        if now_s - self._file_start_s >= _FILE_S:
            self._open(now_s)
        if self._file is None:
            return
        samples = self._meters.read(look_for_workers=self.num_ticks % _CHILDREN_EVERY == 0)
        self._file.writelines(render_sample(*sample, timestamp_s=now_s, node=self._node) for sample in samples)
        # A killed run keeps what was sampled.
        self._file.flush()
        self.num_ticks += 1

    def _open(self, now_s: float) -> None:
        if self._file is not None:
            self._file.close()
        path = system_path(self._root, now_s, self._node)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._file_start_s = now_s


class _Meters:
    """What is read at each tick; rates are over the time since the tick before."""

    def __init__(self, *, has_process: bool) -> None:
        self._has_process = has_process
        self._time = time.monotonic()
        self._cores = psutil.cpu_times(percpu=True)
        self._counters = _throughput()
        self._process = psutil.Process()
        self._workers: dict[int, psutil.Process] = {}
        self._gpus = _Gpus()

    def read(self, *, look_for_workers: bool) -> list[Sample]:
        return [
            *self._read_cores(),
            *self._read_memory(),
            *self._read_throughput(),
            *(self._read_workers(look_for_workers) if self._has_process else ()),
            *self._gpus.read(),
        ]

    def close(self) -> list[str]:
        """What could not be read, one sentence each."""
        self._gpus.close()
        return self._gpus.notes

    def _read_cores(self) -> Iterator[Sample]:
        cores = psutil.cpu_times(percpu=True)
        for number, (before, after) in enumerate(zip(self._cores, cores, strict=False)):
            # Guest time is part of user time on Linux.
            spent = {
                each: getattr(after, each) - getattr(before, each) for each in after._fields if "guest" not in each
            }
            total = sum(spent.values())
            if total <= 0:
                continue
            waited = spent.get("iowait", 0.0)
            used = total - spent.get("idle", 0.0) - waited
            yield Sample("cpu", f"cpu{number}", "CPUUtilization", _percent(used / total))
            if hasattr(after, "iowait"):
                yield Sample("i/o", f"cpu{number}", "I/OWaitPercentage", _percent(waited / total))
        self._cores = cores

    def _read_memory(self) -> Iterator[Sample]:
        yield Sample("memory", "MemoryUsedPercent", "MemoryUsedPercent", psutil.virtual_memory().percent)
        if self._has_process:
            resident = self._process.memory_info().rss / 2**20
            yield Sample("memory", "ProcessMemoryMiB", "ProcessMemoryMiB", resident)

    def _read_throughput(self) -> Iterator[Sample]:
        now, counters = time.monotonic(), _throughput()
        seconds = now - self._time
        if seconds > 0:
            for key, after in counters.items():
                # Counters of a container that comes or goes may fall.
                rate = max(0.0, after - self._counters.get(key, after)) / seconds / 2**20
                yield Sample(*key, rate)
        self._time, self._counters = now, counters

    def _read_workers(self, look: bool) -> Iterator[Sample]:
        """CPU use of each child process, percent of one core."""
        known = list(self._workers.items())
        if look:
            for child in self._process.children():
                if child.pid not in self._workers:
                    # Use is measured between two looks; this is the first.
                    self._workers[child.pid] = child
                    _cpu_percent(child)
        for pid, worker in known:
            percent = _cpu_percent(worker)
            if percent is None:
                del self._workers[pid]
            else:
                yield Sample("worker", f"{WORKER_PREFIX}{pid}", "WorkerCPUUtilization", percent)


class _Gpus:
    """NVML's view of the machine's GPUs; none where there is no driver.

    What a GPU refuses to tell, as MIG does its utilisation, is NaN and noted once: the GPU is there all the same.
    """

    def __init__(self) -> None:
        import pynvml

        self._nvml: Any = pynvml
        self._num = 0
        self._refusals: dict[str, str] = {}
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            logger.debug("no GPU is sampled: %s", error)
            self._nvml = None
            return
        try:
            self._num = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self._refusals["The number of GPUs"] = str(error)

    @property
    def notes(self) -> list[str]:
        return [f"{what} cannot be read: {error}." for what, error in self._refusals.items()]

    def read(self) -> Iterator[Sample]:
        for number in range(self._num):
            for dimension, read in (("GPUUtilization", self._utilisation), ("GPUMemoryUtilization", self._memory)):
                yield Sample("gpu", f"gpu{number}", dimension, self._percent(number, dimension, read))

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    def _percent(self, number: int, dimension: str, read: Callable[[Any], float]) -> float:
        try:
            return read(self._nvml.nvmlDeviceGetHandleByIndex(number))
        except self._nvml.NVMLError as error:
            self._refusals.setdefault(f"gpu{number}: {dimension}", str(error))
            return float("nan")

    def _utilisation(self, handle: Any) -> float:
        return float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)

    def _memory(self, handle: Any) -> float:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        return 100.0 * float(memory.used) / float(memory.total)


def _throughput() -> dict[tuple[str, str, str], float]:
    """Bytes since the machine's start; a container may have no disk or network of its own to count."""
    counters: dict[tuple[str, str, str], float] = {}
    disk, network = psutil.disk_io_counters(), psutil.net_io_counters()
    if disk is not None:
        counters["i/o", "disk", "DiskReadMiBPerSecond"] = disk.read_bytes
        counters["i/o", "disk", "DiskWriteMiBPerSecond"] = disk.write_bytes
    if network is not None:
        counters["network", "all", "ReceiveMiBPerSecond"] = network.bytes_recv
        counters["network", "all", "TransmitMiBPerSecond"] = network.bytes_sent
    return counters


def _cpu_percent(process: psutil.Process) -> float | None:
    """Since the last call for this process; None where it is gone."""
    try:
        return float(process.cpu_percent())
    except psutil.Error:
        return None


def _percent(share: float) -> float:
    return 100.0 * min(1.0, max(0.0, share))
