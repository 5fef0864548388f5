"""Runs one tuning job: launches training jobs, watches them, gives up the hopeless, and knows when it is done.

It sees training jobs only as a client does, and writes what it finds into the tuning job's record.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sagemaker_jobs.local.errors import ServiceError
from sagemaker_jobs.local.stopping import Improvement, is_value
from sagemaker_jobs.local.strategies import Strategy, Suggestion
from sagemaker_jobs.local.tuningplan import TuningPlan

Row = dict[str, Any]
Outcome = Literal["Completed", "Stopped", "Failed"]

ENDED = ("Completed", "Failed", "Stopped")
"""Statuses that a job does not leave."""

_COPIED = (
    "TrainingJobArn",
    "CreationTime",
    "TrainingStartTime",
    "TrainingEndTime",
    "TrainingJobStatus",
    "FailureReason",
)
_RETRYABLE = "InternalServerError"


class Jobs(Protocol):
    """What the tuner needs of training jobs: three operations, and every value of a metric."""

    def create_training_job(self, params: Row, /, *, tuning_job_arn: str | None = None) -> Row: ...

    def describe_training_job(self, params: Row, /) -> Row: ...

    def stop_training_job(self, params: Row, /) -> Row: ...

    def metric_values(self, job_name: str, metric_name: str, /) -> Sequence[float]:
        """All values that the job emitted so far, oldest first."""


@dataclass
class _Job:
    suggestion: Suggestion
    summary: Row
    """HyperParameterTrainingJobSummary."""
    series: list[float] = field(default_factory=list)
    is_stopping: bool = False

    @property
    def name(self) -> str:
        return str(self.summary["TrainingJobName"])

    @property
    def is_running(self) -> bool:
        return self.summary["TrainingJobStatus"] not in ENDED

    @property
    def objective(self) -> float | None:
        """The final value; None while it is pending, and where there is none."""
        if self.summary["ObjectiveStatus"] != "Succeeded":
            return None
        return float(self.summary["FinalHyperParameterTuningJobObjectiveMetric"]["Value"])


class Tuner:
    """One tuning job; `step` is called again and again by one thread."""

    def __init__(
        self, plan: TuningPlan, jobs: Jobs, *, arn: str, save: Callable[[Row], None],
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._plan, self._training, self._arn, self._save, self._clock = plan, jobs, arn, save, clock
        self._strategy = Strategy(plan.search)
        self._jobs: list[_Job] = []
        self._improvement = Improvement(plan.search.maximize)
        self._deadline = None if plan.max_runtime_s is None else clock() + plan.max_runtime_s
        self._converged: float | None = None
        self._outcome: Outcome | None = None
        """Set when no more jobs are launched before the limit is reached; the running ones are being stopped."""
        self._reason: str | None = None

    def step(self, *, stop: bool) -> Outcome | None:
        """Takes in what changed, launches what there is room for; how the tuning job ended, once it has.

        `stop`: StopHyperParameterTuningJob was called.
        """
        changed = [job for job in self._jobs if job.is_running and self._look_at(job)]
        self._decide(stop=stop)
        launched = self._launch()
        if self._outcome is not None:
            for job in self._jobs:
                self._stop(job)
        ended = self._end() if not any(job.is_running for job in self._jobs) else None
        if changed or launched or ended:
            self._save(self.record())
        return ended

    def record(self) -> Row:
        """The changing members of the tuning job's record, with `Jobs`, the summaries of its training jobs."""
        summaries = [job.summary for job in self._jobs]
        details: Row = {"NumberOfTrainingJobsObjectiveNotImproving": self._improvement.num_not_improving}
        if self._converged is not None:
            details["ConvergenceDetectedTime"] = self._converged
        record: Row = {"Jobs": summaries, "TuningJobCompletionDetails": details, **count(summaries)}
        best = best_job(summaries, maximize=self._plan.search.maximize)
        if best is not None:
            record["BestTrainingJob"] = best
        if self._plan.parent_jobs is not None:
            own = [{**summary, "TuningJobName": self._plan.name} for summary in summaries]
            overall = best_job([*self._plan.parent_jobs, *own], maximize=self._plan.search.maximize)
            if overall is not None:
                record["OverallBestTrainingJob"] = overall
        if self._reason is not None:
            record["FailureReason"] = self._reason
        return record

    def _look_at(self, job: _Job) -> bool:
        """Takes in what a running job has done; whether its summary changed."""
        try:
            description = self._training.describe_training_job({"TrainingJobName": job.name})
        except ServiceError as error:
            description = {"TrainingJobStatus": "Failed", "FailureReason": f"The job is gone: {error}"}
        series = list(self._training.metric_values(job.name, self._plan.metric_name))
        before, is_longer = dict(job.summary), len(series) > len(job.series)
        job.series = series
        job.summary |= {key: description[key] for key in _COPIED if description.get(key) is not None}
        if not job.is_running:
            self._finish(job, description)
        elif is_longer and self._outcome is None and self._strategy.is_hopeless(job.suggestion.number, series):
            self._stop(job)
        return job.summary != before

    def _finish(self, job: _Job, description: Row) -> None:
        """Evaluates a job that ended."""
        final = next(
            (float(each["Value"]) for each in description.get("FinalMetricDataList", [])
             if each["MetricName"] == self._plan.metric_name),
            None,
        )  # fmt: skip
        status = job.summary["TrainingJobStatus"]
        value = final if status != "Failed" and is_value(final) else None
        job.summary["ObjectiveStatus"] = "Failed" if value is None else "Succeeded"
        if value is not None:
            job.summary["FinalHyperParameterTuningJobObjectiveMetric"] = {
                "Type": self._plan.objective_type, "MetricName": self._plan.metric_name, "Value": value,
            }  # fmt: skip
            self._improvement.add(value)
            if self._improvement.is_converged and self._converged is None:
                self._converged = self._clock()
        self._strategy.tell(job.suggestion.number, value, series=job.series, is_whole=status == "Completed")

    def _decide(self, *, stop: bool) -> None:
        """Whether the tuning job ends before it has launched all its jobs."""
        if stop and self._outcome != "Failed":
            self._outcome = "Stopped"
        if self._outcome is not None:
            return
        is_late = self._deadline is not None and self._clock() >= self._deadline
        if is_late or self._plan.criteria.completion(self._improvement) is not None:
            self._outcome = "Completed"

    def _launch(self) -> bool:
        """Starts as many jobs as there is room for; whether there were any."""
        search, launched = self._plan.search, False
        while self._outcome is None and len(self._jobs) < search.num_jobs:
            if sum(job.is_running for job in self._jobs) >= search.num_parallel:
                break
            suggestion = self._strategy.suggest()
            name = f"{self._plan.name}-{suggestion.number + 1:03d}-{secrets.token_hex(4)}"
            try:
                request = self._plan.training_request(name, suggestion.values)
                answer = self._training.create_training_job(request, tuning_job_arn=self._arn)
            except ServiceError as error:
                self._outcome = "Failed"
                self._reason = f"The training job {name} was refused: {error.code}: {error.message}"[:1024]
                break
            self._jobs.append(_Job(suggestion, self._first_summary(name, suggestion, answer["TrainingJobArn"])))
            launched = True
        return launched

    def _first_summary(self, name: str, suggestion: Suggestion, arn: str) -> Row:
        summary = {
            "TrainingJobName": name,
            "TrainingJobArn": arn,
            "CreationTime": self._clock(),
            "TrainingJobStatus": "InProgress",
            "TunedHyperParameters": suggestion.values,
            "ObjectiveStatus": "Pending",
        }
        if "DefinitionName" in self._plan.definition:
            summary["TrainingJobDefinitionName"] = self._plan.definition["DefinitionName"]
        return summary

    def _stop(self, job: _Job) -> None:
        if not job.is_running or job.is_stopping:
            return
        job.is_stopping = True
        try:
            self._training.stop_training_job({"TrainingJobName": job.name})
        except ServiceError:
            # It ended by itself meanwhile, or is gone; the next look tells.
            return

    def _end(self) -> Outcome | None:
        """How the tuning job ended, when no job is running; None where more are to come."""
        if self._outcome is None and len(self._jobs) < self._plan.search.num_jobs:
            return None
        if self._outcome is None:
            self._outcome, self._reason = self._verdict()
        return self._outcome

    def _verdict(self) -> tuple[Outcome, str | None]:
        if any(job.objective is not None for job in self._jobs):
            return "Completed", None
        if all(job.summary["TrainingJobStatus"] == "Failed" for job in self._jobs):
            return (
                "Failed",
                "All training jobs failed. Please take a look at the training jobs failures to get more details.",
            )
        return "Failed", (
            f"No objective metrics found after running {len(self._jobs)} training jobs. Please ensure that the custom "
            "algorithm is emitting the objective metric as defined by the regular expression provided."
        )


