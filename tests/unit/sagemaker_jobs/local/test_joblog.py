"""A host's output: lines, metrics, and what becomes of too much of it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from sagemaker_jobs.local.cloud import Cloud, Metric
from sagemaker_jobs.local.errors import ValidationException
from sagemaker_jobs.local.joblog import MAX_LINE_BYTES, HostLog, compile_metrics, final_metric_data


class _Recorder(Cloud):
    """Keeps what would go to CloudWatch."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:0", "us-west-2")
        self.lines: list[str] = []
        self.metrics: list[Metric] = []

    def create_log_stream(self, group: str, stream: str) -> None:
        pass

    def put_log_lines(self, group: str, stream: str, lines: Sequence[tuple[float, str]]) -> None:
        self.lines += [text for _, text in lines]

    def put_metrics(self, namespace: str, metrics: Sequence[Metric]) -> None:
        self.metrics += metrics


@pytest.fixture
def cloud() -> _Recorder:
    return _Recorder()


def _log(tmp_path: Path, cloud: _Recorder, *, max_bytes: int = 10_000, **metrics: str) -> HostLog:
    definitions = [{"Name": name, "Regex": regex} for name, regex in metrics.items()]
    return HostLog(
        tmp_path / "host.log", "job/algo-1", cloud=cloud, metrics=compile_metrics(definitions), dimensions={},
        max_bytes=max_bytes,
    )  # fmt: skip


def test_lines_come_whole_however_they_are_cut(tmp_path: Path, cloud: _Recorder) -> None:
    log = _log(tmp_path, cloud)
    text = "one\n\ntwo ä\r\nthree"
    for byte in text.encode():
        log.feed(bytes([byte]))
    log.close()
    log.close()
    assert cloud.lines == ["one", "", "two ä\r", "three"]
    assert (tmp_path / "host.log").read_bytes().decode() == text + "\n"


def test_metrics_are_found_in_lines_and_the_last_value_is_final(tmp_path: Path, cloud: _Recorder) -> None:
    log = _log(tmp_path, cloud, loss=r"loss=(\S+)", accuracy="acc: ([0-9.e-]+)")
    log.feed(b"loss=0.5 loss=0.25\nacc: 1e-3\nloss=nan loss=inf loss=high loss=-0.125\n")
    log.close()
    assert log.series == {"loss": [0.5, 0.25, -0.125], "accuracy": [0.001]}
    assert [(metric.name, metric.value) for metric in cloud.metrics][-1] == ("loss", -0.125)
    final = {each["MetricName"]: each["Value"] for each in final_metric_data([log])}
    assert final == {"loss": -0.125, "accuracy": 0.001}


def test_too_much_output_keeps_its_beginning_and_its_end(tmp_path: Path, cloud: _Recorder) -> None:
    log = _log(tmp_path, cloud, max_bytes=1000, loss="loss=(.*)")
    log.feed(b"first\n")
    for number in range(300):
        log.feed(f"line {number} {'x' * 1000}\n".encode() + b"loss=%d\n" % number)
    log.feed(b"last, without an end")
    log.close()
    text = (tmp_path / "host.log").read_text()
    assert text.startswith("first\nline 0")
    assert text.endswith("last, without an end\n")
    assert "bytes of output are left out here" in text
    assert len(text) < 1000 + 2 * 64 * 1024
    assert cloud.lines == text.splitlines()
    assert len(log.series["loss"]) == 300


def test_line_without_end_does_not_gather_in_memory(tmp_path: Path, cloud: _Recorder) -> None:
    log = _log(tmp_path, cloud, max_bytes=MAX_LINE_BYTES * 8)
    for _ in range(40):
        log.feed(b"x" * 65_536)
    assert len(log._partial) <= MAX_LINE_BYTES
    log.close()
    assert max(map(len, cloud.lines)) <= MAX_LINE_BYTES


@pytest.mark.parametrize("pattern", ["([", "(?P<x>", "*", "no group"])
def test_regex_that_cannot_be_used_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationException, match="of metric definition loss"):
        compile_metrics([{"Name": "loss", "Regex": pattern}])
