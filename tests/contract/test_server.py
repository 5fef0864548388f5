"""The server as a process, on a tiny model: the same answers as the Predictor, whatever clients send and do."""

import base64
import concurrent.futures
import contextlib
import csv
import io
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from malformed import Case, cases
from PIL import Image
from serving import Client, Reply, as_row, draw_photograph, is_same_row, save_tiny_checkpoint

from dogbreed_ml.errors import ServingError
from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.serve import Predictor
from dogbreed_ml.server.process import ServerProcess, ping, start_server

NUM_PHOTOGRAPHS = 12
LIMITS = DeployConfig(backend="torch-fp32", max_body_mib=2, max_megapixels=50, max_batch_size=4, queue_size=12)
TWO_WORKERS = DeployConfig(backend="torch-fp32", num_workers=2, max_batch_size=2)
MAX_GROWTH_BYTES = 40 * 2**20


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt")


@pytest.fixture(scope="module")
def server(checkpoint_path: Path) -> Iterator[ServerProcess]:
    with start_server(checkpoint_path, config=LIMITS, model_name="dogs", model_version="3") as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.settings.port) as client:
        yield client


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    return [draw_photograph(seed) for seed in range(NUM_PHOTOGRAPHS)]


@pytest.fixture(scope="module")
def expected(checkpoint_path: Path, photographs: list[bytes]) -> list[dict[str, Any]]:
    """What the Predictor answers; no two photographs have the same answer."""
    predictor = Predictor.load(checkpoint_path, backend="torch-fp32")
    rows = [as_row(prediction) for prediction in predictor.predict(photographs)]
    assert not any(is_same_row(rows[i], rows[j], tolerance=1e-4) for i in range(len(rows)) for j in range(i))
    return rows


def worker_pids(server: ServerProcess) -> list[int]:
    pids = []
    for child in psutil.Process(server.pid).children():
        # One that has just died has no command line.
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("spawn_main" in part for part in child.cmdline()):
                pids.append(child.pid)
    return pids


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def is_healthy(server: ServerProcess) -> bool:
    return ping("127.0.0.1", server.settings.port).is_healthy


def is_answer_of(reply: Reply, expected: dict[str, Any]) -> bool:
    rows = reply.json()["predictions"]
    return len(rows) == 1 and is_same_row(rows[0], expected)


def hammer(
    server: ServerProcess,
    photographs: list[bytes],
    expected: list[dict[str, Any]],
    *,
    num_clients: int,
    stop: threading.Event,
) -> Counter[int]:
    """Clients that ask as fast as they can until told to stop; each answer is checked against its photograph."""

    def ask(number: int) -> Counter[int]:
        statuses: Counter[int] = Counter()
        with Client(server.settings.port) as client:
            while not stop.is_set():
                index = (number + statuses.total()) % len(photographs)
                reply = client.post(photographs[index])
                statuses[reply.status] += 1
                if reply.status == 200:
                    assert is_answer_of(reply, expected[index])
                else:
                    assert reply.headers["retry-after"] == "1"
                    assert set(reply.json()) == {"error_code", "message"}
        return statuses

    with concurrent.futures.ThreadPoolExecutor(num_clients) as clients:
        return sum(clients.map(ask, range(num_clients)), Counter())


