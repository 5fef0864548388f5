"""What a request about models, endpoint configs and endpoints must fulfil beyond its shape, and what is not done here.

All of it is pure; what AWS refuses is refused in AWS's words, what only the local SageMaker lacks is refused by name.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sagemaker_jobs.local.errors import ValidationException

ServingKind = Literal["handlers", "mlflow"]

_IMAGES: Mapping[str, ServingKind] = {"pytorch-inference": "handlers", "mlflow-pyfunc": "mlflow"}
"""A repository whose name holds the key is served so."""
_STEPS = {"CANARY": ("CanarySize", 1), "LINEAR": ("LinearStepSize", 10)}
"""What traffic is shifted by, and the least percentage of it."""
_MAX_STEP_PERCENT = 50
_SERVERLESS_MEMORY_STEP_MB = 1024
_LOCAL = "The local SageMaker does not support"


@dataclass(frozen=True)
class HostingSettings:
    """How patient and how large the endpoints of a server are."""

    ping_timeout_s: float = 240.0
    """Until a container answers /ping, where the variant has no ContainerStartupHealthCheckTimeoutInSeconds."""
    invocation_timeout_s: float = 60.0
    """Until a container answers an invocation, as SageMaker has it."""
    publish_interval_s: float = 1.0
    """Between two writes of metrics, log lines and captured data."""
    alarm_interval_s: float = 1.0
    """Between two looks at the alarms of a deployment under way."""
    idle_alarm_interval_s: float = 10.0
    """Between two looks at the alarms of an endpoint that is in service."""
    max_instances: int = 16
    """Serving processes at once; more are refused with ResourceLimitExceeded."""


def serving_kind(image: str) -> ServingKind:
    """How a container of this image is served; raises ValidationException for an image that is not known here."""
    repository = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    for name, kind in _IMAGES.items():
        if name in repository:
            return kind
    raise ValidationException(
        f"The local SageMaker cannot serve image {image}: the repository's name must hold one of {', '.join(_IMAGES)}."
    )


def the_container(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one container of a CreateModel request."""
    containers = params.get("Containers") or []
    if bool(containers) == ("PrimaryContainer" in params):
        raise ValidationException("Exactly one of PrimaryContainer and Containers must be specified.")
    if len(containers) > 1:
        raise ValidationException(f"{_LOCAL} inference pipelines: Containers must have one member.")
    container: Mapping[str, Any] = containers[0] if containers else params["PrimaryContainer"]
    return container


def check_model(params: Mapping[str, Any]) -> None:
    """Refuses a CreateModel request that could not be served."""
    container = the_container(params)
    _refuse(container, "PrimaryContainer", ("ModelPackageName", "AdditionalModelDataSources", "MultiModelConfig"))
    if container.get("Mode") == "MultiModel":
        raise ValidationException(f"{_LOCAL} multi-model endpoints: Mode must be SingleModel.")
    if "Image" not in container:
        raise ValidationException("PrimaryContainer must specify an Image.")
    if "ExecutionRoleArn" not in params:
        raise ValidationException("ExecutionRoleArn must be specified for a model that is to be hosted.")
    serving_kind(container["Image"])
    model_source(container)


def model_source(container: Mapping[str, Any]) -> tuple[str, bool]:
    """URI of the model's data and whether it is a tar archive (else a prefix)."""
    url, source = container.get("ModelDataUrl"), container.get("ModelDataSource")
    if (url is None) == (source is None):
        raise ValidationException("Exactly one of ModelDataUrl and ModelDataSource must be specified.")
    if url is not None:
        uri, is_archive = str(url), True
    else:
        s3 = (source or {}).get("S3DataSource") or {}
        kinds = (s3.get("S3DataType"), s3.get("CompressionType"))
        if kinds not in (("S3Object", "Gzip"), ("S3Prefix", "None")):
            raise ValidationException(
                f"{_LOCAL} ModelDataSource with S3DataType {kinds[0]} and CompressionType {kinds[1]}; "
                "use S3Object with Gzip, or S3Prefix with None."
            )
        uri, is_archive = str(s3["S3Uri"]), kinds[1] == "Gzip"
    if not uri.startswith("s3://"):
        raise ValidationException(f"{_LOCAL} model data at {uri}; it must be at s3://BUCKET/KEY.")
    return uri, is_archive


