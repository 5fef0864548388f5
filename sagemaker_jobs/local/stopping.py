"""When a training job of a tuning job is not worth its time, and when the tuning job itself is done."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MIN_COMPLETED_JOBS = 3
"""The median rule judges nobody before that many jobs have completed."""

MIN_EPOCHS_SHARE = 0.25
"""It judges a job from that share of the median length of the completed jobs on: first epochs say little."""

SIGNIFICANT_IMPROVEMENT = 0.01
"""AWS calls an improvement of 1 % of the best value or less none."""

CONVERGED_JOBS = 10
"""Convergence here: that many jobs in a row that improved nothing. AWS's own criteria are not published."""

Completion = Literal["target", "not_improving", "convergence"]


def is_below_median(series: Sequence[float], completed: Sequence[Sequence[float]], *, maximize: bool) -> bool:
    """AWS's rule for TrainingJobEarlyStoppingType Auto, on one objective value an epoch.

    True where the last value of `series` is worse than the median, over the completed jobs that came as far, of their
    averages up to the same epoch.
    """
    epoch = len(series)
    if epoch == 0 or len(completed) < MIN_COMPLETED_JOBS:
        return False
    if epoch < MIN_EPOCHS_SHARE * statistics.median(len(other) for other in completed):
        return False
    averages = [statistics.fmean(other[:epoch]) for other in completed if len(other) >= epoch]
    if len(averages) < MIN_COMPLETED_JOBS:
        return False
    median = statistics.median(averages)
    # A value that is no number compares as false both ways, and is worse than any.
    return not (series[-1] >= median if maximize else series[-1] <= median)


@dataclass
class Improvement:
    """How the best objective value developed, job by job in the order of their ends."""

    maximize: bool
    best: float | None = None
    num_not_improving: int = 0
    """Jobs since the last one that improved the best value by more than 1 %."""
    _reference: float | None = None
    """The best value at that last improvement: several small steps are one improvement when they add up."""

    def add(self, value: float) -> None:
        """Takes in one evaluated job."""
        if self.best is None or self._gain(value, self.best) > 0:
            self.best = value
        reference = self._reference
        if reference is None or self._gain(value, reference) > SIGNIFICANT_IMPROVEMENT * abs(reference):
            self._reference, self.num_not_improving = value, 0
        else:
            self.num_not_improving += 1

    @property
    def is_converged(self) -> bool:
        return self.num_not_improving >= CONVERGED_JOBS

    def reaches(self, target: float) -> bool:
        return self.best is not None and self._gain(self.best, target) >= 0

    def _gain(self, value: float, over: float) -> float:
        return value - over if self.maximize else over - value


@dataclass(frozen=True)
class Criteria:
    """TuningJobCompletionCriteria; None and False are not asked for."""

    target: float | None = None
    max_not_improving: int | None = None
    stops_on_convergence: bool = False

    def completion(self, improvement: Improvement) -> Completion | None:
        """The first criterion that is met."""
        if self.target is not None and improvement.reaches(self.target):
            return "target"
        if self.max_not_improving is not None and improvement.num_not_improving >= self.max_not_improving:
            return "not_improving"
        return "convergence" if self.stops_on_convergence and improvement.is_converged else None


def is_value(value: float | None) -> bool:
    """Whether a final objective value can be compared at all."""
    return value is not None and math.isfinite(value)
