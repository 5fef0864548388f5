"""What a request means: SageMaker's operations are ours, all other services moto's; a fault on order comes first.

A WSGI callable. `X-Amz-Target: SageMaker.CreateTrainingJob` calls create_training_job(params) of the area that has such
a method, once the request is found to fit botocore's model.
"""

import json
import logging
import re
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler
from werkzeug.wrappers import Request, Response

from sagemaker_jobs.local.errors import (
    AccessDeniedException,
    ExpiredTokenException,
    SerializationException,
    ServiceError,
    ValidationException,
)
from sagemaker_jobs.local.faults import Call, ConnectionLost, S3Failure
from sagemaker_jobs.local.shapes import check_request
from sagemaker_jobs.shapes import method_name

if TYPE_CHECKING:
    from sagemaker_jobs.local.service import LocalSageMaker

logger = logging.getLogger(__name__)

_TARGET = "SageMaker."
_INVOKE = re.compile(r"/endpoints/(?P<name>[^/]+)/(?P<how>invocations|async-invocations|invocations-response-stream)")
_FAULTS_PATH = "/local/faults"
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
        path = environ.get("PATH_INFO", "")
        is_door = path == _FAULTS_PATH or _INTERRUPT.fullmatch(path)
        ours = _target(environ) is not None or _INVOKE.fullmatch(path) or is_door
        if ours and "HTTP_ORIGIN" in environ:
            # moto answers a browser's preflight with yes to everything, and a training job is a program.
            denied = AccessDeniedException("Requests from web pages (with an Origin header) are refused.")
            return _refuse(denied)(environ, start_response)
        if path == _FAULTS_PATH:
            return self._order_faults(Request(environ))(environ, start_response)
        try:
            if is_door or not self._service.faults.meet(environ):
                return self._dispatch(environ, start_response)
            # All of the answer is made, and none of it sent.
            for _ in self._dispatch(environ, start_response):
                continue
            raise ConnectionLost("The answer is lost, as ordered.")
        except (ServiceError, S3Failure) as error:
            return _render_fault(error, environ)(environ, start_response)
        except ConnectionLost:
            # http.server would wait for the next request on it.
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise

    def _dispatch(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        operation = _target(environ)
        if Call.parse(environ).service == "pricing":
            # moto has no such service, and would answer 500, which boto3 tries again.
            return _refuse(ValidationException("The local SageMaker has no prices."))(environ, start_response)
        if operation is not None:
            return self._answer(Request(environ), operation)(environ, start_response)
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
            if how == "async-invocations":
                return self._service.endpoints.invoke_async(name, request)
            if how != "invocations":
                raise ValidationException("InvokeEndpointWithResponseStream is not supported by the local SageMaker.")
            return self._service.endpoints.invoke(name, request)
        except ServiceError as error:
            return _refuse(error)

    def _order_faults(self, request: Request) -> Response:
        faults = self._service.faults
        try:
            if request.method == "POST":
                faults.apply(_parse(request.get_data()))
        except ServiceError as error:
            return _refuse(error)
        return _render(faults.describe())

    def _interrupt(self, name: str) -> Response:
        try:
            self._service.training.interrupt(name)
        except ServiceError as error:
            return _refuse(error)
        return _render({})


def _target(environ: Mapping[str, Any]) -> str | None:
    """The operation of SageMaker that a request names; None for another service."""
    target = str(environ.get("HTTP_X_AMZ_TARGET", ""))
    return target.removeprefix(_TARGET) if target.startswith(_TARGET) else None


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


def _render_fault(error: ServiceError | S3Failure, environ: Mapping[str, Any]) -> Response:
    """In the protocol that the caller speaks."""
    if isinstance(error, S3Failure):
        return Response(error.render(str(uuid.uuid4())), error.status, content_type="application/xml")
    if "HTTP_SMITHY_PROTOCOL" in environ:
        body = b"\xa2" + b"".join(map(_render_cbor, ("__type", error.code, "message", error.message)))
        headers = {"smithy-protocol": "rpc-v2-cbor"}
        return Response(body, error.status, headers, content_type="application/cbor")
    is_query = environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded")
    if is_query and isinstance(error, ExpiredTokenException):
        text = (
            f"<ErrorResponse><Error><Code>ExpiredToken</Code><Message>{error.message}</Message></Error></ErrorResponse>"
        )
        return Response(text, 403, content_type="text/xml")
    return _refuse(error)


def _render_cbor(text: str) -> bytes:
    data = text.encode()
    return b"\x79" + len(data).to_bytes(2, "big") + data
