"""What watches an endpoint and what sizes it: CloudWatch alarms, and Application Auto Scaling."""

from collections.abc import Mapping, Sequence
from typing import Any

from botocore.exceptions import ClientError

from sagemaker_jobs.client import Aws, cloud_error, translated
from sagemaker_jobs.endpoints.guard_requests import VARIANT, alarm_names, scaling_resource

Scaling = tuple[Mapping[str, Any], ...]
"""RegisterScalableTarget, then each PutScalingPolicy."""

_TARGET_MEMBERS = ("MinCapacity", "MaxCapacity", "SuspendedState")
_POLICY_MEMBERS = (
    "PolicyName", "PolicyType", "StepScalingPolicyConfiguration", "TargetTrackingScalingPolicyConfiguration",
)  # fmt: skip


def put_alarms(aws: Aws, alarms: Sequence[Mapping[str, Any]], *, tags: Sequence[Mapping[str, str]]) -> None:
    """Makes the alarms, or brings them to what they should be; CloudWatch keeps the state of those that exist."""
    for alarm in alarms:
        with translated(f"put the alarm {alarm['AlarmName']}"):
            aws.client("cloudwatch").put_metric_alarm(**alarm, Tags=list(tags))


def ringing(aws: Aws, endpoint: str) -> list[str]:
    """The alarms of an endpoint that are in ALARM."""
    found = aws.ask(
        lambda: aws.client("cloudwatch").describe_alarms(AlarmNames=list(alarm_names(endpoint))),
        doing=f"look at the alarms of {endpoint}",
    )
    return [alarm["AlarmName"] for alarm in found["MetricAlarms"] if alarm["StateValue"] == "ALARM"]


def delete_alarms(aws: Aws, endpoint: str) -> list[str]:
    """The names of those that there were."""
    found = aws.ask(
        lambda: aws.client("cloudwatch").describe_alarms(AlarmNames=list(alarm_names(endpoint))),
        doing=f"look at the alarms of {endpoint}",
    )
    names = [alarm["AlarmName"] for alarm in found["MetricAlarms"]]
    if names:
        with translated(f"delete the alarms of {endpoint}"):
            aws.client("cloudwatch").delete_alarms(AlarmNames=names)
    return names


def put_scaling(aws: Aws, requests: Scaling) -> None:
    target, *policies = requests
    scaling = aws.client("application-autoscaling")
    with translated(f"register {target['ResourceId']} for scaling"):
        scaling.register_scalable_target(**target)
        for policy in policies:
            scaling.put_scaling_policy(**policy)


def read_scaling(aws: Aws, endpoint: str) -> Scaling | None:
    """How an endpoint is scaled, as `put_scaling` takes it; None where nothing scales it."""
    resource, scaling = scaling_resource(endpoint), aws.client("application-autoscaling")
    names = {**resource, "ResourceIds": [resource["ResourceId"]]}
    del names["ResourceId"]
    doing = f"look at the scaling of {endpoint}"
    targets = aws.ask(lambda: scaling.describe_scalable_targets(**names)["ScalableTargets"], doing=doing)
    if not targets:
        return None
    policies = aws.ask(lambda: scaling.describe_scaling_policies(**resource)["ScalingPolicies"], doing=doing)
    target = {**resource, **{key: targets[0][key] for key in _TARGET_MEMBERS if key in targets[0]}}
    return (target, *({**resource, **{key: each[key] for key in _POLICY_MEMBERS if key in each}} for each in policies))


def remove_scaling(aws: Aws, endpoint: str) -> bool:
    """Deregisters the endpoint, which ends its policies too; whether it was registered."""
    try:
        aws.client("application-autoscaling").deregister_scalable_target(**scaling_resource(endpoint))
    except ClientError as error:
        # AWS's code is ObjectNotFoundException, moto's ValidationException; the words are the same.
        if "No scalable target found" in error.response["Error"].get("Message", ""):
            return False
        raise cloud_error(error, f"end the scaling of {endpoint}") from error
    return True


def count_invocations(aws: Aws, endpoint: str, *, start_s: float, end_s: float) -> int:
    """How often an endpoint was called between two times, seconds since the epoch."""
    answer = aws.ask(
        lambda: aws.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/SageMaker",
            MetricName="Invocations",
            Dimensions=[{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": VARIANT}],
            StartTime=start_s,
            EndTime=end_s,
            Period=3600,
            Statistics=["Sum"],
        ),
        doing=f"count the calls of {endpoint}",
    )
    return round(sum(float(point["Sum"]) for point in answer["Datapoints"]))
