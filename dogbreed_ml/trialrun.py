"""The run of one trial, whoever asked for it: its config, inputs, epochs, verdicts, objective and how it ended.

Nothing here knows of Optuna or SageMaker, so that the trials of both leave runs with the same keys.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.errors import DogbreedError, SearchError, TrackingError
from dogbreed_ml.runs import DatasetInput, Run, render_cause

if TYPE_CHECKING:
    from dogbreed_ml.train import EpochResult

logger = logging.getLogger(__name__)

Objective = Callable[[ExperimentConfig], "Iterator[EpochResult]"]
"""Trains one trial's config; picklable where search.num_parallel is above 1. Leaving the loop early means pruned."""

Judge = Callable[[Sequence["EpochResult"]], Mapping[str, str]]
"""The tags of a trial, from its epochs; picklable as the objective is. debugging.epochs.EpochJudge in this project."""

Watcher = Callable[["EpochResult", float], bool]
"""Told of each epoch and its value of search.metric; True ends the trial there, as pruned."""

State = Literal["COMPLETE", "PRUNED", "FAILED"]

NUMBER_TAG, STATE_TAG, RETRY_TAG = "optuna.trial_number", "trial.state", "dogbreed.retry_of"
EPOCH_TAG = "trial.best_epoch"
INTERRUPTED = "INTERRUPTED"
OBJECTIVE_METRIC = "objective"
"""The value that the search was told, at the step of the epoch that it comes from."""

# What a training may raise for the values that it was given. Anything else is a mistake in the program and stops the
# search.
_TRIAL_FAILURES = (
    DogbreedError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass
class TrialProgress:
    """How far a trial's training is, or what became of it."""

    value: float | None = None
    """The metric at the epoch whose weights are kept; of a pruned trial, at its last epoch."""
    best_epoch: int | None = None
    num_epochs: int = 0
    is_pruned: bool = False
    seconds: float = 0.0
    cause: str | None = None
    """Why it failed."""
    results: list["EpochResult"] = field(default_factory=list)

    @property
    def state(self) -> State:
        return "FAILED" if self.cause else "PRUNED" if self.is_pruned else "COMPLETE"


def trial_run_name(number: int) -> str:
    """The run of trial 7 is called trial-0007."""
    return f"trial-{number:04d}"


def record_trial(
    run: Run,
    *,
    config: ExperimentConfig,
    values: Mapping[str, Any],
    objective: Objective,
    inputs: Sequence[DatasetInput] = (),
    judge: Judge | None = None,
    should_stop: Watcher | None = None,
) -> TrialProgress:
    """Trains `config` with `values`, by dotted name, into the run, and ends the run.

    Whatever the training raises is the trial's failure. TrackingError and KeyboardInterrupt go through.
    """
    progress, start = TrialProgress(), time.perf_counter()
    try:
        run.log_inputs(inputs)
        trial_config = with_values(config, values)
        run.log_config(trial_config, is_trial=True)
        _follow(objective(trial_config), trial_config, run, progress, should_stop)
    except KeyboardInterrupt:
        run.set_tags({STATE_TAG: INTERRUPTED})
        _judge(run, progress, judge)
        raise
    except TrackingError:
        raise
    except _TRIAL_FAILURES as error:
        progress.cause = render_cause(error)
        logger.warning("%s", progress.cause)
        run.set_tags({STATE_TAG: "FAILED"})
        _judge(run, progress, judge)
        run.fail(error)
    progress.seconds = time.perf_counter() - start
    if progress.cause is None:
        _judge(run, progress, judge)
        run.log_metrics({OBJECTIVE_METRIC: progress.value or 0.0}, step=progress.best_epoch)
        run.set_tags({STATE_TAG: progress.state, EPOCH_TAG: progress.best_epoch})
        run.finish("KILLED" if progress.is_pruned else "FINISHED")
    return progress


def _judge(run: Run, progress: TrialProgress, judge: Judge | None) -> None:
    if judge is not None and progress.results:
        run.set_tags(judge(progress.results))


def _follow(
    results: "Iterator[EpochResult]",
    config: ExperimentConfig,
    run: Run,
    progress: TrialProgress,
    should_stop: Watcher | None,
) -> None:
    try:
        for result in results:
            run.log_epoch(result)
            progress.results.append(result)
            value = metric_value(result, config.search.metric)
            progress.num_epochs += 1
            if result.is_best:
                progress.value, progress.best_epoch = value, result.epoch
            is_wanted = should_stop is not None and should_stop(result, value)
            # After the last epoch there is nothing left to save.
            if is_wanted and result.epoch + 1 < config.train.num_epochs:
                progress.is_pruned, progress.value, progress.best_epoch = True, value, result.epoch
                break
    finally:
        close = getattr(results, "close", None)
        if close is not None:
            close()
    if progress.value is None:
        raise SearchError("The training ended without an epoch; train.num_epochs must be at least 1.")


def metric_value(result: "EpochResult", metric: str) -> float:
    """The value of search.metric in an epoch; SearchError where it is absent or not finite."""
    value = result.metrics.get(metric)
    if value is None:
        known = ", ".join(sorted(result.metrics))
        raise SearchError(f"search.metric must be one that an epoch logs ({known}), got {metric!r}.")
    if not math.isfinite(value):
        raise SearchError(f"{metric} must be finite, got {value} in epoch {result.epoch}; try a smaller train.lr.")
    return value
