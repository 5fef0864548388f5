"""Calls a SageMaker endpoint with image files, wherever boto3 points, and prints one JSON object of what came of it.

`python -m benchmarks.endpoint_load ENDPOINT IMAGE [IMAGE ...] --clients 4 --rate 200 --seconds 60`; Ctrl-C ends it
sooner. Each client has one connection and one request at a time, and sends nothing twice: what fails is counted.
"""

import argparse
import itertools
import json
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("endpoint")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="JPEG files, sent in turn")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second of all clients together, at most")
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args(argv)
    load = EndpointLoad(arguments.endpoint, [path.read_bytes() for path in arguments.images], rate=arguments.rate)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: load.end())
    print(json.dumps(load.run(arguments.clients, arguments.seconds), indent=2, ensure_ascii=False))


class EndpointLoad:
    """Requests at a rate, or as fast as they are answered where that is slower."""

    def __init__(self, endpoint: str, images: Sequence[bytes], *, rate: float):
        self._endpoint = endpoint
        self._images = images
        self._rate = rate
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._latencies_s: list[float] = []
        self._answers: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()

    def end(self) -> None:
        """Requests that are under way still get their answers."""
        self._ended.set()

    def run(self, num_clients: int, seconds: float) -> dict[str, Any]:
        import boto3
        from botocore.config import Config

        config = Config(max_pool_connections=num_clients, retries={"total_max_attempts": 1}, read_timeout=60)
        start = perf_counter()
        due = (start + number / self._rate for number in itertools.count())
        runtime = boto3.client("sagemaker-runtime", config=config)
        arguments = (runtime, due, start + seconds)
        clients = [threading.Thread(target=self._client, args=(each, *arguments)) for each in range(num_clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        runtime.close()
        return self._summary(perf_counter() - start)

    def _client(self, number: int, runtime: Any, due: "itertools.count[float]", end: float) -> None:
        for index in itertools.count(number):
            with self._lock:
                at = next(due)
            if at >= end or perf_counter() >= end or self._ended.wait(max(0.0, at - perf_counter())):
                return
            asked = perf_counter()
            try:
                image = self._images[index % len(self._images)]
                answer = runtime.invoke_endpoint(EndpointName=self._endpoint, Body=image, ContentType="image/jpeg")
                told, error = describe(answer["Body"].read()), ""
            except ClientError as refused:
                error = refused.response["Error"]["Code"]
            except BotoCoreError as lost:
                error = type(lost).__name__
            latency_s = perf_counter() - asked
            with self._lock:
                if error:
                    self._errors[error] += 1
                else:
                    self._latencies_s.append(latency_s)
                    self._answers[told] += 1

    def _summary(self, wall_s: float) -> dict[str, Any]:
        latencies = sorted(self._latencies_s)

        def percentile_ms(share: float) -> float | None:
            return round(latencies[int(share * (len(latencies) - 1))] * 1000, 1) if latencies else None

        return {
            "seconds": round(wall_s, 1),
            "answered": len(latencies),
            "failed": sum(self._errors.values()),
            "errors": dict(self._errors),
            "answered_per_s": round(len(latencies) / wall_s, 1),
            "p50_ms": percentile_ms(0.5),
            "p99_ms": percentile_ms(0.99),
            "max_ms": percentile_ms(1.0),
            "answers": dict(self._answers.most_common(8)),
        }


def describe(answer: bytes) -> str:
    """An answer in a few words: versions of a model differ in the probability of the same breed."""
    try:
        (row,) = json.loads(answer)["predictions"]
        return f"{row['breed']} {row['probability']:.4f}"
    except (ValueError, KeyError, TypeError):
        return answer[:40].decode(errors="replace")


if __name__ == "__main__":
    main()
