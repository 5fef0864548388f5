"""What an endpoint's metrics and log lines come to between two writes."""

from typing import Any

from sagemaker_jobs.local.publishing import LogStream, Usage


class _Cloud:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.cloudwatch = self
        self.data: list[dict[str, Any]] = []
        self.streams: list[tuple[str, str]] = []
        self.lines: list[tuple[float, str]] = []

    def put_metric_data(self, *, Namespace: str, MetricData: list[dict[str, Any]]) -> None:
        assert Namespace == "AWS/SageMaker"
        self.data += MetricData

    def create_log_stream(self, group: str, stream: str) -> None:
        self.streams.append((group, stream))

    def put_log_lines(self, group: str, stream: str, lines: list[tuple[float, str]]) -> None:
        self.lines += lines


def test_usage_is_summed_by_metric_with_a_zero_for_each_success() -> None:
    usage, cloud = Usage("dogs", "blue", num_instances=2), _Cloud()
    for status in (200, 200, 400, 500, 0):
        usage.add(status=status, latency_s=0.5, overhead_s=0.001)
    usage.publish(cloud, time_s=7.0)  # type: ignore[arg-type]
    sums = {each["MetricName"]: each["StatisticValues"]["Sum"] for each in cloud.data}
    assert sums == {
        "Invocations": 5, "InvocationsPerInstance": 2.5, "ModelLatency": 2.5e6, "OverheadLatency": 5e3,
        "Invocation4XXErrors": 1, "Invocation5XXErrors": 2, "InvocationModelErrors": 3,
    }  # fmt: skip
    assert {each["StatisticValues"]["SampleCount"] for each in cloud.data} == {5}
    assert {each["Timestamp"] for each in cloud.data} == {7.0}
    assert cloud.data[0]["Dimensions"] == [
        {"Name": "EndpointName", "Value": "dogs"},
        {"Name": "VariantName", "Value": "blue"},
    ]
    usage.publish(cloud, time_s=8.0)  # type: ignore[arg-type]
    assert len(cloud.data) == 7


def test_log_stream_writes_whole_lines_and_makes_its_stream_once() -> None:
    stream, cloud = LogStream("dogs", "blue/i-1", clock=lambda: 5.0), _Cloud()
    stream.publish(cloud, time_s=1.0)  # type: ignore[arg-type]
    assert cloud.streams == []
    stream.feed(b"one\ntw")
    stream.publish(cloud, time_s=1.0)  # type: ignore[arg-type]
    assert cloud.lines == [(5.0, "one")]
    stream.feed(b"o\n\xff\n")
    stream.publish(cloud, time_s=1.0)  # type: ignore[arg-type]
    assert cloud.lines[1:] == [(5.0, "two"), (5.0, "\ufffd")]
    assert cloud.streams == [("/aws/sagemaker/Endpoints/dogs", "blue/i-1")]


def test_log_stream_drops_what_is_too_much_and_says_so() -> None:
    stream, cloud = LogStream("dogs", "blue/i-1"), _Cloud()
    for _ in range(40):
        stream.feed(b"x" * 99_999 + b"\n")
    stream.feed(b"y" * 3_000_000)
    stream.publish(cloud, time_s=1.0)  # type: ignore[arg-type]
    assert sum(len(text) for _, text in cloud.lines) < 1_300_000
    assert "31 lines were dropped" in cloud.lines[-1][1]


def test_log_stream_that_is_full_takes_no_more() -> None:
    stream, cloud = LogStream("dogs", "blue/i-1", max_bytes=10_000), _Cloud()
    for _ in range(300):
        stream.feed(b"x" * 99 + b"\n")
        stream.publish(cloud, time_s=1.0)  # type: ignore[arg-type]
    assert len(cloud.lines) == 101
    assert cloud.lines[-1][1] == "... the rest of the output is dropped: the log is full."
