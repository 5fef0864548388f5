"""Warm start: what a tuning job's parents must be, and which of their training jobs it learns from. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sagemaker_jobs.local.errors import ValidationException
from sagemaker_jobs.local.ranges import KINDS
from sagemaker_jobs.local.strategies import Prior

Row = dict[str, Any]

STRATEGIES = ("Bayesian", "Random")
_ENDED = ("Completed", "Failed", "Stopped")
_CHANGING = (
    "AlgorithmSpecification", "InputDataConfig", "OutputDataConfig", "StaticHyperParameters", "RoleArn",
    "ResourceConfig", "StoppingCondition", "VpcConfig", "EnableManagedSpotTraining", "CheckpointConfig",
)  # fmt: skip
"""Of TrainingJobDefinition, as AWS's message lists them."""
_CODE_CHANNELS = ("code", "sm_drivers")
"""The SDK's own, uploaded anew for each job."""


def parent_names(params: Mapping[str, Any]) -> list[str]:
    """The parents that a CreateHyperParameterTuningJob request names."""
    given = params.get("WarmStartConfig", {}).get("ParentHyperParameterTuningJobs", ())
    return [parent["HyperParameterTuningJobName"] for parent in given]


def check_warm_start(params: Mapping[str, Any], parents: Mapping[str, Row]) -> None:
    """Raises ValidationException; `parents` are the records of all tuning jobs that there are, by name."""
    config, names = params["HyperParameterTuningJobConfig"], parent_names(params)
    if config["Strategy"] not in STRATEGIES:
        raise ValidationException(
            f"WarmStartConfig goes with the strategies {' and '.join(STRATEGIES)}, not {config['Strategy']}."
        )
    if len(set(names)) < len(names):
        raise ValidationException(f"Parent tuning jobs must differ from each other, got {', '.join(names)}.")
    for name in names:
        if name not in parents:
            raise ValidationException(f"Amazon SageMaker can't find a tuning job with the name of {name}.")
        _check_parent(params, parents[name], kind=params["WarmStartConfig"]["WarmStartType"])


def evaluated_jobs(params: Mapping[str, Any], parents: Mapping[str, Row]) -> list[Row]:
    """Summaries of the parents' training jobs that have an objective value, each with its TuningJobName."""
    return [
        {**summary, "TuningJobName": name}
        for name in parent_names(params)
        for summary in parents[name]["Jobs"]
        if summary["ObjectiveStatus"] == "Succeeded"
    ]


def prior_jobs(params: Mapping[str, Any], parents: Mapping[str, Row]) -> Iterator[Prior]:
    """What the search starts from: jobs that had, of what is static now, the same values."""
    static = params["TrainingJobDefinition"].get("StaticHyperParameters", {})
    for summary in evaluated_jobs(params, parents):
        tuned = summary["TunedHyperParameters"]
        if any(name in static and not _is_same(value, static[name]) for name, value in tuned.items()):
            continue
        before = parents[summary["TuningJobName"]]["TrainingJobDefinition"].get("StaticHyperParameters", {})
        objective = summary["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
        yield Prior({**before, **tuned}, float(objective))


def _check_parent(params: Mapping[str, Any], parent: Mapping[str, Any], *, kind: str) -> None:
    name, status = parent["HyperParameterTuningJobName"], parent["HyperParameterTuningJobStatus"]
    if status not in _ENDED:
        raise ValidationException(
            f"The parent tuning job {name} is in status {status}; a parent must be Completed, Failed or Stopped."
        )
    config, before = params["HyperParameterTuningJobConfig"], parent["HyperParameterTuningJobConfig"]
    objective, wanted = config["HyperParameterTuningJobObjective"], before["HyperParameterTuningJobObjective"]
    if objective != wanted:
        raise ValidationException(
            f"The objective metric must be that of the parent tuning job {name}, {wanted['Type']} "
            f"{wanted['MetricName']}, got {objective['Type']} {objective['MetricName']}."
        )
    new, old = (_kinds(each["HyperParameterTuningJobConfig"]) for each in (params, parent))
    if {*new, *_static(params)} != {*old, *_static(parent)}:
        raise ValidationException(
            "The set of tunable plus static HyperParameter names is not the same across current and parent tuning "
            "jobs. Please ensure this set is constant when warm starting. Note that previously static HyperParameters "
            "can be tuned in warm start jobs and vice versa."
        )
    for tuned in sorted(set(new) & set(old)):
        if new[tuned] != old[tuned]:
            raise ValidationException(
                f"The type of the tunable hyperparameter {tuned} must be that of the parent tuning job {name}, "
                f"{old[tuned]}, got {new[tuned]}."
            )
    _check_definition(params["TrainingJobDefinition"], parent["TrainingJobDefinition"], kind=kind)


def _check_definition(definition: Mapping[str, Any], before: Mapping[str, Any], *, kind: str) -> None:
    is_identical = kind == "IdenticalDataAndAlgorithm"
    changing = [each for each in _CHANGING if not (is_identical and each == "InputDataConfig")]
    fixed = {*definition, *before} - set(_CHANGING)
    image, image_before = (each["AlgorithmSpecification"].get("TrainingImage") for each in (definition, before))
    is_other_data = is_identical and _data_channels(definition) != _data_channels(before)
    if is_other_data or any(definition.get(each) != before.get(each) for each in fixed):
        allowed = ", ".join(f"{each[:1].lower()}{each[1:]}" for each in changing)
        raise ValidationException(
            f"Only the following fields in TrainingJobDefinition are allowed to change: [{allowed}]."
        )
    if is_identical and image != image_before:
        raise ValidationException(
            f"The training image must be that of the parent tuning job for warm start type {kind}, {image_before}; "
            f"got {image}."
        )


def _data_channels(definition: Mapping[str, Any]) -> list[Row]:
    return [each for each in definition.get("InputDataConfig", ()) if each["ChannelName"] not in _CODE_CHANNELS]


def _kinds(config: Mapping[str, Any]) -> dict[str, str]:
    """Kind of range by tunable hyperparameter."""
    ranges = config.get("ParameterRanges", {})
    return {given["Name"]: kind for member, kind in KINDS.items() for given in ranges.get(member, [])}


def _static(params: Mapping[str, Any]) -> Sequence[str]:
    return list(params["TrainingJobDefinition"].get("StaticHyperParameters", {}))


def _is_same(value: str, other: str) -> bool:
    """As text, or as numbers: 0.10 is 0.1."""
    if value == other:
        return True
    try:
        return float(value) == float(other)
    except ValueError:
        return False
