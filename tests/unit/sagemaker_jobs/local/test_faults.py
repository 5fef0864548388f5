"""Which requests meet a fault that was ordered, and how often."""

from typing import Any

import pytest

from sagemaker_jobs.local.cloud import INSIDE_ACCESS_KEY_ID
from sagemaker_jobs.local.errors import ExpiredTokenException, ThrottlingException, ValidationException
from sagemaker_jobs.local.faults import Call, ConnectionLost, Faults, S3Failure


def _environ(service: str = "sagemaker", operation: str = "", *, key: str = "local", path: str = "/") -> dict[str, str]:
    credential = f"AWS4-HMAC-SHA256 Credential={key}/20300101/us-west-2/{service}/aws4_request, SignedHeaders=host"
    target = {"HTTP_X_AMZ_TARGET": f"SageMaker.{operation}"} if operation else {}
    return {"HTTP_AUTHORIZATION": credential, "PATH_INFO": path, "QUERY_STRING": "", **target}


PUT = _environ("s3", path="/bucket/key")
CREATE = _environ(operation="CreateTrainingJob")


def test_call_is_told_by_its_signature_and_its_path() -> None:
    assert Call.parse(CREATE) == Call("sagemaker", "CreateTrainingJob", is_inside=False)
    assert Call.parse(_environ("s3", key=INSIDE_ACCESS_KEY_ID)) == Call("s3", "", is_inside=True)
    assert Call.parse(_environ(path="/endpoints/dogs/invocations")).operation == "InvokeEndpoint"
    presigned = {"QUERY_STRING": "X-Amz-Credential=local%2F20300101%2Fus-west-2%2Fs3%2Faws4_request&X-Amz-Date=1"}
    assert Call.parse(presigned | {"PATH_INFO": "/bucket/key"}).service == "s3"


def test_without_an_order_nothing_is_met() -> None:
    faults = Faults()
    assert not faults.meet(CREATE)
    assert not faults.meet(PUT)
    assert faults.describe() == {
        "throttle": {}, "lose_answer": {}, "fail_s3": [], "expire_token": False, "drop_connections": False, "hits": {},
    }  # fmt: skip


def test_throttled_operation_is_refused_that_often_and_no_other() -> None:
    faults = Faults()
    faults.throttle("CreateTrainingJob", times=2)
    assert not faults.meet(_environ(operation="DescribeTrainingJob"))
    for _ in range(2):
        with pytest.raises(ThrottlingException, match="Rate exceeded"):
            faults.meet(CREATE)
    assert not faults.meet(CREATE)
    assert faults.hits() == {"throttle": 2}


def test_lost_answer_lets_the_request_through() -> None:
    faults = Faults()
    faults.lose_answer("CreateTrainingJob")
    assert [faults.meet(CREATE) for _ in range(2)] == [True, False]


def test_s3_fails_with_the_codes_that_were_ordered_in_turn() -> None:
    faults = Faults()
    faults.fail_s3()
    faults.fail_s3(code="InternalError")
    assert not faults.meet(CREATE)
    met = []
    for _ in range(2):
        with pytest.raises(S3Failure) as failed:
            faults.meet(PUT)
        met.append((failed.value.code, failed.value.status))
    assert met == [("SlowDown", 503), ("InternalError", 500)]
    assert "<Code>SlowDown</Code>" in S3Failure("SlowDown").render("id")
    assert not faults.meet(PUT)


def test_switches_hold_until_cleared_and_spare_the_inside() -> None:
    faults = Faults()
    faults.expire_token()
    for _ in range(3):
        with pytest.raises(ExpiredTokenException):
            faults.meet(CREATE)
    with pytest.raises(S3Failure, match="ExpiredToken"):
        faults.meet(PUT)
    faults.drop_connections()
    with pytest.raises(ConnectionLost):
        faults.meet(PUT)
    assert not faults.meet(_environ("s3", key=INSIDE_ACCESS_KEY_ID))
    assert faults.hits() == {"expire_token": 4, "drop_connections": 1}
    faults.clear()
    assert not faults.meet(CREATE)
    assert faults.hits() == {}


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"throttel": {}}, "no faults throttel"),
        ({"throttle": {"CreateTrainJob": 1}}, "CreateTrainJob is no operation of"),
        ({"throttle": {"CreateTrainingJob": 0}}, "at least 1 call, got 0"),
        ({"throttle": "CreateTrainingJob"}, "throttle must be an object"),
        ({"fail_s3": {"code": "NoSuchKey"}}, "SlowDown and InternalError, got 'NoSuchKey'"),
    ],
)
def test_order_that_makes_no_sense_is_refused(order: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationException, match=message):
        Faults().apply(order)


def test_order_clears_first_and_sets_the_rest() -> None:
    faults = Faults()
    faults.drop_connections()
    faults.apply({"clear": True, "throttle": {"InvokeEndpoint": 3}, "fail_s3": {"times": 2}, "expire_token": True})
    left = faults.describe()
    assert (left["throttle"], left["fail_s3"]) == ({"InvokeEndpoint": 3}, ["SlowDown", "SlowDown"])
    assert (left["expire_token"], left["drop_connections"]) == (True, False)
