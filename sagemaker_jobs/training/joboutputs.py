"""What an ended training job left in S3, brought to its run."""

import logging
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from dogbreed_ml.errors import CloudError
from dogbreed_ml.tracking import Tracker
from sagemaker_jobs.client import Aws, error_code, wait_until
from sagemaker_jobs.storage import Storage
from sagemaker_jobs.training.jobcontrol import INTERVAL_S, LOCAL_INTERVAL_S, Job, describe_job

logger = logging.getLogger(__name__)

CHECKPOINT_FILE = "checkpoint.pt"
"""In model.tar.gz."""
RULE_OUTPUT_ARTIFACT = "profiler/rule-output"

_RULES_TIMEOUT_S = 900.0
"""SageMaker judges on after the training has ended."""
_JUDGED = ("NoIssuesFound", "IssuesFound", "Error", "Stopped")


class IncompleteJobError(CloudError):
    """A completed job left less than it should have; asking again changes nothing."""


def fetch_checkpoint(job: Job, storage: Storage, folder: Path) -> Path:
    """The checkpoint of a completed job; IncompleteJobError where its model.tar.gz holds none or is gone."""
    uri = job["ModelArtifacts"]["S3ModelArtifacts"]
    try:
        archive_path = storage.fetch(uri, folder / "model.tar.gz")
    except CloudError as error:
        if isinstance(error.__cause__, Exception) and error_code(error.__cause__) in ("404", "NoSuchKey"):
            raise IncompleteJobError(f"{uri} is not there any more; the same command trains anew.") from error
        raise
    try:
        with tarfile.open(archive_path) as archive:
            archive.extract(CHECKPOINT_FILE, folder, filter="data")
    except (KeyError, tarfile.TarError, OSError) as error:
        raise IncompleteJobError(
            f"{uri} must hold {CHECKPOINT_FILE}: {error}; the job's log says what it saved."
        ) from error
    return folder / CHECKPOINT_FILE


def log_rule_output(tracker: Tracker, run_id: str, job: Job, *, storage: Storage) -> None:
    """Waits for the verdicts of SageMaker's own rules, and logs their reports and statuses to the run."""
    name = job["TrainingJobName"]
    judged = _judged(storage.aws, job)
    statuses = {
        f"sagemaker.rule.{each['RuleConfigurationName']}": str(each.get("RuleEvaluationStatus", "unknown"))
        for each in _evaluations(judged)
    }
    with tempfile.TemporaryDirectory() as folder:
        fetched = storage.fetch_all(f"{job['OutputDataConfig']['S3OutputPath']}/{name}/rule-output", Path(folder))

        def log() -> None:
            for tag, value in statuses.items():
                tracker.client.set_tag(run_id, tag, value)
            if fetched:
                tracker.client.log_artifacts(run_id, folder, RULE_OUTPUT_ARTIFACT)

        tracker.patiently(log)
    if not fetched:
        logger.warning("SageMaker's rules left no report for the training job %s.", name)


def _judged(aws: Aws, job: Job) -> Job:
    """The job's description once every rule has a verdict, or as it is when that takes too long."""

    def look() -> Job:
        return describe_job(aws, job["TrainingJobName"]) or job

    try:
        return wait_until(
            look,
            lambda seen: all(each.get("RuleEvaluationStatus") in _JUDGED for each in _evaluations(seen)),
            what=f"the verdicts of SageMaker's rules on {job['TrainingJobName']}",
            timeout_s=_RULES_TIMEOUT_S,
            interval_s=LOCAL_INTERVAL_S if aws.is_local else INTERVAL_S,
            clock=aws.clock,
        )
    except CloudError as error:
        logger.warning("%s What the rules have written until now is logged.", error)
        return look()


def _evaluations(job: Job) -> list[dict[str, Any]]:
    """Of the profiler's rules and of the tensor rules."""
    return [*job.get("ProfilerRuleEvaluationStatuses", ()), *job.get("DebugRuleEvaluationStatuses", ())]
