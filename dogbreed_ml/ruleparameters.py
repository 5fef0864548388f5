"""The parameters of SageMaker's rules, by its own names: of the profiler's as RULE_PARAMETER, as its report takes them.

smdebug_rulesconfig's debugger_rules/rule_config_jsons name the rules and the collections that they read; the
parameters and their defaults are those of SageMaker's developer guide, "List of Debugger Built-in Rules".
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, Literal, cast, get_args

from dogbreed_ml.checks import nearest
from dogbreed_ml.errors import ConfigError

RuleName = Literal[
    "LossNotDecreasing",
    "VanishingGradient",
    "ExplodingTensor",
    "Overfit",
    "Overtraining",
    "PoorWeightInitialization",
    "DeadRelu",
    "ClassImbalance",
    "AllZero",
]
TENSOR_RULES: tuple[RuleName, ...] = get_args(RuleName)

DEFAULTS: Mapping[RuleName, Mapping[str, int | float | bool]] = {
    "LossNotDecreasing": {"num_steps": 10, "diff_percent": 0.0},
    "VanishingGradient": {"threshold": 1e-7},
    "ExplodingTensor": {"only_nan": False},
    "Overfit": {"start_step": 0, "patience": 1, "ratio_threshold": 0.1},
    "Overtraining": {"patience_train": 5, "patience_validation": 10, "delta": 0.1},
    "PoorWeightInitialization": {"threshold": 10.0, "distribution_range": 0.001, "patience": 5, "steps": 10},
    "DeadRelu": {"threshold_inactivity": 1.0, "threshold_layer": 50.0},
    "ClassImbalance": {"threshold_imbalance": 10.0, "threshold_misprediction": 0.7, "samples": 500},
    "AllZero": {"threshold": 100.0},
}


def check_parameters(rules: Mapping[str, Any]) -> None:
    """Raises ConfigError for a RULE_PARAMETER that is of no rule, or a value that the rule does not take."""
    if not rules:
        return
    from smdebug_rulesconfig.profiler_rules.rules import ProfilerReport, ProfilerRuleBase

    profiler_rules = [each.__name__ for each in ProfilerRuleBase.__subclasses__() if each is not ProfilerReport]
    of_profiler, of_tensors = split_parameters(rules)
    for key in of_profiler:
        rule = key.partition("_")[0]
        if rule.lower() not in map(str.lower, profiler_rules):
            raise ConfigError(
                f"profile.rules must have RULE_PARAMETER keys, and {rule!r} is no rule"
                f"{nearest(rule, [*profiler_rules, *TENSOR_RULES])}"
            )
        if of_profiler[key] is None:
            raise ConfigError(f"profile.rules must have a value for {key}, got None.")
    try:
        ProfilerReport(**of_profiler)
    except (AssertionError, TypeError) as error:
        must = "profile.rules must have RULE_PARAMETER keys and values that the rule takes"
        raise ConfigError(f"{must}: {' '.join(str(error).split())}") from error
    for name, given in of_tensors.items():
        parse_parameters(cast(RuleName, name), given)


def split_parameters(rules: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Those of the profiler's rules as they are, and the tensor rules' by rule."""
    of_profiler: dict[str, Any] = {}
    of_tensors: dict[str, dict[str, Any]] = {}
    for key, value in rules.items():
        rule, _, parameter = key.partition("_")
        if rule in TENSOR_RULES:
            of_tensors.setdefault(rule, {})[parameter] = value
        else:
            of_profiler[key] = value
    return of_profiler, of_tensors


def parse_parameters(rule: RuleName, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a rule, defaults filled in; texts such as "10" are taken as SageMaker takes them.

    Raises ConfigError for an unknown name or a value that is no number.
    """
    defaults = DEFAULTS[rule]
    parameters: dict[str, Any] = dict(defaults)
    for name, value in given.items():
        if name not in defaults:
            raise ConfigError(f"{name!r} is not a parameter of {rule}{nearest(name, list(defaults))}")
        parameters[name] = _parse(f"{rule}_{name}", value, type(defaults[name]))
    return parameters


def _parse(name: str, value: Any, kind: type) -> int | float | bool:
    text = str(value).strip()
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{name} must be true or false, got {value!r}.")
        return text.lower() == "true"
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    # NaN fails each comparison.
    if not 0 <= number < float("inf") or (kind is int and number != int(number)):
        raise ConfigError(
            f"{name} must be {'a whole number' if kind is int else 'a number'} of at least 0, got {value!r}."
        )
    return int(number) if kind is int else number


@cache
def rule_collections(rule: RuleName) -> Mapping[str, str | None]:
    """The collections that SageMaker saves for a rule: name to regex, None where smdebug has one of its own."""
    folder = resources.files("smdebug_rulesconfig.debugger_rules") / "rule_config_jsons"
    rules = json.loads((folder / "ruleConfigs.json").read_text(encoding="utf-8"))
    collections = rules[rule].get("CollectionConfigurations", [])
    return {each["CollectionName"]: each["CollectionParameters"].get("include_regex") for each in collections}
