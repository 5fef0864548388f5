"""One JSON a rule, in the layout of SageMaker's profiler-output/profiler-reports/<Rule>.json."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from dogbreed_ml.files import write_whole
from dogbreed_ml.profiling.verdicts import Verdict

REPORTS_DIR: Final = "profiler-output/profiler-reports"


def rule_report(verdict: Verdict) -> dict[str, Any]:
    """RuleTriggered, Violations, Details, Datapoints and RuleParameters as SageMaker has them.

    What it has no key for (status, reason, evidence, recommendation) is in Details beside the rule's own figures.
    Numbers that JSON has not are null.
    """
    own = {
        "status": verdict.status,
        "reason": verdict.reason,
        "recommendation": verdict.recommendation,
        "evidence": [asdict(each) | {"values": dict(each.values)} for each in verdict.evidence],
    }
    report = {
        "RuleTriggered": verdict.triggered,
        "Violations": verdict.triggered,
        "Details": own | dict(verdict.details),
        "Datapoints": verdict.datapoints,
        "RuleParameters": render_parameters(verdict.parameters),
    }
    plain: dict[str, Any] = _plain(report)
    return plain


def render_parameters(parameters: Mapping[str, Any]) -> str:
    """`name:value` a line, as smdebug's Rule.report has them."""
    return "\n".join(f"{name}:{value}" for name, value in parameters.items())


def save_rule_reports(verdicts: Iterable[Verdict], folder: Path) -> list[Path]:
    """Writes <Rule>.json for each verdict under `folder`/REPORTS_DIR."""
    paths = []
    for verdict in verdicts:
        path = folder / REPORTS_DIR / f"{verdict.rule}.json"
        paths.append(write_whole(path, json.dumps(rule_report(verdict), indent=2, allow_nan=False)))
    return paths


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    # numpy's numbers have item().
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
