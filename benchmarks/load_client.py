"""Clients of one server, a process of its own: as many as asked for, each with one connection, one request at a time.

Each answer is compared with what the server said of the same photograph when it was asked alone. Prints one JSON
object. With --rate the requests come at that rate whether or not the answers do.
"""

import argparse
import base64
import http.client
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, Literal

from benchmarks.photographs import read_folder, squares
from dogbreed_ml.transforms import IMAGENET_MEAN, IMAGENET_STD

Kind = Literal["ours", "mlflow", "litserve"]
"""How a photograph is sent: as it is; as MLflow's JSON tensors, normalised; as base64 within JSON."""

_TIMEOUT_S = 60.0
_TOLERANCE = 0.1
"""How far the probabilities (or logits) of two answers for one photograph may be apart in all."""
_WARM_UP_S = 0.5


@dataclass(frozen=True)
class Request:
    body: bytes
    content_type: str


@dataclass
class Seen:
    """What the clients saw; one lock for all of it."""

    latencies_s: list[float] = field(default_factory=list)
    """Of answers with status 200."""
    statuses: Counter[str] = field(default_factory=Counter)
    num_mixed: int = 0
    """Answers that belong to another photograph."""
    last: float = 0.0
    """When the last answer came."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/invocations")
    parser.add_argument("--kind", choices=("ours", "mlflow", "litserve"), required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--clients", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, default=None, help="requests a second of all clients together")
    arguments = parser.parse_args()
    requests = build_requests(arguments.kind, arguments.photographs)
    connection = http.client.HTTPConnection("127.0.0.1", arguments.port, timeout=_TIMEOUT_S)
    alone = [ask(connection, arguments.path, request) for request in requests]
    failed = [answer for status, answer in alone if status != "200"]
    if failed:
        raise SystemExit(f"the server answers: {failed[0]!r}")
    answers = [answer for _, answer in alone]
    told = {}
    for num_clients in arguments.clients:
        load = Load(arguments.port, arguments.path, requests, answers)
        told[str(num_clients)] = load.run(num_clients, arguments.seconds, rate=arguments.rate)
    print(json.dumps(told))


def build_requests(kind: Kind, folder: Path) -> list[Request]:
    """One for each photograph; made before anything is timed."""
    photographs = read_folder(folder)
    files = [sample.path.read_bytes() for sample in photographs.samples]
    if kind == "ours":
        return [Request(data, "image/jpeg") for data in files]
    if kind == "litserve":
        texts = [base64.b64encode(data).decode() for data in files]
        return [Request(json.dumps({"image": text}).encode(), "application/json") for text in texts]
    import torch

    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    tensors = (torch.from_numpy(squares(photographs.samples)).permute(0, 3, 1, 2).float() / 255 - mean) / std
    # Four digits: a shorter text than the tensor's own numbers, in favour of the server that must parse it.
    rows = tensors.double().round(decimals=4)
    bodies = (json.dumps({"inputs": [row.tolist()]}, separators=(",", ":")) for row in rows)
    return [Request(body.encode(), "application/json") for body in bodies]


def ask(connection: http.client.HTTPConnection, path: str, request: Request) -> tuple[str, Any]:
    """The status, or what went wrong, and the answer's numbers by name."""
    try:
        connection.request("POST", path, request.body, {"Content-Type": request.content_type})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return f"lost: {type(error).__name__}", str(error)
    if response.status != 200:
        return str(response.status), body[:200].decode(errors="replace")
    return "200", numbers(json.loads(body))


def numbers(answer: Any) -> dict[str, float]:
    """Probabilities by breed, or logits by index."""
    row = answer["predictions"][0] if "predictions" in answer else answer
    if isinstance(row, dict) and "top5" in row:
        return {each["breed"]: each["probability"] for each in row["top5"]}
    values = row["logits"] if isinstance(row, dict) else row
    return {str(index): value for index, value in enumerate(values)}


class Load:
    """One level of load."""

    def __init__(self, port: int, path: str, requests: list[Request], answers: list[dict[str, float]]):
        self._port = port
        self._path = path
        self._requests = requests
        self._answers = answers
        self._seen = Seen()

    def run(self, num_clients: int, seconds: float, *, rate: float | None) -> dict[str, Any]:
        """What the clients saw after the first half second."""
        start = perf_counter() + _WARM_UP_S
        end = start + seconds
        due = _due_times(rate, start - _WARM_UP_S)
        clients = [
            threading.Thread(target=self._client, args=(number, start, end, due)) for number in range(num_clients)
        ]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        return self._summary(start)

    def _client(self, number: int, start: float, end: float, due: Callable[[], float]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        for index in itertools.count(number * 7):
            sleep(max(0.0, due() - perf_counter()))
            asked = perf_counter()
            if asked >= end:
                break
            which = index % len(self._requests)
            status, answer = ask(connection, self._path, self._requests[which])
            done = perf_counter()
            if done < start:
                continue
            with self._seen.lock:
                self._seen.last = max(self._seen.last, done)
                self._seen.statuses[status] += 1
                if status == "200":
                    self._seen.latencies_s.append(done - asked)
                    self._seen.num_mixed += not self._is_same(answer, self._answers[which])
        connection.close()

    def _is_same(self, answer: dict[str, float], alone: dict[str, float]) -> bool:
        names = answer.keys() & alone.keys()
        # The least probable of five may change places with the sixth.
        return len(names) >= len(alone) - 1 and sum(abs(answer[name] - alone[name]) for name in names) <= _TOLERANCE

    def _summary(self, start: float) -> dict[str, Any]:
        latencies = sorted(self._seen.latencies_s) or [float("nan")]

        def percentile(share: float) -> float:
            return latencies[min(len(latencies) - 1, int(share * len(latencies)))] * 1000

        return {
            "images_per_s": len(self._seen.latencies_s) / (self._seen.last - start),
            "p50_ms": percentile(0.5),
            "p95_ms": percentile(0.95),
            "p99_ms": percentile(0.99),
            "statuses": dict(self._seen.statuses),
            "num_mixed": self._seen.num_mixed,
        }


def _due_times(rate: float | None, first: float) -> Callable[[], float]:
    """When the next request is to be sent: now or, at a rate, in turn for whichever client is free."""
    if rate is None:
        return lambda: 0.0
    times: Iterator[float] = (first + number / rate for number in itertools.count())
    lock = threading.Lock()

    def due() -> float:
        with lock:
            return next(times)

    return due


if __name__ == "__main__":
    main()
