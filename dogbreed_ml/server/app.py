"""The HTTP of the server: /ping, /invocations, /metrics; limits, time limits, refusals and the access log."""

import asyncio
import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from time import perf_counter
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dogbreed_ml.server import metrics as prometheus
from dogbreed_ml.server.answers import JSON, Refusal, answer_type
from dogbreed_ml.server.messages import Recognised
from dogbreed_ml.server.metrics import Metrics
from dogbreed_ml.server.parsing import IMAGE_TYPES, media_type_of, parse_images
from dogbreed_ml.server.pool import Pool, QueueFull, UnreadableImage, WorkerDied, WorkerFailed
from dogbreed_ml.server.responses import refusal_response, render_answers
from dogbreed_ml.server.settings import ServerSettings

access_logger = logging.getLogger("dogbreed_ml.server.access")
"""One JSON object a line."""

PATHS = ("/ping", "/invocations", "/metrics")

_MAX_BODIES = 32
"""Bodies held at once: so many times the largest one, in bytes."""
_TRACE = "dogbreed.trace"
"""Where a request's scope keeps what the access log adds to a line."""
_CLIENT_GONE = 499
"""What the access log shows where nobody was left to answer; nginx' number."""


def build_app(settings: ServerSettings, pool: Pool, metrics: Metrics) -> ASGIApp:
    """The ASGI application; the pool is started and stopped by whoever runs it."""
    service = _Service(settings, pool, metrics)
    app = Starlette(
        routes=[
            Route("/ping", service.ping, methods=["GET"]),
            Route("/invocations", service.invocations, methods=["POST"]),
            Route("/metrics", service.metrics, methods=["GET"]),
        ],
        exception_handlers={Refusal: _refused, HTTPException: _not_served, HTTPStatus.INTERNAL_SERVER_ERROR: _broken},
    )
    # /ping/ is no path of ours, and a redirect would lead a POST to a GET.
    app.router.redirect_slashes = False
    return _AccessLog(app, metrics)


async def _refused(_: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refusal) else HTTPStatus.INTERNAL_SERVER_ERROR
    return refusal_response(status, str(error))


async def _not_served(request: Request, error: Exception) -> Response:
    """What the router refuses: a path or a method."""
    status = error.status_code if isinstance(error, HTTPException) else HTTPStatus.INTERNAL_SERVER_ERROR
    headers = error.headers if isinstance(error, HTTPException) else None
    asked = f"{request.method[:20]} {request.scope['path'][:50]}"
    message = f"{asked} is not served; GET /ping, POST /invocations and GET /metrics are."
    return refusal_response(status, message, headers)


