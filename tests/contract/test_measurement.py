"""The measuring client against a real HTTP server that answers as it was told to."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dogbreed_ml.errors import ServingError
from dogbreed_ml.measurement import (
    NUM_CLIENTS,
    Answer,
    Client,
    choose_spread,
    recognise,
    time_in_turns,
    time_until_clear,
)

Reply = tuple[int, str, dict[str, str]]


@dataclass
class Stage:
    """What the server replies to each image, and what it was asked."""

    reply: Callable[[bytes], Reply]
    asked: list[bytes] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    max_at_once: int = 0


def _breeds(*names: str) -> Reply:
    top5 = [{"breed": name, "probability": 1 / (rank + 2)} for rank, name in enumerate(names)]
    row = {"breed": "unsure", "probability": 0.5, "top5": top5}
    return 200, json.dumps({"predictions": [row]}), {}


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[bytes], Reply]], tuple[str, Stage]]]:
    servers: list[ThreadingHTTPServer] = []

    def start(reply: Callable[[bytes], Reply]) -> tuple[str, Stage]:
        stage, busy, lock = Stage(reply), [0], threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Headers and body are two writes: the second would wait 40 ms for the first one's acknowledgement.
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    busy[0] += 1
                    stage.max_at_once = max(stage.max_at_once, busy[0])
                    stage.asked.append(body)
                    stage.headers = dict(self.headers)
                status, text, headers = stage.reply(body)
                with lock:
                    busy[0] -= 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), name="stage").start()
        return f"http://127.0.0.1:{server.server_address[1]}", stage

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


Serve = Callable[[Callable[[bytes], Reply]], tuple[str, Stage]]


@pytest.fixture
def client() -> Iterator[Callable[[str], Client]]:
    made: list[Client] = []

    def build(url: str) -> Client:
        made.append(Client(url))
        return made[-1]

    yield build
    for each in made:
        each.close()


def test_best_breed_counts_though_the_server_is_unsure(serve: Serve, client: Callable[[str], Client]) -> None:
    url, stage = serve(lambda _: _breeds("Pug", "Boxer"))
    answer = client(url).ask(b"image")
    assert answer == Answer((("Pug", 0.5), ("Boxer", 1 / 3)))
    assert (answer.breed, answer.probability) == ("Pug", 0.5)
    assert stage.asked == [b"image"]
    assert stage.headers["Content-Type"] == "application/x-image"
    assert stage.headers["Accept"] == "application/json"


def test_busy_server_is_asked_again(serve: Serve, client: Callable[[str], Client]) -> None:
    replies = iter([(503, "busy", {"Retry-After": "0"}), (503, "busy", {"Retry-After": "soon"}), _breeds("Pug")])
    url, stage = serve(lambda _: next(replies))
    assert client(url).ask(b"image").breed == "Pug"
    assert len(stage.asked) == 3


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_refused_image_has_no_answer(serve: Serve, client: Callable[[str], Client], status: int) -> None:
    url, _ = serve(lambda _: (status, '{"message": "no"}', {}))
    assert client(url).ask(b"image") == Answer(())


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((500, "broken", {}), "answered 500 to a test image: broken"),
        ((504, "late", {}), "answered 504"),
        ((200, "breed,probability\nPug,0.5", {}), "must answer as `dogbreed deploy` does, got 'breed,prob"),
        ((200, '{"predictions": []}', {}), "must answer as `dogbreed deploy` does"),
    ],
)
def test_failing_server_is_an_error(serve: Serve, client: Callable[[str], Client], reply: Reply, message: str) -> None:
    url, _ = serve(lambda _: reply)
    with pytest.raises(ServingError, match=message):
        client(url).ask(b"image")


def test_absent_server_is_an_error(client: Callable[[str], Client]) -> None:
    with pytest.raises(ServingError, match="http://127.0.0.1:9/invocations does not answer"):
        client("http://127.0.0.1:9").ask(b"image")


def test_answers_come_in_the_order_of_the_images(serve: Serve, tmp_path: Path) -> None:
    url, stage = serve(lambda image: _breeds(image.decode()))
    paths = [tmp_path / f"{number}.jpg" for number in range(40)]
    for path in paths:
        path.write_bytes(f"Breed {path.stem}".encode())
    answers = recognise(url, paths)
    assert [answer.breed for answer in answers] == [f"Breed {number}" for number in range(40)]
    assert len(stage.asked) == 40


def test_servers_are_timed_in_turns_with_the_same_images(serve: Serve) -> None:
    pause = threading.Event()
    order: list[str] = []

    def fast(_: bytes) -> Reply:
        order.append("fast")
        return _breeds("Pug")

    def slow(_: bytes) -> Reply:
        order.append("slow")
        # Never set: a wait of 30 ms.
        pause.wait(0.03)
        return _breeds("Pug")

    (fast_url, fast_stage), (slow_url, slow_stage) = serve(fast), serve(slow)
    images = [b"one", b"two", b"three"]
    timings = time_in_turns({3: slow_url, 1: fast_url}, images, num_rounds=3, num_requests=8)
    assert timings[3].latencies_ms.shape == timings[1].latencies_ms.shape == (3, 8)
    assert timings[3].images_per_s.shape == (3,)
    assert timings[3].latencies_ms.min() >= 30
    # Waits of several clients overlap, one client's do not.
    assert np.median(timings[3].images_per_s) > 1000 / np.median(timings[3].latencies_ms)
    turns = [name for name, before in zip(order, ["", *order[:-1]], strict=True) if name != before]
    assert turns == ["slow", "fast", "slow", "fast"]
    assert set(fast_stage.asked) == set(slow_stage.asked) == set(images)
    assert len(fast_stage.asked) == len(slow_stage.asked)
    assert slow_stage.max_at_once == NUM_CLIENTS


@pytest.mark.parametrize(("limit", "num_rounds"), [(1.2, 20), (1000.0, 5)])
def test_hiccup_that_looks_like_a_slow_server_is_measured_longer(serve: Serve, limit: float, num_rounds: int) -> None:
    pause = threading.Event()
    fast_url, _ = serve(lambda _: _breeds("Pug"))

    def hiccup(_: bytes) -> Reply:
        # All of the second turn's requests of one client, and none later.
        if 60 < len(stage.asked) <= 85:
            pause.wait(0.1)
        return _breeds("Pug")

    slow_url, stage = serve(hiccup)
    timings = time_until_clear(
        {2: slow_url, 1: fast_url}, [b"image"], num_rounds=5, num_requests=20, max_p95_ratio=limit
    )
    assert timings[2].latencies_ms.shape == timings[1].latencies_ms.shape == (num_rounds, 20)
    assert (timings[2].latencies_ms >= 100).sum() >= 10


def test_server_alone_is_timed_once(serve: Serve) -> None:
    url, _ = serve(lambda _: _breeds("Pug"))
    timings = time_until_clear({1: url}, [b"image"], num_rounds=5, num_requests=2, max_p95_ratio=1.2)
    assert timings[1].latencies_ms.shape == (5, 2)


def test_images_to_time_are_spread_over_all() -> None:
    paths = [Path(f"{number}.jpg") for number in range(100)]
    chosen = choose_spread(paths, 5)
    assert [path.stem for path in chosen] == ["0", "25", "50", "74", "99"]
    assert choose_spread(paths[:3], 5) == paths[:3]
