"""One training job from the caller's side: sent once, followed to its end, stopped where that is wanted."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import ClientError

from dogbreed_ml.errors import CloudError
from sagemaker_jobs.client import Aws, is_absent, translated, wait_until
from sagemaker_jobs.training.joblogs import JobLogs
from sagemaker_jobs.training.launch import Launch, LaunchFile

logger = logging.getLogger(__name__)

Job = Mapping[str, Any]
"""What DescribeTrainingJob answers."""

Question = Callable[[str], bool]
"""Asks the person at the terminal, yes or no."""

ENDED = ("Completed", "Failed", "Stopped")

INTERVAL_S = 5.0
LOCAL_INTERVAL_S = 0.2
STOP_TIMEOUT_S = 900.0
"""SageMaker gives a job 120 s to save what it has, and uploads it then."""
_SLACK_S = 3600.0
"""For capacity, the image and the uploads, which max_runtime_s does not count."""


class JobGoneError(CloudError):
    """The job was deleted by somebody else; `job` is its last description, None where it was never seen."""

    def __init__(self, name: str, job: Job | None = None):
        super().__init__(
            f"The training job {name} was deleted while this command knew of it as running; its results are not "
            "brought home. The same command starts a new one."
        )
        self.name = name
        self.job = job


class JobFailedError(CloudError):
    """The job ended, and not as Completed; its run says so too."""


def describe_job(aws: Aws, name: str) -> Job | None:
    """None where there is no such job; patient, since a look does no harm."""

    def look() -> Job | None:
        try:
            found: Job = aws.client("sagemaker").describe_training_job(TrainingJobName=name)
        except ClientError as error:
            if is_absent(error):
                return None
            raise
        return found

    return aws.ask(look, doing=f"look at the training job {name}")


def send_job(aws: Aws, request: Mapping[str, Any], launch_file: LaunchFile) -> None:
    """Creates the job; its name is written down before, so that whatever happens then, it is found again.

    Raises CloudError where SageMaker refused; a lost answer is no refusal where the job is there.
    """
    name = request["TrainingJobName"]
    launch_file.save(Launch(name, aws.region))
    try:
        aws.create("CreateTrainingJob", request, doing=f"start the training job {name}")
    except CloudError as refusal:
        try:
            is_there = describe_job(aws, name) is not None
        except CloudError:
            # Neither is known now. The launch file stays, and the next command looks before it sends anything.
            raise refusal from None
        if not is_there:
            launch_file.clear(name)
            raise
        logger.info("the answer was lost, the training job %s is there", name)
    launch_file.save(Launch(name, aws.region, is_created=True))


def follow_job(aws: Aws, name: str, *, timeout_s: float, interval_s: float | None = None) -> Job:
    """Logs each change of status and each line of the job's output until it has ended; its last description.

    Raises JobGoneError where it was deleted meanwhile, CloudError after `timeout_s` and where AWS stays away.
    """
    interval_s = interval_s or (LOCAL_INTERVAL_S if aws.is_local else INTERVAL_S)
    logs, seen = JobLogs(aws, name), _Seen()

    def look() -> Job:
        job = describe_job(aws, name)
        if job is None:
            raise JobGoneError(name, seen.job)
        seen.tell(job)
        _tell(logs)
        return job

    job = wait_until(
        look,
        lambda job: job["TrainingJobStatus"] in ENDED,
        what=f"the end of the training job {name}",
        timeout_s=timeout_s,
        interval_s=interval_s,
        clock=aws.clock,
    )
    # The last lines arrive after the end.
    aws.clock.sleep(interval_s)
    _tell(logs)
    return job


def longest_s(request_or_job: Job) -> float:
    """How long a job may take in all, waiting for capacity included."""
    condition = request_or_job["StoppingCondition"]
    return float(max(condition.get("MaxWaitTimeInSeconds", 0), condition["MaxRuntimeInSeconds"])) + _SLACK_S


def stop_job(aws: Aws, name: str) -> Job:
    """Stops the job, waits until it has ended, and returns its description; it keeps what it saved."""

    with translated(f"stop the training job {name}"):
        try:
            aws.client("sagemaker").stop_training_job(TrainingJobName=name)
        except ClientError:
            job = describe_job(aws, name)
            # It has ended by itself meanwhile.
            if job is None or job["TrainingJobStatus"] not in ENDED:
                raise
            return job
    logger.info("the training job %s is told to stop", name)
    return follow_job(aws, name, timeout_s=STOP_TIMEOUT_S)


def settle_interrupt(aws: Aws, launch_file: LaunchFile, *, question: Question | None, command: str) -> Job | None:
    """What becomes of the job after Ctrl-C: the ended job where it was stopped or had ended, None where none is left.

    Without a question, where nobody sits at a terminal, the job goes on; either way the log says what goes on, that
    it is paid for, and how to come back to it.
    """
    launch = launch_file.load()
    if launch is None:
        logger.warning("No training job was started.")
        return None
    job = describe_job(aws, launch.name)
    if job is None:
        launch_file.clear(launch.name)
        logger.warning("No training job was started.")
        return None
    if job["TrainingJobStatus"] in ENDED:
        return job
    if question is not None and is_yes(question, f"Stop the training job {launch.name}? It is paid for while it runs."):
        return stop_job(aws, launch.name)
    logger.warning(
        "The training job %s goes on and is paid for. To come back to it: %s. To stop it: aws sagemaker "
        "stop-training-job --region %s --training-job-name %s",
        *(launch.name, command, aws.region, launch.name),
    )
    return None


def failure_of(job: Job) -> str:
    """Why a job did not complete, in SageMaker's words."""
    name, status = job["TrainingJobName"], job["TrainingJobStatus"]
    if reason := job.get("FailureReason"):
        return f"The training job {name} failed: {reason}"
    detail = {
        "MaxRuntimeExceeded": "it ran longer than sagemaker.max_runtime_s allows; raise that",
        "MaxWaitTimeExceeded": "it waited longer for spot capacity than sagemaker.max_wait_s allows; raise that",
        "Interrupted": "spot capacity was taken away; the same command tries again",
    }.get(job.get("SecondaryStatus", ""), "somebody stopped it" if status == "Stopped" else "SageMaker gives no reason")
    return f"The training job {name} ended as {status}: {detail}"


class _Seen:
    """What was told of a job."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self._num_transitions = 0

    def tell(self, job: Job) -> None:
        transitions = job.get("SecondaryStatusTransitions", [])
        for each in transitions[self._num_transitions :]:
            logger.info("%s: %s", each["Status"], each.get("StatusMessage", "").strip() or "...")
        self._num_transitions = max(self._num_transitions, len(transitions))
        self.job = job


def _tell(logs: JobLogs) -> None:
    for line in logs.read():
        logger.info("%s", line)


def is_yes(question: Question, text: str) -> bool:
    """The person's answer."""
    try:
        return question(text)
    # Ctrl-C once more: no answer, and nothing is stopped.
    except KeyboardInterrupt:
        return False
