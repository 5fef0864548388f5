"""What becomes of trials whose process is gone: adopted, run again, or recorded as failed."""

import logging

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from dogbreed_ml.runs import CAUSE_TAG
from dogbreed_ml.tracking import ChildRun, Run, Tracker
from dogbreed_ml.trials import (
    CRASHES_ATTR,
    EPOCH_TAG,
    INTERRUPTED,
    INTERRUPTED_ATTR,
    NUMBER_TAG,
    OBJECTIVE_METRIC,
    RETRY_ATTR,
    STATE_TAG,
    TrialRecord,
    build_record,
    set_attr,
    tell_outcome,
)
from dogbreed_ml.workers import Death

logger = logging.getLogger(__name__)

MAX_CRASHES = 3
"""A trial whose process was killed so often is given up: it may be what kills it (memory)."""


def recover(study: optuna.Study, storage: BaseStorage, tracker: Tracker, parent: Run) -> None:
    """Settles the trials that a killed command left RUNNING.

    One whose child run is ended is told to Optuna. Any other is marked as interrupted, its run ends as KILLED, and
    its values are queued to be tried again.
    """
    trials = study.get_trials(deepcopy=False)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    if not running:
        return
    children = _children(tracker, parent.run_id)
    queued = {trial.user_attrs.get(RETRY_ATTR) for trial in trials}
    for trial in running:
        child = children.get(trial.number)
        if child is not None and _adopt(study, storage, trial, child):
            logger.info("trial=%d was finished by the command before", trial.number)
            continue
        was_stopped = child is not None and child.tags.get(STATE_TAG) == INTERRUPTED
        num_crashes = int(trial.user_attrs.get(CRASHES_ATTR, 0)) + (not was_stopped)
        if num_crashes >= MAX_CRASHES:
            _give_up(study, storage, tracker, trial, child, f"the process was killed in it {num_crashes} times")
            continue
        logger.info("trial=%d was cut off; running it again", trial.number)
        if child is not None:
            tracker.end_run(child.run_id, "KILLED", tags={STATE_TAG: INTERRUPTED})
        # Queued first: cut off between the two, the next command finds the trial RUNNING and the retry there.
        if trial.number not in queued and set(trial.params) == set(_names(trials)):
            study.enqueue_trial(trial.params, user_attrs={RETRY_ATTR: trial.number, CRASHES_ATTR: num_crashes})
        set_attr(study, storage, trial.number, INTERRUPTED_ATTR, True)
        study.tell(trial.number, state=TrialState.FAIL)


def bury(study: optuna.Study, storage: BaseStorage, tracker: Tracker, parent: Run, death: Death) -> TrialRecord | None:
    """Records the trial of a worker that died as FAILED, with the cause; None where it had none yet."""
    if death.number is None:
        return None
    trial = study.get_trials(deepcopy=False)[death.number]
    if not trial.state.is_finished():
        child = _children(tracker, parent.run_id).get(death.number)
        if child is None:
            # It died before its run was made; the record belongs in MLflow all the same.
            tags = {NUMBER_TAG: str(death.number), STATE_TAG: "FAILED"}
            run = tracker.start_run("", parent=parent, run_name=f"trial-{death.number:04d}", tags=tags)
            run.log_params(trial.params)
            run.finish("FAILED", cause=death.cause)
            tell_outcome(study, storage, death.number, state="FAILED", run_id=run.run_id, cause=death.cause)
        elif not _adopt(study, storage, trial, child):
            _give_up(study, storage, tracker, trial, child, death.cause)
    return build_record(study.get_trials(deepcopy=False)[death.number])


def _children(tracker: Tracker, parent_run_id: str) -> dict[int, ChildRun]:
    children = tracker.child_runs(parent_run_id)
    return {int(child.tags[NUMBER_TAG]): child for child in children if NUMBER_TAG in child.tags}


def _names(trials: list[FrozenTrial]) -> set[str]:
    """All dimensions; a process may be killed while it samples them."""
    return set().union(*(trial.params for trial in trials))


def _adopt(study: optuna.Study, storage: BaseStorage, trial: FrozenTrial, child: ChildRun) -> bool:
    """Tells Optuna what the child run says, where that run was ended by the trial itself."""
    told = (child.tags.get(STATE_TAG), child.status)
    value = child.metrics.get(OBJECTIVE_METRIC)
    epoch = child.tags.get(EPOCH_TAG)
    best_epoch = int(epoch) if epoch else None
    if told == ("COMPLETE", "FINISHED") and value is not None:
        tell_outcome(
            study, storage, trial.number, state="COMPLETE", run_id=child.run_id, value=value, best_epoch=best_epoch
        )
    elif told == ("PRUNED", "KILLED"):
        tell_outcome(study, storage, trial.number, state="PRUNED", run_id=child.run_id, best_epoch=best_epoch)
    elif told == ("FAILED", "FAILED"):
        cause = child.tags.get(CAUSE_TAG, "unknown")
        tell_outcome(study, storage, trial.number, state="FAILED", run_id=child.run_id, cause=cause)
    else:
        return False
    return True


def _give_up(
    study: optuna.Study,
    storage: BaseStorage,
    tracker: Tracker,
    trial: FrozenTrial,
    child: ChildRun | None,
    cause: str,
) -> None:
    if child is not None:
        tracker.end_run(child.run_id, "FAILED", tags={STATE_TAG: "FAILED", CAUSE_TAG: cause})
    run_id = child.run_id if child is not None else None
    tell_outcome(study, storage, trial.number, state="FAILED", run_id=run_id, cause=cause)
