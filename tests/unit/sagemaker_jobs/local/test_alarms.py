"""CloudWatch's table of missing data, statistics over periods that end now, and the state set through the client."""

from typing import Any

import pytest

from sagemaker_jobs.local.alarms import Bucket, State, evaluate, to_datapoints, unsupported

ALARM: dict[str, Any] = {
    "AlarmName": "errors", "Namespace": "AWS/SageMaker", "MetricName": "Invocation5XXErrors", "Statistic": "Average",
    "ComparisonOperator": "GreaterThanThreshold", "Threshold": 0.5, "Period": 60, "EvaluationPeriods": 3,
    "StateValue": "OK",
}  # fmt: skip


def _points(drawn: str) -> list[float | None]:
    """As AWS's documentation draws them: 0 not breaching, X breaching, - missing; oldest first."""
    return [{"0": 0.0, "X": 1.0, "-": None}[each] for each in drawn.split()]


# "How CloudWatch alarms treat missing data": missing, ignore, breaching, notBreaching. KEEP: the state is retained.
KEEP: State = "INSUFFICIENT_DATA"
TABLE_OF_3 = [
    ("0 - X - X", ("OK", "OK", "OK", "OK")),
    ("- - - - 0", ("OK", "OK", "OK", "OK")),
    ("- - - - -", ("INSUFFICIENT_DATA", KEEP, "ALARM", "OK")),
    ("0 X X - X", ("ALARM", "ALARM", "ALARM", "ALARM")),
    ("- - X - -", ("ALARM", KEEP, "ALARM", "OK")),
]
TABLE_OF_2_IN_3 = [
    ("0 - X - X", ("ALARM", "ALARM", "ALARM", "ALARM")),
    ("0 0 X 0 X", ("ALARM", "ALARM", "ALARM", "ALARM")),
    ("0 - X - -", ("OK", "OK", "ALARM", "OK")),
    ("- - - - 0", ("OK", "OK", "ALARM", "OK")),
    ("- - - X -", ("ALARM", KEEP, "ALARM", "OK")),
]


@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize(
    ("num_to_alarm", "drawn", "states"),
    [(3, *row) for row in TABLE_OF_3] + [(2, *row) for row in TABLE_OF_2_IN_3],
)
def test_evaluate_treats_missing_data_as_cloudwatch_does(
    num_to_alarm: int, drawn: str, states: tuple[State, ...], column: int
) -> None:
    treat = ("missing", "ignore", "breaching", "notBreaching")[column]
    alarm = {**ALARM, "DatapointsToAlarm": num_to_alarm, "TreatMissingData": treat}
    assert evaluate(alarm, _points(drawn), state=KEEP) == states[column]


@pytest.mark.parametrize(
    ("comparison", "alarming"),
    [
        ("GreaterThanThreshold", [2.0]),
        ("GreaterThanOrEqualToThreshold", [1.0, 2.0]),
        ("LessThanThreshold", [0.0]),
        ("LessThanOrEqualToThreshold", [0.0, 1.0]),
    ],
)
def test_evaluate_compares_with_the_threshold(comparison: str, alarming: list[float]) -> None:
    alarm = {**ALARM, "ComparisonOperator": comparison, "Threshold": 1.0, "EvaluationPeriods": 1}
    assert [value for value in (0.0, 1.0, 2.0) if evaluate(alarm, [value], state="OK") == "ALARM"] == alarming


def test_datapoints_are_the_statistic_of_each_period_that_ends_now() -> None:
    buckets = [
        Bucket(time_s, 2, total, total / 4, total) for time_s, total in ((1000 - 61, 8), (1000 - 1, 4), (999, 2))
    ]
    alarm = {**ALARM, "EvaluationPeriods": 1}
    assert to_datapoints(alarm, buckets, now_s=1000) == [None, 4.0, 1.5]
    expected = {"Sum": 6, "SampleCount": 4, "Minimum": 0.5, "Maximum": 4}
    for statistic, value in expected.items():
        assert to_datapoints({**alarm, "Statistic": statistic}, buckets, now_s=1000)[-1] == value


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"MetricName": None, "Metrics": []}, "metric expression"),
        ({"Statistic": None, "ExtendedStatistic": "p99"}, "p99"),
        ({"ComparisonOperator": "LessThanLowerThreshold"}, "LessThanLowerThreshold"),
    ],
)
def test_alarm_that_cannot_be_evaluated_says_why(changes: dict[str, Any], reason: str) -> None:
    assert unsupported(ALARM) is None
    assert reason in str(unsupported({**ALARM, **changes}))
