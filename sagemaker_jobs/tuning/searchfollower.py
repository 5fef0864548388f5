"""Follows a tuning job: each training job that has ended becomes a trial's run, once, while the others go on."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import CloudError, SearchError
from dogbreed_ml.runs import CAUSE_TAG
from dogbreed_ml.search import SearchResult, conclude
from dogbreed_ml.searchdisplay import SearchDisplay
from dogbreed_ml.tracking import ChildRun, Run, Tracker
from dogbreed_ml.trials import EPOCH_TAG, INTERRUPTED, OBJECTIVE_METRIC, STATE_TAG, State, TrialRecord
from sagemaker_jobs.client import Aws, wait_until
from sagemaker_jobs.storage import Storage
from sagemaker_jobs.training.importing import import_job
from sagemaker_jobs.training.jobcontrol import ENDED, INTERVAL_S, LOCAL_INTERVAL_S, Job, describe_job
from sagemaker_jobs.tuning.tuningstatus import describe_tuning_job, list_training_jobs, tuned_values

logger = logging.getLogger(__name__)

_SLACK_S = 3600.0
_STATES: dict[str, State] = {"COMPLETE": "COMPLETE", "PRUNED": "PRUNED", "FAILED": "FAILED"}


class TuningJobGoneError(CloudError):
    """The tuning job was deleted by somebody else."""

    def __init__(self, name: str):
        super().__init__(
            f"The tuning job {name} was deleted while this command knew of it; the trials brought home until then "
            "stay. The same command starts a new one."
        )
        self.name = name


@dataclass
class SearchFollower:
    """One tuning job and the parent run that its trials belong to."""

    aws: Aws
    name: str
    config: ExperimentConfig
    tracker: Tracker
    parent: Run
    storage: Storage
    records: dict[int, TrialRecord] = field(default_factory=dict)
    """Of the trials that were brought home, by number."""
    has_ended: bool = False
    """Whether the tuning job was seen to have ended, deleted included: nothing of it is paid for any more."""
    _seen: set[int] = field(default_factory=set)

    def follow(self, display: SearchDisplay) -> Job:
        """Until the tuning job has ended and each of its jobs is brought home; its last description.

        Raises TuningJobGoneError, CloudError where AWS or the end stays away too long, TrackingError.
        """

        def look() -> Job:
            description = describe_tuning_job(self.aws, self.name)
            self.has_ended = description is None or description["HyperParameterTuningJobStatus"] in ENDED
            if description is None:
                raise TuningJobGoneError(self.name)
            # Listed after it was described: where that said it has ended, all its jobs are here.
            self.bring_home(description, display)
            return description

        return wait_until(
            look,
            lambda job: job["HyperParameterTuningJobStatus"] in ENDED,
            what=f"the end of the tuning job {self.name}",
            timeout_s=self._longest_s(),
            interval_s=LOCAL_INTERVAL_S if self.aws.is_local else INTERVAL_S,
            clock=self.aws.clock,
        )

    def result(self, job: Job) -> SearchResult:
        """Of the ended tuning job and what was brought home of it; SearchError where it failed without one trial."""
        status = job["HyperParameterTuningJobStatus"]
        records = [self.records[number] for number in sorted(self.records)]
        num_completed = sum(record.state == "COMPLETE" for record in records)
        if status == "Failed" and not num_completed:
            causes = "; ".join(dict.fromkeys(record.cause or "unknown" for record in records))
            reason = job.get("FailureReason", "SageMaker gives no reason")
            raise SearchError(f"The tuning job {self.name} failed: {reason} {causes}".rstrip())
        if status != "Completed":
            logger.warning(
                "the tuning job %s ended as %s; going on with its completed trials: %d",
                *(self.name, status, num_completed),
            )
        return conclude(self.name, records, self.config.search)

    def bring_home(self, tuning_job: Job, display: SearchDisplay) -> None:
        """Imports the jobs that have ended since the last look."""
        listed = list_training_jobs(self.aws, self.name)
        ended = {
            number: summary
            for number, summary in listed.items()
            if summary["TrainingJobStatus"] in ENDED and number not in self._seen
        }
        if not ended:
            return
        imported = {number: self._import(number, summary, tuning_job) for number, summary in ended.items()}
        children = {child.run_id: child for child in self.tracker.child_runs(self.parent.run_id)}
        for number, run_id in imported.items():
            # Listed as ended, described as running: SageMaker's two answers are not of one moment.
            if run_id is None:
                continue
            self._seen.add(number)
            record = self._record(number, ended[number], children[run_id])
            # A job that was cut off was not tried to its end; it counts for nothing, as in Optuna's search.
            if record is not None:
                self.records[number] = record
                display.show(record)

    def _import(self, number: int, summary: Mapping[str, Any], tuning_job: Job) -> str | None:
        name = summary["TrainingJobName"]
        job = describe_job(self.aws, name)
        if job is None:
            logger.warning(
                "trial=%d: the training job %s was deleted; its output is looked for all the same", number, name
            )
            job = _remembered(summary, tuning_job)
        is_cut_off = tuning_job["HyperParameterTuningJobStatus"] in ("Stopping", "Stopped")
        return import_job(
            self.tracker,
            job,
            storage=self.storage,
            config=self.config,
            parent=self.parent.ref,
            number=number,
            stopped_as="INTERRUPTED" if is_cut_off else "PRUNED",
        )

    def _record(self, number: int, summary: Mapping[str, Any], child: ChildRun) -> TrialRecord | None:
        tags = child.tags
        if tags.get(STATE_TAG) == INTERRUPTED:
            return None
        state = _STATES.get(tags.get(STATE_TAG, ""), "FAILED")
        start, end = summary.get("TrainingStartTime"), summary.get("TrainingEndTime")
        best_epoch = tags.get(EPOCH_TAG)
        return TrialRecord(
            number=number,
            run_id=child.run_id,
            state=state,
            value=None if state == "FAILED" else child.metrics.get(OBJECTIVE_METRIC),
            values=tuned_values(self.config, summary),
            best_epoch=int(best_epoch) if best_epoch is not None and best_epoch.isdecimal() else None,
            num_epochs=len(self.tracker.epochs(child.run_id)),
            seconds=(end - start).total_seconds() if start and end else 0.0,
            cause=tags.get(CAUSE_TAG, summary.get("FailureReason")) if state == "FAILED" else None,
        )

    def _longest_s(self) -> float:
        """How long the tuning job may take in all, waiting for capacity included."""
        search, wanted = self.config.search, self.config.sagemaker
        one_s = max(wanted.max_runtime_s, wanted.max_wait_s or (2 * wanted.max_runtime_s if wanted.spot else 0))
        rounds_s = math.ceil(search.num_trials / search.num_parallel) * (one_s + _SLACK_S)
        return rounds_s if search.timeout_s is None else min(rounds_s, search.timeout_s + one_s + _SLACK_S)


def _remembered(summary: Mapping[str, Any], tuning_job: Job) -> dict[str, Any]:
    """A deleted job's description, as far as its tuning job still knows it."""
    definition = tuning_job["TrainingJobDefinition"]
    now = tuning_job.get("LastModifiedTime", summary["CreationTime"])
    return {
        "LastModifiedTime": now,
        "TrainingEndTime": now,
        **summary,
        "TuningJobArn": tuning_job["HyperParameterTuningJobArn"],
        "OutputDataConfig": definition["OutputDataConfig"],
        "HyperParameters": {**definition.get("StaticHyperParameters", {}), **summary.get("TunedHyperParameters", {})},
    }
