"""Everything that a deployment sends, built from the config: pure, so that a dry run shows what would be sent.

An endpoint config is replaced, never edited: its name holds a digest of what it and its model say, so that the same
deployment finds what it made before, and another one never meets it.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from dogbreed_ml.cloudconfig import HostingConfig
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import ConfigError
from sagemaker_jobs.client import check
from sagemaker_jobs.endpoints.leases import Lease
from sagemaker_jobs.images import image_uri

VARIANT: Final = "AllTraffic"
"""The one variant of every endpoint config, so that alarms and scaling hold from one to the next."""

SMOKE_SUFFIX: Final = "-smoke"
MAX_ENDPOINT_NAME: Final = 63 - len(SMOKE_SUFFIX)
_MAX_STEM: Final = 40
_DIGEST_LENGTH: Final = 8
_METRIC_PERIOD_S: Final = 60
_BACKLOG_PER_INSTANCE: Final = 5.0
"""Requests that wait for one asynchronous instance before another is added, as in AWS's own example."""
_MAX_UPDATE_S: Final = 28800
_ENDPOINT_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
# There is no instance to choose an image for; serverless endpoints run on CPUs.
_SERVERLESS_INSTANCE: Final = "ml.c5.xlarge"


@dataclass(frozen=True)
class Place:
    """Where a deployment's things lie in S3, and what may read them."""

    region: str
    role_arn: str
    archive_uri: str
    """The model archive, by its digest."""
    output_uri: str
    """Below it: captured data and asynchronous answers."""


@dataclass(frozen=True)
class EndpointPlan:
    """What is sent to SageMaker, CloudWatch and Application Auto Scaling, in this order."""

    lease: Lease
    model: dict[str, Any]
    """CreateModel."""
    config: dict[str, Any]
    """CreateEndpointConfig."""
    smoke_config: dict[str, Any]
    """CreateEndpointConfig of one instance without capture; the same where that is what `config` says."""
    endpoint: dict[str, Any]
    """CreateEndpoint, for the first."""
    update: dict[str, Any]
    """UpdateEndpoint, for any other."""
    alarms: tuple[dict[str, Any], ...]
    """PutMetricAlarm."""
    scaling: tuple[dict[str, Any], dict[str, Any]] | None
    """RegisterScalableTarget and PutScalingPolicy."""

    @property
    def name(self) -> str:
        return self.lease.endpoint

    @property
    def config_name(self) -> str:
        return str(self.config["EndpointConfigName"])

    def to_dict(self) -> dict[str, Any]:
        """Every request by its operation, as a dry run shows them."""
        shown: dict[str, Any] = {
            "CreateModel": self.model,
            "CreateEndpointConfig": self.config,
            "CreateEndpoint": self.endpoint,
            "UpdateEndpoint": self.update,
            "PutMetricAlarm": list(self.alarms),
        }
        if self.smoke_config != self.config:
            shown["CreateEndpointConfig (smoke test)"] = self.smoke_config
        if self.scaling is not None:
            shown["RegisterScalableTarget"], shown["PutScalingPolicy"] = self.scaling
        return shown


def endpoint_plan(config: ExperimentConfig, *, lease: Lease, place: Place) -> EndpointPlan:
    """All requests for one version on one endpoint; raises ConfigError where AWS would refuse one of them."""
    _check_hosting(config)
    _check_name(lease.endpoint)
    hosting = config.hosting
    tags = lease.to_request(config)
    model = _model_request(config, lease=lease, place=place, tags=tags)
    told = _endpoint_config_request(config, hosting, model=model, lease=lease, place=place, tags=tags)
    one = replace(hosting, instance_count=1, max_instance_count=None, capture_percent=0)
    smoke = _endpoint_config_request(config, one, model=model, lease=lease, place=place, tags=tags)
    names = {"EndpointName": lease.endpoint, "EndpointConfigName": told["EndpointConfigName"]}
    alarms = alarm_requests(hosting, lease.endpoint)
    plan = EndpointPlan(
        lease,
        model=model,
        config=told,
        smoke_config=smoke,
        endpoint={**names, "Tags": tags},
        update={**names, **update_members(hosting, [each["AlarmName"] for each in alarms])},
        alarms=alarms,
        scaling=scaling_requests(hosting, lease.endpoint),
    )
    check("CreateModel", plan.model)
    check("CreateEndpointConfig", plan.config)
    check("CreateEndpointConfig", plan.smoke_config)
    check("CreateEndpoint", plan.endpoint)
    check("UpdateEndpoint", plan.update)
    return plan