async def _broken(_: Request, __: Exception) -> Response:
    return refusal_response(HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed on this request; its log says why.")


class _Service:
    def __init__(self, settings: ServerSettings, pool: Pool, metrics: Metrics):
        self._settings = settings
        self._pool = pool
        self._metrics = metrics
        self._max_body_bytes = int(settings.deploy.max_body_mib * 2**20)
        self._num_held_bytes = 0

    async def ping(self, _: Request) -> Response:
        """200 once every worker is warm and as long as one can answer."""
        ready = self._pool.ready
        is_healthy = self._pool.is_ready and ready is not None
        told = {
            "status": "healthy" if is_healthy else "unavailable" if ready else "starting",
            "model": self._settings.model_name,
            "version": self._settings.model_version,
            "backend": ready.backend if ready else self._settings.deploy.backend,
            "num_classes": len(ready.classes) if ready else None,
            "num_workers_ready": len(self._pool.worker_pids),
        }
        return Response(json.dumps(told), status_code=200 if is_healthy else 503, media_type=JSON)

    async def metrics(self, _: Request) -> Response:
        self._metrics.waiting.set(self._pool.num_waiting)
        self._metrics.in_flight.set(self._pool.num_in_flight)
        self._metrics.workers_ready.set(len(self._pool.worker_pids))
        return Response(self._metrics.render(), headers={"Content-Type": prometheus.CONTENT_TYPE})

    async def invocations(self, request: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + self._settings.deploy.timeout_s
        try:
            accepted, media_type = answer_type(request.headers.get("accept", "")), media_type_of(request.headers)
            num_bytes = self._admit(request)
        except Refusal:
            # A client that is still sending would see its connection reset instead of the answer.
            if request.headers.get("expect", "").lower() != "100-continue":
                await self._read_body(request, deadline, keep=False)
            raise
        self._num_held_bytes += num_bytes
        try:
            body = await self._read_body(request, deadline)
            queue_size = self._settings.deploy.queue_size
            images = await parse_images(body, media_type, request.headers, max_images=queue_size)
            request.scope[_TRACE] = {"num_images": len(images), "num_bytes": len(body)}
            is_raw = media_type in IMAGE_TYPES
            return render_answers(await self._recognise(images, request, deadline, is_raw=is_raw), accepted)
        except ClientDisconnect:
            return Response(status_code=_CLIENT_GONE)
        finally:
            self._num_held_bytes -= num_bytes

    def _admit(self, request: Request) -> int:
        """The bytes that the body may take in memory, before any of them is read; Refusal where there is no room."""
        declared = int(request.headers.get("content-length", self._max_body_bytes))
        if declared > self._max_body_bytes:
            raise self._too_large(declared)
        if self._pool.is_full or self._num_held_bytes + declared > _MAX_BODIES * self._max_body_bytes:
            raise _queue_full()
        return declared

    def _too_large(self, num_bytes: int) -> Refusal:
        limit = self._max_body_bytes
        message = f"The body may have {limit} bytes, got {num_bytes} at least; deploy.max_body_mib is the limit."
        return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)

    async def _read_body(self, request: Request, deadline: float, *, keep: bool = True) -> bytes:
        """The whole body; what is beyond the limit, or not to be kept, is read and thrown away."""
        chunks: list[bytes] = []
        num_bytes = 0
        try:
            async with asyncio.timeout_at(deadline):
                async for chunk in request.stream():
                    num_bytes += len(chunk)
                    if keep and num_bytes <= self._max_body_bytes:
                        chunks.append(chunk)
                    else:
                        chunks.clear()
        except TimeoutError:
            seconds = self._settings.deploy.timeout_s
            raise Refusal(HTTPStatus.REQUEST_TIMEOUT, f"The body must arrive within {seconds:g} s.") from None
        if keep and num_bytes > self._max_body_bytes:
            raise self._too_large(num_bytes)
        return b"".join(chunks)

    async def _recognise(
        self, images: Sequence[bytes], request: Request, deadline: float, *, is_raw: bool
    ) -> list[Recognised]:
        """Waits for the answers, for the deadline, and for the client to go away, whichever comes first."""
        try:
            answers = asyncio.gather(*self._pool.submit(images), return_exceptions=True)
        except QueueFull:
            raise _queue_full() from None
        gone: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
        remaining_s = deadline - asyncio.get_running_loop().time()
        try:
            waited: set[asyncio.Future[Any]] = {answers, gone}
            await asyncio.wait(waited, timeout=remaining_s, return_when=asyncio.FIRST_COMPLETED)
            if answers.done():
                return [_checked(answer, None if is_raw else index) for index, answer in enumerate(answers.result())]
            if gone.done():
                raise ClientDisconnect
            message = f"The answer took longer than {self._settings.deploy.timeout_s:g} s; send it again later."
            raise Refusal(HTTPStatus.GATEWAY_TIMEOUT, message)
        finally:
            gone.cancel()
            # Where it is not done, its images leave the queue.
            answers.cancel()


def _checked(answer: Recognised | BaseException, index: int | None) -> Recognised:
    """`index` is the image's place in a request that may hold several."""
    match answer:
        case Recognised():
            return answer
        case UnreadableImage():
            which = "The body" if index is None else f"images[{index}]"
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, f"{which} must be an image that can be read: {answer}.")
        case WorkerDied():
            message = "The process that had this request has died, and another is started; send it again."
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message)
        case WorkerFailed():
            message = "The server failed on this image; its log says why."
            raise Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, message)
        case _:
            raise answer


def _queue_full() -> Refusal:
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "The queue is full; send the request again in a moment.")


class _AccessLog:
    """One line and one count for each request, whatever becomes of it."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = perf_counter()
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def noting(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            self._note(scope, status, perf_counter() - start)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in PATHS else "other"
        self._metrics.requests.labels(path, status).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        if access_logger.isEnabledFor(logging.INFO):
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "client": scope["client"][0] if scope.get("client") else None,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "ms": round(seconds * 1000, 2),
            }
            access_logger.info(json.dumps(line | scope.get(_TRACE, {})))
