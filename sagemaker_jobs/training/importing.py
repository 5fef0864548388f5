"""A finished job's run in the caller's MLflow: found or made by the job's name, completed once."""

import logging
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

from dogbreed_ml.config import ExperimentConfig, flatten, with_values, without_secrets
from dogbreed_ml.errors import CloudError, ConfigError, TrackingError
from dogbreed_ml.provenance import user_name
from dogbreed_ml.runcopy import (
    DATABASE_FILE,
    StoredRun,
    build_point,
    end_copy,
    ensure_run,
    read_bundle,
    read_run,
    write_run,
)
from dogbreed_ml.runs import CAUSE_TAG, RunRef, Status, render_param
from dogbreed_ml.tracking import Tracker
from dogbreed_ml.trialrun import EPOCH_TAG, INTERRUPTED, NUMBER_TAG, OBJECTIVE_METRIC, STATE_TAG, trial_run_name
from sagemaker_jobs.client import error_code
from sagemaker_jobs.job.hyperparameters import parse_hyperparameters
from sagemaker_jobs.job.jobrecord import JOB_TAG, bundle_dir_of
from sagemaker_jobs.storage import Storage, file_digest

logger = logging.getLogger(__name__)

IMPORTED_TAG: Final = "sagemaker.imported"
"""The last tag that an import sets: the sha256 of the job's bundle, `live`, or `none` for a job without a record."""

_ENDED = ("Completed", "Failed", "Stopped")


@dataclass(frozen=True)
class _Ending:
    """How a job ended, in MLflow's words."""

    status: Status
    state: str
    """Of a trial: trial.state."""
    cause: str | None
    start_ms: int
    end_ms: int


def import_job(
    tracker: Tracker,
    job: Mapping[str, Any],
    *,
    storage: Storage,
    config: ExperimentConfig,
    parent: RunRef | None = None,
    number: int | None = None,
    stopped_as: Literal["PRUNED", "INTERRUPTED"] = "PRUNED",
) -> str | None:
    """Brings a job's record home and returns its run's id; None while the job has not ended.

    `job` is DescribeTrainingJob's answer. With `number` the run is that trial's, as a search with Optuna leaves it;
    `stopped_as` is what a stopped job's trial then counts as: ended early by the tuner, or cut off. A job that wrote no
    record becomes a run too, with `config` and its hyperparameters, its cause and its links. Raises TrackingError and
    CloudError; a repeated call goes on where that ended.
    """
    if job["TrainingJobStatus"] not in _ENDED:
        return None
    name = str(job["TrainingJobName"])
    experiment_id = parent.experiment_id if parent else tracker.experiment_id(config.name)
    found = tracker.find_tagged(experiment_id, JOB_TAG, name)
    if found and IMPORTED_TAG in found[0].data.tags:
        return str(found[0].info.run_id)
    with tempfile.TemporaryDirectory(prefix="dogbreed-job-") as folder:
        bundle, digest = _fetch_bundle(job, storage, Path(folder))
        ending = _ending(job, stopped_as)
        stored = bundle
        if stored is None and found:
            stored, digest = read_run(tracker, found[0].info.run_id), "live"
        if stored is None:
            stored = _unrecorded(job, config, ending)
            if ending.state == "COMPLETE":
                nothing = "the job completed and left no record in its output"
                ending = replace(ending, state="FAILED", status="FAILED", cause=nothing)
        stored, ending = _completed(stored, job, ending, is_trial=number is not None)
        run_name = stored.name if number is None else trial_run_name(number)
        run_id = ensure_run(
            tracker,
            experiment_id,
            tag=(JOB_TAG, name),
            name=run_name,
            start_ms=stored.start_ms,
            parent_run_id=parent.run_id if parent else None,
        )
        write_run(tracker, run_id, stored)
    trial = {} if number is None else {NUMBER_TAG: str(number), STATE_TAG: ending.state}
    cause = {} if ending.cause is None else {CAUSE_TAG: ending.cause}
    tags = stored.tags | {"mlflow.user": user_name()} | _links(job, storage) | trial | cause
    end_copy(
        tracker,
        run_id,
        name=run_name,
        status=ending.status,
        end_ms=ending.end_ms,
        tags=tags,
        last=(IMPORTED_TAG, digest),
    )
    # A trial has its line in the search's table.
    level = logging.INFO if number is None else logging.DEBUG
    logger.log(level, "%s is recorded as run %s (%s)", name, run_id, ending.status)
    return run_id


def output_uri(job: Mapping[str, Any]) -> str:
    """Where a job's output lies in S3, without a slash at its end."""
    return f"{job['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job['TrainingJobName']}/output"