def check_endpoint_config(params: Mapping[str, Any], model_names: Sequence[str]) -> None:
    """Refuses a CreateEndpointConfig request; `model_names` are the models there are."""
    _refuse(params, "", ("ExplainerConfig", "ShadowProductionVariants"))
    names = [variant["VariantName"] for variant in params["ProductionVariants"]]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValidationException(f"Variant names must be unique within an endpoint config, got {repeated[0]} twice.")
    for variant in params["ProductionVariants"]:
        _refuse(variant, "ProductionVariants", ("InstancePools",))
        instance = () if "ServerlessConfig" in variant else ("InstanceType", "InitialInstanceCount")
        for member in ("ModelName", *instance):
            if member not in variant:
                raise ValidationException(f"ProductionVariants must specify {member}.")
        if variant["ModelName"] not in model_names:
            raise ValidationException(f'Could not find model "{variant["ModelName"]}".')
    if sum(variant_weight(variant) for variant in params["ProductionVariants"]) == 0:
        raise ValidationException("At least one production variant must have a weight above 0.")
    _check_serverless(params)
    _check_async(params)
    capture = params.get("DataCaptureConfig")
    if capture and not capture["DestinationS3Uri"].startswith("s3://"):
        raise ValidationException(f"{_LOCAL} data capture to {capture['DestinationS3Uri']}; it must be s3://BUCKET.")


def _check_serverless(params: Mapping[str, Any]) -> None:
    variants = [variant for variant in params["ProductionVariants"] if "ServerlessConfig" in variant]
    for variant in variants:
        _refuse(variant["ServerlessConfig"], "ServerlessConfig", ("ProvisionedConcurrency",))
        given = [member for member in ("InstanceType", "InitialInstanceCount") if member in variant]
        if given:
            raise ValidationException(f"A variant has ServerlessConfig or {' and '.join(given)}, not both.")
        memory = variant["ServerlessConfig"]["MemorySizeInMB"]
        if memory % _SERVERLESS_MEMORY_STEP_MB:
            raise ValidationException(
                f"ServerlessConfig.MemorySizeInMB must be a multiple of {_SERVERLESS_MEMORY_STEP_MB}, got {memory}."
            )
    if variants and len(params["ProductionVariants"]) > 1:
        raise ValidationException("A serverless endpoint has one production variant.")
    for member in ("DataCaptureConfig", "AsyncInferenceConfig"):
        if variants and member in params:
            raise ValidationException(f"{member} is not supported for serverless endpoints.")


def _check_async(params: Mapping[str, Any]) -> None:
    if "AsyncInferenceConfig" not in params:
        return
    output = params["AsyncInferenceConfig"]["OutputConfig"]
    _refuse(output, "AsyncInferenceConfig.OutputConfig", ("NotificationConfig",))
    if "S3OutputPath" not in output:
        raise ValidationException("AsyncInferenceConfig.OutputConfig must specify S3OutputPath.")
    for member in ("S3OutputPath", "S3FailurePath"):
        if not output.get(member, "s3://").startswith("s3://"):
            raise ValidationException(f"{_LOCAL} {member} {output[member]}; it must be s3://BUCKET/PREFIX.")


def variant_weight(variant: Mapping[str, Any]) -> float:
    return float(variant.get("InitialVariantWeight", 1.0))


