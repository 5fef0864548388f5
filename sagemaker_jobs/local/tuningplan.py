"""What a CreateHyperParameterTuningJob request asks for, checked beyond its shape, and the training jobs' requests."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sagemaker_jobs.local.errors import ResourceLimitExceeded, ValidationException
from sagemaker_jobs.local.ranges import num_combinations, parse_ranges
from sagemaker_jobs.local.shapes import check_request
from sagemaker_jobs.local.stopping import Criteria
from sagemaker_jobs.local.strategies import Search
from sagemaker_jobs.local.trainingplan import plan_training
from sagemaker_jobs.local.warmstart import check_warm_start, evaluated_jobs, prior_jobs

MAX_JOBS, MAX_PARALLEL_JOBS = 750, 100
"""AWS's own default quotas."""

MAX_RESOURCE = 20_000
_EPOCH_NAMES = ("epochs", "numepochs", "n-epochs", "n_epochs", "num_epochs")
"""Static hyperparameters that Hyperband takes MaxResource from, as AWS lists them."""

OBJECTIVE_HYPERPARAMETER = "_tuning_objective_metric"
"""SageMaker hands the objective's name to each job under this one; it is no argument of the script."""

_NOT_SUPPORTED = ("TrainingJobDefinitions", "Autotune")
_COPIED = (
    "RoleArn", "InputDataConfig", "VpcConfig", "OutputDataConfig", "StoppingCondition", "EnableNetworkIsolation",
    "EnableInterContainerTrafficEncryption", "EnableManagedSpotTraining", "RetryStrategy", "Environment",
)  # fmt: skip
_PROBE_NAME = "probe"


@dataclass(frozen=True)
class TuningPlan:
    """A tuning job that can be run."""

    name: str
    search: Search
    metric_name: str
    objective_type: str
    criteria: Criteria
    max_runtime_s: float | None
    definition: Mapping[str, Any]
    tags: list[dict[str, str]]
    parent_jobs: Sequence[dict[str, Any]] | None = ()
    """Summaries, with TuningJobName, that the overall best training job may be one of; None where there is none."""

    def training_request(self, job_name: str, values: Mapping[str, str]) -> dict[str, Any]:
        """CreateTrainingJob's request for one job of the tuning job."""
        definition = self.definition
        static = definition.get("StaticHyperParameters", {})
        request = {key: definition[key] for key in _COPIED if key in definition}
        request |= {
            "TrainingJobName": job_name,
            "HyperParameters": {**static, **values, OBJECTIVE_HYPERPARAMETER: self.metric_name},
            "AlgorithmSpecification": dict(definition["AlgorithmSpecification"]),
            "ResourceConfig": _resources(definition),
        }
        if "CheckpointConfig" in definition:
            # Jobs of other values must not go on from each other's checkpoints.
            checkpoint = definition["CheckpointConfig"]
            request["CheckpointConfig"] = {**checkpoint, "S3Uri": f"{checkpoint['S3Uri'].rstrip('/')}/{job_name}"}
        if self.tags:
            request["Tags"] = self.tags
        return request


def parse_plan(params: Mapping[str, Any], *, others: Mapping[str, dict[str, Any]] | None = None) -> TuningPlan:
    """Raises ValidationException or ResourceLimitExceeded; `params` fit the shape already.

    `others` are the records of the tuning jobs that there are, by name, for a warm start.
    """
    for key in _NOT_SUPPORTED:
        if params.get(key):
            raise ValidationException(f"{key} is not supported by the local SageMaker.")
    config, definition = params["HyperParameterTuningJobConfig"], params.get("TrainingJobDefinition")
    if definition is None:
        raise ValidationException("TrainingJobDefinition is required.")
    for key in ("TuningObjective", "HyperParameterRanges"):
        if definition.get(key):
            raise ValidationException(f"TrainingJobDefinition.{key} goes with TrainingJobDefinitions only.")
    objective = config.get("HyperParameterTuningJobObjective")
    if objective is None:
        raise ValidationException("HyperParameterTuningJobConfig.HyperParameterTuningJobObjective is required.")
    _check_metric(objective["MetricName"], definition["AlgorithmSpecification"])
    plan = TuningPlan(
        name=params["HyperParameterTuningJobName"],
        search=_parse_search(config, definition.get("StaticHyperParameters", {}), objective["Type"] == "Maximize"),
        metric_name=objective["MetricName"],
        objective_type=objective["Type"],
        criteria=_parse_criteria(config),
        max_runtime_s=config["ResourceLimits"].get("MaxRuntimeInSeconds"),
        definition=definition,
        tags=list(params.get("Tags", [])),
    )
    # What CreateTrainingJob would refuse later is refused now, where a user sees it.
    first = dict.fromkeys(plan.search.distributions, "0")
    probe = plan.training_request(_PROBE_NAME, first)
    check_request("sagemaker", "CreateTrainingJob", probe)
    plan_training(probe)
    return _warm(plan, params, others or {}) if params.get("WarmStartConfig") else plan


def _warm(plan: TuningPlan, params: Mapping[str, Any], others: Mapping[str, dict[str, Any]]) -> TuningPlan:
    check_warm_start(params, others)
    config = params["WarmStartConfig"]
    parents = [others[each["HyperParameterTuningJobName"]] for each in config["ParentHyperParameterTuningJobs"]]
    num_jobs = plan.search.num_jobs + sum(len(parent["Jobs"]) for parent in parents)
    _check_quota("training jobs per hyper parameter tuning job", num_jobs, MAX_JOBS)
    is_comparable = config["WarmStartType"] == "IdenticalDataAndAlgorithm"
    return replace(
        plan,
        search=replace(plan.search, prior=tuple(prior_jobs(params, others))),
        parent_jobs=evaluated_jobs(params, others) if is_comparable else None,
    )