class TestAnswers:
    @pytest.mark.parametrize(
        ("image_format", "content_type"),
        [
            ("JPEG", "image/jpeg"), ("JPEG", "application/x-image"), ("PNG", "image/png"), ("WEBP", "image/webp"),
            ("GIF", "image/gif"), ("PNG", "image/jpeg"),
        ],
    )  # fmt: skip
    def test_raw_image_is_answered_as_the_predictor_does(
        self, client: Client, checkpoint_path: Path, image_format: str, content_type: str
    ) -> None:
        image = draw_photograph(50, image_format)
        wanted = as_row(Predictor.load(checkpoint_path, backend="torch-fp32").predict([image])[0])
        reply = client.post(image, content_type)
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        assert is_answer_of(reply, wanted)

    @pytest.mark.parametrize("form", ["dataframe_split", "dataframe_records", "instances", "inputs"])
    def test_json_of_several_is_answered_in_order(
        self, client: Client, photographs: list[bytes], expected: list[dict[str, Any]], form: str
    ) -> None:
        texts = [base64.b64encode(image).decode() for image in photographs]
        documents = {
            "dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]},
            "dataframe_records": [{"image": text} for text in texts],
            "instances": [{"image": text} for text in texts],
            "inputs": {"image": texts},
        }
        reply = client.post_json({form: documents[form]})
        assert reply.status == 200
        rows = reply.json()["predictions"]
        assert all(is_same_row(row, wanted) for row, wanted in zip(rows, expected, strict=True))

    def test_multipart_of_several_is_answered_as_csv(
        self, client: Client, photographs: list[bytes], expected: list[dict[str, Any]]
    ) -> None:
        head = b'--XX\r\nContent-Disposition: form-data; name="image"; filename="rex.jpg"\r\n\r\n'
        body = b"".join(head + image + b"\r\n" for image in photographs) + b"--XX--\r\n"
        reply = client.post(body, "multipart/form-data; boundary=XX", Accept="text/csv")
        assert (reply.status, reply.headers["content-type"]) == (200, "text/csv; charset=utf-8")
        rows = list(csv.DictReader(io.StringIO(reply.body.decode())))
        assert [row["breed"] for row in rows] == [wanted["breed"] for wanted in expected]
        assert [float(row["probability"]) for row in rows] == pytest.approx(
            [wanted["probability"] for wanted in expected], abs=1e-5
        )

    def test_first_frame_of_an_animation_is_answered(self, client: Client) -> None:
        frames = [Image.open(io.BytesIO(draw_photograph(seed))) for seed in (60, 61)]
        animation, still = io.BytesIO(), io.BytesIO()
        frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
        frames[0].save(still, "GIF")
        replies = [client.post(data.getvalue(), "image/gif") for data in (animation, still)]
        assert replies[0].json() == replies[1].json()

    def test_image_lying_on_its_side_is_turned(self, client: Client) -> None:
        upright = Image.open(io.BytesIO(draw_photograph(62, "PNG")))
        exif = Image.Exif()
        exif[274] = 6
        lying, plain = io.BytesIO(), io.BytesIO()
        upright.transpose(Image.Transpose.ROTATE_90).save(lying, "PNG", exif=exif)
        upright.save(plain, "PNG")
        replies = [client.post(data.getvalue(), "image/png") for data in (lying, plain)]
        assert replies[0].json() == replies[1].json()

    def test_answers_of_concurrent_clients_are_not_mixed_up(
        self, server: ServerProcess, photographs: list[bytes], expected: list[dict[str, Any]]
    ) -> None:
        stop = threading.Event()
        threading.Timer(2.0, stop.set).start()
        statuses = hammer(server, photographs, expected, num_clients=8, stop=stop)
        assert set(statuses) == {200}
        with Client(server.settings.port) as client:
            metrics = client.get("/metrics").body.decode()
        alone = next(line for line in metrics.splitlines() if line.startswith('dogbreed_batch_size_bucket{le="1.0"}'))
        total = next(line for line in metrics.splitlines() if line.startswith("dogbreed_batch_size_count"))
        assert float(alone.split()[1]) < float(total.split()[1]), "no two images were ever recognised together"

    def test_ping_says_what_is_served(self, client: Client) -> None:
        told = client.get("/ping").json()
        assert {key: told[key] for key in ("status", "model", "version", "backend")} == {
            "status": "healthy", "model": "dogs", "version": "3", "backend": "torch-fp32",
        }  # fmt: skip

    def test_three_hundred_requests_leave_memory_flat(
        self, server: ServerProcess, photographs: list[bytes], expected: list[dict[str, Any]]
    ) -> None:
        assert soak(server, photographs, expected, num_requests=300) < MAX_GROWTH_BYTES

    @pytest.mark.slow
    @pytest.mark.timeout(1800)
    def test_ten_thousand_requests_leave_memory_flat(
        self, server: ServerProcess, photographs: list[bytes], expected: list[dict[str, Any]]
    ) -> None:
        assert soak(server, photographs, expected, num_requests=10_000) < MAX_GROWTH_BYTES