def _fetch_bundle(job: Mapping[str, Any], storage: Storage, folder: Path) -> tuple[StoredRun | None, str]:
    """The record that the job wrote to its output, and what identifies it; (None, "none") where there is none."""
    unpacked = folder / "output"
    unpacked.mkdir()
    archive = folder / "output.tar.gz"
    if job["OutputDataConfig"].get("CompressionType", "GZIP") == "NONE":
        storage.fetch_all(f"{output_uri(job)}/data", unpacked)
    elif _fetched(storage, f"{output_uri(job)}/output.tar.gz", archive):
        try:
            with tarfile.open(archive) as packed:
                packed.extractall(unpacked, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise CloudError(f"{output_uri(job)}/output.tar.gz cannot be unpacked: {error}.") from error
    bundle_dir = bundle_dir_of(unpacked)
    if bundle_dir is None:
        return None, "none"
    digest = file_digest(archive if archive.exists() else bundle_dir / DATABASE_FILE)
    try:
        stored = read_bundle(bundle_dir)
    except TrackingError as error:
        # Cut off while the store was being made: the job is told of by what SageMaker knows.
        logger.warning("The record of %s cannot be read: %s", job["TrainingJobName"], error)
        return None, "none"
    if stored.artifacts_dir is None:
        return stored, digest
    # SQLite's file stays open in MLflow's cache; the artifacts are read before the folder goes.
    kept = folder / "artifacts"
    shutil.move(stored.artifacts_dir, kept)
    return replace(stored, artifacts_dir=kept), digest


def _fetched(storage: Storage, uri: str, path: Path) -> bool:
    """Whether there was such an object; other errors go through."""
    try:
        storage.fetch(uri, path)
    except CloudError as error:
        if isinstance(error.__cause__, Exception) and error_code(error.__cause__) in ("404", "NoSuchKey"):
            return False
        raise
    return True


def _ending(job: Mapping[str, Any], stopped_as: str) -> _Ending:
    end_ms = _ms(job.get("TrainingEndTime") or job["LastModifiedTime"])
    start_ms = min(end_ms, _ms(job.get("TrainingStartTime") or job["CreationTime"]))
    match job["TrainingJobStatus"]:
        case "Completed":
            return _Ending("FINISHED", "COMPLETE", None, start_ms, end_ms)
        case "Failed":
            return _Ending("FAILED", "FAILED", _one_line(job.get("FailureReason", "unknown")), start_ms, end_ms)
    cause = None
    if job.get("SecondaryStatus") in ("MaxRuntimeExceeded", "MaxWaitTimeExceeded"):
        cause = f"{job['SecondaryStatus']}: the job was stopped at its limit"
    return _Ending("KILLED", stopped_as, cause, start_ms, end_ms)


def _completed(
    stored: StoredRun, job: Mapping[str, Any], ending: _Ending, *, is_trial: bool
) -> tuple[StoredRun, _Ending]:
    """With what only the caller knows: what the job cost, and of a pruned trial its objective."""
    points = list(stored.metrics)
    for name, member in (
        ("sagemaker/billable_s", "BillableTimeInSeconds"),
        ("sagemaker/training_s", "TrainingTimeInSeconds"),
    ):
        if member in job:
            points.append(build_point(name, job[member], time_ms=ending.end_ms))
    tags = {name: value for name, value in stored.tags.items() if name != STATE_TAG or ending.state != INTERRUPTED}
    if is_trial and ending.state == "PRUNED":
        last = stored.last(stored.params.get("search.metric", ""))
        if last is None:
            # Stopped before an epoch had ended: there is nothing that a search could compare.
            ending = replace(ending, state="FAILED", status="FAILED", cause="stopped before its first epoch had ended")
        elif stored.last(OBJECTIVE_METRIC) is None:
            points.append(build_point(OBJECTIVE_METRIC, last.value, time_ms=last.timestamp, step=last.step))
            tags[EPOCH_TAG] = str(last.step)
    elif is_trial and ending.state == "COMPLETE" and stored.last(OBJECTIVE_METRIC) is None:
        cause = "the job left no record, or one without an objective, in its output"
        ending = replace(ending, state="FAILED", status="FAILED", cause=cause)
    return replace(stored, metrics=tuple(points), tags=tags), ending


def _unrecorded(job: Mapping[str, Any], config: ExperimentConfig, ending: _Ending) -> StoredRun:
    """The run of a job that wrote none: what it was asked to do, as far as that makes sense."""
    try:
        config = with_values(config, parse_hyperparameters(job.get("HyperParameters", {}), config))
    except ConfigError as error:
        logger.warning("The hyperparameters of %s make no config: %s", job["TrainingJobName"], error)
    params = {name: render_param(value) for name, value in flatten(without_secrets(config)).items()}
    name = str(job["TrainingJobName"])
    return StoredRun(name, "RUNNING", ending.start_ms, ending.end_ms, params, {JOB_TAG: name}, ())


def _links(job: Mapping[str, Any], storage: Storage) -> dict[str, str]:
    """Tags that lead from the run to the job, its logs and its files."""
    name, aws = str(job["TrainingJobName"]), storage.aws
    links = {
        "sagemaker.training_job_arn": str(job["TrainingJobArn"]),
        "sagemaker.output_uri": output_uri(job),
        "sagemaker.log_url": f"dogbreed sagemaker-local logs {name}",
    }
    if not aws.is_local:
        # CloudWatch's pages have paths escaped twice, with $ for %.
        group = quote(quote("/aws/sagemaker/TrainingJobs", safe=""))
        query = quote(f"?logStreamNameFilter={name}/", safe="")
        links["sagemaker.log_url"] = (
            f"https://{aws.region}.console.aws.amazon.com/cloudwatch/home?region={aws.region}"
            f"#logsV2:log-groups/log-group/{(group + query).replace('%', '$')}"
        )
    if console_url := aws.console_url(f"jobs/{name}"):
        links["sagemaker.job_url"] = console_url
    if model_uri := job.get("ModelArtifacts", {}).get("S3ModelArtifacts"):
        links["sagemaker.model_uri"] = str(model_uri)
    if instance_type := job.get("ResourceConfig", {}).get("InstanceType"):
        links["sagemaker.instance_type"] = str(instance_type)
    if tuning_job_arn := job.get("TuningJobArn"):
        links["sagemaker.tuning_job"] = str(tuning_job_arn).rpartition("/")[2]
    return links


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _ms(time: datetime) -> int:
    return int(time.timestamp() * 1000)
