"""The tensor rules as plain functions: each fires on its ailment and is silent without it."""

import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
import pytest
from smdebug_rulesconfig.debugger_rules import builtin_rules

from dogbreed_ml.debugging import findings as find
from dogbreed_ml.debugging.verdict import judged
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.ruleparameters import DEFAULTS, TENSOR_RULES, parse_parameters, rule_collections

RNG = np.random.default_rng(0)


def steps_of(found: Sequence[find.Finding]) -> list[int]:
    return [each.step for each in found]


def test_loss_not_decreasing_compares_with_a_step_far_enough_behind() -> None:
    # As in SageMaker's guide: saved every 3 steps and num_steps 10, so 0 is compared with 12, then 12 with 24.
    steps = list(range(0, 30, 3))
    losses = [1.0] * 5 + [0.5] * 5
    assert steps_of(find.loss_not_decreasing(steps, losses, num_steps=10, diff_percent=0.0)) == [12]
    assert steps_of(find.loss_not_decreasing(steps, losses, num_steps=12, diff_percent=60.0)) == [12, 24]
    assert steps_of(find.loss_not_decreasing(steps, losses[::-1], num_steps=30, diff_percent=0.0)) == []


def test_loss_that_is_nan_has_not_decreased() -> None:
    found = find.loss_not_decreasing([0, 10], [1.0, float("nan")], num_steps=10, diff_percent=0.0)
    assert steps_of(found) == [10]
    assert found[0].values == {"loss_before": 1.0, "step_before": 0.0}


def test_overfit_waits_for_its_patience_and_its_start() -> None:
    train, valid = [1.0, 1.0, 1.0, 1.0], [1.05, 1.2, 1.3, 1.0]
    settings = {"ratio_threshold": 0.1}
    assert steps_of(find.overfit([1, 2, 3, 4], train, valid, start_step=0, patience=1, **settings)) == [2, 3]
    assert steps_of(find.overfit([1, 2, 3, 4], train, valid, start_step=0, patience=2, **settings)) == [3]
    assert steps_of(find.overfit([1, 2, 3, 4], train, valid, start_step=3, patience=1, **settings)) == [3]


def test_overtraining_waits_for_its_patience_on_either_loss() -> None:
    settings: dict[str, Any] = {"patience_train": 3, "patience_validation": 2, "delta": 0.1}
    falling, flat = [1.0, 0.8, 0.6, 0.4], [0.5, 0.45, 0.44, 0.43]
    assert steps_of(find.overtraining([1, 2, 3, 4], falling, falling, **settings)) == []
    assert [(each.step, each.where) for each in find.overtraining([1, 2, 3, 4], flat, falling, **settings)] == [
        (4, "train/loss")
    ]
    assert steps_of(find.overtraining([1, 2, 3, 4], falling, flat, **settings)) == [3, 4]
    assert steps_of(find.overtraining([1, 2, 3, 4], flat, None, **settings)) == [4]


def test_findings_of_a_long_curve_are_put_into_words_only_where_a_verdict_shows_them() -> None:
    rendered: list[int] = []

    def render(step: int, where: str) -> find.Finding:
        rendered.append(step)
        return find.Finding(step, where, f"At {step}.")

    found = find.Findings([(step, "loss") for step in range(300)], render)
    parameters = DEFAULTS["LossNotDecreasing"]
    verdict = judged("LossNotDecreasing", found, datapoints=300, parameters=parameters, unit="epochs")
    assert verdict.triggered == 300
    assert [each.values["step"] for each in verdict.evidence] == [*range(10), *range(290, 300)]
    assert (verdict.details["steps"], verdict.details["where"]) == ([*range(300)], ["loss"])
    assert len(rendered) == len(verdict.evidence) + 1


def test_class_imbalance_names_the_rare_and_the_mistaken_breed() -> None:
    settings: dict[str, Any] = {"threshold_imbalance": 10.0, "threshold_misprediction": 0.7, "samples": 100}
    counts = {"beagle": 95, "collie": 5}
    assert [each.where for each in find.class_imbalance(0, counts, **settings)] == ["collie"]
    found = find.class_imbalance(0, {"beagle": 60, "collie": 40}, {"beagle": (0, 60), "collie": (30, 40)}, **settings)
    assert [(each.where, each.values["mispredicted_share"]) for each in found] == [("collie", 0.75)]
    assert find.class_imbalance(0, {"beagle": 90, "collie": 5}, **settings) == []
    assert (
        find.class_imbalance(0, {"beagle": 60, "collie": 60}, {"beagle": (1, 60), "collie": (1, 60)}, **settings) == []
    )


def test_class_imbalance_is_never_found_in_equal_counts() -> None:
    settings: dict[str, Any] = {"threshold_imbalance": 0.5, "threshold_misprediction": 0.7, "samples": 100}
    assert find.class_imbalance(0, {"beagle": 64, "collie": 64}, **settings) == []
    assert len(find.class_imbalance(0, {"beagle": 64, "collie": 63}, **settings)) == 1


@pytest.mark.parametrize(("num_labels_a_class", "wheres"), [(29, []), (30, ["rare"])])
def test_class_imbalance_of_drawn_labels_is_told_from_enough_of_them(
    num_labels_a_class: int, wheres: list[str]
) -> None:
    settings: dict[str, Any] = {"threshold_imbalance": 10.0, "threshold_misprediction": 0.7, "samples": 100}
    counts = {"rare": 1, **{str(number): num_labels_a_class for number in range(119)}}
    counts["0"] += num_labels_a_class - 1
    found = find.class_imbalance(0, counts, min_labels_a_class=30, **settings)
    assert [each.where for each in found] == wheres


