"""What guards an endpoint's update and sizes its fleet, as requests: alarms, blue/green, Application Auto Scaling."""

from collections.abc import Mapping
from typing import Any, Final

from dogbreed_ml.cloudconfig import HostingConfig

VARIANT: Final = "AllTraffic"
"""The one variant of every endpoint config, so that alarms and scaling hold from one to the next."""

AS_MANY_INSTANCES: Final[Mapping[str, Any]] = {
    "RetainAllVariantProperties": True,
    "ExcludeRetainedVariantProperties": [
        {"VariantPropertyType": "DesiredWeight"},
        {"VariantPropertyType": "DataCaptureConfig"},
    ],
}
"""Members of UpdateEndpoint that leave the number of instances as it is, and nothing else."""

_METRIC_PERIOD_S: Final = 60
_BACKLOG_PER_INSTANCE: Final = 5.0
"""Requests that wait for one asynchronous instance before another is added, as in AWS's own example."""
_MAX_UPDATE_S: Final = 28800


def alarm_names(endpoint: str) -> tuple[str, str]:
    return f"{endpoint}-latency", f"{endpoint}-5xx"


def alarm_requests(hosting: HostingConfig, endpoint: str) -> tuple[dict[str, Any], ...]:
    """PutMetricAlarm for the mean latency, and for errors, of a minute.

    None for a serverless endpoint: SageMaker guards no update of it, and alarms that nothing looks at cost money too.
    """
    if hosting.kind == "serverless":
        return ()
    latency, errors = alarm_names(endpoint)
    shared: dict[str, Any] = {
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": VARIANT}],
        "Period": _METRIC_PERIOD_S,
        "EvaluationPeriods": 1,
        # Nobody calls: nothing is wrong.
        "TreatMissingData": "notBreaching",
    }
    return (
        {
            "AlarmName": latency,
            "AlarmDescription": f"The model's mean latency in a minute is above {hosting.max_latency_ms:g} ms.",
            "MetricName": "ModelLatency",
            "Statistic": "Average",
            "ComparisonOperator": "GreaterThanThreshold",
            # SageMaker counts microseconds.
            "Threshold": hosting.max_latency_ms * 1000,
            **shared,
        },
        {
            "AlarmName": errors,
            "AlarmDescription": f"{hosting.max_errors} or more answers of a minute are 5XX.",
            "MetricName": "Invocation5XXErrors",
            "Statistic": "Sum",
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            "Threshold": float(hosting.max_errors),
            **shared,
        },
    )


def update_members(hosting: HostingConfig, alarms: list[str]) -> dict[str, Any]:
    """What UpdateEndpoint says besides names: blue/green, a canary first, and what rolls it back.

    One instance cannot be split: all traffic shifts at once then, and the instance before stays until the alarms have
    watched for hosting.bake_s. A serverless endpoint is updated at once.
    """
    if hosting.kind == "serverless":
        return {}
    routing: dict[str, Any] = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}
    if hosting.instance_count > 1:
        size = max(1, hosting.instance_count * hosting.canary_percent // 100)
        routing = {
            "Type": "CANARY",
            "CanarySize": {"Type": "INSTANCE_COUNT", "Value": size},
            "WaitIntervalInSeconds": hosting.bake_s,
        }
    deployment: dict[str, Any] = {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": routing,
            "TerminationWaitInSeconds": hosting.bake_s,
            "MaximumExecutionTimeoutInSeconds": min(_MAX_UPDATE_S, max(600, hosting.timeout_s + 2 * hosting.bake_s)),
        }
    }
    if alarms:
        deployment["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": each} for each in alarms]}
    members: dict[str, Any] = {"DeploymentConfig": deployment}
    if hosting.max_instance_count is not None:
        # Scaling may have added instances since; the load that they answer is still there.
        members |= AS_MANY_INSTANCES
    return members


def scaling_resource(endpoint: str) -> dict[str, str]:
    """How Application Auto Scaling names an endpoint's number of instances."""
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }


def scaling_requests(hosting: HostingConfig, endpoint: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """RegisterScalableTarget and PutScalingPolicy; None without hosting.max_instance_count."""
    if hosting.max_instance_count is None:
        return None
    resource = scaling_resource(endpoint)
    metric: dict[str, Any] = {
        "TargetValue": float(hosting.invocations_per_instance),
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
    }
    if hosting.kind == "async":
        metric = {
            "TargetValue": _BACKLOG_PER_INSTANCE,
            "CustomizedMetricSpecification": {
                "MetricName": "ApproximateBacklogSizePerInstance",
                "Namespace": "AWS/SageMaker",
                "Dimensions": [{"Name": "EndpointName", "Value": endpoint}],
                "Statistic": "Average",
            },
        }
    return (
        {**resource, "MinCapacity": hosting.instance_count, "MaxCapacity": hosting.max_instance_count},
        {
            **resource,
            "PolicyName": f"{endpoint}-scaling",
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": metric,
        },
    )
