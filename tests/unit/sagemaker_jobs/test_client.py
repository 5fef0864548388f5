"""AWS's refusals as one line with a way out, and waiting without waiting."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.errors import CloudError, ConfigError
from sagemaker_jobs.client import (
    Aws,
    Clock,
    check,
    cloud_error,
    configured_region,
    error_code,
    is_absent,
    is_transient,
    translated,
    wait_until,
)


def refusal(code: str, message: str = "", status: int = 400) -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "DescribeTrainingJob")


class Tick:
    """A clock that only counts."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds

    def clock(self) -> Clock:
        return Clock(now=lambda: self.now_s, sleep=self.sleep)


def open_aws(tick: Tick) -> Aws:
    return Aws.open(SagemakerConfig(region="us-west-2"), clock=tick.clock())


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def call() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return call


@pytest.mark.parametrize(
    "error",
    [
        refusal("ThrottlingException"),
        refusal("SlowDown", status=503),
        refusal("InternalFailure", status=500),
        EndpointConnectionError(endpoint_url="https://example.com"),
        ConnectTimeoutError(endpoint_url="https://example.com"),
        ReadTimeoutError(endpoint_url="https://example.com"),
    ],
)
def test_transient_error_is_asked_again_with_growing_pauses(error: Exception) -> None:
    tick = Tick()
    assert is_transient(error)
    assert open_aws(tick).ask(failing(error, error, error), doing="look") == "answer"
    assert tick.pauses == [1, 2, 4]


def test_question_is_given_up_when_patience_ends() -> None:
    tick = Tick()
    errors = [refusal("ThrottlingException", "Rate exceeded")] * 1000
    with pytest.raises(CloudError, match=r"Could not look: ThrottlingException: Rate exceeded; the same command"):
        open_aws(tick).ask(failing(*errors), doing="look", patience_s=60)
    assert tick.now_s <= 60
    assert max(tick.pauses) == 15


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (refusal("ExpiredTokenException", "The security token is expired"), "log in again"),
        (refusal("AccessDeniedException", "not authorized"), "--print-policy"),
        (refusal("ValidationException", "bad value"), "mend what it names"),
        (NoCredentialsError(), "aws configure"),
        (EndpointConnectionError(endpoint_url="https://sts.us-wset-2.amazonaws.com/"), "the region in that address"),
        (refusal("InternalFailure", status=500), "goes on where this one ended"),
    ],
)
def test_refusal_is_one_line_with_a_way_out(error: Exception, way_out: str) -> None:
    told = str(cloud_error(error, "start the job"))
    assert told.startswith("Could not start the job: ")
    assert way_out in told
    assert "\n" not in told


def test_refusal_that_cannot_pass_is_not_asked_again() -> None:
    tick = Tick()
    with pytest.raises(CloudError, match="mend what it names"):
        open_aws(tick).ask(failing(refusal("ValidationException", "bad value")), doing="look")
    assert tick.pauses == []


@pytest.mark.parametrize(
    ("error", "absent"),
    [
        (refusal("ValidationException", "Requested resource not found."), True),
        (refusal("ValidationException", 'Could not find endpoint "arn:..."'), True),
        (refusal("ResourceNotFound", "Model does not exist"), True),
        (refusal("ValidationException", "1 validation error detected"), False),
        (refusal("AccessDeniedException", "not found or not allowed"), False),
        (NoCredentialsError(), False),
    ],
)
def test_absence_is_told_from_other_refusals(error: Exception, absent: bool) -> None:
    assert is_absent(error) is absent


def test_translated_names_the_code_of_what_it_translates() -> None:
    with pytest.raises(CloudError) as caught, translated("write"):
        raise refusal("NoSuchBucket", "gone")
    assert isinstance(caught.value.__cause__, ClientError)
    assert error_code(caught.value.__cause__) == "NoSuchBucket"
    with pytest.raises(ValueError, match="our own"), translated("write"):
        raise ValueError("our own")


def test_wait_until_looks_at_intervals_and_keeps_its_deadline() -> None:
    tick, seen = Tick(), iter(range(100))
    assert wait_until(lambda: next(seen), lambda n: n == 3, what="it", timeout_s=60, clock=tick.clock()) == 3
    assert tick.pauses == [5, 5, 5]
    with pytest.raises(CloudError, match="it did not happen within 20 s"):
        wait_until(lambda: 0, bool, what="it", timeout_s=20, clock=tick.clock())
    assert tick.now_s <= 15 + 20


