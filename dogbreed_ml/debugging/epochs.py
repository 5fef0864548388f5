"""The rules that need only an epoch's figures, for every trial of a search: no tensors, no smdebug."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dogbreed_ml.debugging.findings import Finding, class_imbalance, loss_not_decreasing, overfit, overtraining
from dogbreed_ml.debugging.verdict import judged
from dogbreed_ml.profiling.verdicts import Verdict, not_applicable
from dogbreed_ml.ruleparameters import RuleName, parse_parameters

EPOCH_RULES: tuple[RuleName, ...] = ("LossNotDecreasing", "Overfit", "Overtraining", "ClassImbalance")


class EpochFigures(Protocol):
    """What of a train.EpochResult is read."""

    @property
    def global_step(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, float]: ...


def judge_epochs(
    results: Sequence[EpochFigures],
    *,
    label_counts: Mapping[str, int],
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Verdict, ...]:
    """A verdict for each of EPOCH_RULES; steps are optimizer steps, points are epochs.

    `label_counts` are the train split's images by breed. `parameters` are by rule, over SageMaker's defaults; raises
    ConfigError for one that a rule does not have. Breeds' mispredictions are not among an epoch's figures, so that
    ClassImbalance judges the counts here.
    """
    given = parameters or {}
    chosen = {rule: parse_parameters(rule, given.get(rule, {})) for rule in EPOCH_RULES}
    steps = [result.global_step for result in results]
    train = [result.metrics.get("train/loss", math.nan) for result in results]
    valid = [result.metrics["valid/loss"] for result in results if "valid/loss" in result.metrics]
    return (
        judge_loss(steps, train, chosen["LossNotDecreasing"], unit="epochs"),
        judge_overfit(steps, train, valid, chosen["Overfit"], unit="epochs"),
        judge_overtraining(steps, train, valid, chosen["Overtraining"], unit="epochs"),
        _judge_counts(steps, label_counts, chosen["ClassImbalance"]),
    )


@dataclass(frozen=True)
class EpochJudge:
    """Judges each trial of a search; picklable, so that worker processes have it too."""

    label_counts: Mapping[str, int]
    """The train split's images by breed."""
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By rule, over SageMaker's defaults."""

    @classmethod
    def build(
        cls, labels: NDArray[np.int64], classes: Sequence[str], *, parameters: Mapping[str, Mapping[str, Any]]
    ) -> Self:
        """From the train split's labels (n,) in [0, K).

        Raises ConfigError for a parameter that a rule does not have.
        """
        for rule in EPOCH_RULES:
            parse_parameters(rule, parameters.get(rule, {}))
        counts = np.bincount(labels, minlength=len(classes)).tolist()
        return cls(dict(zip(classes, counts, strict=True)), parameters)

    def __call__(self, results: Sequence[EpochFigures]) -> dict[str, str]:
        """The tags of a trial's run."""
        return verdict_tags(judge_epochs(results, label_counts=self.label_counts, parameters=self.parameters))


def verdict_tags(verdicts: Sequence[Verdict]) -> dict[str, str]:
    """The tags of a run that carries these verdicts: profiler.<Rule> to status."""
    return {f"profiler.{verdict.rule}": verdict.status for verdict in verdicts}


def judge_loss(steps: Sequence[int], losses: Sequence[float], parameters: Mapping[str, Any], *, unit: str) -> Verdict:
    """LossNotDecreasing over a loss at increasing steps."""
    span = steps[-1] - steps[0] if steps else 0
    if span < parameters["num_steps"] or len(steps) < 2:
        return _too_short("LossNotDecreasing", f"{span} steps of loss", parameters["num_steps"], parameters, len(steps))
    found = loss_not_decreasing(steps, losses, **parameters)
    return judged("LossNotDecreasing", found, datapoints=len(steps), parameters=parameters, unit=unit)


def judge_overfit(
    steps: Sequence[int], train: Sequence[float], valid: Sequence[float], parameters: Mapping[str, Any], *, unit: str
) -> Verdict:
    """Overfit over the losses of the two splits, point by point."""
    if len(valid) != len(train) or not valid:
        return not_applicable("Overfit", "no valid loss at each point", parameters, len(train))
    if len(valid) < parameters["patience"]:
        return _too_short("Overfit", f"{len(valid)} {unit}", parameters["patience"], parameters, len(valid))
    found = overfit(steps, train, valid, **parameters)
    return judged("Overfit", found, datapoints=len(valid), parameters=parameters, unit=unit)


def judge_overtraining(
    steps: Sequence[int], train: Sequence[float], valid: Sequence[float], parameters: Mapping[str, Any], *, unit: str
) -> Verdict:
    """Overtraining over the losses of the two splits, point by point; without a valid loss over train alone."""
    patience = min(parameters["patience_train"], parameters["patience_validation"])
    if len(train) <= patience:
        return _too_short("Overtraining", f"{len(train)} {unit}", patience + 1, parameters, len(train))
    found = overtraining(steps, train, valid if len(valid) == len(train) else None, **parameters)
    return judged("Overtraining", found, datapoints=len(train), parameters=parameters, unit=unit)


def _judge_counts(steps: Sequence[int], counts: Mapping[str, int], parameters: Mapping[str, Any]) -> Verdict:
    seen = {breed: count * len(steps) for breed, count in counts.items()}
    total = sum(seen.values())
    if total < parameters["samples"]:
        return _too_short("ClassImbalance", f"{total} labels", parameters["samples"], parameters, total)
    step = steps[-1] if steps else 0
    found: list[Finding] = class_imbalance(step, seen, **parameters)
    return judged("ClassImbalance", found, datapoints=total, parameters=parameters, unit="labels")


def _too_short(rule: str, has: str, needs: int, parameters: Mapping[str, Any], datapoints: int) -> Verdict:
    return not_applicable(rule, f"too short to tell, {has} where at least {needs} are needed", parameters, datapoints)
