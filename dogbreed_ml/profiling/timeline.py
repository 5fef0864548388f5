"""A recorder for `fit(spans=...)`: what each step spent its time on, kept in memory until the loop is over.

A span costs some 0.5 us. Steps are not marked by the loop; they follow from its spans: a step begins with a data_wait
and ends where the next one begins.
"""

import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import get_ident
from time import perf_counter_ns
from types import TracebackType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dogbreed_ml.profiling.formats import LOADER_EVENT, Event, write_timeline
from dogbreed_ml.profiling.recordings import STEP_PREFIX, LoaderProcesses, Mode

MAX_SPANS: Final = 2_000_000
"""Spans kept, 64 MB of them; later ones are counted and left out. A training step has five."""

_BLOCK_ROWS: Final = 10_000

DATA_WAIT: Final = "data_wait"
TRANSFER: Final = "transfer"
EVALUATION: Final = "evaluation"
EVALUATION_DATA_WAIT: Final = f"{EVALUATION}/{DATA_WAIT}"
TRACE: Final = "trace"
"""torch.profiler's window opened or closed; the step around it is none of the training's own and is left out."""

_STEP_PARTS: Final[dict[str, Mode]] = {
    **dict.fromkeys((DATA_WAIT, TRANSFER, "forward", "backward", "optimizer"), "TRAIN"),
    **dict.fromkeys((EVALUATION_DATA_WAIT, f"{EVALUATION}/{TRANSFER}", f"{EVALUATION}/forward"), "EVAL"),
}
_STEP_STARTS: Final[dict[str, Mode]] = {DATA_WAIT: "TRAIN", EVALUATION_DATA_WAIT: "EVAL"}


class Clock(NamedTuple):
    """The time since the epoch by a counter that nobody sets back; sampler and timeline share one."""

    epoch_ns: int
    counter_ns: int

    @classmethod
    def start(cls) -> "Clock":
        return cls(time.time_ns(), perf_counter_ns())

    def epoch_us(self, counter_ns: int) -> int:
        return (self.epoch_ns + counter_ns - self.counter_ns) // 1000

    def now_s(self) -> float:
        return (self.epoch_ns + perf_counter_ns() - self.counter_ns) / 1e9


class TimelineRecorder:
    """Records spans of any thread; `on_step` is told when a training step has its data, and answers whether it took
    time of its own."""

    def __init__(
        self, clock: Clock | None = None, *, on_step: Callable[[], bool] | None = None, max_spans: int = MAX_SPANS
    ):
        self.clock = clock or Clock.start()
        self.num_dropped = 0
        self.loader: LoaderProcesses | None = None
        self._on_step = on_step
        self._max_numbers = 4 * max_spans
        self._names: dict[str, int] = {}
        self._numbers = array("q")
        self._loop_thread = get_ident()

    def span(self, name: str) -> AbstractContextManager[None]:
        # Not at the wait: the one that finds the end of the data begins no step.
        if self._on_step is not None and name == TRANSFER:
            start = perf_counter_ns()
            if self._on_step():
                self._record(self._code(TRACE), start, perf_counter_ns())
        return _Span(self, self._code(name))

    def write(self, root: Path, *, node: str = "algo-1") -> list[Path]:
        """Writes what was recorded as smdebug's framework files."""
        return write_timeline(root, self.events(), pid=os.getpid(), node=node)

    def events(self) -> Iterator[Event]:
        """Steps and spans in order of their start."""
        names = list(self._names)
        numbers = np.array(self._numbers, dtype=np.int64).reshape(-1, 4)
        # A span is recorded when it ends; an enclosing one comes before what it encloses.
        numbers = numbers[np.lexsort((-numbers[:, 3], numbers[:, 2]))]
        steps = _steps(numbers, names, self._loop_thread)
        threads = _ThreadNumbers(self._loop_thread)
        if self.loader is not None and len(numbers):
            yield self._loader_event(int(numbers[0, 2]), self.loader)
        step = next(steps, None)
        last: dict[Mode, int] = {"TRAIN": 0, "EVAL": 0}
        for code, thread, start, end in _rows(numbers):
            while step is not None and step.start <= start:
                last[step.mode] = step.number
                if not step.is_traced:
                    yield self._event(f"{STEP_PREFIX}{step.mode}", 0, step.start, step.end, step.number)
                step = next(steps, None)
            name = names[code]
            number = last[_STEP_PARTS.get(name, "TRAIN")]
            yield self._event(name, threads.number(thread), start, end, number)

    def _event(self, name: str, thread: int, start: int, end: int, step: int) -> Event:
        start_us = self.clock.epoch_us(start)
        return Event(name, name, start_us, self.clock.epoch_us(end) - start_us, step, thread)

    def _loader_event(self, start: int, loader: LoaderProcesses) -> Event:
        kind = "_MultiProcessingDataLoaderIter" if loader.num_workers else "_SingleProcessDataLoaderIter"
        pids = {split: list(each) for split, each in loader.pids.items()}
        args = {"num_workers": loader.num_workers, "pin_memory": loader.pin_memory, "pids": pids}
        return Event(f"{kind}.__init__", LOADER_EVENT, self.clock.epoch_us(start), 0, 0, 0, args)

    def _code(self, name: str) -> int:
        code = self._names.get(name)
        return self._names.setdefault(name, len(self._names)) if code is None else code

    def _record(self, code: int, start: int, end: int) -> None:
        if len(self._numbers) < self._max_numbers:
            # One call of C code, which no other thread can interrupt.
            self._numbers.extend((code, get_ident(), start, end))
        else:
            self.num_dropped += 1


