"""Requests and answers against botocore's model."""

from typing import Any

import pytest

from sagemaker_jobs.local.errors import SerializationException, ServiceError, ValidationException
from sagemaker_jobs.local.shapes import check_answer, check_request
from sagemaker_jobs.shapes import _compiled, isolated_session, method_name, service_model

ROLE = "arn:aws:iam::123456789012:role/x"


def _request(**changes: Any) -> dict[str, Any]:
    return {
        "TrainingJobName": "rex",
        "RoleArn": ROLE,
        "OutputDataConfig": {"S3OutputPath": "s3://bucket"},
        "AlgorithmSpecification": {"TrainingInputMode": "File"},
    } | changes


def test_right_request_passes() -> None:
    check_request("sagemaker", "CreateTrainingJob", _request(HyperParameters={"a": "1"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"TrainingJobName": None}, "1 validation error detected: Value null at 'trainingJobName' failed to satisfy "
         "constraint: Member must not be null"),
        ({"TrainingJobName": "a" * 64}, "Member must have length less than or equal to 63"),
        ({"TrainingJobName": "rex\n"}, "Member must satisfy regular expression pattern: [a-zA-Z0-9]"),
        ({"TrainingJobName": "dog x"}, "Member must satisfy regular expression pattern: [a-zA-Z0-9]"),
        ({"AlgorithmSpecification": {"TrainingInputMode": "Tape"}}, "Value 'Tape' at 'algorithmSpecification."
         "trainingInputMode' failed to satisfy constraint: Member must satisfy enum value set: [Pipe, File, FastFile]"),
        ({"Tags": [{"Key": "a", "Value": "b"}, {"Key": "", "Value": "c"}]},
         "Value '' at 'tags.2.member.key' failed to satisfy constraint: Member must have length greater than or equal"),
        ({"HyperParameters": {str(n): "x" for n in range(101)}}, "'hyperParameters' failed to satisfy constraint: "
         "Member must have length less than or equal to 100"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 0}},
         "Value '0' at 'stoppingCondition.maxRuntimeInSeconds' failed to satisfy constraint: Member must have value "
         "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_wrong_request_is_refused_in_aws_words(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationException) as refused:
        check_request("sagemaker", "CreateTrainingJob", _request(**changes))
    assert message in str(refused.value)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ValidationException, match=r"^2 validation errors detected: .*trainingJobName.*; .*roleArn"):
        check_request("sagemaker", "CreateTrainingJob", _request(TrainingJobName="-", RoleArn="nobody-in-particular"))


@pytest.mark.parametrize(
    "changes",
    [{"TrainingJobName": 3}, {"Tags": {}}, {"HyperParameters": {"a": 1}}, {"EnableNetworkIsolation": "yes"},
     {"StoppingCondition": {"MaxRuntimeInSeconds": True}}, {"StoppingCondition": {"MaxRuntimeInSeconds": 1.5}}],
)  # fmt: skip
def test_value_of_another_type_is_no_serialization(changes: dict[str, Any]) -> None:
    with pytest.raises(SerializationException, match="can not be converted to"):
        check_request("sagemaker", "CreateTrainingJob", _request(**changes))


@pytest.mark.parametrize(
    "answer", [{}, {"TrainingJobArn": "rex"}, {"TrainingJobArn": None}, {"TrainingJobArn": 1}, {"Arn": "x"}]
)
def test_wrong_answer_is_found(answer: dict[str, Any]) -> None:
    with pytest.raises(ServiceError):
        check_answer("sagemaker", "CreateTrainingJob", answer)


def test_right_answer_passes() -> None:
    arn = "arn:aws:sagemaker:us-west-2:123456789012:training-job/rex"
    check_answer("sagemaker", "CreateTrainingJob", {"TrainingJobArn": arn})
    check_answer("sagemaker", "StopTrainingJob", {})
    with pytest.raises(ValidationException, match="StopTrainingJob answers nothing"):
        check_answer("sagemaker", "StopTrainingJob", {"x": 1})


def test_operations_have_methods() -> None:
    assert method_name("sagemaker", "CreateHyperParameterTuningJob") == "create_hyper_parameter_tuning_job"
    assert method_name("sagemaker", "Close") is None


def test_patterns_of_the_model_are_understood() -> None:
    """All but one, which pairs surrogates: another one must be looked at."""
    model = service_model("sagemaker")
    patterns = {model.shape_for(name).metadata.get("pattern") for name in model.shape_names} - {None}
    broken = [pattern for pattern in patterns if _compiled(pattern) is None]
    assert len(patterns) > 200
    assert len(broken) == 1
    assert "uD800" in broken[0]


def test_model_is_read_whatever_profile_the_user_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "gone")
    assert isolated_session().get_service_model("sagemaker-runtime").operation_names