def _check_metric(name: str, algorithm: Mapping[str, Any]) -> None:
    names = [metric["Name"] for metric in algorithm.get("MetricDefinitions", [])]
    if name not in names:
        raise ValidationException(
            f"The objective metric {name} must be one of TrainingJobDefinition.AlgorithmSpecification."
            f"MetricDefinitions, which has {names or 'none'}."
        )


def _parse_search(config: Mapping[str, Any], static: Mapping[str, str], maximize: bool) -> Search:
    distributions = parse_ranges(config.get("ParameterRanges", {}))
    if both := sorted(set(distributions) & set(static)):
        raise ValidationException(f"A hyperparameter is static or has a range, not both: {', '.join(both)}.")
    strategy, limits = config["Strategy"], config["ResourceLimits"]
    stops_early = config.get("TrainingJobEarlyStoppingType", "Off") == "Auto"
    if strategy == "Hyperband" and stops_early:
        raise ValidationException("TrainingJobEarlyStoppingType must be Off for the Hyperband strategy.")
    if strategy == "Grid":
        num_jobs = _grid_jobs(num_combinations(distributions), limits)
    else:
        num_jobs = _bounded_jobs(limits, _parse_criteria(config))
    num_parallel = limits["MaxParallelTrainingJobs"]
    _check_quota("training jobs per hyper parameter tuning job", num_jobs, MAX_JOBS)
    _check_quota("parallel training jobs per hyper parameter tuning job", num_parallel, MAX_PARALLEL_JOBS)
    least, most = _parse_resources(config, static)
    return Search(
        strategy=strategy,
        distributions=distributions,
        maximize=maximize,
        seed=config.get("RandomSeed", secrets.randbits(31)),
        num_jobs=num_jobs,
        num_parallel=num_parallel,
        stops_early=stops_early,
        min_resource=least,
        max_resource=most,
    )


def _grid_jobs(num_combinations: int, limits: Mapping[str, Any]) -> int:
    given = limits.get("MaxNumberOfTrainingJobs", num_combinations)
    if given != num_combinations:
        raise ValidationException(
            f"MaxNumberOfTrainingJobs must be the number of combinations for the Grid strategy, "
            f"{num_combinations}, or be left out; got {given}."
        )
    return num_combinations


def _bounded_jobs(limits: Mapping[str, Any], criteria: Criteria) -> int:
    """MaxNumberOfTrainingJobs, or AWS's quota where something else ends the tuning job."""
    if "MaxNumberOfTrainingJobs" in limits:
        return int(limits["MaxNumberOfTrainingJobs"])
    if "MaxRuntimeInSeconds" in limits or criteria != Criteria():
        return MAX_JOBS
    raise ValidationException(
        "ResourceLimits must have MaxNumberOfTrainingJobs where neither MaxRuntimeInSeconds nor "
        "TuningJobCompletionCriteria ends the tuning job."
    )


def _check_quota(what: str, asked: int, quota: int) -> None:
    if asked > quota:
        raise ResourceLimitExceeded(
            f"The account-level service limit 'Maximum number of {what}' is {quota}, with current utilization of 0 "
            f"and a request delta of {asked}."
        )


def _parse_resources(config: Mapping[str, Any], static: Mapping[str, str]) -> tuple[int, int | None]:
    """MinResource and MaxResource of Hyperband; (1, None) for the other strategies."""
    given = config.get("StrategyConfig", {}).get("HyperbandStrategyConfig")
    if config["Strategy"] != "Hyperband":
        if given:
            raise ValidationException(f"HyperbandStrategyConfig goes with Hyperband, not {config['Strategy']}.")
        return 1, None
    least, most = (given or {}).get("MinResource", 1), (given or {}).get("MaxResource")
    if most is None:
        most = _static_epochs(static)
    if not least <= most <= MAX_RESOURCE:
        raise ValidationException(
            f"MaxResource must be from MinResource to {MAX_RESOURCE}, got MinResource {least} and MaxResource {most}."
        )
    return least, most


def _static_epochs(static: Mapping[str, str]) -> int:
    for name in _EPOCH_NAMES:
        if static.get(name, "").isdecimal():
            return int(static[name])
    raise ValidationException(
        "Hyperband needs HyperbandStrategyConfig.MaxResource, or one of the static hyperparameters "
        f"{', '.join(_EPOCH_NAMES)} as a whole number."
    )


def _parse_criteria(config: Mapping[str, Any]) -> Criteria:
    given = config.get("TuningJobCompletionCriteria", {})
    return Criteria(
        target=given.get("TargetObjectiveMetricValue"),
        max_not_improving=given.get("BestObjectiveNotImproving", {}).get("MaxNumberOfTrainingJobsNotImproving"),
        stops_on_convergence=given.get("ConvergenceDetected", {}).get("CompleteOnConvergence") == "Enabled",
    )


def _resources(definition: Mapping[str, Any]) -> dict[str, Any]:
    """ResourceConfig, or the first choice of HyperParameterTuningResourceConfig: any instance is this machine."""
    keys = [key for key in ("ResourceConfig", "HyperParameterTuningResourceConfig") if key in definition]
    if len(keys) != 1:
        raise ValidationException(
            "TrainingJobDefinition must have one of ResourceConfig and HyperParameterTuningResourceConfig."
        )
    given = dict(definition[keys[0]])
    given.pop("AllocationStrategy", None)
    instances = given.pop("InstanceConfigs", None) or [{}]
    return {**given, **instances[0]}
