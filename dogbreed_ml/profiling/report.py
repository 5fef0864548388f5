"""profiler-report.html: what a recording says about a training, in the sections of SageMaker's profiling report.

One file that needs nothing else.
"""

import html
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import plotly.io
from plotly.offline import get_plotlyjs

from dogbreed_ml.files import write_whole
from dogbreed_ml.pages import STYLE
from dogbreed_ml.profiling.looprules import AGGREGATES
from dogbreed_ml.profiling.page import DESCRIPTIONS, PAGE
from dogbreed_ml.profiling.plots import all_figures
from dogbreed_ml.profiling.recordings import Recording
from dogbreed_ml.profiling.rulereports import save_rule_reports
from dogbreed_ml.profiling.traces import OperatorTime
from dogbreed_ml.profiling.verdicts import Evidence, Verdict

REPORT_FILE: Final = "profiler-report.html"

PROFILER_SECTIONS: Final = {
    "GPU utilisation": ("LowGPUUtilization",),
    "Batch size": ("BatchSize",),
    "CPU bottlenecks": ("CPUBottleneck",),
    "I/O bottlenecks": ("IOBottleneck",),
    "Data loader": ("Dataloader",),
    "Load balancing": ("LoadBalancing",),
    "Memory": ("GPUMemoryIncrease",),
}
"""Sections that are a rule and, for some, a plot; those before and after have tables of their own."""
_PLOT_OF: Final = {"Load balancing": "balance", "Memory": "memory"}
_EARLIER: Final = ("MaxInitializationTime", "OverallSystemUsage", "OverallFrameworkMetrics", "StepOutlier")
_MAX_OPEN: Final = 8
"""Rows of evidence that are shown without a click."""
_MIN_SHARE_WITH_WORDS: Final = 0.15
"""Of the job's time: a narrower part of the bar would cut its words off; the table below has them."""
_ORDER: Final = {"IssuesFound": 0, "Error": 1, "NoIssuesFound": 2, "NotApplicable": 3}


def save_profiler_report(
    folder: Path,
    recording: Recording,
    verdicts: Sequence[Verdict],
    *,
    title: str,
    operators: Sequence[OperatorTime] = (),
) -> Path:
    """Writes REPORT_FILE and one JSON a rule into `folder`; returns the report's path."""
    save_rule_reports(verdicts, folder)
    path = folder / REPORT_FILE
    write_whole(path, render_profiler_report(recording, verdicts, title=title, operators=operators))
    return path


def render_profiler_report(
    recording: Recording, verdicts: Sequence[Verdict], *, title: str, operators: Sequence[OperatorTime] = ()
) -> str:
    """The whole page as text. `verdicts` are the profiler's and, where a debugger ran, the tensor rules'."""
    by_rule = {verdict.rule: verdict for verdict in verdicts}
    details = {rule: verdict.details for rule, verdict in by_rule.items()}
    plots = {name: _plot(name, figure) for name, figure in all_figures(recording, details).items()}
    known = {*_EARLIER, *(rule for rules in PROFILER_SECTIONS.values() for rule in rules)}
    tensor_rules = [verdict for verdict in verdicts if verdict.rule not in known]
    sections = [
        _section("Training job summary", _job_summary(by_rule.get("MaxInitializationTime"))),
        _section(
            "System usage statistics",
            *(plots["utilisation"], plots["heat-map"], _system_usage(details.get("OverallSystemUsage", {}))),
        ),
        _section(
            "Framework metrics",
            *(plots["step-parts"], _framework_metrics(details.get("OverallFrameworkMetrics", {}))),
        ),
        _section("Rules summary", _rules_summary(verdicts)),
        _section(
            "Step durations",
            *(plots["step-series"], plots["step-histogram"], _rule(by_rule.get("StepOutlier"))),
        ),
        *(
            _section(name, plots.get(_PLOT_OF.get(name, ""), ""), *(_rule(by_rule.get(rule)) for rule in rules))
            for name, rules in PROFILER_SECTIONS.items()
        ),
        _section("Tensor rules", *map(_rule, tensor_rules)) if tensor_rules else _section("Tensor rules", _NO_DEBUGGER),
        _section("Top operators", _operators(operators)) if operators else "",
    ]
    return PAGE.substitute(
        plotly=get_plotlyjs(),
        style=STYLE,
        title=html.escape(title),
        source=html.escape(recording.source),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=html.escape(_headline(verdicts)),
        notes=_notes(recording.all_notes),
        contents=_contents(sections),
        sections="".join(sections),
    )