def check_update(config: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuses an endpoint config of another kind than the current one's.

    That a real-time endpoint becomes no serverless one is in AWS's guide, and that no asynchronous one becomes another
    kind in its answers; of the other changes nothing is known.
    """
    before, after = _kind(current), _kind(config)
    if before != after:
        raise ValidationException(f"A {before} endpoint cannot be updated to a {after} one.")


def _kind(config: Mapping[str, Any]) -> str:
    if "AsyncInferenceConfig" in config:
        return "asynchronous"
    is_serverless = any("ServerlessConfig" in variant for variant in config["ProductionVariants"])
    return "serverless" if is_serverless else "real-time"


def check_deployment(deployment: Mapping[str, Any], num_instances: int) -> None:
    """Refuses a DeploymentConfig; `num_instances` are those of the fleet that it brings up."""
    _refuse(deployment, "DeploymentConfig", ("RollingUpdatePolicy",))
    routing = deployment.get("BlueGreenUpdatePolicy", {}).get("TrafficRoutingConfiguration", {})
    kind = routing.get("Type")
    if kind not in _STEPS:
        return
    member, low = _STEPS[kind]
    if member not in routing:
        raise ValidationException(f"{member} must be specified for TrafficRoutingConfiguration of type {kind}.")
    size = routing[member]
    percent = _share(size, num_instances) * 100
    if size["Type"] == "CAPACITY_PERCENT" and not low <= percent <= _MAX_STEP_PERCENT:
        raise ValidationException(
            f"{member} must be at least {low} and at most {_MAX_STEP_PERCENT} percent, got {size['Value']}."
        )
    if size["Type"] == "INSTANCE_COUNT" and size["Value"] >= num_instances:
        raise ValidationException(
            f"{member} must be below the {num_instances} instances of the endpoint, got {size['Value']}."
        )


def traffic_shares(routing: Mapping[str, Any], num_instances: int) -> list[float]:
    """Shares in (0, 1] of the traffic that go to the new fleet, one after the other; the last is 1."""
    kind = routing.get("Type")
    if kind not in _STEPS:
        return [1.0]
    share = _share(routing[_STEPS[kind][0]], num_instances)
    if kind == "CANARY":
        return [share, 1.0]
    # 1/3 three times is not 1, and no step of its own.
    num_steps = math.ceil(1 / share - 1e-9)
    return [*(share * step for step in range(1, num_steps)), 1.0]


def _share(size: Mapping[str, Any], num_instances: int) -> float:
    return float(size["Value"]) / (100 if size["Type"] == "CAPACITY_PERCENT" else num_instances)


def num_instances(config: Mapping[str, Any]) -> int:
    """Of all variants of an endpoint config; a serverless one is served by one process."""
    return sum(int(variant.get("InitialInstanceCount", 1)) for variant in config["ProductionVariants"])


def rescaled(config: Mapping[str, Any], desired: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The endpoint config with DesiredWeightsAndCapacities of UpdateEndpointWeightsAndCapacities."""
    changes = {each["VariantName"]: each for each in desired}
    names = [variant["VariantName"] for variant in config["ProductionVariants"]]
    if unknown := sorted(set(changes) - set(names)):
        raise ValidationException(f"The endpoint has no variants {', '.join(unknown)}; it has {', '.join(names)}.")
    variants = [_rescaled(variant, changes.get(variant["VariantName"], {})) for variant in config["ProductionVariants"]]
    if sum(variant_weight(variant) for variant in variants) == 0:
        raise ValidationException("At least one production variant must have a weight above 0.")
    return {**config, "ProductionVariants": variants}


def _rescaled(variant: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(variant)
    if "DesiredWeight" in change:
        result["InitialVariantWeight"] = float(change["DesiredWeight"])
    if "DesiredInstanceCount" in change:
        if "ServerlessConfig" in variant or change["DesiredInstanceCount"] < 1:
            raise ValidationException(
                f"DesiredInstanceCount of variant {variant['VariantName']} must be at least 1, and is not for "
                "serverless variants."
            )
        result["InitialInstanceCount"] = change["DesiredInstanceCount"]
    if "ServerlessUpdateConfig" in change:
        if "ServerlessConfig" not in variant:
            raise ValidationException(f"Variant {variant['VariantName']} is not serverless.")
        _refuse(change["ServerlessUpdateConfig"], "ServerlessUpdateConfig", ("ProvisionedConcurrency",))
        result["ServerlessConfig"] = {**variant["ServerlessConfig"], **change["ServerlessUpdateConfig"]}
    return result


def retained(config: Mapping[str, Any], current: Mapping[str, Any], *, excluded: Sequence[str]) -> dict[str, Any]:
    """The endpoint config with what RetainAllVariantProperties keeps of the current one.

    `excluded` are VariantPropertyTypes.
    """
    before = {variant["VariantName"]: variant for variant in current["ProductionVariants"]}
    kept = {"DesiredInstanceCount": "InitialInstanceCount", "DesiredWeight": "InitialVariantWeight"}
    members = [member for kind, member in kept.items() if kind not in excluded]
    variants = []
    for variant in config["ProductionVariants"]:
        old = before.get(variant["VariantName"], {})
        variants.append({**variant, **{member: old[member] for member in members if member in old}})
    result = {**config, "ProductionVariants": variants}
    if "DataCaptureConfig" in current and "DataCaptureConfig" not in excluded:
        result["DataCaptureConfig"] = current["DataCaptureConfig"]
    return result


def _refuse(params: Mapping[str, Any], path: str, members: Sequence[str]) -> None:
    for member in members:
        if params.get(member):
            raise ValidationException(f"{_LOCAL} {f'{path}.' if path else ''}{member}.")
