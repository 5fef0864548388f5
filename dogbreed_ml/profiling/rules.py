"""SageMaker's profiler rules, judged on a recording: configured by smdebug_rulesconfig's own classes.

Names, parameters and defaults are SageMaker's. How its rules were written was never published: each function says what
it takes them to mean.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from smdebug_rulesconfig.profiler_rules import rules as rule_configs

from dogbreed_ml.errors import ProfileError
from dogbreed_ml.profiling import gpurules, looprules
from dogbreed_ml.profiling.recordings import Recording
from dogbreed_ml.profiling.verdicts import Verdict

logger = logging.getLogger(__name__)

RuleFunction = Callable[[Recording, Mapping[str, Any]], Verdict]

OVERALL_FRAMEWORK_METRICS: Final = "OverallFrameworkMetrics"
"""In SageMaker's report, and in no class of smdebug_rulesconfig: it has no parameters."""

RULES: Final[dict[str, RuleFunction]] = {
    "StepOutlier": looprules.step_outlier,
    "GPUMemoryIncrease": gpurules.gpu_memory_increase,
    "LowGPUUtilization": gpurules.low_gpu_utilization,
    "BatchSize": gpurules.batch_size,
    "CPUBottleneck": gpurules.cpu_bottleneck,
    "IOBottleneck": gpurules.io_bottleneck,
    "Dataloader": looprules.dataloader,
    "LoadBalancing": gpurules.load_balancing,
    "MaxInitializationTime": looprules.max_initialization_time,
    "OverallSystemUsage": looprules.overall_system_usage,
    OVERALL_FRAMEWORK_METRICS: looprules.overall_framework_metrics,
}
"""In the order of SageMaker's report."""


def profiler_report(parameters: Mapping[str, Any]) -> rule_configs.ProfilerReport:
    """SageMaker's ProfilerReport with `<rule>_<parameter>` keys; raises ProfileError where it refuses them."""
    try:
        return rule_configs.ProfilerReport(**parameters)
    except (AssertionError, TypeError) as error:
        raise ProfileError(f"A key must be RULE_PARAMETER with a value that the rule takes: {error}") from error


def judge(recording: Recording, rules: Iterable[rule_configs.ProfilerRuleBase] = ()) -> tuple[Verdict, ...]:
    """One verdict a rule, in the order of RULES.

    `rules` are objects of smdebug_rulesconfig, such as StepOutlier(stddev=2); a ProfilerReport stands for all rules
    with the parameters that its keys name. Without any, all rules are judged by their defaults.
    """
    parameters = _parameters(rules)
    return tuple(_judge_one(name, recording, parameters[name]) for name in RULES if name in parameters)


def _judge_one(name: str, recording: Recording, parameters: Mapping[str, Any]) -> Verdict:
    try:
        verdict = RULES[name](recording, parameters)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        logger.warning("%s could not be judged", name, exc_info=error)
        reason = f"could not be judged: {type(error).__name__}: {error}"
        return Verdict(name, "Error", reason, parameters=parameters)
    return replace(verdict, parameters=parameters)


def _parameters(rules: Iterable[rule_configs.ProfilerRuleBase]) -> dict[str, dict[str, Any]]:
    """Parameters of each rule to be judged, by its name."""
    chosen = list(rules) or [rule_configs.ProfilerReport()]
    found: dict[str, dict[str, Any]] = {}
    for rule in chosen:
        if isinstance(rule, rule_configs.ProfilerReport):
            found |= _report_parameters(rule)
        else:
            found[rule.rule_name] = _own(rule)
    if unknown := [name for name in found if name not in RULES]:
        raise ProfileError(f"A rule must be one of {', '.join(RULES)}, got {', '.join(unknown)}.")
    return found


def _report_parameters(report: rule_configs.ProfilerReport) -> dict[str, dict[str, Any]]:
    values: dict[str, dict[str, Any]] = {name.lower(): {} for name in RULES}
    for key, value in _own(report).items():
        rule_name, _, parameter = key.partition("_")
        values[rule_name.lower()][parameter.lower()] = value
    found: dict[str, dict[str, Any]] = {}
    for name in RULES:
        is_ours = name == OVERALL_FRAMEWORK_METRICS
        found[name] = {} if is_ours else _own(getattr(rule_configs, name)(**values[name.lower()]))
    return found


def _own(rule: rule_configs.ProfilerRuleBase) -> dict[str, Any]:
    return {name: value for name, value in rule.rule_parameters.items() if name != "rule_to_invoke"}
