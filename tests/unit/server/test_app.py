"""The HTTP around the pool: limits, time limits, refusals, /ping, /metrics and the access log; no socket, no worker."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.server.app import build_app
from dogbreed_ml.server.messages import Ready, Recognised
from dogbreed_ml.server.metrics import Metrics
from dogbreed_ml.server.pool import Pool, QueueFull, UnreadableImage, WorkerDied, WorkerFailed
from dogbreed_ml.server.settings import ServerSettings

JPEG = {"content-type": "image/jpeg"}

Reply = Callable[[bytes], Recognised | Exception | None]


class FakePool(Pool):
    """Answers by a function of the image; None never answers."""

    def __init__(self, settings: ServerSettings, reply: Reply, *, is_warm: bool = True):
        super().__init__(settings, Metrics())
        self._reply = reply
        self.is_warm = is_warm
        self.full = False
        self.futures: list[asyncio.Future[Recognised]] = []

    @property
    def ready(self) -> Ready | None:
        return Ready("torch-fp32", ("Beagle", "Chow"), 1.5) if self.is_warm else None

    @property
    def is_ready(self) -> bool:
        return self.is_warm

    @property
    def is_full(self) -> bool:
        return self.full

    def submit(self, images: Sequence[bytes]) -> "list[asyncio.Future[Recognised]]":
        if self.full:
            raise QueueFull
        futures = [asyncio.get_running_loop().create_future() for _ in images]
        for future, image in zip(futures, images, strict=True):
            reply = self._reply(image)
            if isinstance(reply, Exception):
                future.set_exception(reply)
            elif reply is not None:
                future.set_result(reply)
        self.futures += futures
        return futures


def recognise(image: bytes) -> Recognised:
    return Recognised(0, f"breed of {image.decode()}", 0.75, (("Beagle", 0.75),), 0.001, 0.01, 1)


def settings(**deploy: Any) -> ServerSettings:
    return ServerSettings(
        checkpoint_path=Path("checkpoint.pt"), deploy=DeployConfig(**deploy), model_name="dogs", model_version="3"
    )


def asked(
    ask: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]], pool: FakePool, *, metrics: Metrics | None = None
) -> httpx.Response:
    """The answer of an application on this pool to what `ask` asks."""

    async def run() -> httpx.Response:
        app = build_app(pool._settings, pool, metrics or Metrics())
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await ask(client)

    return asyncio.run(run())


def posted(pool: FakePool, content: bytes = b"rex", headers: dict[str, str] | None = None) -> httpx.Response:
    return asked(lambda client: client.post("/invocations", content=content, headers=headers or JPEG), pool)


def test_image_is_answered_in_json_and_csv() -> None:
    pool = FakePool(settings(), recognise)
    assert posted(pool).json() == {
        "predictions": [
            {"breed": "breed of rex", "probability": 0.75, "top5": [{"breed": "Beagle", "probability": 0.75}]}
        ]
    }
    as_csv = posted(pool, headers={**JPEG, "accept": "text/csv"})
    assert as_csv.text == "breed,probability,breed_1,probability_1\nbreed of rex,0.75,Beagle,0.75\n"


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (UnreadableImage("truncated"), 422, "The body must be an image that can be read: truncated."),
        (WorkerDied(), 503, "The process that had this request has died, and another is started; send it again."),
        (WorkerFailed(), 500, "The server failed on this image; its log says why."),
    ],
)
def test_faults_of_the_workers_are_told_in_one_sentence(fault: Exception, status: int, message: str) -> None:
    answer = posted(FakePool(settings(), lambda _: fault))
    assert (answer.status_code, answer.json()["message"]) == (status, message)
    assert ("retry-after" in answer.headers) == (status == 503)


def test_unreadable_image_among_several_is_named_by_its_place() -> None:
    pool = FakePool(settings(), lambda image: UnreadableImage("empty file") if not image else recognise(image))
    body = json.dumps({"inputs": ["cmV4", "", "cmV4"]}).encode()
    answer = posted(pool, body, {"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["message"] == "images[1] must be an image that can be read: empty file."


def test_full_queue_is_told_before_the_body_is_kept() -> None:
    pool = FakePool(settings(), recognise)
    pool.full = True
    answer = posted(pool)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error_code"] == "TEMPORARILY_UNAVAILABLE"


def test_answer_that_takes_too_long_is_given_up_and_leaves_the_queue() -> None:
    pool = FakePool(settings(timeout_s=0.1), lambda _: None)
    answer = posted(pool)
    assert (answer.status_code, answer.json()["error_code"]) == (504, "DEADLINE_EXCEEDED")
    assert [future.cancelled() for future in pool.futures] == [True]


def test_body_that_takes_too_long_is_given_up() -> None:
    async def trickle() -> AsyncIterator[bytes]:
        yield b"re"
        await asyncio.sleep(30)

    pool = FakePool(settings(timeout_s=0.1), recognise)
    answer = asked(lambda client: client.post("/invocations", content=trickle(), headers=JPEG), pool)
    assert (answer.status_code, answer.json()["message"]) == (408, "The body must arrive within 0.1 s.")


@pytest.mark.parametrize("is_chunked", [False, True])
def test_body_above_the_limit_is_too_large(is_chunked: bool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 1000

    pool = FakePool(settings(max_body_mib=2000 / 2**20), recognise)
    content = chunks() if is_chunked else b"x" * 3000
    answer = asked(lambda client: client.post("/invocations", content=content, headers=JPEG), pool)
    assert (answer.status_code, answer.json()["error_code"]) == (413, "TOO_LARGE")
    assert "deploy.max_body_mib" in answer.json()["message"]
    assert posted(pool, b"x" * 2000).status_code == 200


def test_bodies_held_at_once_are_bounded() -> None:
    """33 clients that each hold the largest body: one finds no room, and there is room again afterwards."""
    pool = FakePool(settings(max_body_mib=1000 / 2**20, timeout_s=0.3), lambda _: None)

    async def run() -> list[int]:
        transport = httpx.ASGITransport(build_app(pool._settings, pool, Metrics()))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            asks = [client.post("/invocations", content=b"x" * 1000, headers=JPEG) for _ in range(33)]
            first = [answer.status_code for answer in await asyncio.gather(*asks)]
            return [*first, (await client.post("/invocations", content=b"x", headers=JPEG)).status_code]

    statuses = asyncio.run(run())
    assert sorted(statuses[:-1]) == [503] + [504] * 32
    assert statuses[-1] == 504


def test_client_that_goes_away_frees_its_place() -> None:
    pool = FakePool(settings(), lambda _: None)
    inbox: list[dict[str, Any]] = [{"type": "http.request", "body": b"rex"}, {"type": "http.disconnect"}]
    scope = {
        "type": "http", "method": "POST", "path": "/invocations", "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"image/jpeg")], "client": ("127.0.0.1", 5), "http_version": "1.1",
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return inbox.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(build_app(pool._settings, pool, Metrics())(scope, receive, send))  # type: ignore[arg-type]
    assert [future.cancelled() for future in pool.futures] == [True]
    assert sent[0]["status"] == 499


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/ping/", 404), ("GET", "/invocations", 405), ("POST", "/ping", 405)],
)  # fmt: skip
def test_paths_and_methods_that_are_not_served_say_which_are(method: str, path: str, status: int) -> None:
    answer = asked(lambda client: client.request(method, path), FakePool(settings(), recognise))
    assert answer.status_code == status
    assert "GET /ping, POST /invocations and GET /metrics are" in answer.json()["message"]


def test_fault_of_our_own_shows_no_stack_trace() -> None:
    answer = posted(FakePool(settings(), lambda _: ZeroDivisionError("secret")))
    assert answer.status_code == 500
    assert answer.json() == {
        "error_code": "INTERNAL_ERROR", "message": "The server failed on this request; its log says why.",
    }  # fmt: skip


def test_ping_is_healthy_once_the_workers_are_warm() -> None:
    pool = FakePool(settings(), recognise, is_warm=False)
    cold = asked(lambda client: client.get("/ping"), pool)
    assert (cold.status_code, cold.json()["status"]) == (503, "starting")
    pool.is_warm = True
    warm = asked(lambda client: client.get("/ping"), pool)
    assert warm.status_code == 200
    told = {"status": "healthy", "model": "dogs", "version": "3", "backend": "torch-fp32", "num_classes": 2}
    assert warm.json() == told | {"num_workers_ready": 0}


def test_metrics_count_requests_by_path_and_status() -> None:
    metrics = Metrics()
    metrics.observe(Recognised(0, "Beagle", 0.5, (), 0.001, 0.02, 4))

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        await client.post("/invocations", content=b"rex", headers=JPEG)
        await client.post("/invocations", content=b"rex", headers={"content-type": "text/plain"})
        await client.get("/favicon.ico")
        return await client.get("/metrics")

    answer = asked(ask, FakePool(settings(), recognise), metrics=metrics)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'dogbreed_requests_total{path="/invocations",status="200"} 1.0' in lines
    assert 'dogbreed_requests_total{path="/invocations",status="415"} 1.0' in lines
    assert 'dogbreed_requests_total{path="other",status="404"} 1.0' in lines
    assert "dogbreed_images_total 1.0" in lines
    assert 'dogbreed_batch_size_bucket{le="4.0"} 1.0' in lines


def test_access_log_is_one_json_object_a_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="dogbreed_ml.server.access"):
        posted(FakePool(settings(), recognise))
        posted(FakePool(settings(), recognise), b"")
    first, second = (json.loads(record.message) for record in caplog.records if record.name.endswith("access"))
    assert (first["method"], first["path"], first["status"]) == ("POST", "/invocations", 200)
    assert (first["num_images"], first["num_bytes"]) == (1, 3)
    assert first["ms"] >= 0
    assert second["status"] == 400
