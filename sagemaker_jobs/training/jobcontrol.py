"""One training job from the caller's side: sent once, followed to its end, stopped where that is wanted."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import ClientError

from dogbreed_ml.errors import CloudError, ConfigError
from sagemaker_jobs.client import Aws, is_absent, is_refusal, translated, wait_until
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
GOES_ON, MAY_GO_ON = "goes on and is paid for", "may go on, and is paid for then"
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

    Raises CloudError where SageMaker refused; a lost answer is no refusal where the job is there. Where it is not to be
    seen, it may be so later: the name stays written down, and the next command sends it again, which starts no second.
    """
    name = request["TrainingJobName"]
    launch_file.save(Launch(name, aws.region))
    try:
        aws.create("CreateTrainingJob", request, doing=f"start the training job {name}")
    except ConfigError:
        # Refused here, and never sent.
        launch_file.clear(name)
        raise
    except CloudError as refusal:
        try:
            is_there = describe_job(aws, name) is not None
        except CloudError:
            # Neither is known now. The launch file stays, and the next command looks before it sends anything.
            raise refusal from None
        if not is_there:
            if is_refusal(refusal):
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


def tell_to_stop(aws: Aws, name: str) -> Job | None:
    """Asks for the job's end, before which it saves what it has; its description where it has ended by itself."""
    with translated(f"stop the training job {name}"):
        try:
            aws.client("sagemaker").stop_training_job(TrainingJobName=name)
        except ClientError:
            job = describe_job(aws, name)
            if job is None or job["TrainingJobStatus"] not in ENDED:
                raise
            return job
    logger.info("the training job %s is told to stop", name)
    return None


def settle_interrupt(aws: Aws, launch_file: LaunchFile, *, question: Question | None, command: str) -> Job | None:
    """What becomes of the job after Ctrl-C: the ended job where it was stopped or had ended, else None.

    Without a question, where nobody sits at a terminal, the job goes on; either way the log says what goes on, that
    it is paid for, and how to come back to it. So it does where that cannot be learnt: AWS is away, or the request was
    on its way, and after Ctrl-C once more.
    """
    launch = launch_file.load()
    if launch is None:
        logger.warning("No training job was started.")
        return None
    is_sure = False
    try:
        with aws.hurried() as hurried:
            job = describe_job(hurried, launch.name)
            if job is not None and job["TrainingJobStatus"] in ENDED:
                return job
            is_sure = job is not None
            asked = f"Stop the training job {launch.name}? It is paid for while it runs."
            if job is not None and question is not None and is_yes(question, asked):
                is_sure = False
                job = tell_to_stop(hurried, launch.name)
                return job or follow_job(aws, launch.name, timeout_s=STOP_TIMEOUT_S)
    except CloudError as error:
        logger.warning("%s", error)
    except KeyboardInterrupt:
        logger.warning("interrupted once more")
    warn_of_job(launch, command=command, is_sure=is_sure)
    return None


def warn_of_job(launch: Launch, *, command: str, is_sure: bool) -> None:
    """That it costs money, how to come back to it, and how to stop it: each command on a line of its own, to paste."""
    logger.warning(
        "The training job %s %s. To come back to it, and to stop it:\n%s\naws sagemaker stop-training-job --region %s "
        "--training-job-name %s",
        *(launch.name, GOES_ON if is_sure else MAY_GO_ON, command, launch.region, launch.name),
    )


@contextmanager
def warned_of_job(launch_file: LaunchFile, *, command: str) -> Iterator[None]:
    """Whatever cuts the block off, the job that it leaves behind is named; an interrupt is settled elsewhere."""
    try:
        yield
    except (KeyboardInterrupt, JobGoneError):
        raise
    except BaseException:
        if launch := launch_file.load():
            warn_of_job(launch, command=command, is_sure=launch.is_created)
        raise


def failure_of(job: Job) -> str:
    """Why a job did not complete, in SageMaker's words."""
    name, status = job["TrainingJobName"], job["TrainingJobStatus"]
    if reason := job.get("FailureReason"):
        return f"The training job {name} failed: {reason}"
    detail = {
        "MaxRuntimeExceeded": "it ran longer than sagemaker.max_runtime_s allows; raise that",
        "MaxWaitTimeExceeded": "it waited longer for spot capacity than sagemaker.max_wait_s allows; raise that",
        "Interrupted": "spot capacity was taken away; the same command tries again",
    }.get(job.get("SecondaryStatus", ""), "it was stopped" if status == "Stopped" else "SageMaker gives no reason")
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
