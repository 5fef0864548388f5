"""One trial of a search: sample a config, train it, write its child run, then tell Optuna.

In that order: a trial that Optuna has as finished always has its finished run in MLflow.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.errors import DogbreedError, SearchError, TrackingError
from dogbreed_ml.tracking import DatasetInput, Run, RunRef, Tracker, render_cause

if TYPE_CHECKING:
    from dogbreed_ml.train import EpochResult

logger = logging.getLogger(__name__)

Objective = Callable[[ExperimentConfig], "Iterator[EpochResult]"]
"""Trains one trial's config; picklable where search.num_parallel is above 1. Leaving the loop early means pruned."""

Judge = Callable[[Sequence["EpochResult"]], Mapping[str, str]]
"""The tags of a trial, from its epochs; picklable as the objective is. debugging.epochs.EpochJudge in this project."""

State = Literal["COMPLETE", "PRUNED", "FAILED"]

NUMBER_TAG, STATE_TAG, RETRY_TAG = "optuna.trial_number", "trial.state", "dogbreed.retry_of"
EPOCH_TAG = "trial.best_epoch"
INTERRUPTED = "INTERRUPTED"
OBJECTIVE_METRIC = "objective"
"""The value that Optuna was told, at the step of the epoch that it comes from."""

OUTCOME_ATTR, INTERRUPTED_ATTR, RETRY_ATTR, CRASHES_ATTR = "outcome", "interrupted", "retry_of", "num_crashes"

_OPTUNA_STATES: dict[State, TrialState] = {
    "COMPLETE": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "FAILED": TrialState.FAIL,
}

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