class _Span:
    __slots__ = ("_code", "_recorder", "_start")

    def __init__(self, recorder: TimelineRecorder, code: int):
        self._recorder = recorder
        self._code = code

    def __enter__(self) -> None:
        self._start = perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recorder._record(self._code, self._start, perf_counter_ns())


class _Step(NamedTuple):
    mode: Mode
    number: int
    """Counts on over epochs, as smdebug has it."""
    start: int
    end: int
    is_traced: bool
    """The trace window was opened or closed within it, so that it is left out."""


def _rows(numbers: NDArray[np.int64]) -> Iterator[tuple[int, int, int, int]]:
    """Rows as Python numbers, a block at a time: all at once they would take ten times the memory."""
    for start in range(0, len(numbers), _BLOCK_ROWS):
        yield from map(tuple, numbers[start : start + _BLOCK_ROWS].tolist())


def _steps(numbers: NDArray[np.int64], names: Sequence[str], loop_thread: int) -> Iterator[_Step]:
    """From each data_wait that a transfer follows to the next data_wait, or to the end of the step's last part."""
    counts: dict[Mode, int] = {"TRAIN": 0, "EVAL": 0}
    begun: dict[Mode, tuple[int, int]] = {}
    """Start of the open step and end of its last part."""
    found: list[_Step] = []
    traced: set[tuple[Mode, int]] = set()
    for code, thread, start, end in _rows(numbers):
        name = names[code]
        if name == TRACE:
            traced.add(("TRAIN", counts["TRAIN"]))
        mode = _STEP_PARTS.get(name)
        if mode is None or thread != loop_thread:
            continue
        number = counts[mode]
        if name in _STEP_STARTS:
            if mode in begun and begun[mode][1] > 0:
                found.append(_Step(mode, number, begun[mode][0], start, (mode, number) in traced))
                counts[mode] += 1
            begun[mode] = (start, 0)
        elif mode in begun:
            begun[mode] = (begun[mode][0], end)
    for mode, (start, end) in begun.items():
        if end > 0:
            found.append(_Step(mode, counts[mode], start, end, (mode, counts[mode]) in traced))
    return iter(sorted(found, key=lambda step: step.start))


class _ThreadNumbers:
    """Small numbers for threads, 0 for the loop's own: idents have 15 digits."""

    def __init__(self, loop_thread: int):
        self._numbers = {loop_thread: 0}

    def number(self, ident: int) -> int:
        return self._numbers.setdefault(ident, len(self._numbers))
