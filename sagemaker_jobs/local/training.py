"""Training jobs: the operations of SageMaker, and the threads that run what they ask for."""

import json
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreed_ml.files import write_whole
from sagemaker_jobs.local.environments import Environments
from sagemaker_jobs.local.errors import ResourceInUse, ResourceNotFound, ValidationException
from sagemaker_jobs.local.failures import MAX_REASON
from sagemaker_jobs.local.joblog import HostLog, LogPump, final_metric_data
from sagemaker_jobs.local.jobrun import JobRun, Order
from sagemaker_jobs.local.listing import select
from sagemaker_jobs.local.profiles import KIND, Profiles, profiling_status, rule_statuses
from sagemaker_jobs.local.trainingplan import check_profiler, plan_training
from sagemaker_jobs.shapes import answer_members, structure_members

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker

ENDED = ("Completed", "Failed", "Stopped")
_NOTES = {
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "The training job ran longer than MaxRuntimeInSeconds",
    "MaxWaitTimeExceeded": "The training job waited and ran longer than MaxWaitTimeInSeconds",
}


class TrainingJobs:
    """Training jobs of one server; plain AWS dicts in and out, timestamps epoch floats."""

    SERVER_ENDED = "InternalServerError: the local SageMaker ended while the job ran; create the job again."

    def __init__(self, service: "LocalSageMaker") -> None:
        self.service = service
        self.logs_dir = service.root_dir / "logs"
        self.environments = Environments(service.root_dir / "environments", service.processes)
        self.pump = LogPump()
        self.profiles = Profiles(service)
        self.is_closing = False
        self._tmp_link = service.root_dir / "tmp"
        self._series_dir = service.root_dir / "metrics"
        self._waiting: deque[JobRun] = deque()
        self._running: dict[JobRun, threading.Thread] = {}
        self._runs: dict[str, JobRun] = {}
        self._lock = threading.Lock()

    def recover(self) -> None:
        """Marks what was running under the server before as Failed."""
        for record in self.service.records.list(KIND):
            if record["TrainingJobStatus"] not in ENDED:
                self.end(record["TrainingJobName"], "Failed", reason=self.SERVER_ENDED)
        self.profiles.recover()
        shutil.rmtree(self.service.root_dir / "jobs", ignore_errors=True)
        if self._tmp_link.is_symlink():
            shutil.rmtree(self._tmp_link.readlink(), ignore_errors=True)
            self._tmp_link.unlink()

    def start(self) -> None:
        self.tmp_dir = Path(tempfile.mkdtemp(prefix="sagemaker-"))
        # So that the next server on this folder finds what a killed one left in the system's folder.
        self._tmp_link.parent.mkdir(parents=True, exist_ok=True)
        self._tmp_link.symlink_to(self.tmp_dir)
        self.pump.start()

    def close(self) -> None:
        """Ends every job at once; those that ran or waited are Failed."""
        with self._lock:
            self.is_closing = True
            runs, threads = list(self._runs.values()), list(self._running.values())
        for run in runs:
            run.order("server")
            if run.claim():
                self.end(run.plan.name, "Failed", reason=self.SERVER_ENDED)
        for thread in threads:
            thread.join()
        self.profiles.close()
        self.pump.close()
        shutil.rmtree(self.tmp_dir, ignore_errors=True)
        self._tmp_link.unlink(missing_ok=True)

    def create_training_job(self, params: dict[str, Any], *, tuning_job_arn: str | None = None) -> dict[str, Any]:
        plan = plan_training(params)
        name, now = plan.name, time.time()
        arn = self.service.arn(KIND, name)
        given = {
            key: value for key, value in params.items() if key in answer_members("sagemaker", "DescribeTrainingJob")
        }
        record = {
            "StoppingCondition": {"MaxRuntimeInSeconds": int(plan.max_runtime_s)},
            "EnableNetworkIsolation": False,
            "EnableInterContainerTrafficEncryption": False,
            "EnableManagedSpotTraining": False,
            "ProfilingStatus": profiling_status(params),
            **rule_statuses(params, time_s=now),
            **given,
            # Required in every answer by the model; there is something behind it once the job is Completed or Stopped.
            "ModelArtifacts": {"S3ModelArtifacts": plan.model_uri},
            "TrainingJobArn": arn,
            "TrainingJobStatus": "InProgress",
            "SecondaryStatus": "Starting",
            "SecondaryStatusTransitions": [_transition("Starting", now, "Starting the training job")],
            "CreationTime": now,
            "LastModifiedTime": now,
            "Tags": params.get("Tags", []),
        }
        if tuning_job_arn:
            record["TuningJobArn"] = tuning_job_arn
        taken = (
            "Training job names must be unique within an AWS account and region, and a training job with this name "
            f"already exists ({arn})"
        )
        self.service.records.create(KIND, name, record, taken=taken)
        run = JobRun(self, plan, self.service.root_dir / "jobs" / name)
        at_most = self.service.settings.num_parallel_jobs
        with self._lock:
            self._runs[name] = run
            if len(self._running) < at_most:
                self._begin(run)
            else:
                self.transition(name, "Pending", f"Waiting: at most {at_most} training jobs run at once here")
                self._waiting.append(run)
        return {"TrainingJobArn": arn}

    def describe_training_job(self, params: dict[str, Any]) -> dict[str, Any]:
        record = self.service.records.get(KIND, params["TrainingJobName"])
        run = self._runs.get(params["TrainingJobName"])
        if run and (metrics := final_metric_data(run.logs)):
            record["FinalMetricDataList"] = metrics
        known = answer_members("sagemaker", "DescribeTrainingJob")
        return {name: value for name, value in record.items() if name in known}

    def list_training_jobs(self, params: dict[str, Any]) -> dict[str, Any]:
        for member in ("TrainingPlanArnEquals", "WarmPoolStatusEquals"):
            if member in params:
                raise ValidationException(f"{member} is not supported by the local SageMaker.")
        rows, token = select(
            self.service.records.list(KIND), params, name="TrainingJobName", status="TrainingJobStatus",
            sort_order="Ascending",
        )  # fmt: skip
        known = structure_members("sagemaker", "TrainingJobSummary")
        summaries = [{name: value for name, value in row.items() if name in known} for row in rows]
        return {"TrainingJobSummaries": summaries, **token}

    def stop_training_job(self, params: dict[str, Any]) -> dict[str, Any]:
        name = params["TrainingJobName"]
        status = self.service.records.get(KIND, name, missing=_missing())["TrainingJobStatus"]
        if status in ENDED:
            raise ValidationException(f"The request was rejected because the training job is in status {status}.")
        self._order(name, "stop")
        return {}

    def update_training_job(self, params: dict[str, Any]) -> dict[str, Any]:
        name = params["TrainingJobName"]
        record = self.service.records.get(KIND, name, missing=_missing())
        if record["TrainingJobStatus"] != "InProgress":
            raise ValidationException(
                f"Training job {name} is {record['TrainingJobStatus']}; only one InProgress can be updated."
            )
        if "ResourceConfig" in params:
            raise ValidationException("UpdateTrainingJob with ResourceConfig (warm pools) is not supported.")

        check_profiler(params)

        def change(record: dict[str, Any]) -> None:
            for member in ("ProfilerConfig", "RemoteDebugConfig"):
                if member in params:
                    record[member] = {**record.get(member, {}), **params[member]}
            if "ProfilerRuleConfigurations" in params:
                rules = {each["RuleConfigurationName"]: each for each in record.get("ProfilerRuleConfigurations", [])}
                rules |= {each["RuleConfigurationName"]: each for each in params["ProfilerRuleConfigurations"]}
                record["ProfilerRuleConfigurations"] = list(rules.values())
            record["LastModifiedTime"] = now = time.time()
            record["ProfilingStatus"] = profiling_status(record)
            record.update(rule_statuses(record, time_s=now))

        if self.service.records.update(KIND, name, change)["ProfilingStatus"] == "Disabled":
            self.profiles.disable(name)
        return {"TrainingJobArn": record["TrainingJobArn"]}

    def delete_training_job(self, params: dict[str, Any]) -> dict[str, Any]:
        name = params["TrainingJobName"]
        status = self.service.records.get(KIND, name, missing=_missing())["TrainingJobStatus"]
        if status not in ENDED:
            raise ResourceInUse(f"Training job {name} is {status}; stop it before it can be deleted.")
        self.service.records.delete(KIND, name, missing=_missing())
        shutil.rmtree(self.logs_dir / name, ignore_errors=True)
        (self._series_dir / f"{name}.json").unlink(missing_ok=True)
        return {}

    def metric_values(self, job_name: str, metric_name: str) -> list[float]:
        """All values of a metric that the job emitted so far, oldest first (at most 20,000 of a host)."""
        run = self._runs.get(job_name)
        if run:
            return [value for log in run.logs for value in list(log.series.get(metric_name, ()))]
        path = self._series_dir / f"{job_name}.json"
        if not path.exists():
            return []
        return list(json.loads(path.read_text(encoding="utf-8")).get(metric_name, ()))

    def interrupt(self, job_name: str) -> None:
        """Takes a managed spot job's instances away, as AWS does at times; the job starts again by itself."""
        record = self.service.records.get(KIND, job_name, missing=_missing())
        if not record.get("EnableManagedSpotTraining") or record["SecondaryStatus"] != "Training":
            raise ValidationException(
                f"{job_name} cannot be interrupted: it must use managed spot training and be in Training, "
                f"and is in {record['SecondaryStatus']}."
            )
        self._order(job_name, "interrupt")

    def transition(self, name: str, secondary: str, message: str, **changes: Any) -> None:
        """Moves a job to a secondary status, now, unless it has ended."""
        now = time.time()

        def change(record: dict[str, Any]) -> None:
            # A stop that comes as the job ends changes nothing any more.
            if record["TrainingJobStatus"] in ENDED:
                return
            transitions = record["SecondaryStatusTransitions"]
            transitions[-1].setdefault("EndTime", now)
            transitions.append(_transition(secondary, now, message))
            if changes.get("TrainingJobStatus") in ENDED:
                transitions[-1]["EndTime"] = now
            record.update({"SecondaryStatus": secondary, "LastModifiedTime": now, **changes})

        self.service.records.update(KIND, name, change)

    def started(self, name: str) -> None:
        """The job has its hosts; of an interrupted job, the first ones count."""
        record = self.service.records.get(KIND, name)
        if record["SecondaryStatus"] == "Pending":
            self.transition(name, "Starting", "Starting the training job")
        if "TrainingStartTime" not in record:
            self.service.records.update(KIND, name, {"TrainingStartTime": time.time()})

    def stopping(self, name: str, order: Order) -> None:
        """The job's processes were told to stop."""
        if self.service.records.get(KIND, name)["TrainingJobStatus"] != "Stopping":
            message = "Stopping the training job" if order == "stop" else _NOTES[order]
            self.transition(name, "Stopping", message, TrainingJobStatus="Stopping")

    def end(
        self, name: str, status: str, *, secondary: str | None = None, reason: str | None = None,
        logs: Sequence[HostLog] = (),
    ) -> None:  # fmt: skip
        """The job's last transition, with all that is known only now."""
        for log in logs:
            self.pump.remove(log)
        self._keep_series(name, logs)
        now = time.time()
        secondary = secondary or status
        record = self.service.records.get(KIND, name)
        changes: dict[str, Any] = {"TrainingJobStatus": status, "TrainingEndTime": now}
        if reason:
            changes["FailureReason"] = reason[:MAX_REASON]
        if metrics := final_metric_data(logs):
            changes["FinalMetricDataList"] = metrics
        if "TrainingStartTime" in record:
            seconds = max(1, round(now - record["TrainingStartTime"]))
            changes |= {"TrainingTimeInSeconds": seconds, "BillableTimeInSeconds": seconds}
        with self._lock:
            self._runs.pop(name, None)
        message = reason[:200] if reason else _NOTES[secondary]
        self.transition(name, secondary, message, **changes)
        self.profiles.finish(record, is_server_closing=self.is_closing)

    def _order(self, name: str, order: Order) -> None:
        with self._lock:
            run = self._runs.get(name)
        if run is None:
            return
        if order == "stop":
            self.stopping(name, order)
        run.order(order)
        # It waited still: nobody else will run it now.
        if run.claim():
            self.end(name, "Stopped")

    def _begin(self, run: JobRun) -> None:
        thread = threading.Thread(target=self._run, args=(run,), name=f"training-{run.plan.name}", daemon=True)
        self._running[run] = thread
        thread.start()

    def _run(self, run: JobRun) -> None:
        """A job's thread; before it ends it starts that of the next job in the queue."""
        try:
            if run.claim():
                run.run()
        finally:
            with self._lock:
                is_lost = self._runs.get(run.plan.name) is run
            # Only after a bug of ours is a job still there; it must not look alive for ever.
            if is_lost:
                self.end(run.plan.name, "Failed", reason="InternalServerError: the server's log has the cause.")
            with self._lock:
                del self._running[run]
                while self._waiting and not self.is_closing:
                    following = self._waiting.popleft()
                    if self._runs.get(following.plan.name) is following:
                        self._begin(following)
                        break

    def _keep_series(self, name: str, logs: Sequence[HostLog]) -> None:
        series: dict[str, list[float]] = {}
        for log in logs:
            for metric, values in log.series.items():
                series.setdefault(metric, []).extend(values)
        if series:
            write_whole(self._series_dir / f"{name}.json", json.dumps(series))


def _transition(status: str, now: float, message: str) -> dict[str, Any]:
    return {"Status": status, "StartTime": now, "StatusMessage": message}


def _missing() -> ResourceNotFound:
    return ResourceNotFound("Requested resource not found.")
