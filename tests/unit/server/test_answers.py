"""What the server answers: which type, and in what form."""

import csv
import io
import json
from http import HTTPStatus

import pytest

from dogbreed_ml.server.answers import AnswerType, Refusal, answer_type
from dogbreed_ml.server.messages import Recognised
from dogbreed_ml.server.responses import refusal_response, render_answers

REX = Recognised(7, "Saint Bernard", 0.75, (("Saint Bernard", 0.75), ('Chow, "red"', 0.25)), 0.001, 0.01, 1)
UNSURE = Recognised(8, "unsure", 0.5, (("Beagle", 0.5), ("Chow", 0.4)), 0.001, 0.01, 1)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/json;verbose=true", "application/json"),
        ("text/csv", "text/csv"),
        ("TEXT/CSV", "text/csv"),
        ("text/*", "text/csv"),
        ("text/csv;q=0.5, application/json;q=0.4", "text/csv"),
        ("text/html, */*;q=0.1", "application/json"),
        ("application/json;q=0, */*", "text/csv"),
        ("text/csv, application/json", "application/json"),
        (",,", "application/json"),
        ("application/json;q=banana", "application/json"),
    ],
)
def test_answer_type_is_the_one_that_the_client_likes_best(accept: str, expected: AnswerType) -> None:
    assert answer_type(accept) == expected


@pytest.mark.parametrize("accept", ["text/html", "image/*", "application/json;q=0", "*/*;q=0.0", "x" * 10_000])
def test_answer_type_that_is_not_served_is_refused(accept: str) -> None:
    with pytest.raises(Refusal, match=r"Accept must allow application/json or text/csv, got '.{1,120}'\.") as refused:
        answer_type(accept)
    assert refused.value.status == HTTPStatus.NOT_ACCEPTABLE


def test_answers_as_json_are_one_row_an_image() -> None:
    response = render_answers([REX, UNSURE], "application/json")
    assert response.media_type == "application/json"
    first, second = json.loads(bytes(response.body))["predictions"]
    assert first == {
        "breed": "Saint Bernard",
        "probability": 0.75,
        "top5": [{"breed": "Saint Bernard", "probability": 0.75}, {"breed": 'Chow, "red"', "probability": 0.25}],
    }
    assert (second["breed"], second["top5"][0]["breed"]) == ("unsure", "Beagle")


def test_answers_as_csv_survive_commas_and_quotes() -> None:
    response = render_answers([REX, UNSURE], "text/csv")
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(bytes(response.body).decode())))
    assert rows[0] == {
        "breed": "Saint Bernard", "probability": "0.75",
        "breed_1": "Saint Bernard", "probability_1": "0.75", "breed_2": 'Chow, "red"', "probability_2": "0.25",
    }  # fmt: skip
    assert rows[1]["breed"] == "unsure"


@pytest.mark.parametrize("status", [400, 404, 405, 406, 408, 413, 415, 422, 500, 503, 504])
def test_refusals_have_a_code_and_one_sentence(status: int) -> None:
    response = refusal_response(status, "Rule, value, way out.")
    told = json.loads(bytes(response.body))
    assert told["message"] == "Rule, value, way out."
    assert told["error_code"].isupper()
    assert ("retry-after" in response.headers) == (status == 503)
