"""What a CreateTrainingJob request asks for, checked beyond its shapes, as one plan.

Everything that the local SageMaker does not do is refused here, by name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from sagemaker_jobs.local.errors import ResourceLimitExceeded, ValidationException
from sagemaker_jobs.local.joblog import compile_metrics

MAX_HOSTS = 16
DEFAULT_MAX_RUNTIME_S = 86_400
DEFAULT_CHECKPOINT_PATH = "/opt/ml/checkpoints"
PROFILING_INTERVALS_MS = (100, 200, 500, 1000, 5000, 60_000)
_IMAGE = re.compile(r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/[\w./-]+([:@][\w.:-]+)?")
_UNSUPPORTED = ("ServerlessJobConfig", "ModelPackageConfig", "MlflowConfig", "SessionChainingConfig")
_PROGRAM = "sagemaker_program"
_SUBMIT_DIRECTORY = "sagemaker_submit_directory"


@dataclass(frozen=True)
class TrainingPlan:
    """A request that can be run."""

    name: str
    params: Mapping[str, Any]
    entrypoint: tuple[str, ...]
    """ContainerEntrypoint and ContainerArguments; empty where `program` says what runs."""
    program: str
    submit_directory: str
    has_torchrun: bool
    metrics: Mapping[str, "regex.Pattern[str]"]
    max_runtime_s: float
    max_wait_s: float | None
    """None but for managed spot training."""

    @property
    def channels(self) -> Sequence[Mapping[str, Any]]:
        return list(self.params.get("InputDataConfig", ()))

    @property
    def hyperparameters(self) -> Mapping[str, str]:
        return dict(self.params.get("HyperParameters", {}))

    @property
    def output_uri(self) -> str:
        """s3://bucket/prefix/JOB/output"""
        return f"{self.params['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.name}/output"

    @property
    def is_compressed(self) -> bool:
        return bool(self.params["OutputDataConfig"].get("CompressionType", "GZIP") == "GZIP")

    @property
    def model_uri(self) -> str:
        """What ModelArtifacts names."""
        return f"{self.output_uri}/model.tar.gz" if self.is_compressed else f"{self.output_uri}/model/"

    @property
    def checkpoints(self) -> tuple[str, str] | None:
        """(S3 URI, path in the container)."""
        config = self.params.get("CheckpointConfig")
        return (config["S3Uri"], config.get("LocalPath", DEFAULT_CHECKPOINT_PATH)) if config else None


def plan_training(params: Mapping[str, Any]) -> TrainingPlan:
    """Raises ValidationException and ResourceLimitExceeded."""
    for member in _UNSUPPORTED:
        if member in params:
            raise _unsupported(member)
    specification = params.get("AlgorithmSpecification")
    if not specification:
        raise ValidationException("AlgorithmSpecification is required.")
    _check_image(specification)
    _check_channels(params.get("InputDataConfig", ()), specification["TrainingInputMode"])
    _check_resources(params.get("ResourceConfig"))
    _check_uri(params["OutputDataConfig"]["S3OutputPath"], "outputDataConfig.s3OutputPath")
    check_profiler(params)
    max_runtime_s, max_wait_s = _stopping(params)
    _check_checkpoints(params.get("CheckpointConfig"))
    hyperparameters = params.get("HyperParameters", {})
    entrypoint = [*specification.get("ContainerEntrypoint", ()), *specification.get("ContainerArguments", ())]
    program, directory = _text(hyperparameters, _PROGRAM), _text(hyperparameters, _SUBMIT_DIRECTORY)
    if not specification.get("ContainerEntrypoint") and not (program and directory):
        raise ValidationException(
            "The local SageMaker runs no image: AlgorithmSpecification.ContainerEntrypoint must say what runs, or the "
            f"hyperparameters {_PROGRAM} and {_SUBMIT_DIRECTORY}."
        )
    return TrainingPlan(
        name=params["TrainingJobName"],
        params=params,
        entrypoint=tuple(entrypoint) if specification.get("ContainerEntrypoint") else (),
        program=program,
        submit_directory=directory,
        has_torchrun=_text(hyperparameters, "sagemaker_torch_distributed_enabled").lower() == "true",
        metrics=compile_metrics(specification.get("MetricDefinitions", ())),
        max_runtime_s=max_runtime_s,
        max_wait_s=max_wait_s,
    )


