"""What a job's host prints: a file, a log stream of CloudWatch, and the metrics that regular expressions find in it.

Output without bounds must cost neither memory nor disk: beyond a limit only its end is kept, while it is still read and
searched for metrics. A slow regular expression is given up; `regex` can be timed out and lets other threads run, which
re cannot.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import regex

from dogbreed_ml.errors import DataError
from sagemaker_jobs.local.cloud import Cloud, Metric
from sagemaker_jobs.local.errors import ValidationException

logger = logging.getLogger(__name__)

GROUP = "/aws/sagemaker/TrainingJobs"
NAMESPACE = "/aws/sagemaker/TrainingJobs"
MAX_LINE_BYTES = 256 * 1024
"""CloudWatch Logs' own limit of an event; a longer line becomes several."""
MAX_SAMPLES = 20_000
"""Of one host in CloudWatch; the final values still follow the output after it."""
MAX_LINES = 100_000
_TAIL_BYTES = 64 * 1024
# Characters; in UTF-8 none takes more than four bytes.
_PIECE = MAX_LINE_BYTES // 4
_MATCH_TIMEOUT_S = 0.1
_FLUSH_INTERVAL_S = 0.2


def compile_metrics(definitions: Sequence[Mapping[str, str]]) -> dict[str, "regex.Pattern[str]"]:
    """MetricDefinitions by name; raises ValidationException for what is no regular expression with a group."""
    compiled = {}
    for each in definitions:
        try:
            pattern = regex.compile(each["Regex"])
        except regex.error as error:
            raise ValidationException(
                f"Invalid regex {each['Regex']!r} of metric definition {each['Name']}: {error}"
            ) from error
        if pattern.groups < 1:
            raise ValidationException(
                f"Invalid regex {each['Regex']!r} of metric definition {each['Name']}: it has no capturing group"
            )
        compiled[each["Name"]] = pattern
    return compiled


