"""CloudWatch alarms, which moto stores and never evaluates: the state that an alarm's metric calls for.

A period here is a window that ends now, not one of the clock's minutes, so that each holds a whole period's data.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

logger = logging.getLogger(__name__)

State = Literal["OK", "ALARM", "INSUFFICIENT_DATA"]

EXTRA_PERIODS = 2
"""CloudWatch looks further back than the evaluated periods, so that one late datapoint does not count as missing."""

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "GreaterThanOrEqualToThreshold": lambda value, threshold: value >= threshold,
    "GreaterThanThreshold": lambda value, threshold: value > threshold,
    "LessThanThreshold": lambda value, threshold: value < threshold,
    "LessThanOrEqualToThreshold": lambda value, threshold: value <= threshold,
}
_STATISTICS = ("SampleCount", "Average", "Sum", "Minimum", "Maximum")


@dataclass(frozen=True)
class Bucket:
    """A second of a metric, as CloudWatch's statistics of period 1."""

    time_s: float
    count: float
    total: float
    low: float
    high: float


def unsupported(alarm: Mapping[str, Any]) -> str | None:
    """Why this alarm cannot be evaluated here; None where it can."""
    if not alarm.get("MetricName"):
        return "it is made of a metric expression or of other alarms"
    if alarm.get("Statistic") not in _STATISTICS:
        return f"its statistic is {alarm.get('ExtendedStatistic') or alarm.get('Statistic')}"
    if alarm["ComparisonOperator"] not in _COMPARISONS:
        return f"its comparison is {alarm['ComparisonOperator']}"
    return None


def evaluate(alarm: Mapping[str, Any], datapoints: Sequence[float | None], *, state: State) -> State:
    """The alarm's next state. `datapoints`: one a period, oldest first, None for a period without data.

    With enough real datapoints the newest ones decide; otherwise TreatMissingData says what the missing ones are.
    `state` is the state so far, which `ignore` keeps where the data leave the answer open.
    """
    num_periods = int(alarm["EvaluationPeriods"])
    num_to_alarm = int(alarm.get("DatapointsToAlarm") or num_periods)
    breaks = _COMPARISONS[alarm["ComparisonOperator"]]
    real = [breaks(value, alarm["Threshold"]) for value in datapoints if value is not None]
    num_breaking = sum(real[-num_periods:])
    if num_breaking >= num_to_alarm:
        return "ALARM"
    num_missing = num_periods - len(real)
    missing = alarm.get("TreatMissingData") or "missing"
    if num_missing <= 0 or missing == "notBreaching":
        return "OK"
    if missing == "breaching":
        return "ALARM" if num_breaking + num_missing >= num_to_alarm else "OK"
    if not all(real):
        return "OK"
    if missing == "ignore":
        return state
    if not real:
        return "INSUFFICIENT_DATA"
    # CloudWatch does not wait for missing data where a breach is as old as the datapoints to alarm.
    age = len(datapoints) - next(index for index, value in enumerate(datapoints) if value is not None)
    return "ALARM" if age >= num_to_alarm else "OK"


def to_datapoints(alarm: Mapping[str, Any], buckets: Iterable[Bucket], *, now_s: float) -> list[float | None]:
    """The alarm's statistic in each of its periods that end now, oldest first."""
    num_periods, period_s = int(alarm["EvaluationPeriods"]) + EXTRA_PERIODS, int(alarm["Period"])
    periods: list[list[Bucket]] = [[] for _ in range(num_periods)]
    for bucket in buckets:
        age = int((now_s - bucket.time_s) // period_s)
        if 0 <= age < num_periods:
            periods[num_periods - 1 - age].append(bucket)
    return [_statistic(alarm["Statistic"], period) for period in periods]


def _statistic(name: str, buckets: Sequence[Bucket]) -> float | None:
    if not buckets:
        return None
    count, total = sum(each.count for each in buckets), sum(each.total for each in buckets)
    return {
        "SampleCount": count,
        "Sum": total,
        "Average": total / count,
        "Minimum": min(each.low for each in buckets),
        "Maximum": max(each.high for each in buckets),
    }[name]


class AlarmClock:
    """Evaluates alarms on the data in CloudWatch, sets their state there, and says which are off."""

    def __init__(self, cloudwatch: Any, *, clock: Callable[[], float] = time.time):
        """`cloudwatch` is a boto3 client."""
        self._cloudwatch = cloudwatch
        self._clock = clock
        # Two deployments may name one alarm.
        self._lock = threading.Lock()

    def describe(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The alarms that exist, by name."""
        answer = self._cloudwatch.describe_alarms(AlarmNames=list(names))
        alarms = [*answer.get("MetricAlarms", ()), *answer.get("CompositeAlarms", ())]
        return {alarm["AlarmName"]: alarm for alarm in alarms}

    def ringing(self, names: Sequence[str]) -> list[str]:
        """Evaluates the named alarms; those in ALARM now. An alarm that was deleted meanwhile is not."""
        with self._lock:
            return [name for name, alarm in self.describe(names).items() if self._refresh(alarm) == "ALARM"]

    def _refresh(self, alarm: Mapping[str, Any]) -> State:
        state: State = alarm["StateValue"]
        if unsupported(alarm):
            return state
        now_s = self._clock()
        datapoints = to_datapoints(alarm, self._buckets(alarm, now_s), now_s=now_s)
        new_state = evaluate(alarm, datapoints, state=state)
        if new_state != state:
            shown = ", ".join("-" if value is None else f"{value:g}" for value in datapoints)
            reason = (
                f"{alarm['Statistic']} of the last periods, oldest first: {shown}; threshold {alarm['Threshold']:g}."
            )
            logger.info("alarm %s: %s -> %s: %s", alarm["AlarmName"], state, new_state, reason)
            self._cloudwatch.set_alarm_state(AlarmName=alarm["AlarmName"], StateValue=new_state, StateReason=reason)
        return new_state

    def _buckets(self, alarm: Mapping[str, Any], now_s: float) -> list[Bucket]:
        span_s = int(alarm["Period"]) * (int(alarm["EvaluationPeriods"]) + EXTRA_PERIODS)
        answer = self._cloudwatch.get_metric_statistics(
            Namespace=alarm["Namespace"],
            MetricName=alarm["MetricName"],
            Dimensions=alarm.get("Dimensions", []),
            StartTime=datetime.fromtimestamp(now_s - span_s, UTC),
            EndTime=datetime.fromtimestamp(now_s + 1, UTC),
            # moto starts its periods at the first datapoint; seconds can be put together to ours.
            Period=1,
            Statistics=["SampleCount", "Sum", "Minimum", "Maximum"],
        )
        return [
            Bucket(each["Timestamp"].timestamp(), each["SampleCount"], each["Sum"], each["Minimum"], each["Maximum"])
            for each in answer["Datapoints"]
        ]