@dataclass(frozen=True)
class TrialRecord:
    """What became of one trial."""

    number: int
    run_id: str | None
    """Its child run; None only where it could not be made."""
    state: State
    value: float | None
    """The metric at the epoch whose weights are kept; of a pruned trial, at its last epoch."""
    values: dict[str, Any]
    """What was sampled, by dotted config name."""
    best_epoch: int | None
    """The epoch that `value` is of."""
    num_epochs: int
    """Epochs that were trained."""
    seconds: float
    cause: str | None
    """Why it failed."""


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a search share; picklable."""

    config: ExperimentConfig
    objective: Objective
    distributions: dict[str, BaseDistribution]
    parent: RunRef
    inputs: tuple[DatasetInput, ...] = ()
    """The data sets that each child run names."""
    judge: Judge | None = None


@dataclass(frozen=True)
class _Outcome:
    """The part of a TrialRecord that Optuna has no place for; kept as a user attribute."""

    run_id: str | None
    best_epoch: int | None
    num_epochs: int
    seconds: float
    cause: str | None = None


@dataclass
class _Progress:
    """How far a training is."""

    value: float | None = None
    best_epoch: int | None = None
    num_epochs: int = 0
    is_pruned: bool = False
    seconds: float = 0.0
    results: list["EpochResult"] = field(default_factory=list)

    def outcome(self, run: Run, *, cause: str | None = None) -> _Outcome:
        return _Outcome(run.run_id, self.best_epoch, self.num_epochs, self.seconds, cause)


def run_trial(
    study: optuna.Study, plan: TrialPlan, tracker: Tracker, *, on_start: Callable[[int], None] | None = None
) -> TrialRecord:
    """Runs one trial to its end.

    Whatever the training raises is the trial's failure. TrackingError and KeyboardInterrupt go through: the trial
    stays RUNNING in Optuna, and the next command of the search runs it again.
    """
    trial = study.ask(plan.distributions)
    if on_start is not None:
        on_start(trial.number)
    values = dict(trial.params)
    tags = {NUMBER_TAG: str(trial.number)}
    if RETRY_ATTR in trial.user_attrs:
        tags[RETRY_TAG] = str(trial.user_attrs[RETRY_ATTR])
    progress, start = _Progress(), time.perf_counter()
    cause = None
    with tracker.start_run(
        plan.config.name, parent=plan.parent, run_name=f"trial-{trial.number:04d}", tags=tags
    ) as run:
        try:
            run.log_inputs(plan.inputs)
            _train(trial, values, plan, run, progress)
        except KeyboardInterrupt:
            run.set_tags({STATE_TAG: INTERRUPTED})
            raise
        except TrackingError:
            raise
        except _TRIAL_FAILURES as error:
            cause = render_cause(error)
            logger.warning("trial=%d failed: %s", trial.number, cause)
            run.set_tags({STATE_TAG: "FAILED"})
            run.fail(error)
        progress.seconds = time.perf_counter() - start
        if plan.judge is not None and progress.results:
            run.set_tags(plan.judge(progress.results))
        state: State = "FAILED" if cause else "PRUNED" if progress.is_pruned else "COMPLETE"
        if not cause:
            run.log_metrics({OBJECTIVE_METRIC: progress.value or 0.0}, step=progress.best_epoch)
            run.set_tags({STATE_TAG: state, EPOCH_TAG: progress.best_epoch})
            run.finish("KILLED" if state == "PRUNED" else "FINISHED")
        outcome = progress.outcome(run, cause=cause)
    trial.set_user_attr(OUTCOME_ATTR, asdict(outcome))
    study.tell(trial, progress.value if state == "COMPLETE" else None, state=_OPTUNA_STATES[state])
    value = None if state == "FAILED" else progress.value
    return TrialRecord(number=trial.number, state=state, value=value, values=values, **asdict(outcome))


def _train(trial: optuna.Trial, values: Mapping[str, Any], plan: TrialPlan, run: Run, progress: _Progress) -> None:
    config = with_values(plan.config, values)
    run.log_config(config, with_artifact=False)
    metric = plan.config.search.metric
    results = plan.objective(config)
    try:
        for result in results:
            run.log_epoch(result)
            progress.results.append(result)
            value = _metric_value(result, metric)
            progress.num_epochs += 1
            if result.is_best:
                progress.value, progress.best_epoch = value, result.epoch
            trial.report(value, step=result.epoch)
            # After the last epoch there is nothing left to save.
            if result.epoch + 1 < config.train.num_epochs and trial.should_prune():
                progress.is_pruned, progress.value, progress.best_epoch = True, value, result.epoch
                break
    finally:
        close = getattr(results, "close", None)
        if close is not None:
            close()
    if progress.value is None:
        raise SearchError("The training ended without an epoch; train.num_epochs must be at least 1.")


def _metric_value(result: "EpochResult", metric: str) -> float:
    value = result.metrics.get(metric)
    if value is None:
        known = ", ".join(sorted(result.metrics))
        raise SearchError(f"search.metric must be one that an epoch logs ({known}), got {metric!r}.")
    if not math.isfinite(value):
        raise SearchError(f"{metric} must be finite, got {value} in epoch {result.epoch}; try a smaller train.lr.")
    return value


def is_interrupted(trial: FrozenTrial) -> bool:
    """Whether a finished trial was cut off rather than tried; it counts for nothing."""
    return bool(trial.user_attrs.get(INTERRUPTED_ATTR))


def build_record(trial: FrozenTrial) -> TrialRecord:
    """The record of a finished trial, from what the study keeps."""
    states: dict[TrialState, State] = {optuna_state: state for state, optuna_state in _OPTUNA_STATES.items()}
    outcome: dict[str, Any] = trial.user_attrs.get(OUTCOME_ATTR) or asdict(
        _Outcome(None, None, len(trial.intermediate_values), 0.0, "unknown")
    )
    value = trial.value if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    return TrialRecord(
        number=trial.number, state=states[trial.state], value=value, values=dict(trial.params), **outcome
    )


def tell_outcome(
    study: optuna.Study,
    storage: optuna.storages.BaseStorage,
    number: int,
    *,
    state: State,
    run_id: str | None,
    value: float | None = None,
    best_epoch: int | None = None,
    cause: str | None = None,
) -> None:
    """Finishes a trial that the process which ran it did not tell Optuna about."""
    trial = study.get_trials(deepcopy=False)[number]
    num_epochs = len(trial.intermediate_values)
    started = trial.datetime_start.timestamp() if trial.datetime_start else time.time()
    outcome = _Outcome(run_id, best_epoch, num_epochs, max(0.0, time.time() - started), cause)
    set_attr(study, storage, number, OUTCOME_ATTR, asdict(outcome))
    study.tell(number, value if state == "COMPLETE" else None, state=_OPTUNA_STATES[state])


def set_attr(study: optuna.Study, storage: optuna.storages.BaseStorage, number: int, name: str, value: Any) -> None:
    """Sets a user attribute of a trial that another process runs or ran."""
    study_id = storage.get_study_id_from_name(study.study_name)
    storage.set_trial_user_attr(storage.get_trial_id_from_study_id_trial_number(study_id, number), name, value)
