"""Answers and refusals as HTTP responses."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

from starlette.responses import Response

from dogbreed_ml.server.answers import JSON, Answered, AnswerType, render_body, render_refusal

RETRY_AFTER_S = 1


def refusal_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """`answers.render_refusal` with its status; 503 says when to come back."""
    known = HTTPStatus(status)
    all_headers = dict(headers or {})
    if known == HTTPStatus.SERVICE_UNAVAILABLE:
        all_headers["Retry-After"] = str(RETRY_AFTER_S)
    return Response(render_refusal(known, message), status_code=status, headers=all_headers, media_type=JSON)


def render_answers(answers: Sequence[Answered], media_type: AnswerType) -> Response:
    """`answers.render_body` with its type."""
    return Response(render_body(answers, media_type), media_type=media_type)