def test_vanishing_gradient_looks_at_the_mean_magnitude() -> None:
    gradients = {"healthy": np.array([1e-3, -1e-3]), "vanished": np.array([1e-9, -1e-9])}
    found = find.vanishing_gradient(7, gradients, threshold=1e-7)
    assert [(each.step, each.where) for each in found] == [(7, "vanished")]


@pytest.mark.parametrize(
    ("value", "only_nan", "fires"), [(np.nan, True, True), (np.inf, False, True), (np.inf, True, False)]
)
def test_exploding_tensor_finds_one_value_among_many(value: float, only_nan: bool, fires: bool) -> None:
    tensor = np.ones(10_000, dtype=np.float32)
    tensor[77] = value
    found = find.exploding_tensor(0, {"bad": tensor, "good": np.ones(3), "labels": np.arange(3)}, only_nan=only_nan)
    assert [each.where for each in found] == (["bad"] if fires else [])


def test_exploding_tensor_finds_infinities_that_cancel() -> None:
    assert len(find.exploding_tensor(0, {"bad": np.array([np.inf, -np.inf])}, only_nan=False)) == 1


def test_all_zero_counts_percent() -> None:
    tensor = np.array([0.0, 0.0, 0.0, 1.0])
    assert find.all_zero(0, {"a": tensor}, threshold=100) == []
    assert [each.values["zero_percent"] for each in find.all_zero(0, {"a": tensor}, threshold=75)] == [75.0]
    assert find.all_zero(0, {"empty": np.zeros(0)}, threshold=0) == []


def test_dead_relu_counts_units_over_batch_and_places() -> None:
    output = np.maximum(RNG.normal(size=(8, 4, 5, 5)), 0)
    assert find.dead_relu(0, {"relu": output}, threshold_inactivity=1.0, threshold_layer=50.0) == []
    output[:, :3] = 0
    found = find.dead_relu(0, {"relu": output}, threshold_inactivity=1.0, threshold_layer=50.0)
    assert [each.values for each in found] == [{"dead_percent": 75.0, "units": 4.0}]
    assert find.dead_relu(0, {"relu": output}, threshold_inactivity=1.0, threshold_layer=80.0) == []


def test_poor_weight_initialization_needs_a_stalled_loss_and_a_cause() -> None:
    settings: dict[str, Any] = {"threshold": 10.0, "distribution_range": 0.001, "patience": 2, "steps": 10}
    even, uneven = {"a": RNG.normal(size=99), "b": RNG.normal(size=99)}, {"a": RNG.normal(size=99), "b": np.ones(99)}
    wide, narrow = {"g": RNG.normal(size=99)}, {"g": 1e-5 * RNG.normal(size=99)}
    stalled, falling = [1.0, 1.0, 1.0, 1.0], [1.0, 0.9, 0.8, 0.7]
    assert find.poor_weight_initialization(3, even, wide, stalled, **settings) == []
    assert find.poor_weight_initialization(3, uneven, narrow, falling, **settings) == []
    assert [each.where for each in find.poor_weight_initialization(3, uneven, wide, stalled, **settings)] == ["b"]
    assert [each.where for each in find.poor_weight_initialization(3, even, narrow, stalled, **settings)] == ["g"]
    assert find.poor_weight_initialization(30, uneven, narrow, stalled * 5, **settings) == []


def test_every_rule_has_parameters_and_is_in_smdebugs_own_list() -> None:
    assert set(DEFAULTS) == set(TENSOR_RULES)
    assert rule_collections("DeadRelu") == {"relu_output": ".*relu_output"}
    assert {name for rule in TENSOR_RULES for name in rule_collections(rule)} == {
        "gradients",
        "losses",
        "relu_input",
        "relu_output",
    }


def test_smdebugs_rule_configs_hold_no_default_that_differs() -> None:
    # What smdebug_rulesconfig publishes of tensor rules: their names, collections and save interval, no parameter.
    folder = resources.files("smdebug_rulesconfig.debugger_rules") / "rule_config_jsons"
    published = json.loads((folder / "ruleConfigs.json").read_text(encoding="utf-8"))
    for rule in TENSOR_RULES:
        configuration = published[rule]["DebugRuleConfiguration"]
        assert configuration["RuleConfigurationName"] == rule
        own = {k: v for k, v in configuration["RuleParameters"].items() if k != "rule_to_invoke"}
        assert parse_parameters(rule, own) == DEFAULTS[rule]
        assert getattr(builtin_rules, re.sub(r"(?<!^)([A-Z])", r"_\1", rule).lower())() == published[rule]
    given = {rule: set(each["DebugRuleConfiguration"]["RuleParameters"]) for rule, each in published.items()}
    assert {rule for rule, names in given.items() if names != {"rule_to_invoke"}} == set()


def test_parameters_are_read_as_sagemaker_writes_them() -> None:
    assert parse_parameters("Overfit", {"patience": "3", "ratio_threshold": "0.2"}) == {
        "start_step": 0,
        "patience": 3,
        "ratio_threshold": 0.2,
    }
    assert parse_parameters("ExplodingTensor", {"only_nan": "True"}) == {"only_nan": True}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patiense": 1}, "'patiense' is not a parameter of Overfit; did you mean patience?"),
        ({"patience": "2.5"}, "Overfit_patience must be a whole number of at least 0, got '2.5'."),
        ({"ratio_threshold": float("nan")}, "Overfit_ratio_threshold must be a number of at least 0, got nan."),
    ],
)
def test_parameters_that_break_their_rule_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_parameters("Overfit", given)
    assert str(caught.value) == message
