"""One JSON a rule, in the layout of SageMaker's profiler-output/profiler-reports/<Rule>.json."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from dogbreed_ml.errors import ProfileError
from dogbreed_ml.files import write_whole
from dogbreed_ml.profiling.verdicts import Evidence, Verdict

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


def load_rule_reports(folder: Path, rules: Iterable[str]) -> tuple[Verdict, ...]:
    """Verdicts that `save_rule_reports` left under `folder`; a rule without a file is left out.

    Parameters come back as text. Raises ProfileError for a file that is not one of ours.
    """
    paths = (folder / REPORTS_DIR / f"{rule}.json" for rule in rules)
    return tuple(_load(path) for path in paths if path.is_file())


def _load(path: Path) -> Verdict:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        details = dict(report["Details"])
        return Verdict(
            path.stem,
            details.pop("status"),
            details.pop("reason"),
            report["RuleTriggered"],
            report["Datapoints"],
            dict(line.split(":", 1) for line in report["RuleParameters"].splitlines()),
            tuple(Evidence(**each) for each in details.pop("evidence")),
            details.pop("recommendation"),
            details,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ProfileError(f"{path} is not a rule's report as dogbreed writes it: {error!r}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    # numpy's numbers have item().
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