def count(summaries: Sequence[Row]) -> dict[str, dict[str, int]]:
    """TrainingJobStatusCounters and ObjectiveStatusCounters."""
    statuses = dict.fromkeys(("Completed", "InProgress", "RetryableError", "NonRetryableError", "Stopped"), 0)
    objectives = dict.fromkeys(("Succeeded", "Pending", "Failed"), 0)
    for summary in summaries:
        statuses[_counter(summary)] += 1
        objectives[summary["ObjectiveStatus"]] += 1
    return {"TrainingJobStatusCounters": statuses, "ObjectiveStatusCounters": objectives}


def _counter(summary: Row) -> str:
    status = str(summary["TrainingJobStatus"])
    if status == "Failed":
        is_retryable = summary.get("FailureReason", "").startswith(_RETRYABLE)
        return "RetryableError" if is_retryable else "NonRetryableError"
    return status if status in ENDED else "InProgress"


def best_job(summaries: Sequence[Row], *, maximize: bool) -> Row | None:
    """The first of those with the best final value; a job that was stopped early is one of them."""
    evaluated = [summary for summary in summaries if summary["ObjectiveStatus"] == "Succeeded"]
    sign = 1 if maximize else -1
    return max(evaluated, key=lambda each: sign * final_value(each), default=None)


def final_value(summary: Row) -> float:
    """The final objective value of a summary that has one."""
    return float(summary["FinalHyperParameterTuningJobObjectiveMetric"]["Value"])
