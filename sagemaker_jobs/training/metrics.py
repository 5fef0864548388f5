"""What SageMaker reads from a job's output: one regular expression a figure of the epoch line, and the objective."""

import re

_NUMBER = "([-+0-9.eE]+)"

EPOCH_METRICS: tuple[str, ...] = (
    "train/loss",
    "train/lr",
    "valid/loss",
    "valid/accuracy_top1",
    "valid/accuracy_top5",
    "valid/f1_macro",
)
"""The figures of `EpochResult.render()`, by their MLflow names."""


def metric_definitions() -> list[dict[str, str]]:
    """MetricDefinitions of AlgorithmSpecification, each figure under its MLflow name."""
    return [{"Name": name, "Regex": f"{name}={_NUMBER}"} for name in EPOCH_METRICS]


OBJECTIVE_METRIC = "objective"
"""What SageMaker's tuner compares jobs by: an epoch's metric while a job runs, its last line when it has ended."""


def objective_definition(metric: str) -> dict[str, str]:
    """The MetricDefinition of the objective.

    SageMaker takes a job's last value, a search the kept epoch's: so a job's last line is `objective=VALUE`, and until
    then its epochs count, by which the tuner gives jobs up. train_entry writes that line.
    """
    number = r"([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)"
    regex = rf"(?:epoch=[0-9]+ (?:.* )?{re.escape(metric)}|^objective)={number}"
    return {"Name": OBJECTIVE_METRIC, "Regex": regex}
