"""What an endpoint tells of itself: metrics, log lines and captured data, brought to the cloud once a second.

An invocation only counts; a thread of the server writes, so that nobody waits for it.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from sagemaker_jobs.local.capture import Capture
from sagemaker_jobs.local.cloud import Cloud

logger = logging.getLogger(__name__)

NAMESPACE = "AWS/SageMaker"
LOG_GROUP = "/aws/sagemaker/Endpoints/"
_MAX_WAITING_BYTES = 2**20
"""Of a container's output between two writes; what is more is dropped, and a line says so."""


class Outlet(Protocol):
    """Has something to write now and then."""

    def publish(self, cloud: Cloud, *, time_s: float) -> None: ...


@dataclass
class _Tally:
    count: int = 0
    total: float = 0.0
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)


class Usage:
    """The CloudWatch metrics of one variant, as sums since the last write."""

    def __init__(self, endpoint_name: str, variant_name: str, *, num_instances: int):
        self._dimensions = [
            {"Name": "EndpointName", "Value": endpoint_name},
            {"Name": "VariantName", "Value": variant_name},
        ]
        self.num_instances = num_instances
        self._lock = threading.Lock()
        self._tallies: dict[tuple[str, str], _Tally] = {}

    def add(self, *, status: int, latency_s: float, overhead_s: float) -> None:
        """One invocation: the container's status (0: none), the time that it took and the time on top of that."""
        is_client, is_server = 400 <= status < 500, status == 0 or status >= 500
        values = {
            ("Invocations", "Count"): 1.0,
            ("InvocationsPerInstance", "Count"): 1.0 / self.num_instances,
            ("ModelLatency", "Microseconds"): latency_s * 1e6,
            ("OverheadLatency", "Microseconds"): overhead_s * 1e6,
            # A zero for each success: the average is the share of errors, as in AWS.
            ("Invocation4XXErrors", "Count"): float(is_client),
            ("Invocation5XXErrors", "Count"): float(is_server),
            ("InvocationModelErrors", "Count"): float(is_client or is_server),
        }
        with self._lock:
            for key, value in values.items():
                self._tallies.setdefault(key, _Tally()).add(value)

    def publish(self, cloud: Cloud, *, time_s: float) -> None:
        with self._lock:
            tallies, self._tallies = self._tallies, {}
        if tallies:
            cloud.cloudwatch.put_metric_data(
                Namespace=NAMESPACE, MetricData=[self._datum(key, tally, time_s) for key, tally in tallies.items()]
            )

    def _datum(self, key: tuple[str, str], tally: _Tally, time_s: float) -> dict[str, Any]:
        statistics = {"SampleCount": tally.count, "Sum": tally.total, "Minimum": tally.low, "Maximum": tally.high}
        name, unit = key
        return {
            "MetricName": name, "Unit": unit, "Timestamp": time_s,
            "Dimensions": self._dimensions, "StatisticValues": statistics,
        }  # fmt: skip


class LogStream:
    """A container's output as lines of CloudWatch Logs: group /aws/sagemaker/Endpoints/NAME."""

    def __init__(
        self, endpoint_name: str, stream: str, *, max_bytes: int = 8 * 2**20, clock: Callable[[], float] = time.time
    ):
        """`max_bytes` are kept in all: moto has its logs in memory."""
        self._group, self._stream = f"{LOG_GROUP}{endpoint_name}", stream
        self._left_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._lines: list[tuple[float, str]] = []
        self._rest = b""
        self._num_waiting = self._num_dropped = 0
        self._is_made = False

    def feed(self, chunk: bytes) -> None:
        """Takes output as it comes; lines may be broken anywhere."""
        with self._lock:
            if self._left_bytes <= 0:
                return
            *whole, self._rest = (self._rest + chunk).split(b"\n")
            if len(self._rest) > _MAX_WAITING_BYTES:
                whole, self._rest = [*whole, self._rest], b""
            for line in whole:
                if len(line) > _MAX_WAITING_BYTES - self._num_waiting:
                    self._num_dropped += 1
                    continue
                self._num_waiting += len(line) + 1
                self._left_bytes -= len(line) + 1
                self._lines.append((self._clock(), line.decode(errors="replace")))
                if self._left_bytes <= 0:
                    self._lines.append((self._clock(), "... the rest of the output is dropped: the log is full."))
                    return

    def publish(self, cloud: Cloud, *, time_s: float) -> None:
        with self._lock:
            lines, self._lines = self._lines, []
            if self._num_dropped:
                lines.append((time_s, f"... {self._num_dropped} lines were dropped: more output than a log can take."))
            self._num_waiting = self._num_dropped = 0
        if not lines:
            return
        if not self._is_made:
            cloud.create_log_stream(self._group, self._stream)
            self._is_made = True
        cloud.put_log_lines(self._group, self._stream, lines)


class CaptureFile:
    """Captured data as one S3 object for each second that had some."""

    def __init__(self, capture: Capture, log: LogStream):
        self._capture, self._log = capture, log

    def publish(self, cloud: Cloud, *, time_s: float) -> None:
        taken = self._capture.take(time_s=time_s)
        if taken is None:
            return
        key, content = taken
        try:
            cloud.s3.put_object(Bucket=self._capture.bucket, Key=key, Body=content)
        except ClientError as error:
            # An invocation was answered long ago; the endpoint's log is where its owner looks.
            self._log.feed(f"Captured data could not be written to {self._capture.bucket}/{key}: {error}\n".encode())


class Publisher:
    """Writes what its outlets have, every `interval_s` and at their end."""

    def __init__(self, cloud: Cloud, *, interval_s: float):
        self._cloud, self._interval_s = cloud, interval_s
        self._outlets: list[Outlet] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="endpoint-publisher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Writes what is left and ends the thread."""
        self._closed.set()
        self._thread.join()
        self.flush()

    def add(self, *outlets: Outlet) -> None:
        with self._lock:
            self._outlets.extend(outlets)

    def remove(self, *outlets: Outlet) -> None:
        """Writes what they have, for the last time."""
        with self._lock:
            self._outlets = [each for each in self._outlets if each not in outlets]
        self._publish(outlets)

    def flush(self) -> None:
        with self._lock:
            outlets = list(self._outlets)
        self._publish(outlets)

    def _run(self) -> None:
        while not self._closed.wait(self._interval_s):
            self.flush()

    def _publish(self, outlets: "list[Outlet] | tuple[Outlet, ...]") -> None:
        for outlet in outlets:
            try:
                outlet.publish(self._cloud, time_s=time.time())
            except (BotoCoreError, ClientError) as error:
                logger.warning("%s could not be written: %s", type(outlet).__name__, error)
