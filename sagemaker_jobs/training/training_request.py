"""CreateTrainingJob, built from the config: pure, so that a dry run shows what would be sent."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.config import ExperimentConfig, flatten
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.ruleparameters import TENSOR_RULES, rule_collections
from sagemaker_jobs.client import check
from sagemaker_jobs.images import debugger_image_uri, image_uri, num_gpus
from sagemaker_jobs.training.jobinputs import JobInputs
from sagemaker_jobs.training.metrics import metric_definitions

logger = logging.getLogger(__name__)

MAX_HYPERPARAMETERS: Final = 100
MAX_HYPERPARAMETER_CHARACTERS: Final = 2500
MAX_TAGS: Final = 50

PROGRAM: Final = "train.py"
"""Of the source archive."""

TENSORS_PATH: Final = "/opt/ml/output/tensors"
"""Where SageMaker takes a job's tensors from; it is its own default."""

_SHOWN_SECTIONS = ("train.", "model.")
# model.weights is a path of this machine; the job has its weights from a channel.
_HIDDEN = ("model.weights",)
_PROFILING_INTERVALS_MS = (100, 200, 500, 1000, 5000, 60000)
# AWS refuses VolumeKmsKeyId for these: families of accelerators by name, others by the d of their NVMe disks.
_LOCAL_STORAGE = re.compile(
    r"ml\.(g4dn|g4ad|g[5-9]e?|gr6|p3dn|p4de?|p[5-9](e|en)?|trn[12]n?|dl1|i\d\w*|[a-z]+\d[a-z]*d[a-z]*)[.-].*"
)
_TAG_REFUSED = re.compile(r"[^\w\s.:/=+\-@]")


def training_job_request(
    config: ExperimentConfig,
    *,
    name: str,
    inputs: JobInputs,
    role_arn: str,
    region: str,
    tags: Mapping[str, str] | None = None,
    batch_sizes: Sequence[int] = (),
) -> dict[str, Any]:
    """The request for one training of this config; raises ConfigError where SageMaker would refuse it, or instances
    would be paid for that wait in vain or fail. `batch_sizes` are those of a search's trials, in place of the config's.
    """
    wanted = config.sagemaker
    _check_batch_sizes(batch_sizes or [config.train.batch_size], wanted, region=region)
    if wanted.instance_count > 1 and config.profile.stop_on:
        raise ConfigError(
            f"profile.stop_on must be empty with sagemaker.instance_count {wanted.instance_count}: a rule stops the "
            f"training on its own instance, and the others wait for it; got {list(config.profile.stop_on)}."
        )
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": role_arn,
        "AlgorithmSpecification": algorithm_specification(config, region=region),
        "HyperParameters": {**script_hyperparameters(config, inputs), **shown_hyperparameters(config)},
        "InputDataConfig": [dict(each) for each in inputs.channels],
        **shared_members(config, inputs),
        "Environment": {**wanted.environment, **inputs.environment},
        "Tags": request_tags(config, tags or {}),
    }
    if wanted.spot:
        request["CheckpointConfig"] = {"S3Uri": f"{inputs.output_uri}/{name}/checkpoints"}
    if config.profile.sagemaker_rules:
        request |= profiler_members(config, region=region, output_uri=inputs.output_uri)
        if config.profile.debugger:
            request |= debugger_members(config, region=region, output_uri=inputs.output_uri)
    check_hyperparameters(request["HyperParameters"])
    check("CreateTrainingJob", request)
    return request


def warn_of_instances(config: ExperimentConfig, *, region: str) -> None:
    """Of what the instances of a request will not do."""
    wanted = config.sagemaker
    if wanted.kms_key_id and _LOCAL_STORAGE.fullmatch(wanted.instance_type):
        logger.warning(
            "%s encrypts its own disks in hardware and takes no key for them; sagemaker.kms_key_id is for the rest",
            wanted.instance_type,
        )
    here = num_gpus(wanted.instance_type, region=region)
    if here > 1 and wanted.instance_count == 1:
        logger.warning(
            "%s has %d GPUs, and a training on one instance uses one of them; take an instance with one GPU, or "
            "several of those (sagemaker.instance_count)",
            *(wanted.instance_type, here),
        )


def algorithm_specification(config: ExperimentConfig, *, region: str) -> dict[str, Any]:
    image = training_image(config, region=region)
    return {"TrainingImage": image, "TrainingInputMode": "File", "MetricDefinitions": metric_definitions()}


def training_image(config: ExperimentConfig, *, region: str) -> str:
    """The user's, else AWS's newest of the region."""
    wanted = config.sagemaker
    return wanted.image_uri or image_uri("training", instance_type=wanted.instance_type, region=region)


def script_hyperparameters(config: ExperimentConfig, inputs: JobInputs) -> dict[str, str]:
    """Those that SageMaker's training toolkit reads: what runs, and whether torchrun starts it."""
    values = {"sagemaker_program": PROGRAM, "sagemaker_submit_directory": inputs.source_uri}
    if config.sagemaker.instance_count > 1:
        values["sagemaker_torch_distributed_enabled"] = "true"
        values["sagemaker_instance_type"] = config.sagemaker.instance_type
    return values


def shown_hyperparameters(config: ExperimentConfig) -> dict[str, str]:
    """The training's own values, for the console; the job's config is in the source archive, whole.

    A null is left out: the training toolkit hands it on as an empty text.
    """
    return {
        name: render_hyperparameter(value)
        for name, value in flatten(config).items()
        if name.startswith(_SHOWN_SECTIONS) and name not in _HIDDEN and value is not None
    }