def soak(server: ServerProcess, photographs: list[bytes], expected: list[dict[str, Any]], *, num_requests: int) -> int:
    """By how many bytes the server and its workers grow after a first tenth of the requests."""
    processes = [psutil.Process(server.pid), *map(psutil.Process, worker_pids(server))]
    num_clients = 4

    def ask(number: int, count: int) -> None:
        with Client(server.settings.port) as client:
            for index in range(count):
                which = (number + index) % len(photographs)
                reply = client.post(photographs[which])
                assert reply.status == 200
                assert is_answer_of(reply, expected[which])

    def ask_all(count: int) -> int:
        with concurrent.futures.ThreadPoolExecutor(num_clients) as clients:
            list(clients.map(ask, range(num_clients), [count // num_clients] * num_clients))
        return sum(process.memory_info().rss for process in processes)

    # The allocator keeps what the first requests of each size needed.
    before = ask_all(max(num_requests // 10, 100))
    growth = ask_all(num_requests) - before
    print(f"{num_requests} requests: {growth / 2**20:.1f} MiB more")
    return growth


class TestBadInput:
    def test_corpus_is_as_large_as_promised(self) -> None:
        assert len(cases()) >= 200

    def test_malformed_requests_are_refused_and_harm_nothing(
        self, server: ServerProcess, photographs: list[bytes], expected: list[dict[str, Any]]
    ) -> None:
        workers = worker_pids(server)
        wrong = {case.name: verdict for case in cases() if (verdict := self._verdict(server, case))}
        assert wrong == {}
        assert worker_pids(server) == workers, "a worker died of what a client sent"
        with Client(server.settings.port) as client:
            assert client.get("/ping").status == 200
            assert is_answer_of(client.post(photographs[0]), expected[0])

    def _verdict(self, server: ServerProcess, case: Case) -> str:
        """What is wrong with the answer; empty where nothing is."""
        with Client(server.settings.port) as client:
            reply = client.post(case.body, case.content_type, **{name.replace("-", "_"): v for name, v in case.headers})
        if reply.status == 200:
            return "" if case.may_be_read else f"200 {reply.body[:200]!r}"
        told = reply.json()
        is_sentence = (
            set(told) == {"error_code", "message"} and told["message"].endswith(".") and len(told["message"]) < 400
        )
        is_refusal = reply.status in (400, 406, 413, 415, 422)
        return "" if is_refusal and is_sentence and "Traceback" not in told["message"] else f"{reply.status} {told}"

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"\x00\x01\x02\x03\r\n\r\n",
            b"GET /ping DOG/1.1\r\n\r\n",
            b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: dog\r\n\r\n",
            b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
            b"GET /ping HTTP/1.1\r\nHost: a\r\nX-Dog: " + b"w" * 200_000 + b"\r\n\r\n",
            b"GET /" + b"w" * 200_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST /invocations HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        ],
        ids=["bytes", "protocol", "length", "negative", "header", "path", "chunks"],
    )
    def test_what_is_not_http_is_a_bad_request(self, server: ServerProcess, request_bytes: bytes) -> None:
        with socket.create_connection(("127.0.0.1", server.settings.port), timeout=30) as connection:
            try:
                connection.sendall(request_bytes)
                answer = connection.recv(65536)
            except ConnectionError:
                answer = b""
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:200]
        assert is_healthy(server)

    def test_body_above_the_limit_is_answered_before_it_is_sent_where_the_client_asks(
        self, server: ServerProcess
    ) -> None:
        head = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: 900000000\r\n"
        with socket.create_connection(("127.0.0.1", server.settings.port), timeout=30) as connection:
            connection.sendall(head + b"Expect: 100-continue\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


class TestLoad:
    def test_overload_is_answered_with_200_or_503_and_nothing_is_mixed_up(
        self, server: ServerProcess, photographs: list[bytes], expected: list[dict[str, Any]]
    ) -> None:
        """80 clients on room for 20 images: 12 in the queue, 8 with the worker."""
        stop = threading.Event()
        threading.Timer(3.0, stop.set).start()
        statuses = hammer(server, photographs, expected, num_clients=80, stop=stop)
        assert set(statuses) == {200, 503}
        assert is_healthy(server)

    def test_killed_worker_loses_its_own_requests_alone_and_is_replaced(
        self, checkpoint_path: Path, photographs: list[bytes], expected: list[dict[str, Any]]
    ) -> None:
        with start_server(checkpoint_path, config=TWO_WORKERS) as server:
            killed, other = worker_pids(server)
            stop = threading.Event()
            threading.Timer(0.7, os.kill, (killed, signal.SIGKILL)).start()
            threading.Timer(2.0, stop.set).start()
            # 4 clients find room in 2 workers of 4 images each: whatever is not answered was with the one that died.
            statuses = hammer(server, photographs, expected, num_clients=4, stop=stop)
            assert set(statuses) <= {200, 503}
            assert statuses[503] <= 4
            wait_for(lambda: ping("127.0.0.1", server.settings.port).told.get("num_workers_ready") == 2)
            now = worker_pids(server)
            assert len(now) == 2
            assert killed not in now
            assert other in now


class TestLife:
    def test_sigterm_answers_what_is_in_flight_and_ends_well(
        self, checkpoint_path: Path, photographs: list[bytes], expected: list[dict[str, Any]]
    ) -> None:
        """With one worker that is stopped for a while, so that something is in flight for sure."""
        with start_server(checkpoint_path, config=DeployConfig(backend="torch-fp32", timeout_s=30)) as server:
            (worker,) = worker_pids(server)
            os.kill(worker, signal.SIGSTOP)
            with concurrent.futures.ThreadPoolExecutor(4) as clients:
                replies = [clients.submit(self._post, server, photographs[index]) for index in range(4)]
                wait_for(lambda: self._num_in_flight(server) == 4)
                server.process.terminate()
                wait_for(lambda: not is_healthy(server))
                os.kill(worker, signal.SIGCONT)
                assert all(is_answer_of(reply.result(), expected[index]) for index, reply in enumerate(replies))
            assert server.process.wait(30) == 0
            assert not psutil.pid_exists(worker)

    def _post(self, server: ServerProcess, photograph: bytes) -> Reply:
        with Client(server.settings.port) as client:
            return client.post(photograph)

    def _num_in_flight(self, server: ServerProcess) -> int:
        with Client(server.settings.port) as client:
            lines = client.get("/metrics").body.decode().splitlines()
        return int(float(next(line for line in lines if line.startswith("dogbreed_images_in_flight ")).split()[1]))

    @pytest.mark.slow
    def test_worker_that_hangs_times_out_and_is_replaced(self, checkpoint_path: Path, photographs: list[bytes]) -> None:
        """Small sibling: test_killed_worker_loses_its_own_requests_alone_and_is_replaced."""
        with start_server(checkpoint_path, config=DeployConfig(backend="torch-fp32", timeout_s=1)) as server:
            (worker,) = worker_pids(server)
            os.kill(worker, signal.SIGSTOP)
            reply = self._post(server, photographs[0])
            assert (reply.status, reply.json()["error_code"]) == (504, "DEADLINE_EXCEEDED")
            wait_for(lambda: worker not in worker_pids(server) and is_healthy(server))
            assert self._post(server, photographs[0]).status == 200

    def test_server_that_is_killed_takes_its_workers_along(self, checkpoint_path: Path) -> None:
        with start_server(checkpoint_path, config=LIMITS) as server:
            workers = worker_pids(server)
            server.process.kill()
            server.process.wait()
            wait_for(lambda: not any(map(psutil.pid_exists, workers)))

    def test_model_that_cannot_be_loaded_is_an_error_with_its_cause(self, tmp_path: Path) -> None:
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(b"half a checkpoint")
        with (
            pytest.raises(ServingError, match="could not start: .*must be a whole checkpoint"),
            start_server(path, config=LIMITS),
        ):
            pytest.fail("it started")

    def test_port_that_is_taken_is_an_error_at_once(self, server: ServerProcess, checkpoint_path: Path) -> None:
        port = server.settings.port
        with (
            pytest.raises(ServingError, match=f"127.0.0.1:{port} is not .*in use.*--port"),
            start_server(checkpoint_path, config=LIMITS, port=port),
        ):
            pytest.fail("it started")

    def test_access_log_is_json_on_stderr(
        self, server: ServerProcess, client: Client, photographs: list[bytes]
    ) -> None:
        assert server.log_path is not None
        client.post(photographs[0])
        wait_for(lambda: server.log_path is not None and '"/invocations"' in server.log_path.read_text())
        lines = [line for line in server.log_path.read_text().splitlines() if line.startswith("{")]
        told = json.loads(lines[-1])
        assert {"time", "client", "method", "path", "status", "ms"} <= set(told)
