"""What SageMaker says of a tuning job and of its training jobs; each question is asked again while AWS is away."""

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from botocore.exceptions import ClientError

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import CloudError, ConfigError
from dogbreed_ml.warmstart import parse_value
from sagemaker_jobs.client import Aws, is_absent, is_refusal, wait_until
from sagemaker_jobs.training.jobcontrol import (
    ENDED,
    GOES_ON,
    INTERVAL_S,
    LOCAL_INTERVAL_S,
    MAY_GO_ON,
    STOP_TIMEOUT_S,
    Question,
    is_yes,
)
from sagemaker_jobs.training.launch import Launch, LaunchFile

logger = logging.getLogger(__name__)

SEARCH_TAG: Final = "dogbreed:search"
"""Of a tuning job: digest of what its config says of data, model, training and search."""
DATA_TAG: Final = "dogbreed:data"
"""The fingerprint of its splits."""

_KNOWN_BY = {
    DATA_TAG: "photographs in its own splits",
    SEARCH_TAG: "config, sections model, train and search, data.image_size and data.crop_share included",
}
_NUMBERED = re.compile(r"-(\d{3,})-[0-9a-zA-Z]+$")


def describe_tuning_job(aws: Aws, name: str) -> dict[str, Any] | None:
    """None where there is none of this name."""

    def ask() -> dict[str, Any] | None:
        try:
            return dict(aws.client("sagemaker").describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name))
        except ClientError as error:
            if is_absent(error):
                return None
            raise

    return aws.ask(ask, doing=f"look at the tuning job {name}")


def list_training_jobs(aws: Aws, name: str) -> dict[int, dict[str, Any]]:
    """The training jobs of a tuning job by trial number: 0 is the first that it created.

    The number is the one in the job's name (NAME-001-1f2e3d4c), which stays where another job is deleted.
    """

    def ask() -> list[dict[str, Any]]:
        pages = aws.client("sagemaker").get_paginator("list_training_jobs_for_hyper_parameter_tuning_job")
        found = pages.paginate(HyperParameterTuningJobName=name, SortBy="CreationTime", SortOrder="Ascending")
        return [dict(each) for page in found for each in page["TrainingJobSummaries"]]

    summaries = aws.ask(ask, doing=f"list the training jobs of {name}")
    numbers = [_NUMBERED.search(each["TrainingJobName"].removeprefix(name)) for each in summaries]
    if all(numbers):
        return {int(match[1]) - 1: each for match, each in zip(numbers, summaries, strict=True) if match}
    return dict(enumerate(summaries))


def stop_tuning_job(aws: Aws, name: str) -> None:
    """Asks SageMaker to end it and what it runs; one that has ended already is no error."""

    def ask() -> None:
        aws.client("sagemaker").stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)

    description = describe_tuning_job(aws, name)
    if description is not None and description["HyperParameterTuningJobStatus"] == "InProgress":
        aws.ask(ask, doing=f"stop the tuning job {name}")


def send_tuning_job(aws: Aws, request: Mapping[str, Any], launch_file: LaunchFile) -> None:
    """Creates the tuning job; its name is written down before, so that whatever happens then, it is found again.

    Raises CloudError where SageMaker refused; a lost answer is no refusal where the tuning job is there. Where it is
    not to be seen, it may be so later: the name stays written down, and is sent again.
    """
    name = request["HyperParameterTuningJobName"]
    launch_file.save(Launch(name, aws.region))
    try:
        aws.create("CreateHyperParameterTuningJob", request, doing=f"start the tuning job {name}")
    except ConfigError:
        # Refused here, and never sent.
        launch_file.clear(name)
        raise
    except CloudError as refusal:
        try:
            is_there = describe_tuning_job(aws, name) is not None
        except CloudError:
            # Neither is known now. The launch file stays, and the next command looks before it sends anything.
            raise refusal from None
        if not is_there:
            if is_refusal(refusal):
                launch_file.clear(name)
            raise
        logger.info("the answer was lost, the tuning job %s is there", name)
    launch_file.save(Launch(name, aws.region, is_created=True))


def settle_tuning_job(aws: Aws, name: str, *, question: Question | None, command: str) -> bool:
    """What becomes of the tuning job after Ctrl-C: stopped where the answer is yes; whether it has ended.

    Where it goes on, the log says so, that it is paid for, and how to come back to it. So it does where that cannot be
    learnt: AWS is away, or the request was on its way, and after Ctrl-C once more.
    """
    is_sure = False
    try:
        with aws.hurried() as hurried:
            description = describe_tuning_job(hurried, name)
            if description is not None and description["HyperParameterTuningJobStatus"] in ENDED:
                return True
            is_sure = description is not None
            asked = f"Stop the tuning job {name} and its running jobs? They are paid for while they run."
            if description is not None and question is not None and is_yes(question, asked):
                is_sure = False
                stop_tuning_job(hurried, name)
                _wait_stopped(aws, name)
                logger.warning("The tuning job %s is stopped. To go on with its completed trials: %s", name, command)
                return True
    except CloudError as error:
        logger.warning("%s", error)
    except KeyboardInterrupt:
        logger.warning("interrupted once more")
    warn_of_search(aws, name, command=command, is_sure=is_sure)
    return False


def warn_of_search(aws: Aws, name: str, *, command: str, is_sure: bool) -> None:
    """That it costs money, how to come back to it, and how to stop it: each command on a line of its own, to paste."""
    logger.warning(
        "The tuning job %s %s. To come back to it, and to stop it:\n%s\naws sagemaker stop-hyper-parameter-tuning-job "
        "--region %s --hyper-parameter-tuning-job-name %s",
        *(name, GOES_ON if is_sure else MAY_GO_ON, command, aws.region, name),
    )


def _wait_stopped(aws: Aws, name: str) -> None:
    wait_until(
        lambda: describe_tuning_job(aws, name),
        lambda seen: seen is None or seen["HyperParameterTuningJobStatus"] in ENDED,
        what=f"the end of the tuning job {name}",
        timeout_s=STOP_TIMEOUT_S,
        interval_s=LOCAL_INTERVAL_S if aws.is_local else INTERVAL_S,
        clock=aws.clock,
    )


def check_attached(aws: Aws, tuning_job: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Raises ConfigError where the tuning job's tags say that it searches other data, or by another config."""
    name, arn = tuning_job["HyperParameterTuningJobName"], tuning_job["HyperParameterTuningJobArn"]
    answer = aws.ask(lambda: aws.client("sagemaker").list_tags(ResourceArn=arn), doing=f"read the tags of {name}")
    theirs = {each["Key"]: each["Value"] for each in answer["Tags"]}
    for tag, what in _KNOWN_BY.items():
        if theirs.get(tag) != tags[tag]:
            raise ConfigError(
                f"--attach {name} needs that search's own {what}: its tag {tag} is {theirs.get(tag)}, and these give "
                f"{tags[tag]}."
            )


def tuned_values(config: ExperimentConfig, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What SageMaker drew for a training job, by dotted config name; ConfigError where it searched other ones."""
    given = summary.get("TunedHyperParameters", {})
    if differing := sorted(set(given) ^ set(config.search.space)):
        raise ConfigError(
            f"{summary['TrainingJobName']} must have been drawn from this config's search.space; only one of the two "
            f"has {', '.join(differing)}."
        )
    return {name: parse_value(dimension, given[name]) for name, dimension in config.search.space.items()}
