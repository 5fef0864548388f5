"""Answers and refusals as HTTP responses."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from starlette.responses import Response

from dogbreed_ml.server.answers import JSON, Answered, AnswerType, render_body

RETRY_AFTER_S = 1

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


def refusal_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """{"error_code", "message"}, as MLflow's scoring server has it; 503 says when to come back."""
    known = HTTPStatus(status)
    body = {"error_code": _CODES.get(known, known.name), "message": message}
    all_headers = dict(headers or {})
    if known == HTTPStatus.SERVICE_UNAVAILABLE:
        all_headers["Retry-After"] = str(RETRY_AFTER_S)
    return Response(json.dumps(body), status_code=status, headers=all_headers, media_type=JSON)


def render_answers(answers: Sequence[Answered], media_type: AnswerType) -> Response:
    """`answers.render_body` with its type."""
    return Response(render_body(answers, media_type), media_type=media_type)
