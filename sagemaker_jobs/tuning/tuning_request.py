"""CreateHyperParameterTuningJob's request: the search of the config in SageMaker's terms; nothing is sent here."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dogbreed_ml.config import Dimension, ExperimentConfig, FloatDimension, IntDimension, SearchConfig
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.samplers import grid_values
from sagemaker_jobs.client import check
from sagemaker_jobs.job.environment import RECORD_HYPERPARAMETERS
from sagemaker_jobs.training.metrics import OBJECTIVE_METRIC, objective_definition
from sagemaker_jobs.training.training_request import render_hyperparameter

MAX_RANGES, MAX_CHOICES, MAX_JOBS, MAX_PARALLEL_JOBS, MIN_RUNTIME_S, MAX_PARENTS = 30, 30, 750, 100, 120, 5
"""SageMaker's limits: of botocore's model, and of the documentation of quotas."""

Strategy = Literal["Bayesian", "Random", "Grid", "Hyperband"]
WarmStartType = Literal["IdenticalDataAndAlgorithm", "TransferLearning"]

# What a job of a tuning job has no place for: SageMaker names, tags and profiles those jobs itself.
_LEFT_OUT = (
    "TrainingJobName",
    "Tags",
    "HyperParameters",
    "ProfilerConfig",
    "ProfilerRuleConfigurations",
    "DebugHookConfig",
    "DebugRuleConfigurations",
    "TensorBoardOutputConfig",
    "ExperimentConfig",
)
_STRATEGIES: dict[str, Strategy] = {"tpe": "Bayesian", "gp": "Bayesian", "random": "Random", "grid": "Grid"}
_OF_EACH_JOB = ("sagemaker_submit_directory", *RECORD_HYPERPARAMETERS.values())
"""The archive holds the config too, so it differs where num_trials does."""
_FIXED_AFTER_WARM_START = {
    "Environment": "sagemaker.environment",
    "EnableNetworkIsolation": "network isolation",
    "EnableInterContainerTrafficEncryption": "sagemaker.encrypt_traffic",
    "RetryStrategy": "the retry strategy",
}
"""Members of TrainingJobDefinition that SageMaker lets no warm start change, and what sets them."""


def tuning_job_request(
    config: ExperimentConfig,
    *,
    name: str,
    training: Mapping[str, Any],
    parents: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The request; `training` is the CreateTrainingJob request of one job with the config's own values.

    `parents` are the descriptions of the tuning jobs to start from. Raises ConfigError where SageMaker's tuner cannot
    do what config.search asks for.
    """
    definition = {key: value for key, value in training.items() if key not in _LEFT_OUT}
    static = {key: value for key, value in training["HyperParameters"].items() if key not in config.search.space}
    algorithm = dict(definition["AlgorithmSpecification"])
    algorithm["MetricDefinitions"] = [
        *algorithm.get("MetricDefinitions", []),
        objective_definition(config.search.metric),
    ]
    environment = dict(definition.pop("Environment", {}))
    # Always all of them: a tuning job may start from another only where both have the same hyperparameters.
    static |= {name: environment.pop(variable, "") for variable, name in RECORD_HYPERPARAMETERS.items()}
    definition |= {"AlgorithmSpecification": algorithm, "StaticHyperParameters": static}
    if environment:
        definition["Environment"] = environment
    request: dict[str, Any] = {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": _job_config(config),
        "TrainingJobDefinition": definition,
    }
    if training.get("Tags"):
        request["Tags"] = list(training["Tags"])
    if parents:
        request["WarmStartConfig"] = warm_start_config(config.search, request, parents)
    check("CreateHyperParameterTuningJob", request)
    return request


def build_ranges(search: SearchConfig) -> dict[str, list[dict[str, Any]]]:
    """ParameterRanges; a dimension with a step becomes the list of its values, for SageMaker's ranges have none."""
    if len(search.space) > MAX_RANGES:
        raise ConfigError(
            f"SageMaker searches at most {MAX_RANGES} hyperparameters, search.space has {len(search.space)}."
        )
    ranges: dict[str, list[dict[str, Any]]] = {}
    for name, dimension in search.space.items():
        kind, given = _range(name, dimension, is_grid=search.sampler == "grid")
        ranges.setdefault(kind, []).append({"Name": name, **given})
    return ranges


