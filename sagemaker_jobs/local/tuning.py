"""Hyperparameter tuning jobs: their operations, and a thread for each that runs."""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sagemaker_jobs.local.errors import ResourceNotFound, ValidationException
from sagemaker_jobs.local.listing import select
from sagemaker_jobs.local.tuner import ENDED, Outcome, Tuner, count, final_value
from sagemaker_jobs.local.tuningplan import TuningPlan, parse_plan
from sagemaker_jobs.local.warmstart import parent_names
from sagemaker_jobs.shapes import answer_members, structure_members

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker

Row = dict[str, Any]

KIND = "hyper-parameter-tuning-job"
_NAME, _STATUS, _END = "HyperParameterTuningJobName", "HyperParameterTuningJobStatus", "HyperParameterTuningEndTime"
_PAGE = 10
"""AWS's default for both lists."""
_GLANCE_S = 0.1
"""How long a tuner sleeps at most where no record changes."""
_SERVER_ENDED = "The local SageMaker ended while the tuning job was running."
_ENDED_BADLY = "InternalServerError: the tuner of the local SageMaker broke down; its log has the cause."


class TuningJobs:
    """Tuning jobs of one server."""

    def __init__(self, service: "LocalSageMaker") -> None:
        self._service = service
        self._lock = threading.Lock()
        self._runners: dict[str, _Runner] = {}
        self._is_closed = False

    def recover(self) -> None:
        """Marks what was running under the server before as Failed."""
        for record in self._service.records.list(KIND):
            if record[_STATUS] not in ENDED:
                self._end(record[_NAME], "Failed", _SERVER_ENDED)

    def start(self) -> None:
        """Nothing runs before the first tuning job."""

    def close(self) -> None:
        """Ends the threads; the training jobs are the server's to end."""
        with self._lock:
            self._is_closed = True
            runners = list(self._runners.values())
        for runner in runners:
            runner.abandon()
        self._service.records.notify()
        for runner in runners:
            runner.join()

    def create_hyper_parameter_tuning_job(self, params: Row) -> Row:
        records, now = self._service.records, time.time()
        parents = {name: records.get(KIND, name) for name in parent_names(params) if records.exists(KIND, name)}
        plan = parse_plan(params, others=parents)
        arn = self._service.arn(KIND, plan.name)
        record = {
            **params,
            "HyperParameterTuningJobArn": arn,
            _STATUS: "InProgress",
            "CreationTime": now,
            "LastModifiedTime": now,
            "Jobs": [],
            **count([]),
        }
        taken = (
            "Tuning job names must be unique within an AWS account and region, and a tuning job with this name "
            f"already exists ({arn})."
        )
        with self._lock:
            if self._is_closed:
                raise ValidationException("The local SageMaker is closing.")
            records.create(KIND, plan.name, record, taken=taken)
            runner = _Runner(self._service, plan, on_end=self._end)
            self._runners[plan.name] = runner
            runner.start()
        return {"HyperParameterTuningJobArn": arn}

    def describe_hyper_parameter_tuning_job(self, params: Row) -> Row:
        record = self._find(params[_NAME])
        end = record.get(_END, time.time())
        record["ConsumedResources"] = {"RuntimeInSeconds": int(end - record["CreationTime"])}
        return _only(record, answer_members("sagemaker", "DescribeHyperParameterTuningJob"))

    def list_hyper_parameter_tuning_jobs(self, params: Row) -> Row:
        rows = self._service.records.list(KIND)
        page, token = select(
            rows, {"MaxResults": _PAGE, **params}, name=_NAME, status=_STATUS, sort_by="Name", sort_order="Ascending"
        )
        members = structure_members("sagemaker", "HyperParameterTuningJobSummary")
        summaries = [_only({**row, **_config_members(row)}, members) for row in page]
        return {"HyperParameterTuningJobSummaries": summaries, **token}

    def stop_hyper_parameter_tuning_job(self, params: Row) -> Row:
        """Returns at once; the status is Stopping until the last training job has stopped."""

        def change(record: Row) -> None:
            if record[_STATUS] in ENDED:
                raise ValidationException(
                    f"The request was rejected because the tuning job is in status {record[_STATUS]}."
                )
            record.update({_STATUS: "Stopping", "LastModifiedTime": time.time()})

        name = params[_NAME]
        self._find(name)
        with self._lock:
            self._service.records.update(KIND, name, change)
            self._runners[name].stop()
        self._service.records.notify()
        return {}

    def delete_hyper_parameter_tuning_job(self, params: Row) -> Row:
        """Forgets an ended tuning job; its training jobs and what they made stay."""
        name = params[_NAME]
        status = self._find(name)[_STATUS]
        if status not in ENDED:
            raise ValidationException(f"A tuning job in status {status} cannot be deleted; stop it first.")
        self._service.records.delete(KIND, name, missing=_missing(name))
        return {}

    def list_training_jobs_for_hyper_parameter_tuning_job(self, params: Row) -> Row:
        rows = self._find(params[_NAME])["Jobs"]
        if params.get("SortBy") == "FinalObjectiveMetricValue":
            # As AWS has it: those without a value are left out.
            rows = [row for row in rows if row["ObjectiveStatus"] == "Succeeded"]
        page, token = select(
            rows,
            {"MaxResults": _PAGE, **params},
            name="TrainingJobName",
            status="TrainingJobStatus",
            sort_by="Name",
            sort_order="Ascending",
            sort_key=_sort_key,
        )
        return {"TrainingJobSummaries": page, **token}

    def _find(self, name: str) -> Row:
        return self._service.records.get(KIND, name, missing=_missing(name))

    def _end(self, name: str, outcome: Outcome, reason: str | None) -> None:
        """Writes a tuning job's last status; with a reason, its training jobs have failed by it too."""

        def change(record: Row) -> None:
            now = time.time()
            record.update({_STATUS: outcome, _END: now, "LastModifiedTime": now})
            if reason is None:
                return
            record["FailureReason"] = reason
            for summary in record["Jobs"]:
                if summary["TrainingJobStatus"] not in ENDED:
                    summary.update(TrainingJobStatus="Failed", ObjectiveStatus="Failed", FailureReason=reason)
            record.update(count(record["Jobs"]))

        # With the runner gone at the same moment, the name can be deleted and used again.
        with self._lock:
            self._service.records.update(KIND, name, change)
            self._runners.pop(name, None)