_NO_DEBUGGER: Final = (
    '<p class="none">No tensors were saved; profile.debugger: true saves and judges losses, gradients, weights and '
    "activations.</p>"
)


def _headline(verdicts: Sequence[Verdict]) -> str:
    rules = {status: [each.rule for each in verdicts if each.status == status] for status in _ORDER}
    found, errors = rules["IssuesFound"], rules["Error"]
    judged = len(found) + len([rule for rule in rules["NoIssuesFound"] if rule not in AGGREGATES])
    told = f"{judged} rule{'s' * (judged != 1)} judged, "
    told += f"{len(found)} found an issue: {', '.join(found)}." if found else "no issue found."
    return f"{told} {len(errors)} ended in an error: {', '.join(errors)}." if errors else told


def _job_summary(verdict: Verdict | None) -> str:
    details = verdict.details if verdict else {}
    if "job_start_s" not in details:
        return '<p class="none">Nothing was recorded.</p>'
    total = details["job_end_s"] - details["job_start_s"]
    rows = [
        ("Start", _time(details["job_start_s"])),
        ("End", _time(details["job_end_s"])),
        ("Job duration", f"{total:.1f} s"),
    ]
    parts = (("Initialisation", "initialization_s"), ("Training loop", "training_loop_s"))
    bar = ""
    for name, key in (*parts, ("Finalisation", "finalization_s")):
        if key in details:
            share = details[key] / total if total > 0 else 0.0
            rows.append((name, f"{details[key]:.1f} s ({share:.0%})"))
            label = html.escape(f"{name} {share:.0%}")
            words = f"<i>{label}</i>" if share > _MIN_SHARE_WITH_WORDS else ""
            bar += f'<span style="flex: {max(share, 0.0):.4f}" title="{label}">{words}</span>'
    rendered = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
    return f'<div class="parts">{bar}</div><table class="facts">{rendered}</table>{_rule(verdict)}'


def _system_usage(details: Mapping[str, Any]) -> str:
    heads = ("node", "metric", "unit", "max", "p99", "p95", "p50", "min")
    rows = [
        [node, dimension, _unit(dimension), *(_number(figures[name]) for name in ("max", "p99", "p95", "p50", "min"))]
        for node, dimensions in details.get("nodes", {}).items()
        for dimension, figures in dimensions.items()
    ]
    return _table(heads, rows, instead="No system samples were recorded.")


def _framework_metrics(details: Mapping[str, Any]) -> str:
    modes = [
        [f"Step:{mode}", _number(each["num_steps"]), _number(each["total_s"]), "", *_step_figures(each)]
        for mode, each in details.get("modes", {}).items()
    ]
    phases = sorted(details.get("phases", {}).items(), key=lambda item: -item[1]["total_s"])
    rows = [
        [name, _number(each["num_steps"]), _number(each["total_s"]), _share(each["share"]), *_step_figures(each)]
        for name, each in phases
    ]
    heads = ("phase", "count", "total s", "share of steps", "mean ms", "p50 ms", "p95 ms", "max ms")
    return _table(heads, modes + rows, instead="No events of the training loop were recorded.")


def _step_figures(figures: Mapping[str, float]) -> list[str]:
    return [_number(figures[name]) for name in ("mean_ms", "p50_ms", "p95_ms", "max_ms")]


