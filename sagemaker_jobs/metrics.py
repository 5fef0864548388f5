"""What SageMaker reads from a job's output: one regular expression a figure of the epoch line."""

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