def render_hyperparameter(value: Any) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def shared_members(config: ExperimentConfig, inputs: JobInputs) -> dict[str, Any]:
    """Members that a training job's request and a tuning job's definition have in common: resources and network."""
    wanted = config.sagemaker
    resources: dict[str, Any] = {
        "InstanceType": wanted.instance_type,
        "InstanceCount": wanted.instance_count,
        "VolumeSizeInGB": wanted.volume_gib,
    }
    output: dict[str, Any] = {"S3OutputPath": inputs.output_uri}
    stopping: dict[str, Any] = {"MaxRuntimeInSeconds": wanted.max_runtime_s}
    if wanted.keep_alive_s:
        resources["KeepAlivePeriodInSeconds"] = wanted.keep_alive_s
    if wanted.kms_key_id:
        output["KmsKeyId"] = wanted.kms_key_id
        if not _LOCAL_STORAGE.fullmatch(wanted.instance_type):
            resources["VolumeKmsKeyId"] = wanted.kms_key_id
    if wanted.spot:
        stopping["MaxWaitTimeInSeconds"] = wanted.max_wait_s or 2 * wanted.max_runtime_s
    members: dict[str, Any] = {
        "OutputDataConfig": output,
        "ResourceConfig": resources,
        "StoppingCondition": stopping,
        "EnableManagedSpotTraining": wanted.spot,
        "EnableInterContainerTrafficEncryption": wanted.encrypt_traffic,
    }
    if wanted.subnets:
        members["VpcConfig"] = {"Subnets": list(wanted.subnets), "SecurityGroupIds": list(wanted.security_group_ids)}
    return members


def profiler_members(config: ExperimentConfig, *, region: str, output_uri: str) -> dict[str, Any]:
    """ProfilerConfig, and SageMaker's rules: ProfilerReport and each profiler rule of its own."""
    from smdebug_rulesconfig.profiler_rules import rules

    image = debugger_image_uri(region)
    report = rules.ProfilerReport(**config.profile.profiler_rules)
    # LoadBalancing judges several GPUs, and says so itself where there is one.
    others = [kind() for kind in rules.ProfilerRuleBase.__subclasses__() if kind is not rules.ProfilerReport]
    configured = [
        {
            "RuleConfigurationName": each.rule_name,
            "RuleEvaluatorImage": image,
            "RuleParameters": {key: str(value) for key, value in each.rule_parameters.items()},
        }
        for each in (report, *others)
    ]
    fitting = [each for each in _PROFILING_INTERVALS_MS if each >= config.profile.interval_ms]
    profiler = {
        "S3OutputPath": output_uri,
        "ProfilingIntervalInMilliseconds": fitting[0] if fitting else _PROFILING_INTERVALS_MS[-1],
    }
    return {"ProfilerConfig": profiler, "ProfilerRuleConfigurations": configured}


def debugger_members(config: ExperimentConfig, *, region: str, output_uri: str) -> dict[str, Any]:
    """DebugHookConfig, and SageMaker's tensor rules over what our hook saves: those that we judge ourselves too."""
    image = debugger_image_uri(region)
    collections: dict[str, dict[str, str]] = {}
    configured = []
    for rule in TENSOR_RULES:
        parameters = config.profile.tensor_rules.get(rule, {})
        configured.append(
            {
                "RuleConfigurationName": rule,
                "RuleEvaluatorImage": image,
                "RuleParameters": {"rule_to_invoke": rule} | {key: str(value) for key, value in parameters.items()},
            }
        )
        for name, regex in rule_collections(rule).items():
            collections[name] = {"save_interval": str(config.profile.save_interval)}
            if regex is not None:
                collections[name]["include_regex"] = regex
    hook = {
        "S3OutputPath": output_uri,
        "LocalPath": TENSORS_PATH,
        "CollectionConfigurations": [
            {"CollectionName": name, "CollectionParameters": given} for name, given in collections.items()
        ],
    }
    return {"DebugHookConfig": hook, "DebugRuleConfigurations": configured}


def request_tags(config: ExperimentConfig, own: Mapping[str, str]) -> list[dict[str, str]]:
    """The config's tags and ours; characters that AWS refuses in a value become underscores."""
    tags = {**config.sagemaker.tags, "dogbreed:experiment": config.name, **own}
    if len(tags) > MAX_TAGS:
        raise ConfigError(f"sagemaker.tags must leave room for ours: AWS takes {MAX_TAGS} tags, got {len(tags)}.")
    return [{"Key": key, "Value": _TAG_REFUSED.sub("_", value)[:256]} for key, value in tags.items()]


def _check_batch_sizes(batch_sizes: Sequence[int], wanted: SagemakerConfig, *, region: str) -> None:
    if wanted.instance_count == 1:
        return
    # torchrun starts a process for each GPU, or one on a machine without.
    num_processes = wanted.instance_count * max(1, num_gpus(wanted.instance_type, region=region))
    if uneven := [size for size in batch_sizes if size % num_processes]:
        raise ConfigError(
            f"train.batch_size must be a multiple of the {num_processes} processes that share each batch on "
            f"{wanted.instance_count} x {wanted.instance_type}, got {', '.join(map(str, uneven[:5]))}."
        )


def check_hyperparameters(values: Mapping[str, str]) -> None:
    """SageMaker's limits, which botocore's model does not hold all; raises ConfigError."""
    if len(values) > MAX_HYPERPARAMETERS:
        raise ConfigError(
            f"A SageMaker job takes at most {MAX_HYPERPARAMETERS} hyperparameters, got {len(values)}; leave some "
            "fields at their defaults."
        )
    for name, value in values.items():
        if len(value) > MAX_HYPERPARAMETER_CHARACTERS:
            raise ConfigError(
                f"{name} must be at most {MAX_HYPERPARAMETER_CHARACTERS} characters as a hyperparameter of a SageMaker "
                f"job, got {len(value)}."
            )