def _rules_summary(verdicts: Sequence[Verdict]) -> str:
    heads = ("rule", "status", "looks for", "what to do, or what was found", "triggered", "datapoints", "parameters")
    ranked = sorted(verdicts, key=lambda verdict: (_ORDER[verdict.status], -verdict.triggered))
    rows = "".join(
        f"<tr><td><b>{html.escape(each.rule)}</b></td><td>{_badge(each)}</td>"
        f'<td class="wide">{html.escape(DESCRIPTIONS.get(each.rule, ""))}</td>'
        f'<td class="wide">{html.escape(each.recommendation or each.reason)}</td>'
        f'<td>{each.triggered}</td><td>{each.datapoints}</td><td class="parameters">{_parameters(each)}</td></tr>'
        for each in ranked
    )
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f'<div class="scroll"><table id="rules"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _rule(verdict: Verdict | None) -> str:
    """A rule's own words and evidence."""
    if verdict is None:
        return '<p class="none">This rule was not asked for.</p>'
    advice = f'<p class="advice">{html.escape(verdict.recommendation)}</p>' if verdict.recommendation else ""
    is_judged = verdict.status in ("IssuesFound", "NoIssuesFound")
    counted = f"triggered {verdict.triggered} times in {verdict.datapoints} datapoints" if is_judged else ""
    name = html.escape(verdict.rule)
    return (
        f'<div class="rule" id="rule-{name}"><h3>{name} {_badge(verdict)}</h3>'
        f"<p>{html.escape(verdict.reason)} <small>{counted}</small></p>{advice}"
        f"{_evidence(verdict.evidence)}</div>"
    )


def _evidence(evidence: Sequence[Evidence]) -> str:
    if not evidence:
        return ""
    rows = [
        [
            _time(each.start_s) if each.start_s else "-",
            each.where,
            each.what,
            ", ".join(f"{name} {_number(value)}" for name, value in each.values.items()),
        ]
        for each in evidence
    ]
    table = _table(("when", "where", "what", "figures"), rows, instead="")
    return f"<details{' open' * (len(rows) <= _MAX_OPEN)}><summary>Evidence ({len(rows)})</summary>{table}</details>"


def _operators(operators: Sequence[OperatorTime]) -> str:
    heads = ("operator", "calls", "self CPU ms", "CPU ms", "self device ms")
    rows = [
        [each.name, str(each.num_calls), *map(_number, (each.self_cpu_ms, each.cpu_ms, each.self_device_ms))]
        for each in operators
    ]
    return _table(heads, rows, instead="")


def _parameters(verdict: Verdict) -> str:
    return "<br>".join(html.escape(f"{name}: {value}") for name, value in verdict.parameters.items())


def _badge(verdict: Verdict) -> str:
    return f'<span class="badge {verdict.status}">{verdict.status}</span>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, instead: str) -> str:
    if not rows:
        return f'<p class="none">{html.escape(instead)}</p>'
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _section(title: str, *bodies: str) -> str:
    return f'<section id="{_anchor(title)}"><h2>{html.escape(title)}</h2>{"".join(bodies)}</section>'


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-").replace("/", "")


def _contents(sections: Sequence[str]) -> str:
    titles = [each.partition("<h2>")[2].partition("</h2>")[0] for each in sections if each]
    return "".join(f'<a href="#{_anchor(html.unescape(title))}">{title}</a>' for title in titles)


def _plot(name: str, figure: Any) -> str:
    if figure is None:
        return ""
    figure.update_layout(
        template="plotly_white",
        margin={"l": 60, "r": 20, "t": 44, "b": 45},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    rendered: str = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=f"plot-{name}",
        config={"displayModeBar": False, "responsive": True},
    )
    return f'<div class="plot">{rendered}</div>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f'<section class="notes"><h2>Notes</h2><ul>{items}</ul></section>'


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-4]


def _unit(dimension: str) -> str:
    return "%" if dimension.endswith(("Utilization", "Percentage", "Percent")) else ""


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1e5 else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
