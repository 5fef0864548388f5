"""What a model version shows through the server that serves it: its answers, and how fast they come.

Two servers are measured in turns, so that whatever else the machine does meets both.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import requests
from numpy.typing import NDArray

from dogbreed_ml.errors import ServingError
from dogbreed_ml.progress import NO_PROGRESS, Progress
from dogbreed_ml.significance import p95_ratio

logger = logging.getLogger(__name__)

NUM_CLIENTS = 4
"""Clients that ask at once where throughput counts."""
NUM_WARM_UP = 5
"""Requests of each turn that are not timed: the other server had the caches before."""

_LONGER = 3
"""How many times as many rounds follow where the first ones are not clear."""
_HEADERS = {"Content-Type": "application/x-image", "Accept": "application/json"}
_TIMEOUT_S = 60.0
_MAX_BUSY_S = 60.0
"""How long a server may go on answering 503 to one image."""
_CLIENT_MISTAKES = (400, 413, 415, 422)


@dataclass(frozen=True)
class Answer:
    """What a server said of one image."""

    top5: tuple[tuple[str, float], ...]
    """Breeds and probabilities, best first; none where the server refused the image."""

    @property
    def breed(self) -> str | None:
        return self.top5[0][0] if self.top5 else None

    @property
    def probability(self) -> float:
        return self.top5[0][1] if self.top5 else 0.0


@dataclass(frozen=True, eq=False)
class Timing:
    """How fast a server answered."""

    latencies_ms: NDArray[np.float64]
    """(num_rounds, num_requests): one client that waits for each answer."""
    images_per_s: NDArray[np.float64]
    """(num_rounds,): NUM_CLIENTS clients at once."""

    def joined(self, later: "Timing") -> "Timing":
        """These rounds and later ones."""
        return Timing(
            np.concatenate([self.latencies_ms, later.latencies_ms]),
            np.concatenate([self.images_per_s, later.images_per_s]),
        )


@dataclass(frozen=True, eq=False)
class Measurement:
    """One model version as its running server showed it."""

    answers: tuple[Answer, ...]
    """Of the test images, in their order."""
    timing: Timing
    cold_start_s: float
    """From the start of the server's process until it said that it is ready."""
    size_bytes: int
    """Of the files that the server loads."""
    backend: str
    """What ran the network."""


class Client:
    """Asks one server for one image at a time; not to be shared between threads."""

    def __init__(self, url: str):
        self._address = f"{url.rstrip('/')}/invocations"
        self._session = requests.Session()

    def ask(self, image: bytes) -> Answer:
        """The answer; waits while the server is too busy. Raises ServingError where it fails."""
        deadline = time.monotonic() + _MAX_BUSY_S
        while True:
            response = self._post(image)
            if response.status_code != 503 or time.monotonic() > deadline:
                break
            time.sleep(_pause_s(response))
        if response.status_code in _CLIENT_MISTAKES:
            return Answer(())
        if not response.ok:
            raise ServingError(
                f"{self._address} answered {response.status_code} to a test image: {response.text[:200]}"
            )
        try:
            top5 = response.json()["predictions"][0]["top5"]
            return Answer(tuple((str(each["breed"]), float(each["probability"])) for each in top5))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ServingError(
                f"{self._address} must answer as `dogbreed deploy` does, got {response.text[:80]!r}."
            ) from error

    def close(self) -> None:
        self._session.close()

    def _post(self, image: bytes) -> requests.Response:
        try:
            return self._session.post(self._address, data=image, headers=_HEADERS, timeout=_TIMEOUT_S)
        except requests.RequestException as error:
            raise ServingError(f"{self._address} does not answer ({type(error).__name__}: {error}).") from error


def _pause_s(response: requests.Response) -> float:
    try:
        return min(1.0, max(0.01, float(response.headers.get("Retry-After", "0.1"))))
    except ValueError:
        return 0.1


