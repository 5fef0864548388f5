"""How a search shows where it is: a bar on a terminal, else one log line per trial."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dogbreed_ml.trials import TrialRecord

logger = logging.getLogger(__name__)


class SearchDisplay:
    """Trials done, the best value and the time left."""

    def __init__(self, metric: str, *, maximize: bool, best: float | None, bar: Progress | None = None):
        self._metric = metric
        self._maximize = maximize
        self._best = best
        self._bar = bar

    @classmethod
    @contextmanager
    def open(
        cls,
        metric: str,
        *,
        maximize: bool,
        num_trials: int,
        num_done: int,
        best: float | None,
        console: Console | None = None,
    ) -> "Iterator[SearchDisplay]":
        """Shows the search while the body runs; `console` is stderr unless given."""
        console = console or Console(stderr=True)
        if not console.is_terminal:
            yield cls(metric, maximize=maximize, best=best)
            return
        bar = Progress(
            TextColumn("trials"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        with bar:
            display = cls(metric, maximize=maximize, best=best, bar=bar)
            bar.add_task(display._render_best(), total=num_trials, completed=num_done)
            yield display

    def show(self, record: TrialRecord) -> None:
        """One more trial has ended."""
        if record.state == "COMPLETE" and record.value is not None:
            is_better = self._best is None or (record.value > self._best) == self._maximize
            self._best = record.value if is_better else self._best
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=1, description=self._render_best())
            return
        value = "" if record.value is None else f" {self._metric}={record.value:.4f}"
        best = "" if self._best is None else f" best={self._best:.4f}"
        logger.info("trial=%d state=%s%s%s", record.number, record.state, value, best)

    def _render_best(self) -> str:
        return f"best {self._metric} {'-' if self._best is None else format(self._best, '.4f')}"
