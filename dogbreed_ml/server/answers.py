"""What is answered: breeds as JSON or CSV, as the client accepts them, and refusals. The standard library alone."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Literal, Protocol

AnswerType = Literal["application/json", "text/csv"]

JSON: AnswerType = "application/json"
CSV: AnswerType = "text/csv"

_CODES = {
    HTTPStatus.BAD_REQUEST: "BAD_REQUEST",
    HTTPStatus.NOT_FOUND: "NOT_FOUND",
    HTTPStatus.METHOD_NOT_ALLOWED: "METHOD_NOT_ALLOWED",
    HTTPStatus.NOT_ACCEPTABLE: "NOT_ACCEPTABLE",
    HTTPStatus.REQUEST_TIMEOUT: "REQUEST_TIMEOUT",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "TOO_LARGE",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "UNSUPPORTED_MEDIA_TYPE",
    HTTPStatus.UNPROCESSABLE_ENTITY: "UNREADABLE_IMAGE",
    HTTPStatus.INTERNAL_SERVER_ERROR: "INTERNAL_ERROR",
    HTTPStatus.SERVICE_UNAVAILABLE: "TEMPORARILY_UNAVAILABLE",
    HTTPStatus.GATEWAY_TIMEOUT: "DEADLINE_EXCEEDED",
}


class Refusal(Exception):
    """A request that gets no breeds: a status and one sentence."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


def render_refusal(status: HTTPStatus, message: str) -> str:
    """{"error_code", "message"}, as MLflow's scoring server has it."""
    return json.dumps({"error_code": _CODES.get(status, status.name), "message": message})


def answer_type(accept: str) -> AnswerType:
    """The one that the client likes best, JSON where it likes both alike; Refusal (406) where it takes neither.

    `accept` is the header's value, empty where there is none.
    """
    qualities = _qualities(accept) or {"*/*": 1.0}
    offers: tuple[AnswerType, ...] = (JSON, CSV)
    liked = {offer: _quality(offer, qualities) for offer in offers}
    best = max(offers, key=lambda each: liked[each])
    if liked[best] <= 0:
        raise Refusal(HTTPStatus.NOT_ACCEPTABLE, f"Accept must allow {JSON} or {CSV}, got {accept[:100]!r}.")
    return best


def _qualities(accept: str) -> dict[str, float]:
    """By media range; a quality that is no number counts as 1."""
    qualities = {}
    for part in accept.lower().split(","):
        media_range, *parameters = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q" and value.strip().replace(".", "", 1).isdecimal():
                quality = float(value)
        if media_range:
            qualities[media_range] = quality
    return qualities


def _quality(media_type: str, qualities: Mapping[str, float]) -> float:
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((qualities[each] for each in ranges if each in qualities), 0.0)


class Answered(Protocol):
    """One image's answer."""

    @property
    def answer(self) -> str: ...

    @property
    def probability(self) -> float: ...

    @property
    def top5(self) -> tuple[tuple[str, float], ...]: ...


def render_body(answers: Sequence[Answered], media_type: AnswerType) -> str:
    """One row for each image, in the order in which they came."""
    if media_type == CSV:
        return _render_csv(answers)
    rows = [
        {
            "breed": each.answer,
            "probability": each.probability,
            "top5": [{"breed": breed, "probability": probability} for breed, probability in each.top5],
        }
        for each in answers
    ]
    return json.dumps({"predictions": rows})


def _render_csv(answers: Sequence[Answered]) -> str:
    """breed, probability, then breed_1, probability_1, ... best first."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ranks = range(1, max(len(each.top5) for each in answers) + 1)
    ranked = [f"{name}_{rank}" for rank in ranks for name in ("breed", "probability")]
    writer.writerow(["breed", "probability", *ranked])
    for each in answers:
        writer.writerow([each.answer, each.probability, *(value for pair in each.top5 for value in pair)])
    return text.getvalue()