class HostLog:
    """One host's output; feed() is called by the process's thread, flush() by the service's."""

    def __init__(
        self, path: Path, stream: str, *, cloud: Cloud, metrics: Mapping[str, "regex.Pattern[str]"],
        dimensions: Mapping[str, str], max_bytes: int,
    ) -> None:  # fmt: skip
        self.stream = stream
        self.final_metrics: dict[str, tuple[float, float]] = {}
        """Name -> (last value, epoch seconds)."""
        self.series: dict[str, list[float]] = {}
        """Name -> all values, oldest first, as far as CloudWatch has them."""
        self._cloud = cloud
        self._metrics = dict(metrics)
        self._dimensions = dict(dimensions)
        self._left_bytes, self._left_lines, self._left_samples = max_bytes, MAX_LINES, MAX_SAMPLES
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._partial = b""
        self._tail = b""
        self._num_dropped = 0
        self._lines: list[tuple[float, str]] = []
        self._samples: list[Metric] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        # Line by line on disk: a reader of the file sees what was printed.
        self._file = path.open("a", encoding="utf-8", buffering=1)
        cloud.create_log_stream(GROUP, stream)

    def feed(self, chunk: bytes) -> None:
        """Takes the next piece of the output, which may break a line anywhere."""
        now = time.time()
        with self._lock:
            data = self._partial + chunk
            cut = data.rfind(b"\n") + 1
            if not cut and len(data) > MAX_LINE_BYTES:
                cut = len(data)
            self._partial = data[cut:]
            if not cut:
                return
            self._take(data[:cut], now)

    def say(self, line: str) -> None:
        """A line of the service's own among the output."""
        self.feed(f"{line}\n".encode())

    @property
    def end(self) -> str:
        """The last lines of the output, at most 64 KiB."""
        with self._lock:
            return self._tail.decode("utf-8", errors="replace")

    def flush(self) -> None:
        """Brings what is waiting to CloudWatch."""
        with self._flushing:
            with self._lock:
                lines, self._lines = self._lines, []
                samples, self._samples = self._samples, []
            if lines:
                self._cloud.put_log_lines(GROUP, self.stream, lines)
            if samples:
                self._cloud.put_metrics(NAMESPACE, samples)

    def close(self) -> None:
        """Writes what is left: a line without an end, and the end of what was too much."""
        if self._partial:
            self.feed(b"\n")
        with self._lock:
            if self._file.closed:
                return
            if self._num_dropped:
                left = self._num_dropped - len(self._tail)
                self._left_bytes, self._left_lines = 2 * _TAIL_BYTES, MAX_LINES
                self._keep(f"[{max(left, 0)} bytes of output are left out here]", time.time())
                for line in self._tail.decode("utf-8", errors="replace").splitlines():
                    self._keep(line, time.time())
            self._file.close()
        self.flush()

    def _is_full(self) -> bool:
        return self._left_bytes <= 0 or self._left_lines <= 0

    def _take(self, data: bytes, now: float) -> None:
        """Whole lines: all of them are searched, and kept as long as there is room."""
        if self._is_full() and not self._metrics:
            self._drop(data)
            return
        lines = data.decode("utf-8", errors="replace").split("\n")[: -1 if data.endswith(b"\n") else None]
        if self._metrics:
            for line in lines:
                self._search(line, now)
        if self._is_full():
            self._drop(data)
            return
        for number, line in enumerate(lines):
            if self._is_full():
                self._drop("\n".join([*lines[number:], ""]).encode())
                return
            for start in range(0, len(line) or 1, _PIECE):
                self._keep(line[start : start + _PIECE], now)
        self._tail = (self._tail + data)[-_TAIL_BYTES:]

    def _keep(self, line: str, now: float) -> None:
        self._left_bytes -= len(line.encode()) + 1
        self._left_lines -= 1
        self._lines.append((now, line))
        self._file.write(f"{line}\n")

    def _drop(self, data: bytes) -> None:
        if not self._num_dropped:
            self._tail = b""
        self._num_dropped += len(data)
        self._tail = (self._tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    def _search(self, line: str, now: float) -> None:
        for name, pattern in list(self._metrics.items()):
            try:
                for match in pattern.finditer(line, timeout=_MATCH_TIMEOUT_S, concurrent=True):
                    self._record(name, match[1], now)
            except TimeoutError:
                del self._metrics[name]
                self._keep(f"The regex of metric {name} takes too long on this line; it is not looked for again.", now)

    def _record(self, name: str, text: str | None, now: float) -> None:
        try:
            value = float(text or "")
        except ValueError:
            return
        # Neither CloudWatch nor JSON takes NaN or infinity.
        if value != value or value in (float("inf"), float("-inf")):
            return
        self.final_metrics[name] = (value, now)
        if self._left_samples > 0:
            self._left_samples -= 1
            self.series.setdefault(name, []).append(value)
            self._samples.append(Metric(name, value, now, self._dimensions))


class LogPump:
    """The thread that flushes all logs, five times a second."""

    def __init__(self) -> None:
        self._logs: set[HostLog] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="job-logs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, log: HostLog) -> None:
        with self._lock:
            self._logs.add(log)

    def remove(self, log: HostLog) -> None:
        """Closes a log."""
        with self._lock:
            self._logs.discard(log)
        log.close()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_FLUSH_INTERVAL_S):
            with self._lock:
                logs = list(self._logs)
            for log in logs:
                try:
                    log.flush()
                except DataError as error:
                    logger.warning("%s", error)


def final_metric_data(logs: Sequence[HostLog]) -> list[dict[str, Any]]:
    """FinalMetricDataList: the last value of each metric, over all hosts."""
    last: dict[str, tuple[float, float]] = {}
    for log in logs:
        for name, (value, time_s) in list(log.final_metrics.items()):
            if name not in last or time_s >= last[name][1]:
                last[name] = (value, time_s)
    return [{"MetricName": name, "Value": value, "Timestamp": time_s} for name, (value, time_s) in last.items()]
