"""What a request means: SageMaker's operations are ours, all other services moto's.

A WSGI callable. `X-Amz-Target: SageMaker.CreateTrainingJob` calls create_training_job(params) of the area that has such
a method, once the request is found to fit botocore's model.
"""

import json
import logging
import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler
from werkzeug.wrappers import Request, Response

from sagemaker_jobs.local.errors import (
    AccessDeniedException,
    SerializationException,
    ServiceError,
    ValidationException,
)
from sagemaker_jobs.local.shapes import check_request
from sagemaker_jobs.shapes import method_name

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker

logger = logging.getLogger(__name__)

_TARGET = "SageMaker."
_INVOKE = re.compile(r"/endpoints/(?P<name>[^/]+)/(?P<how>invocations|async-invocations|invocations-response-stream)")
_INTERRUPT = re.compile(r"/local/training-jobs/(?P<name>[^/]+)/interrupt")

StartResponse = Callable[..., Any]


class RequestHandler(WSGIRequestHandler):
    """Quiet, and at once: with Nagle's algorithm a kept connection's answers wait 40 ms for the client's ACK."""

    disable_nagle_algorithm = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        logger.debug("%s %s", self.requestline, code)


class Application:
    """The WSGI callable of one server."""

    def __init__(self, service: "LocalSageMaker") -> None:
        self._service = service
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        path = environ.get("PATH_INFO", "")
        ours = target.startswith(_TARGET) or _INVOKE.fullmatch(path) or _INTERRUPT.fullmatch(path)
        if ours and "HTTP_ORIGIN" in environ:
            # moto answers a browser's preflight with yes to everything, and a training job is a program.
            denied = AccessDeniedException("Requests from web pages (with an Origin header) are refused.")
            return _refuse(denied)(environ, start_response)
        if target.startswith(_TARGET):
            return self._answer(Request(environ), target.removeprefix(_TARGET))(environ, start_response)
        if environ["REQUEST_METHOD"] == "POST":
            if match := _INVOKE.fullmatch(path):
                request = Request(environ)
                return self._invoke(request, unquote(match["name"]), match["how"])(environ, start_response)
            if match := _INTERRUPT.fullmatch(path):
                return self._interrupt(unquote(match["name"]))(environ, start_response)
        answer: Iterable[bytes] = self._moto(environ, start_response)
        return answer

    def _answer(self, request: Request, operation: str) -> Response:
        try:
            answer = self._call(operation, request.get_data())
        except ServiceError as error:
            return _refuse(error)
        return _render(answer)

    def _call(self, operation: str, body: bytes) -> Mapping[str, Any]:
        method = method_name("sagemaker", operation)
        if method is None:
            raise ValidationException(f"{operation} is no operation of SageMaker.")
        service = self._service
        for area in (service.training, service.tuning, service.endpoints, service.tags):
            if call := getattr(area, method, None):
                params = _parse(body)
                check_request("sagemaker", operation, params)
                answer: Mapping[str, Any] = call(params)
                return answer
        raise ValidationException(
            f"{operation} is not supported by the local SageMaker; docs/local-sagemaker.md lists what is."
        )

    def _invoke(self, request: Request, name: str, how: str) -> Response:
        try:
            if how != "invocations":
                operation = {"async-invocations": "InvokeEndpointAsync"}.get(how, "InvokeEndpointWithResponseStream")
                raise ValidationException(f"{operation} is not supported by the local SageMaker.")
            return self._service.endpoints.invoke(name, request)
        except ServiceError as error:
            return _refuse(error)

    def _interrupt(self, name: str) -> Response:
        try:
            self._service.training.interrupt(name)
        except ServiceError as error:
            return _refuse(error)
        return _render({})


def _parse(body: bytes) -> dict[str, Any]:
    try:
        params = json.loads(body or b"{}")
    except ValueError as error:
        raise SerializationException(f"The request's body is not JSON: {error}.") from error
    if not isinstance(params, dict):
        raise SerializationException("The request's body must be a JSON object.")
    return {name: value for name, value in params.items() if value is not None}


def _render(answer: Mapping[str, Any]) -> Response:
    headers = {"x-amzn-RequestId": str(uuid.uuid4())}
    return Response(json.dumps(answer), 200, headers, content_type="application/x-amz-json-1.1")


def _refuse(error: ServiceError) -> Response:
    body = {"__type": error.code, "message": error.message, "Message": error.message, **error.fields}
    headers = {"x-amzn-RequestId": str(uuid.uuid4()), "x-amzn-ErrorType": error.code}
    return Response(json.dumps(body), error.status, headers, content_type="application/x-amz-json-1.1")
