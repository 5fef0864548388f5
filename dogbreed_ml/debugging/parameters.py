"""The parameters of SageMaker's tensor rules, by its own names.

smdebug_rulesconfig's debugger_rules/rule_config_jsons name the rules and the collections that they read; the
parameters and their defaults are those of SageMaker's developer guide, "List of Debugger Built-in Rules".
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any, get_args

from dogbreed_ml.config import nearest
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.policies import TensorRuleName

RuleName = TensorRuleName
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
