"""The rules over an epoch's figures, as they judge each trial of a search."""

import pickle
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest

from dogbreed_ml.debugging.epochs import EPOCH_RULES, EpochJudge, judge_epochs, verdict_tags
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.profiling.verdicts import Verdict
from dogbreed_ml.train import EpochResult

EVEN = {"beagle": 100, "collie": 100}


def epochs(train: list[float], valid: list[float] | None) -> list[EpochResult]:
    figures: list[dict[str, float]] = [{"train/loss": loss} for loss in train]
    for figure, loss in zip(figures, valid or [], strict=False):
        figure["valid/loss"] = loss
    return [EpochResult(n, 10 * (n + 1), figure, 1.0, True) for n, figure in enumerate(figures)]


def judge(
    train: list[float], valid: list[float] | None, counts: Mapping[str, int] = EVEN, **parameters: Mapping[str, object]
) -> dict[str, Verdict]:
    return {each.rule: each for each in judge_epochs(epochs(train, valid), label_counts=counts, parameters=parameters)}


def test_healthy_trial_has_no_issue() -> None:
    losses = [2.0 - 0.15 * n for n in range(12)]
    verdicts = judge(losses, [loss + 0.01 for loss in losses])
    assert {each.rule: each.status for each in verdicts.values()} == dict.fromkeys(EPOCH_RULES, "NoIssuesFound")
    assert all(earlier > later for earlier, later in pairwise(losses))


def test_each_ailment_is_found_by_its_rule() -> None:
    assert judge([1.0, 1.1, 1.2], None)["LossNotDecreasing"].status == "IssuesFound"
    overfit = judge([1.0, 0.5, 0.2], [1.0, 0.9, 1.1])["Overfit"]
    assert (overfit.status, overfit.triggered, overfit.datapoints) == ("IssuesFound", 2, 3)
    assert overfit.evidence[0].values == pytest.approx({"step": 20, "train": 0.5, "valid": 0.9, "ratio": 0.8})
    assert "augmentation" in overfit.recommendation
    assert judge([0.3] * 9, [0.3] * 9)["Overtraining"].triggered == 4
    imbalance = judge([1.0, 0.9], None, {"beagle": 600, "collie": 12})["ClassImbalance"]
    assert (imbalance.status, imbalance.evidence[0].where) == ("IssuesFound", "collie")


def test_short_trial_says_that_it_is_too_short() -> None:
    verdicts = judge([1.0], [1.0], {"beagle": 20, "collie": 20})
    assert {each.rule: each.status for each in verdicts.values()} == {
        "LossNotDecreasing": "NotApplicable",
        "Overfit": "NoIssuesFound",
        "Overtraining": "NotApplicable",
        "ClassImbalance": "NotApplicable",
    }
    assert verdicts["Overtraining"].reason == (
        "not applicable: too short to tell, 1 epochs where at least 6 are needed"
    )


def test_training_without_a_valid_split_is_judged_by_what_it_has() -> None:
    verdicts = judge([0.3] * 9, None)
    assert verdicts["Overfit"].reason == "not applicable: no valid loss at each point"
    assert verdicts["Overtraining"].status == "IssuesFound"


def test_parameters_reach_their_rule() -> None:
    verdict = judge([1.0, 0.5], [1.0, 0.9], Overfit={"ratio_threshold": "2"})["Overfit"]
    assert verdict.status == "NoIssuesFound"
    assert verdict.parameters == {"start_step": 0, "patience": 1, "ratio_threshold": 2.0}


def test_training_that_exploded_is_judged() -> None:
    nan = float("nan")
    verdicts = judge([1.0, nan, nan], [1.0, nan, nan])
    assert verdicts["LossNotDecreasing"].triggered == 2
    for verdict in verdicts.values():
        for evidence in verdict.evidence:
            assert all(value == value for value in evidence.values.values())


def test_verdicts_become_tags() -> None:
    assert verdict_tags(tuple(judge([1.0, 1.1, 1.2], [1.0, 1.1, 1.2]).values())) == {
        "profiler.LossNotDecreasing": "IssuesFound",
        "profiler.Overfit": "NoIssuesFound",
        "profiler.Overtraining": "NotApplicable",
        "profiler.ClassImbalance": "NoIssuesFound",
    }


def test_judge_of_trials_counts_breeds_and_is_picklable() -> None:
    labels = np.array([0] * 300 + [1] * 10)
    judge = pickle.loads(pickle.dumps(EpochJudge.build(labels, ("beagle", "collie"), parameters={})))
    assert judge.label_counts == {"beagle": 300, "collie": 10}
    tags = judge(epochs([1.0, 0.9], [1.0, 0.9]))
    assert tags["profiler.ClassImbalance"] == "IssuesFound"
    with pytest.raises(ConfigError, match="is not a parameter of Overfit"):
        EpochJudge.build(labels, ("beagle", "collie"), parameters={"Overfit": {"nothing": 1}})
