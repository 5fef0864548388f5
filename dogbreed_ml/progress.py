"""How far a long stage is: a bar on a terminal, a log line now and then elsewhere; always on stderr.

A stage asks for `with progress.track("scan", total, "images") as advance:` and calls `advance(n)`, from any thread.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

logger = logging.getLogger(__name__)

Advance = Callable[[int], None]

LOG_INTERVAL_S = 10.0
"""Seconds between two log lines of one stage, where stderr is no terminal."""


class Progress(Protocol):
    """Whatever shows progress."""

    def track(self, description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """Shows one stage while the with statement's body runs; the body calls advance(n) after each n units.

        A total of 0 means that nobody knows it. The unit "bytes" is shown as kB, MB, GB.
        """


class _NoProgress:
    def track(self, description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        return nullcontext(_ignore)


def _ignore(num_done: int) -> None:
    pass


NO_PROGRESS: Progress = _NoProgress()


class TerminalProgress:
    """A bar with rate and time left on a terminal; without one, a log line at the start, every 10 s and at the end.

    `console` is where the bar lives: a log handler that writes through it does not tear the bar.
    """

    def __init__(self, *, console: Console | None = None, clock: Callable[[], float] = monotonic):
        self.console = console or Console(file=sys.stderr)
        self._clock = clock
        self._lock = threading.Lock()
        self._bar: Bar | None = None
        self._num_active = 0

    def track(self, description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        if self.console.is_terminal:
            return self._show(description, total, unit)
        return self._log(description, total, unit)

    @contextmanager
    def _show(self, description: str, total: int, unit: str) -> Iterator[Advance]:
        bar = self._enter()
        task = bar.add_task(description, total=total or None, unit=unit)
        try:
            yield lambda num_done: bar.advance(task, num_done)
        finally:
            bar.stop_task(task)
            self._leave()

    def _enter(self) -> Bar:
        """The one bar that all stages share: a console has room for a single live display."""
        with self._lock:
            if self._bar is None:
                columns = (TextColumn("{task.description}"), BarColumn(), _Amount(), _Rate(), TimeRemainingColumn())
                self._bar = Bar(*columns, console=self.console)
                self._bar.start()
            self._num_active += 1
            return self._bar

    def _leave(self) -> None:
        with self._lock:
            self._num_active -= 1
            if self._num_active == 0 and self._bar is not None:
                self._bar.stop()
                self._bar = None

    @contextmanager
    def _log(self, description: str, total: int, unit: str) -> Iterator[Advance]:
        start = last = self._clock()
        num_done = 0
        lock = threading.Lock()
        of_total = f" of {_render_amount(total, unit)}" if total else ""
        logger.info("%s: %s", description, _render_amount(total, unit) if total else "started")

        def advance(more: int) -> None:
            nonlocal num_done, last
            with lock:
                num_done += more
                now = self._clock()
                if now - last < LOG_INTERVAL_S:
                    return
                last = now
                rate = num_done / (now - start)
            left = f", {(total - num_done) / rate:.0f} s left" if total and rate else ""
            amount, speed = _render_amount(num_done, unit), _render_amount(rate, unit)
            logger.info("%s: %s%s, %s/s%s", description, amount, of_total, speed, left)

        try:
            yield advance
        finally:
            seconds = max(self._clock() - start, 1e-9)
            amount, speed = _render_amount(num_done, unit), _render_amount(num_done / seconds, unit)
            logger.info("%s: %s%s in %.1f s, %s/s", description, amount, of_total, seconds, speed)


def _render_amount(amount: float, unit: str) -> str:
    return decimal(int(amount)) if unit == "bytes" else f"{amount:.0f} {unit}"


class _Amount(ProgressColumn):
    """Done of total."""

    def render(self, task: Task) -> Text:
        done, unit = _render_amount(task.completed, task.fields["unit"]), task.fields["unit"]
        return Text(f"{done} of {_render_amount(task.total, unit)}" if task.total else done)


class _Rate(ProgressColumn):
    """Units a second: while running the recent speed, when done the mean."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0.0
        return Text(f"{_render_amount(speed, task.fields['unit'])}/s")
