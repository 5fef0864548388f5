"""One trial of a search: sample a config, train it, write its child run, then tell Optuna.

In that order: a trial that Optuna has as finished always has its finished run in MLflow.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.tracking import DatasetInput, RunRef, Tracker
from dogbreed_ml.trialrun import (
    EPOCH_TAG,
    INTERRUPTED,
    NUMBER_TAG,
    OBJECTIVE_METRIC,
    RETRY_TAG,
    STATE_TAG,
    Judge,
    Objective,
    State,
    TrialProgress,
    record_trial,
    trial_run_name,
)

if TYPE_CHECKING:
    from dogbreed_ml.train import EpochResult

__all__ = [
    "EPOCH_TAG",
    "INTERRUPTED",
    "NUMBER_TAG",
    "OBJECTIVE_METRIC",
    "RETRY_TAG",
    "STATE_TAG",
    "Judge",
    "Objective",
    "State",
    "TrialPlan",
    "TrialRecord",
    "run_trial",
]

OUTCOME_ATTR, INTERRUPTED_ATTR, RETRY_ATTR, CRASHES_ATTR = "outcome", "interrupted", "retry_of", "num_crashes"

_OPTUNA_STATES: dict[State, TrialState] = {
    "COMPLETE": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "FAILED": TrialState.FAIL,
}


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

    def is_hopeless(result: "EpochResult", value: float) -> bool:
        trial.report(value, step=result.epoch)
        return trial.should_prune()

    with tracker.start_run(
        plan.config.name, parent=plan.parent, run_name=trial_run_name(trial.number), tags=tags
    ) as run:
        progress = record_trial(
            run,
            config=plan.config,
            values=values,
            objective=plan.objective,
            inputs=plan.inputs,
            judge=plan.judge,
            should_stop=is_hopeless,
        )
        outcome = _outcome(progress, run.run_id)
    state = progress.state
    trial.set_user_attr(OUTCOME_ATTR, asdict(outcome))
    study.tell(trial, progress.value if state == "COMPLETE" else None, state=_OPTUNA_STATES[state])
    value = None if state == "FAILED" else progress.value
    return TrialRecord(number=trial.number, state=state, value=value, values=values, **asdict(outcome))


def _outcome(progress: TrialProgress, run_id: str) -> _Outcome:
    return _Outcome(run_id, progress.best_epoch, progress.num_epochs, progress.seconds, progress.cause)


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