def test_check_names_every_mistake_of_a_request() -> None:
    request = {"TrainingJobName": "-bad-", "TrainingJobArn": "no member", "VpcConfig": {"Subnets": "subnet"}}
    with pytest.raises(ConfigError, match="CreateTrainingJob would be refused by SageMaker") as caught:
        check("CreateTrainingJob", request)
    assert "vpcConfig.subnets" in str(caught.value)
    with pytest.raises(ConfigError, match="'trainingJobArn' is no member") as caught:
        check("CreateTrainingJob", {key: request[key] for key in ("TrainingJobName", "TrainingJobArn")})
    assert "outputDataConfig" in str(caught.value)
    check("StopTrainingJob", {"TrainingJobName": "dogs"})


def test_check_names_what_is_nearest_to_a_mistyped_choice() -> None:
    with pytest.raises(ConfigError, match=r"enum value set: \[(ml\.\S+, )*\.\.\.\]") as caught:
        check("CreateTrainingJob", {"ResourceConfig": {"InstanceType": "ml.g4dn.xlrage", "VolumeSizeInGB": 1}})
    assert "[ml.g4dn.xlarge, " in str(caught.value)
    assert str(caught.value).count("ml.") < 12


@pytest.mark.parametrize(
    ("operation", "member"),
    [
        ("CreateTrainingJob", {"Environment": {"TOKEN": "hush" * 200}}),
        ("CreateTrainingJob", {"Environment": {f"TOKEN_{number}": "hush" for number in range(200)}}),
        ("CreateTrainingJob", {"HyperParameters": {"token": "hush" * 1000}}),
        ("CreateHyperParameterTuningJob", {"TrainingJobDefinition": {"StaticHyperParameters": {"a": "hush" * 1000}}}),
        ("CreateHyperParameterTuningJob", {"TrainingJobDefinition": {"Environment": {"TOKEN": "hush" * 200}}}),
        ("CreateModel", {"PrimaryContainer": {"Environment": {"TOKEN": "hush" * 9000}}}),
    ],
)
def test_check_shows_no_value_that_may_be_a_secret(operation: str, member: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"Value \(not shown\) at '\S*(nviron|yperParam)") as refused:
        check(operation, member)
    assert "hush" not in str(refused.value)


def test_check_names_a_variable_with_a_bad_name() -> None:
    with pytest.raises(ConfigError, match="Value 'MY-TOKEN' at 'environment'") as refused:
        check("CreateTrainingJob", {"Environment": {"MY-TOKEN": "hush"}})
    assert "hush" not in str(refused.value)


def test_open_asks_for_a_region_and_for_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured_region(SagemakerConfig()) == "us-east-1"
    assert configured_region(SagemakerConfig(region="eu-west-1")) == "eu-west-1"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert configured_region(SagemakerConfig()) is None
    with pytest.raises(ConfigError, match="sagemaker.region"):
        Aws.open(SagemakerConfig())
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(ConfigError, match="AWS credentials are needed"):
        Aws.open(SagemakerConfig(region="eu-west-1"))
    monkeypatch.setenv("AWS_PROFILE", "kennel")
    for opens in (Aws.open, configured_region):
        with pytest.raises(ConfigError, match="AWS_PROFILE"):
            opens(SagemakerConfig(region="eu-west-1"))


@pytest.fixture
def write_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """The default profile, and no other credentials."""

    def write(text: str) -> None:
        path = tmp_path / "config"
        path.write_text(f"[default]\nregion = eu-west-1\n{text}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    return write


def test_open_names_a_credential_process_that_is_not_there(write_profile: Callable[[str], None]) -> None:
    write_profile("credential_process = /kennel/no-such-process")
    with pytest.raises(ConfigError, match=r"those of the profile are not: .*/kennel/no-such-process"):
        Aws.open(SagemakerConfig())


@pytest.mark.parametrize(
    "profile",
    [
        "sso_start_url = https://kennel.awsapps.com/start\nsso_region = eu-west-1\n"
        "sso_account_id = 123456789012\nsso_role_name = keeper",
        "sso_session = kennel\nsso_account_id = 123456789012\nsso_role_name = keeper\n"
        "[sso-session kennel]\nsso_region = eu-west-1\nsso_start_url = https://kennel.awsapps.com/start",
    ],
    ids=["sso", "sso session"],
)
def test_login_that_is_over_or_never_was_asks_for_a_new_one(profile: str, write_profile: Callable[[str], None]) -> None:
    write_profile(profile)
    with pytest.raises(CloudError, match="log in again") as caught, Aws.open(SagemakerConfig()) as aws:
        assert aws.account_id
    assert "\n" not in str(caught.value)


def test_console_links_are_awss_and_none_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_aws(Tick()) as aws:
        assert not aws.is_local
        assert aws.console_url("jobs/dogs") == (
            "https://us-west-2.console.aws.amazon.com/sagemaker/home?region=us-west-2#/jobs/dogs"
        )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:5005")
    with open_aws(Tick()) as aws:
        assert aws.is_local
        assert aws.console_url("jobs/dogs") is None
