"""docs/profiling.md says what the rules do: every rule, every parameter, every default."""

import re
from pathlib import Path

import pytest
from smdebug_rulesconfig.profiler_rules import rules as rule_configs

from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.profiling.rules import OVERALL_FRAMEWORK_METRICS, RULES
from dogbreed_ml.ruleparameters import DEFAULTS

PAGE = (Path(__file__).parents[3] / "docs" / "profiling.md").read_text(encoding="utf-8")
ROWS = {
    name: parameters
    for names, parameters in re.findall(r"^\| ([A-Z][\w, ]+) \| .* \| (.*) \|$", PAGE, re.MULTILINE)
    for name in names.split(", ")
}


def published() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {OVERALL_FRAMEWORK_METRICS: {}}
    for name in RULES:
        if name != OVERALL_FRAMEWORK_METRICS:
            found[name] = dict(getattr(rule_configs, name)().rule_parameters)
    for rule, defaults in DEFAULTS.items():
        found[rule] = dict(defaults)
    ours = {"rule_to_invoke", "scan_interval_us"}
    return {name: {k: v for k, v in each.items() if k not in ours} for name, each in found.items()}


@pytest.mark.parametrize("rule", published())
def test_page_has_each_rule_with_its_defaults(rule: str) -> None:
    told = dict(each.split(" ") for each in ROWS[rule].split(", ")) if ROWS[rule] != "none" else {}
    assert told == {name: str(value) for name, value in published()[rule].items()}


def test_page_names_fields_that_exist() -> None:
    named = set(re.findall(r"profile\.(\w+)", PAGE))
    assert named <= set(ProfileConfig.__dataclass_fields__)
    assert f"`profile.max_gib` ({ProfileConfig().max_gib:g})" in PAGE
    assert f"every {ProfileConfig().interval_ms:g} ms (`profile.interval_ms`" in PAGE