def check_profiler(params: Mapping[str, Any]) -> None:
    """Of a request to create or to update a job; raises ValidationException."""
    profiler, rules = params.get("ProfilerConfig", {}), params.get("ProfilerRuleConfigurations", ())
    for config, where in ((profiler, "profilerConfig"), *((rule, "profilerRuleConfigurations") for rule in rules)):
        if "S3OutputPath" in config:
            _check_uri(config["S3OutputPath"], f"{where}.s3OutputPath")
    interval_ms = profiler.get("ProfilingIntervalInMilliseconds", PROFILING_INTERVALS_MS[0])
    if interval_ms not in PROFILING_INTERVALS_MS:
        allowed = ", ".join(map(str, PROFILING_INTERVALS_MS))
        raise ValidationException(f"ProfilingIntervalInMilliseconds must be one of {allowed}, got {interval_ms}.")


def _check_image(specification: Mapping[str, Any]) -> None:
    if "AlgorithmName" in specification:
        raise _unsupported("AlgorithmSpecification.AlgorithmName")
    if specification["TrainingInputMode"] == "Pipe":
        raise _unsupported("TrainingInputMode Pipe")
    image = specification.get("TrainingImage")
    if not image:
        raise ValidationException("AlgorithmSpecification must contain either TrainingImage or AlgorithmName.")
    if not _IMAGE.fullmatch(image):
        raise ValidationException(
            f"Invalid image URI {image}: it must be ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG (it is not fetched)."
        )


def _check_channels(channels: Sequence[Mapping[str, Any]], default_mode: str) -> None:
    names = [channel["ChannelName"] for channel in channels]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValidationException(f"InputDataConfig has the channel names {twice} more than once.")
    for channel in channels:
        name = channel["ChannelName"]
        source = channel["DataSource"].get("S3DataSource")
        if source is None or set(channel["DataSource"]) - {"S3DataSource"}:
            raise _unsupported(f"channel {name}: a data source that is not S3DataSource")
        if source["S3DataType"] not in ("S3Prefix", "ManifestFile"):
            raise _unsupported(f"channel {name}: S3DataType {source['S3DataType']}")
        if channel.get("InputMode", default_mode) == "Pipe":
            raise _unsupported(f"channel {name}: InputMode Pipe")
        for member, allowed in (("CompressionType", "None"), ("RecordWrapperType", "None")):
            if channel.get(member, allowed) != allowed:
                raise _unsupported(f"channel {name}: {member} {channel[member]}")
        _check_uri(source["S3Uri"], f"channel {name}")


def _check_resources(resources: Mapping[str, Any] | None) -> None:
    if not resources:
        raise ValidationException("ResourceConfig is required.")
    groups = resources.get("InstanceGroups")
    if not groups and not (resources.get("InstanceType") and resources.get("InstanceCount")):
        raise ValidationException("ResourceConfig needs InstanceType and an InstanceCount of at least 1.")
    count = sum(group["InstanceCount"] for group in groups) if groups else resources["InstanceCount"]
    if count > MAX_HOSTS:
        raise ResourceLimitExceeded(
            f"The account-level service limit 'instances for training job usage' is {MAX_HOSTS} Instances, with "
            f"current utilization of 0 Instances and a request delta of {count} Instances."
        )


def _stopping(params: Mapping[str, Any]) -> tuple[float, float | None]:
    condition = params.get("StoppingCondition", {})
    runtime_s = condition.get("MaxRuntimeInSeconds", DEFAULT_MAX_RUNTIME_S)
    wait_s = condition.get("MaxWaitTimeInSeconds")
    if not params.get("EnableManagedSpotTraining"):
        if wait_s is not None:
            raise ValidationException("MaxWaitTimeInSeconds can be set only where EnableManagedSpotTraining is true.")
        return runtime_s, None
    if wait_s is None or wait_s < runtime_s:
        raise ValidationException(
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds."
        )
    return runtime_s, wait_s


def _check_checkpoints(config: Mapping[str, Any] | None) -> None:
    if not config:
        return
    _check_uri(config["S3Uri"], "checkpointConfig.s3Uri")
    path = config.get("LocalPath", DEFAULT_CHECKPOINT_PATH)
    if not re.match(r"/opt/ml/[^/]", path) or ".." in path.split("/"):
        raise _unsupported(f"CheckpointConfig.LocalPath {path}, which does not lie below /opt/ml,")


def _check_uri(uri: str, where: str) -> None:
    if not uri.startswith("s3://"):
        raise ValidationException(f"{where} must be an s3:// URI, got {uri}.")


def _text(hyperparameters: Mapping[str, str], name: str) -> str:
    """A hyperparameter's text; SDK v2 sends it JSON-encoded, SDK v3 plain."""
    value = hyperparameters.get(name, "")
    if value[:1] != '"':
        return value
    try:
        return str(json.loads(value))
    except ValueError as error:
        raise ValidationException(f"HyperParameters.{name} is no JSON text: {value}") from error


def _unsupported(what: str) -> ValidationException:
    return ValidationException(f"{what} is not supported by the local SageMaker.")