def warm_start_config(
    search: SearchConfig, request: Mapping[str, Any], parents: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """WarmStartConfig for the request from its parents' descriptions; ConfigError where SageMaker would refuse one.

    IdenticalDataAndAlgorithm where image, inputs and static hyperparameters are those of all parents, whatever the
    ranges; else TransferLearning.
    """
    if request["HyperParameterTuningJobConfig"]["Strategy"] not in ("Bayesian", "Random"):
        raise ConfigError(
            "SageMaker starts from earlier tuning jobs in the Bayesian and the Random strategy only: search.sampler "
            f"must be tpe, gp or random and search.pruner not hyperband, got {search.sampler} and {search.pruner}."
        )
    if len(parents) > MAX_PARENTS:
        raise ConfigError(f"--warm-start may name at most {MAX_PARENTS} tuning jobs, got {len(parents)}.")
    for parent in parents:
        _check_parent(request, parent)
    kind: WarmStartType = "TransferLearning"
    if all(_has_same_task(request, parent) for parent in parents):
        kind = "IdenticalDataAndAlgorithm"
    names = [{"HyperParameterTuningJobName": parent["HyperParameterTuningJobName"]} for parent in parents]
    return {"ParentHyperParameterTuningJobs": names, "WarmStartType": kind}


def _job_config(config: ExperimentConfig) -> dict[str, Any]:
    search = config.search
    strategy = _strategy(search)
    given: dict[str, Any] = {
        "Strategy": strategy,
        "HyperParameterTuningJobObjective": {
            "Type": "Maximize" if search.direction == "maximize" else "Minimize",
            "MetricName": OBJECTIVE_METRIC,
        },
        "ResourceLimits": _limits(search),
        "ParameterRanges": build_ranges(search),
        "TrainingJobEarlyStoppingType": "Auto" if search.pruner == "median" else "Off",
        "RandomSeed": search.seed,
    }
    if strategy == "Hyperband":
        # One more than the epochs: the last line of a job counts as a resource too.
        most = {"MinResource": 1, "MaxResource": most_epochs(config) + 1}
        given["StrategyConfig"] = {"HyperbandStrategyConfig": most}
    return given


def _strategy(search: SearchConfig) -> Strategy:
    if search.pruner != "hyperband":
        return _STRATEGIES[search.sampler]
    if search.sampler == "grid":
        raise ConfigError("SageMaker's Hyperband draws its values itself: search.sampler must not be grid with it.")
    return "Hyperband"


def most_epochs(config: ExperimentConfig) -> int:
    """The epochs of the longest trial."""
    dimension = config.search.space.get("train.num_epochs")
    if dimension is None:
        return config.train.num_epochs
    return max(value for value in grid_values(dimension) if isinstance(value, int))


def _limits(search: SearchConfig) -> dict[str, int]:
    num_jobs = search.num_trials
    if search.sampler == "grid":
        num_jobs = math.prod(len(grid_values(dimension)) for dimension in search.space.values())
        if search.num_trials < num_jobs:
            raise ConfigError(
                f"SageMaker's Grid tries all {num_jobs} combinations: search.num_trials must be at least that, got "
                f"{search.num_trials}."
            )
    if num_jobs > MAX_JOBS:
        raise ConfigError(
            f"SageMaker runs at most {MAX_JOBS} jobs for a search, search.num_trials asks for {num_jobs}."
        )
    if search.num_parallel > MAX_PARALLEL_JOBS:
        raise ConfigError(
            f"SageMaker runs at most {MAX_PARALLEL_JOBS} jobs of a search at once, got search.num_parallel="
            f"{search.num_parallel}."
        )
    limits = {"MaxNumberOfTrainingJobs": num_jobs, "MaxParallelTrainingJobs": min(search.num_parallel, num_jobs)}
    if search.timeout_s is not None:
        if search.timeout_s < MIN_RUNTIME_S:
            raise ConfigError(
                f"search.timeout_s must be at least {MIN_RUNTIME_S} for search.engine=sagemaker, got "
                f"{search.timeout_s:g}."
            )
        limits["MaxRuntimeInSeconds"] = math.ceil(search.timeout_s)
    return limits


def _range(name: str, dimension: Dimension, *, is_grid: bool) -> tuple[str, dict[str, Any]]:
    if isinstance(dimension, FloatDimension | IntDimension):
        is_int = isinstance(dimension, IntDimension)
        is_stepped = dimension.step is not None and not (is_int and dimension.step == 1)
        if not is_grid and not is_stepped and dimension.low < dimension.high:
            ends = {"MinValue": render_hyperparameter(dimension.low), "MaxValue": render_hyperparameter(dimension.high)}
            kind = "IntegerParameterRanges" if is_int else "ContinuousParameterRanges"
            return kind, ends | {"ScalingType": "Logarithmic" if dimension.log else "Linear"}
    values = grid_values(dimension)
    if len(values) > MAX_CHOICES:
        raise ConfigError(
            f"search.space.{name} has {len(values)} values; SageMaker takes at most {MAX_CHOICES} where a dimension is "
            f"a list of values. Widen its step, or leave the step out."
        )
    return "CategoricalParameterRanges", {"Values": [render_hyperparameter(value) for value in values]}


def _check_parent(request: Mapping[str, Any], parent: Mapping[str, Any]) -> None:
    name = parent["HyperParameterTuningJobName"]
    status = parent["HyperParameterTuningJobStatus"]
    if status not in ("Completed", "Stopped", "Failed"):
        raise ConfigError(f"--warm-start {name} must name a tuning job that has ended, this one is {status}.")
    theirs, ours = _objective(parent), _objective(request)
    if theirs != ours:
        raise ConfigError(f"--warm-start {name} must name a search for the same metric: it has {theirs}, not {ours}.")
    differing = sorted(_hyperparameters(parent) ^ _hyperparameters(request))
    if differing:
        raise ConfigError(
            f"--warm-start {name} must name a search over the same hyperparameters, static ones included; only one of "
            f"the two has {', '.join(differing)}."
        )
    ours_definition, definition = request["TrainingJobDefinition"], parent["TrainingJobDefinition"]
    changed = [said for key, said in _FIXED_AFTER_WARM_START.items() if ours_definition.get(key) != definition.get(key)]
    if changed:
        raise ConfigError(
            f"--warm-start {name} must name a search with the same {', '.join(changed)}: SageMaker lets that change "
            f"with no warm start."
        )


def _objective(job: Mapping[str, Any]) -> tuple[str, ...]:
    objective = job["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
    metrics = job["TrainingJobDefinition"]["AlgorithmSpecification"].get("MetricDefinitions", [])
    regexes = [each["Regex"] for each in metrics if each["Name"] == objective["MetricName"]]
    return (objective["Type"], objective["MetricName"], *regexes)


def _hyperparameters(job: Mapping[str, Any]) -> set[str]:
    ranges = job["HyperParameterTuningJobConfig"]["ParameterRanges"].values()
    searched = {each["Name"] for kind in ranges for each in kind}
    return searched | set(job["TrainingJobDefinition"].get("StaticHyperParameters", {}))


def _has_same_task(request: Mapping[str, Any], parent: Mapping[str, Any]) -> bool:
    ours, theirs = request["TrainingJobDefinition"], parent["TrainingJobDefinition"]
    static, others = (each.get("StaticHyperParameters", {}) for each in (ours, theirs))
    # What only one of them has as static, the other searches: SageMaker allows that.
    shared = (set(static) & set(others)) - set(_OF_EACH_JOB)
    return (
        ours["AlgorithmSpecification"].get("TrainingImage") == theirs["AlgorithmSpecification"].get("TrainingImage")
        and _inputs(ours) == _inputs(theirs)
        and all(static[name] == others[name] for name in shared)
    )


def _inputs(definition: Mapping[str, Any]) -> dict[str, Any]:
    return {each["ChannelName"]: each for each in definition.get("InputDataConfig", [])}