class _Runner:
    """The thread of one tuning job."""

    def __init__(
        self, service: "LocalSageMaker", plan: TuningPlan, *, on_end: Callable[[str, Outcome, str | None], None]
    ) -> None:
        self._service, self._plan, self._on_end = service, plan, on_end
        self._is_stopped, self._is_abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tuning-{plan.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Has the training jobs stopped; returns at once."""
        self._is_stopped.set()

    def abandon(self) -> None:
        """Ends the thread at its next look."""
        self._is_abandoned.set()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        outcome: Outcome = "Failed"
        reason: str | None = _ENDED_BADLY
        try:
            arn = self._service.arn(KIND, self._plan.name)
            tuner = Tuner(self._plan, self._service.training, arn=arn, save=self._save)
            found = None
            while found is None and not self._is_abandoned.is_set():
                found = tuner.step(stop=self._is_stopped.is_set())
                if found is None:
                    self._wait()
            outcome, reason = (found, None) if found else ("Failed", _SERVER_ENDED)
        finally:
            self._on_end(self._plan.name, outcome, reason)

    def _wait(self) -> None:
        """Until a record changes or a metric comes, which notifies too."""
        looks = iter((False,))
        self._service.records.wait_for(lambda: next(looks, True), _GLANCE_S)

    def _save(self, changes: Row) -> None:
        self._service.records.update(KIND, self._plan.name, {**changes, "LastModifiedTime": time.time()})


def _missing(name: str) -> ResourceNotFound:
    return ResourceNotFound(f"Amazon SageMaker can't find a tuning job with the name of {name}.")


def _only(record: Row, members: frozenset[str]) -> Row:
    return {name: value for name, value in record.items() if name in members}


def _config_members(record: Row) -> Row:
    config = record["HyperParameterTuningJobConfig"]
    return {"Strategy": config["Strategy"], "ResourceLimits": config["ResourceLimits"]}


def _sort_key(row: Row, order: str) -> Any:
    if order == "FinalObjectiveMetricValue":
        return final_value(row)
    return row[{"Name": "TrainingJobName", "Status": "TrainingJobStatus"}.get(order, order)]
