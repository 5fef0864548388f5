"""Updates of endpoints: blue/green, canary, rollback by alarm or by a fleet that does not come up, and no gap."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError
from endpointmodels import Client, wait_for

from sagemaker_jobs.local.shapes import check_answer

FAILING = """
def model_fn(model_dir): return None
def transform_fn(model, body, content_type, accept): raise RuntimeError("worse than before")
"""


def _prepare(client: Client, name: str, *, answer: str, **options: Any) -> None:
    client.create_model(name, answer=answer, **options)
    client.create_config(name, name)


def _policy(*, share: int = 0, wait_s: int = 0, end_wait_s: int = 0, alarm: str | None = None) -> dict[str, Any]:
    routing: dict[str, Any] = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": wait_s}
    if share:
        routing |= {"Type": "CANARY", "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": share}}
    policy = {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": end_wait_s}
    rollback = {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": alarm}]}} if alarm else {}
    return {"BlueGreenUpdatePolicy": policy, **rollback}


def _put_alarm(client: Client, name: str, endpoint: str, **changes: Any) -> None:
    alarm = {
        "AlarmName": name, "Namespace": "AWS/SageMaker", "MetricName": "Invocation5XXErrors", "Statistic": "Sum",
        "Dimensions": [{"Name": "EndpointName", "Value": endpoint}], "Period": 10, "EvaluationPeriods": 1,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold", "Threshold": 3.0, "TreatMissingData": "notBreaching",
    }  # fmt: skip
    client.cloudwatch.put_metric_alarm(**{**alarm, **changes})


@contextmanager
def _callers(client: Client, name: str, count: int = 2) -> Iterator[Counter[str]]:
    """Threads that invoke the endpoint all the time; what they were answered."""
    seen: Counter[str] = Counter()
    ended = threading.Event()

    def call() -> None:
        while not ended.is_set():
            try:
                seen[client.invoke(name).decode()] += 1
            except ClientError as error:
                seen[error.response["Error"]["Code"]] += 1

    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _when(condition: Callable[[], bool]) -> None:
    wait_for(condition, bool)


def test_update_all_at_once_answers_every_call(client: Client) -> None:
    client.deploy("swap", answer="blue")
    _prepare(client, "swap-2", answer="green")
    before = client.pids("swap")
    with _callers(client, "swap") as seen:
        _when(lambda: seen["blue"] > 5)
        client.sagemaker.update_endpoint(EndpointName="swap", EndpointConfigName="swap-2")
        description = client.settled("swap")
        last = seen["green"]
        _when(lambda: seen["green"] > last + 5)
    assert set(seen) == {"blue", "green"}
    assert description["EndpointConfigName"] == "swap-2"
    assert "FailureReason" not in description
    assert not any(psutil.pid_exists(pid) for pid in before)


def test_canary_gets_its_share_before_the_rest(client: Client) -> None:
    client.deploy("canary", answer="blue")
    _prepare(client, "canary-2", answer="green")
    with _callers(client, "canary") as seen:
        _when(lambda: seen["blue"] > 5)
        client.sagemaker.update_endpoint(
            EndpointName="canary", EndpointConfigName="canary-2", DeploymentConfig=_policy(share=20, wait_s=4)
        )
        _when(lambda: seen["green"] > 0)
        pending = client.server.endpoints.describe_endpoint({"EndpointName": "canary"})
        check_answer("sagemaker", "DescribeEndpoint", pending)
        blue, green = seen["blue"], seen["green"]
        _when(lambda: seen["blue"] + seen["green"] > blue + green + 300)
        share = (seen["green"] - green) / (seen["blue"] + seen["green"] - blue - green)
        description = client.settled("canary")
    assert pending["EndpointStatus"] == "Updating"
    assert pending["PendingDeploymentSummary"]["EndpointConfigName"] == "canary-2"
    statuses = pending["PendingDeploymentSummary"]["ProductionVariants"][0]["VariantStatus"]
    assert statuses[0]["Status"] in ("ActivatingTraffic", "Baking")
    # Five standard deviations of 300 draws at 1 in 5 are 0.115.
    assert 0.08 < share < 0.32
    assert set(seen) == {"blue", "green"}
    assert description["EndpointConfigName"] == "canary-2"
    assert {client.invoke("canary") for _ in range(5)} == {b"green"}


def test_linear_update_goes_up_in_steps(client: Client) -> None:
    client.deploy("linear", answer="blue")
    _prepare(client, "linear-2", answer="green")
    policy = _policy()
    policy["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"] = {
        "Type": "LINEAR", "WaitIntervalInSeconds": 1, "LinearStepSize": {"Type": "CAPACITY_PERCENT", "Value": 40},
    }  # fmt: skip
    answers = []
    client.sagemaker.update_endpoint(EndpointName="linear", EndpointConfigName="linear-2", DeploymentConfig=policy)
    while client.sagemaker.describe_endpoint(EndpointName="linear")["EndpointStatus"] == "Updating":
        answers.append(client.invoke("linear"))
    assert client.invoke("linear") == b"green"
    # A second at 40 %, then one at 80 %: hundreds of answers each.
    last_blue = max(index for index, answer in enumerate(answers) if answer == b"blue")
    mixed = answers[answers.index(b"green") : last_blue + 1]
    first, second = mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
    assert 0 < first.count(b"green") < second.count(b"green") < len(second)


def test_alarm_rolls_the_update_back(client: Client) -> None:
    client.deploy("alarmed", answer="blue")
    _prepare(client, "alarmed-2", answer="", code=FAILING)
    _put_alarm(client, "alarmed-5xx", "alarmed")
    before = client.pids("alarmed")
    with _callers(client, "alarmed") as seen:
        _when(lambda: seen["blue"] > 5)
        client.sagemaker.update_endpoint(
            EndpointName="alarmed",
            EndpointConfigName="alarmed-2",
            DeploymentConfig=_policy(share=30, wait_s=600, alarm="alarmed-5xx"),
        )
        description = client.settled("alarmed")
        blue, failed = seen["blue"], seen["ModelError"]
        _when(lambda: seen["blue"] > blue + 20)
    assert seen["ModelError"] <= failed + 2
    assert failed >= 3
    assert set(seen) == {"blue", "ModelError"}
    assert description["EndpointStatus"] == "InService"
    assert description["EndpointConfigName"] == "alarmed"
    assert "alarmed-5xx" in description["FailureReason"]
    assert "PendingDeploymentSummary" not in description
    alarm = client.cloudwatch.describe_alarms(AlarmNames=["alarmed-5xx"])["MetricAlarms"][0]
    assert alarm["StateValue"] == "ALARM"
    assert client.pids("alarmed") == before
    answer = client.server.endpoints.describe_endpoint({"EndpointName": "alarmed"})
    check_answer("sagemaker", "DescribeEndpoint", answer)


def test_alarm_that_stays_silent_lets_the_update_through(client: Client) -> None:
    client.deploy("silent", answer="blue")
    _prepare(client, "silent-2", answer="green")
    _put_alarm(client, "silent-5xx", "silent")
    with _callers(client, "silent") as seen:
        _when(lambda: seen["blue"] > 5)
        client.sagemaker.update_endpoint(
            EndpointName="silent",
            EndpointConfigName="silent-2",
            DeploymentConfig=_policy(end_wait_s=1, alarm="silent-5xx"),
        )
        description = client.settled("silent")
    assert description["EndpointConfigName"] == "silent-2"
    assert set(seen) == {"blue", "green"}
    # What named the alarm lives on, and so does the watch.
    for _ in range(3):
        with pytest.raises(client.runtime.exceptions.ModelError):
            client.invoke("silent", b"error")

    def state() -> str:
        return str(client.cloudwatch.describe_alarms(AlarmNames=["silent-5xx"])["MetricAlarms"][0]["StateValue"])

    assert wait_for(state, lambda value: value == "ALARM") == "ALARM"
    assert client.sagemaker.describe_endpoint(EndpointName="silent")["EndpointConfigName"] == "silent-2"


def test_fleet_that_does_not_come_up_leaves_the_one_before(client: Client) -> None:
    client.deploy("stays", answer="blue")
    _prepare(client, "stays-2", answer="", code="def model_fn(model_dir):\n    raise OSError('no such weights')")
    before = client.pids("stays")
    with _callers(client, "stays") as seen:
        client.sagemaker.update_endpoint(EndpointName="stays", EndpointConfigName="stays-2")
        description = client.settled("stays")
        _when(lambda: seen["blue"] > 5)
    assert set(seen) == {"blue"}
    assert (description["EndpointStatus"], description["EndpointConfigName"]) == ("InService", "stays")
    assert "no such weights" in description["FailureReason"]
    assert client.pids("stays") == before
    # The next update starts afresh.
    _prepare(client, "stays-3", answer="green")
    client.sagemaker.update_endpoint(EndpointName="stays", EndpointConfigName="stays-3")
    assert "FailureReason" not in client.settled("stays")
    assert client.invoke("stays") == b"green"


def test_endpoint_may_be_deleted_while_it_bakes(client: Client) -> None:
    client.deploy("baking", answer="blue")
    _prepare(client, "baking-2", answer="green")
    client.sagemaker.update_endpoint(
        EndpointName="baking", EndpointConfigName="baking-2", DeploymentConfig=_policy(end_wait_s=600)
    )
    _when(lambda: client.invoke("baking") == b"green")
    before = client.pids("baking")
    with pytest.raises(ClientError, match=r"Cannot update endpoint .* in status Updating"):
        client.sagemaker.update_endpoint(EndpointName="baking", EndpointConfigName="baking-2")
    client.delete("baking")
    assert not any(psutil.pid_exists(pid) for pid in before)


def test_alarm_that_is_unknown_or_not_evaluated_isrefused(client: Client) -> None:
    client.deploy("refused", answer="blue")
    update = {"EndpointName": "refused", "EndpointConfigName": "refused"}
    with pytest.raises(ClientError, match="The alarm refused-p99 of AutoRollbackConfiguration does not exist"):
        client.sagemaker.update_endpoint(**update, DeploymentConfig=_policy(alarm="refused-p99"))
    client.cloudwatch.put_metric_alarm(
        AlarmName="refused-p99", Namespace="AWS/SageMaker", MetricName="ModelLatency", ExtendedStatistic="p99",
        Period=60, EvaluationPeriods=1, ComparisonOperator="GreaterThanThreshold", Threshold=1.0,
    )  # fmt: skip
    with pytest.raises(ClientError, match="cannot evaluate the alarm refused-p99: its statistic is p99"):
        client.sagemaker.update_endpoint(**update, DeploymentConfig=_policy(alarm="refused-p99"))
    assert client.sagemaker.describe_endpoint(EndpointName="refused")["EndpointStatus"] == "InService"


def test_alarm_that_rings_already_keeps_all_traffic_where_it_is(client: Client) -> None:
    client.deploy("ringing", answer="blue")
    _prepare(client, "ringing-2", answer="green")
    # Longer than the new fleet takes to come up, on the slowest machine: the errors must still count by then.
    _put_alarm(client, "ringing-5xx", "ringing", Period=60)
    for _ in range(3):
        with pytest.raises(client.runtime.exceptions.ModelError):
            client.invoke("ringing", b"error")
    with _callers(client, "ringing") as seen:
        client.sagemaker.update_endpoint(
            EndpointName="ringing", EndpointConfigName="ringing-2", DeploymentConfig=_policy(alarm="ringing-5xx")
        )
        description = client.settled("ringing")
        _when(lambda: seen["blue"] > 5)
    assert set(seen) == {"blue"}
    assert description["EndpointConfigName"] == "ringing"
    assert "ringing-5xx" in description["FailureReason"]


def test_update_may_retain_the_variants_properties_and_the_deployment_config(client: Client) -> None:
    client.create_model("kept")
    client.create_config("kept", "kept", InitialInstanceCount=2)
    client.create_config("kept-2", "kept", InitialInstanceCount=1)
    policy = _policy(share=50)
    client.sagemaker.create_endpoint(EndpointName="kept", EndpointConfigName="kept", DeploymentConfig=policy)
    client.settled("kept")
    client.sagemaker.update_endpoint(
        EndpointName="kept", EndpointConfigName="kept-2", RetainAllVariantProperties=True, RetainDeploymentConfig=True
    )
    description = client.settled("kept")
    assert description["EndpointConfigName"] == "kept-2"
    assert description["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    assert description["LastDeploymentConfig"] == policy
    client.sagemaker.update_endpoint(EndpointName="kept", EndpointConfigName="kept-2")
    assert client.settled("kept")["ProductionVariants"][0]["CurrentInstanceCount"] == 1
    assert len(client.pids("kept")) == 1
