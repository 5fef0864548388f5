"""What is told of a job that may go on and cost money: AWS away, a request on its way, Ctrl-C once more."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from dogbreed_ml.errors import CloudError, TrackingError
from sagemaker_jobs.client import Aws, Clock
from sagemaker_jobs.shapes import request_errors
from sagemaker_jobs.training.jobcontrol import JobGoneError, send_job, settle_interrupt, warned_of_job
from sagemaker_jobs.training.launch import Launch, LaunchFile
from sagemaker_jobs.tuning.tuningstatus import send_tuning_job, settle_tuning_job

NAME, REGION, COMMAND = "dogs-train-0a1b2c-1", "us-west-2", "dogbreed train --on sagemaker"
RUNS = {"TrainingJobName": NAME, "TrainingJobStatus": "InProgress"}
TIMED_OUT = ReadTimeoutError(endpoint_url="https://sagemaker")
REQUEST = {
    "TrainingJobName": NAME,
    "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
    "RoleArn": "arn:aws:iam::123456789012:role/sagemaker",
    "OutputDataConfig": {"S3OutputPath": "s3://kennel/jobs"},
    "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 10},
    "StoppingCondition": {"MaxRuntimeInSeconds": 60},
}


def answer_of(code: str, status: int = 400) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": "says AWS"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "CreateTrainingJob")


ABSENT = answer_of("ResourceNotFound")


@dataclass
class Service:
    """SageMaker as one command sees it: what each operation answers, or raises."""

    described: Any = None
    created: Any = field(default_factory=dict)
    stopped: Any = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def _answer(self, operation: str, answer: Any) -> Any:
        self.asked.append(operation)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def describe_training_job(self, **_: Any) -> Any:
        return self._answer("describe", self.described)

    def describe_hyper_parameter_tuning_job(self, **_: Any) -> Any:
        return self._answer("describe", self.described)

    def create_training_job(self, **request: Any) -> Any:
        assert request_errors("sagemaker", "CreateTrainingJob", request) == []
        return self._answer("create", self.created)

    def create_hyper_parameter_tuning_job(self, **_: Any) -> Any:
        return self._answer("create", self.created)

    def stop_training_job(self, **_: Any) -> Any:
        return self._answer("stop", self.stopped)

    def stop_hyper_parameter_tuning_job(self, **_: Any) -> Any:
        return self._answer("stop", self.stopped)

    def close(self) -> None:
        pass


@dataclass
class Account(Aws):
    service: Service = field(default_factory=Service)

    def client(self, service: str) -> Any:
        return self.service


@dataclass
class Waiting:
    """A clock whose pauses are only counted."""

    elapsed_s: float = 0.0

    def sleep(self, seconds: float) -> None:
        self.elapsed_s += seconds


def account_of(service: Service, waiting: Waiting | None = None) -> Account:
    waiting = waiting or Waiting()
    session: Any = None
    return Account(REGION, session, Clock(now=lambda: waiting.elapsed_s, sleep=waiting.sleep), service=service)


@pytest.fixture
def launch_file(tmp_path: Path) -> LaunchFile:
    return LaunchFile(tmp_path / "train-0a1b2c.json")


def ctrl_c(_: str) -> bool:
    raise KeyboardInterrupt


def test_interrupt_while_aws_is_away_is_soon_over_and_names_the_job(
    launch_file: LaunchFile, caplog: pytest.LogCaptureFixture
) -> None:
    launch_file.save(Launch(NAME, REGION, is_created=True))
    waiting = Waiting()
    aws = account_of(Service(described=TIMED_OUT), waiting)
    assert settle_interrupt(aws, launch_file, question=lambda _: True, command=COMMAND) is None
    assert waiting.elapsed_s < 10
    assert (
        f"{NAME} may go on, and is paid for then. To come back to it, and to stop it:\n{COMMAND}\n"
        in caplog.messages[-1]
    )
    assert f"stop-training-job --region {REGION} --training-job-name {NAME}" in caplog.messages[-1]
    assert launch_file.load() == Launch(NAME, REGION, is_created=True)


@pytest.mark.parametrize("described", [TIMED_OUT, ABSENT, KeyboardInterrupt()], ids=["away", "hidden", "ctrl-c"])
def test_interrupt_while_the_request_is_on_its_way_forgets_no_job(
    described: BaseException, launch_file: LaunchFile, caplog: pytest.LogCaptureFixture
) -> None:
    launch_file.save(Launch(NAME, REGION))
    aws = account_of(Service(described=described))
    assert settle_interrupt(aws, launch_file, question=lambda _: True, command=COMMAND) is None
    assert launch_file.load() == Launch(NAME, REGION)
    assert f"{NAME} may go on, and is paid for then" in caplog.messages[-1]
    assert not any("No training job was started" in line for line in caplog.messages)

    caplog.clear()
    assert not settle_tuning_job(aws, NAME, question=lambda _: True, command="dogbreed tune")
    assert f"The tuning job {NAME} may go on, and is paid for then" in caplog.messages[-1]
    assert f"--region {REGION} --hyper-parameter-tuning-job-name {NAME}" in caplog.messages[-1]


def test_interrupt_before_anything_was_sent_asks_nobody(
    launch_file: LaunchFile, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(described=TIMED_OUT)
    assert settle_interrupt(account_of(service), launch_file, question=ctrl_c, command=COMMAND) is None
    assert caplog.messages == ["No training job was started."]
    assert service.asked == []


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), TIMED_OUT], ids=["ctrl-c", "away"])
def test_stop_that_is_cut_off_leaves_no_doubt_of_the_bill(
    stopped: BaseException, launch_file: LaunchFile, caplog: pytest.LogCaptureFixture
) -> None:
    launch_file.save(Launch(NAME, REGION, is_created=True))
    aws = account_of(Service(described=RUNS, stopped=stopped))
    assert settle_interrupt(aws, launch_file, question=lambda _: True, command=COMMAND) is None
    assert f"{NAME} may go on, and is paid for then" in caplog.messages[-1]
    search = account_of(Service(described={"HyperParameterTuningJobStatus": "InProgress"}, stopped=stopped))
    assert not settle_tuning_job(search, NAME, question=lambda _: True, command="dogbreed tune")
    assert f"The tuning job {NAME} may go on, and is paid for then" in caplog.messages[-1]


def test_ctrl_c_at_the_question_leaves_the_job_running(
    launch_file: LaunchFile, caplog: pytest.LogCaptureFixture
) -> None:
    launch_file.save(Launch(NAME, REGION, is_created=True))
    service = Service(described=RUNS)
    assert settle_interrupt(account_of(service), launch_file, question=ctrl_c, command=COMMAND) is None
    assert service.asked == ["describe"]
    assert f"{NAME} goes on and is paid for" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("created", "is_kept"),
    [
        (TIMED_OUT, True),
        (answer_of("InternalFailure", 500), True),
        (answer_of("ThrottlingException"), True),
        # By the same request, whose first answer was lost.
        (answer_of("ResourceInUse"), True),
        (answer_of("ResourceLimitExceeded"), False),
        (answer_of("ExpiredTokenException"), False),
    ],
    ids=["time-out", "500", "throttled", "in use", "limit", "expired"],
)
def test_name_of_a_request_is_forgotten_only_where_aws_said_no(
    created: Exception, is_kept: bool, launch_file: LaunchFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagemaker_jobs.client.check", lambda *_: None)
    aws = account_of(Service(described=ABSENT, created=created))
    with pytest.raises(CloudError, match=f"start the training job {NAME}"):
        send_job(aws, REQUEST, launch_file)
    assert launch_file.load() == (Launch(NAME, REGION) if is_kept else None)
    launch_file.clear(NAME)
    with pytest.raises(CloudError, match=f"start the tuning job {NAME}"):
        send_tuning_job(aws, {"HyperParameterTuningJobName": NAME}, launch_file)
    assert launch_file.load() == (Launch(NAME, REGION) if is_kept else None)


@pytest.mark.parametrize("error", [CloudError("expired"), TrackingError("away"), ValueError("a mistake")])
def test_error_while_a_job_runs_names_the_job(
    error: Exception, launch_file: LaunchFile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(type(error)), warned_of_job(launch_file, command=COMMAND):
        raise error
    assert caplog.messages == []
    launch_file.save(Launch(NAME, REGION))
    with pytest.raises(type(error)), warned_of_job(launch_file, command=COMMAND):
        raise error
    assert f"{NAME} may go on, and is paid for then" in caplog.messages[-1]
    launch_file.save(Launch(NAME, REGION, is_created=True))
    with pytest.raises(type(error)), warned_of_job(launch_file, command=COMMAND):
        raise error
    assert (
        f"{NAME} goes on and is paid for. To come back to it, and to stop it:\n{COMMAND}\naws " in caplog.messages[-1]
    )
    caplog.clear()
    # What is gone costs nothing, and an interrupt is settled by a question.
    for other in (JobGoneError(NAME), KeyboardInterrupt()):
        with pytest.raises(type(other)), warned_of_job(launch_file, command=COMMAND):
            raise other
    assert caplog.messages == []
