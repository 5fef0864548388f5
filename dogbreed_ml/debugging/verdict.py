"""Findings of a tensor rule made into a verdict, with a recommendation."""

from collections.abc import Mapping, Sequence
from typing import Any

from dogbreed_ml.debugging.findings import Finding, places
from dogbreed_ml.profiling.verdicts import MAX_EVIDENCE, Evidence, Verdict
from dogbreed_ml.ruleparameters import RuleName

RECOMMENDATIONS: Mapping[RuleName, str] = {
    "LossNotDecreasing": "Try a smaller train.lr where the loss swings or grows, a larger one where it stands still.",
    "VanishingGradient": "Start from pretrained weights (model.weights), train less of the network (model.trainable), "
    "or raise train.lr.",
    "ExplodingTensor": "Lower train.lr by a factor of 10, and look for broken images where that does not help.",
    "Overfit": "Regularise: augmentation (train.augmentation with train.num_views), model.dropout, "
    "train.weight_decay or train.label_smoothing; or train fewer epochs.",
    "Overtraining": "Stop earlier: set train.patience, or fewer train.num_epochs.",
    "PoorWeightInitialization": "Start from pretrained weights (model.weights), or another train.seed for the head.",
    "DeadRelu": "Lower train.lr: a step that was too large pushed these units below zero for every image.",
    "ClassImbalance": "Set train.class_weights: balanced, or add photographs of the rare breeds.",
    "AllZero": "Look at where the tensor comes from: a gradient of zeros means that nothing reaches the layer, "
    "weights of zeros that it was never initialised.",
}


def judged(
    rule: RuleName,
    findings: Sequence[Finding],
    *,
    datapoints: int,
    parameters: Mapping[str, Any],
    unit: str,
    times_s: Mapping[int, float] | None = None,
) -> Verdict:
    """IssuesFound with the first and last findings as evidence, else NoIssuesFound.

    `datapoints` are counted in `unit`. `times_s` are the steps' times since the epoch; evidence has 0 where none is
    known.
    """
    if not findings:
        return Verdict(rule, "NoIssuesFound", f"Nothing found in {datapoints} {unit}.", 0, datapoints, parameters)
    half = MAX_EVIDENCE // 2
    shown = findings if len(findings) <= MAX_EVIDENCE else (*findings[:half], *findings[-half:])
    times = times_s or {}
    steps, wheres = places(findings)
    evidence = tuple(_evidence(each, times.get(each.step, 0.0)) for each in shown)
    return Verdict(
        rule,
        "IssuesFound",
        findings[0].what,
        len(findings),
        datapoints,
        parameters,
        evidence,
        RECOMMENDATIONS[rule],
        {"steps": sorted(steps)[:1000], "where": sorted(wheres)},
    )


def _evidence(finding: Finding, time_s: float) -> Evidence:
    return Evidence(time_s, time_s, finding.where, finding.what, {"step": finding.step, **finding.values})