def _model_request(
    config: ExperimentConfig, *, lease: Lease, place: Place, tags: list[dict[str, str]]
) -> dict[str, Any]:
    hosting, account = config.hosting, config.sagemaker
    kind = _SERVERLESS_INSTANCE if hosting.kind == "serverless" else hosting.instance_type
    image = hosting.image_uri or image_uri("inference", instance_type=kind, region=place.region)
    request: dict[str, Any] = {
        "PrimaryContainer": {
            "Image": image,
            "ModelDataUrl": place.archive_uri,
            # What the SDK sets for an archive that brings its code along.
            "Environment": {
                "SAGEMAKER_PROGRAM": "inference.py",
                "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
                "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
                "SAGEMAKER_REGION": place.region,
                # Else one a core, each with the whole model and all cores' threads.
                "SAGEMAKER_MODEL_SERVER_WORKERS": str(config.deploy.num_workers),
            },
        },
        "ExecutionRoleArn": place.role_arn,
    }
    if account.subnets:
        request["VpcConfig"] = {"Subnets": list(account.subnets), "SecurityGroupIds": list(account.security_group_ids)}
    return {"ModelName": _name(lease, request), **request, "Tags": tags}


def _endpoint_config_request(
    config: ExperimentConfig,
    hosting: HostingConfig,
    *,
    model: Mapping[str, Any],
    lease: Lease,
    place: Place,
    tags: list[dict[str, str]],
) -> dict[str, Any]:
    variant: dict[str, Any] = {"VariantName": VARIANT, "ModelName": model["ModelName"], "InitialVariantWeight": 1.0}
    request: dict[str, Any] = {"ProductionVariants": [variant]}
    if hosting.kind == "serverless":
        variant["ServerlessConfig"] = {
            "MemorySizeInMB": hosting.serverless_memory_mib,
            "MaxConcurrency": hosting.max_concurrency,
        }
        return {"EndpointConfigName": _name(lease, request), **request, "Tags": tags}
    variant |= {"InstanceType": hosting.instance_type, "InitialInstanceCount": hosting.instance_count}
    kms = config.sagemaker.kms_key_id
    if kms:
        request["KmsKeyId"] = kms
    if hosting.kind == "async":
        outputs = f"{place.output_uri}/async/{lease.endpoint}"
        output = {"S3OutputPath": f"{outputs}/answers", "S3FailurePath": f"{outputs}/failures"}
        request["AsyncInferenceConfig"] = {"OutputConfig": {**output, **({"KmsKeyId": kms} if kms else {})}}
    if hosting.capture_percent:
        request["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": hosting.capture_percent,
            "DestinationS3Uri": f"{place.output_uri}/capture",
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"], "CsvContentTypes": ["text/csv"]},
            **({"KmsKeyId": kms} if kms else {}),
        }
    return {"EndpointConfigName": _name(lease, request), **request, "Tags": tags}


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
        members["RetainAllVariantProperties"] = True
        members["ExcludeRetainedVariantProperties"] = [
            {"VariantPropertyType": "DesiredWeight"},
            {"VariantPropertyType": "DataCaptureConfig"},
        ]
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


def name_stem(endpoint: str) -> str:
    """What the names of an endpoint's configs and models begin with."""
    return endpoint[:_MAX_STEM].rstrip("-")


def endpoint_name(registered_model: str) -> str:
    """The endpoint's name where none is given: the registered model's, as SageMaker spells names."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", registered_model).strip("-")[:MAX_ENDPOINT_NAME].rstrip("-")


def _name(lease: Lease, request: Mapping[str, Any]) -> str:
    text = json.dumps([lease.endpoint, lease.run_id, request], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]
    return f"{name_stem(lease.endpoint)}-v{lease.version}-{digest}"


def _check_name(name: str) -> None:
    if not _ENDPOINT_NAME.fullmatch(name) or len(name) > MAX_ENDPOINT_NAME or name.endswith(SMOKE_SUFFIX):
        raise ConfigError(
            f"--endpoint must be letters, digits and inner hyphens, at most {MAX_ENDPOINT_NAME}, and not end with "
            f"{SMOKE_SUFFIX}, got {name!r}."
        )


def _check_hosting(config: ExperimentConfig) -> None:
    """What SageMaker refuses though each value is allowed."""
    hosting = config.hosting
    if hosting.kind != "realtime" and hosting.capture_percent:
        raise ConfigError(
            f"hosting.capture_percent must be 0 with hosting.kind {hosting.kind}: SageMaker captures only what "
            f"real-time endpoints answer, got {hosting.capture_percent}."
        )
    if hosting.kind == "serverless":
        for name, value in (
            ("hosting.max_instance_count", hosting.max_instance_count),
            ("sagemaker.subnets", config.sagemaker.subnets),
        ):
            if value:
                raise ConfigError(f"{name} must not be set with hosting.kind serverless, got {value!r}.")
