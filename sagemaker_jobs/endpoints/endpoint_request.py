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
from sagemaker_jobs.endpoints.guard_requests import VARIANT, alarm_requests, scaling_requests, update_members
from sagemaker_jobs.endpoints.leases import Lease
from sagemaker_jobs.images import image_uri

SMOKE_SUFFIX: Final = "-smoke"
MAX_ENDPOINT_NAME: Final = 63 - len(SMOKE_SUFFIX)
_MAX_STEM: Final = 40
_DIGEST_LENGTH: Final = 8
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


def hosting_image(hosting: HostingConfig, *, region: str) -> str:
    """The user's, else AWS's newest of the region."""
    kind = _SERVERLESS_INSTANCE if hosting.kind == "serverless" else hosting.instance_type
    return hosting.image_uri or image_uri("inference", instance_type=kind, region=region)


def _model_request(
    config: ExperimentConfig, *, lease: Lease, place: Place, tags: list[dict[str, str]]
) -> dict[str, Any]:
    hosting, account = config.hosting, config.sagemaker
    request: dict[str, Any] = {
        "PrimaryContainer": {
            "Image": hosting_image(hosting, region=place.region),
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