def recognise(url: str, paths: Sequence[Path], *, progress: Progress = NO_PROGRESS) -> tuple[Answer, ...]:
    """The server's answers to image files, in their order; NUM_CLIENTS ask at once. Raises ServingError."""
    with _clients(url) as ask, progress.track("recognise", len(paths), "images") as advance:
        answers: list[Answer] = []
        with ThreadPoolExecutor(NUM_CLIENTS, thread_name_prefix="dogbreed-client") as pool:
            for answer in pool.map(lambda path: ask(path.read_bytes()), paths):
                answers.append(answer)
                advance(1)
    return tuple(answers)


def time_in_turns(
    urls: Mapping[int, str],
    images: Sequence[bytes],
    *,
    num_rounds: int,
    num_requests: int,
    progress: Progress = NO_PROGRESS,
) -> dict[int, Timing]:
    """Times the server of each version in each round with the same images. Raises ServingError."""
    latencies: dict[int, list[list[float]]] = {version: [] for version in urls}
    throughputs: dict[int, list[float]] = {version: [] for version in urls}
    requested = list(itertools.islice(itertools.cycle(images), num_requests))
    with progress.track("time", num_rounds * len(urls), "turns") as advance:
        for number in range(num_rounds):
            # Who goes second would else always find the machine as the same other left it.
            for version in list(urls) if number % 2 == 0 else list(urls)[::-1]:
                one_by_one, images_per_s = _time_turn(urls[version], requested)
                latencies[version].append(one_by_one)
                throughputs[version].append(images_per_s)
                advance(1)
    return {version: Timing(np.array(latencies[version]), np.array(throughputs[version])) for version in urls}


def time_until_clear(
    urls: Mapping[int, str],
    images: Sequence[bytes],
    *,
    num_rounds: int,
    num_requests: int,
    max_p95_ratio: float,
    progress: Progress = NO_PROGRESS,
) -> dict[int, Timing]:
    """Times the challenger, first in `urls`, and the champion in turns; alone where there is no champion.

    Where p95 looks too high but noise alone might be the cause, so that a slower challenger would pass, three times
    as many rounds follow, once.
    """

    def time_rounds(count: int) -> dict[int, Timing]:
        return time_in_turns(urls, images, num_rounds=count, num_requests=num_requests, progress=progress)

    timings = time_rounds(num_rounds)
    if len(timings) < 2:
        return timings
    challenger, champion = timings.values()
    ratio = p95_ratio(challenger.latencies_ms, champion.latencies_ms)
    if not ratio.low <= max_p95_ratio < ratio.value:
        return timings
    logger.info(
        "p95 is %.2f times the champion's (95 %% %.2f to %.2f), which is not clear: %d more rounds",
        *(ratio.value, ratio.low, ratio.high, _LONGER * num_rounds),
    )
    later = time_rounds(_LONGER * num_rounds)
    return {version: timing.joined(later[version]) for version, timing in timings.items()}


def choose_spread(paths: Sequence[Path], count: int) -> list[Path]:
    """At most `count` of the files, evenly from first to last: test images are ordered by breed."""
    if len(paths) <= count:
        return list(paths)
    return [paths[index] for index in np.linspace(0, len(paths) - 1, count).round().astype(int)]


def _time_turn(url: str, images: Sequence[bytes]) -> tuple[list[float], float]:
    with _clients(url) as ask, ThreadPoolExecutor(NUM_CLIENTS, thread_name_prefix="dogbreed-client") as pool:
        for image in images[:NUM_WARM_UP]:
            ask(image)
        latencies = []
        for image in images:
            start = time.perf_counter()
            ask(image)
            latencies.append((time.perf_counter() - start) * 1000)
        # The pool's threads connect before the clock runs.
        list(pool.map(ask, images[:NUM_CLIENTS]))
        start = time.perf_counter()
        list(pool.map(ask, images))
        return latencies, len(images) / (time.perf_counter() - start)


class _ThreadClients(threading.local):
    client: Client | None = None


@contextmanager
def _clients(url: str) -> Iterator[Callable[[bytes], Answer]]:
    """A connection for each thread that asks, all closed in the end."""
    made: list[Client] = []
    local = _ThreadClients()

    def ask(image: bytes) -> Answer:
        if local.client is None:
            local.client = Client(url)
            made.append(local.client)
        return local.client.ask(image)

    try:
        yield ask
    finally:
        for client in made:
            client.close()
