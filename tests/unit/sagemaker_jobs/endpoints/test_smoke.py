"""What counts as the expected answer to an example image."""

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sagemaker_jobs.endpoints.model_archive import Example
from sagemaker_jobs.endpoints.smoke import TOLERANCE, smoke_test


def row(*ranked: tuple[str, float]) -> dict[str, Any]:
    top5 = [{"breed": breed, "probability": probability} for breed, probability in ranked]
    return {**top5[0], "top5": top5}


EXPECTED = row(("Beagle", 0.48), ("Chow", 0.46), ("Dingo", 0.06))
EXAMPLE = Example("examples/0.jpg", b"image", EXPECTED)


def body(*rows: dict[str, Any]) -> bytes:
    return json.dumps({"predictions": list(rows)}).encode()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(body(EXPECTED), id="the same"),
        pytest.param(body(row(("Beagle", 0.48 + TOLERANCE / 2), ("Chow", 0.4))), id="nearly the same"),
        pytest.param(body(row(("Chow", 0.48), ("Beagle", 0.46))), id="two as good as equal change places"),
    ],
)
def test_answer_as_exact_as_bf16_passes(answer: bytes) -> None:
    smoke = smoke_test(lambda _: answer, [EXAMPLE, EXAMPLE])
    assert smoke.is_passed
    assert smoke.render().startswith("passed: 2 example images as expected")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (body(row(("Dingo", 0.48))), "the answer is Dingo, where Beagle was expected"),
        (body(row(("Eskimo dog", 0.48))), "the answer is Eskimo dog, where Beagle was expected"),
        (body(row(("Beagle", 0.9))), "Beagle has the probability 0.9000, where 0.4800 was expected"),
        (body(row(("Beagle", float("nan")))), "Beagle has the probability nan, where 0.4800 was expected"),
        (body(EXPECTED, EXPECTED), "the answer is not one prediction but"),
        (b"<html>", "the answer is not one prediction but b'<html>'"),
    ],
)
def test_any_other_answer_fails(answer: bytes, problem: str) -> None:
    smoke = smoke_test(lambda _: answer, [EXAMPLE])
    assert not smoke.is_passed
    assert problem in smoke.problems[0]
    assert smoke.render().startswith("failed: 1 of 1 example images: examples/0.jpg")


def test_refusal_fails_and_the_other_images_are_asked_for_all_the_same() -> None:
    def invoke(image: bytes) -> bytes:
        if image == b"image":
            raise ClientError({"Error": {"Code": "ModelError", "Message": "Received 500"}}, "InvokeEndpoint")
        return body(EXPECTED)

    smoke = smoke_test(invoke, [EXAMPLE, Example("examples/1.jpg", b"other", EXPECTED)])
    assert len(smoke.problems) == 1
    assert "Received 500" in smoke.problems[0]
