"""The verdict as one HTML page that needs nothing else: what was asked, what was found, how sure it is."""

import html
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from string import Template

import numpy as np
import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from dogbreed_ml.measurement import NUM_CLIENTS, Timing
from dogbreed_ml.pages import STYLE
from dogbreed_ml.promotion import BreedChange, Check, Comparison, Scores, Verdict

PROMOTION_PAGE_ARTIFACT = "promotion.html"

_CHALLENGER, _CHAMPION, _BAD, _GOOD = "#2f6f8f", "#8795a1", "#b23b3b", "#23794b"
_ROWS: tuple[tuple[str, str, str], ...] = (
    ("accuracy_top1", "top-1 accuracy", "{:.2%}"),
    ("accuracy_top5", "top-5 accuracy", "{:.2%}"),
    ("f1_macro", "macro F1", "{:.4f}"),
    ("worst_recall", "worst breed's recall", "{:.2%}"),
    ("worst_breed", "worst breed", "{}"),
    ("calibration_error", "expected calibration error", "{:.4f}"),
    ("num_unanswered", "images refused", "{}"),
    ("p50_ms", "p50, one client", "{:.1f} ms"),
    ("p95_ms", "p95, one client", "{:.1f} ms"),
    ("images_per_s", f"throughput, {NUM_CLIENTS} clients", "{:.1f} images/s"),
    ("cold_start_s", "cold start", "{:.1f} s"),
    ("size_mib", "size", "{:.1f} MiB"),
    ("backend", "back end", "{}"),
)


def render_promotion_page(
    verdict: Verdict,
    timings: Mapping[str, Timing],
    *,
    model_name: str,
    outcome: str,
    notes: Sequence[str] = (),
) -> str:
    """The whole page as text.

    `timings` by the name of each version, the challenger's first; `outcome` is the sentence for people, `notes` what
    they must know besides.
    """
    names = list(timings)
    sections = [_render_checks(verdict.checks), _render_scores(names, verdict)]
    if verdict.comparison is not None:
        caption = "What was found, with its 95 % interval; p95 is refused where all of it lies beyond the dashed limit."
        sections.append(_render_plot("How sure it is", caption, _interval_figure(verdict.comparison, verdict.checks)))
    sections.append(
        _render_plot(
            "Latency",
            "Share of one client's requests that were answered within a time; dots: p95 of each round.",
            _latency_figure(timings),
        )
    )
    if verdict.comparison is not None:
        caption = "Recall through both servers, challenger minus champion; pale: too few test images to refuse for."
        limit = next(check for check in verdict.checks if check.name == "breeds")
        figure = _breeds_figure(verdict.comparison.breeds, limit, verdict.min_breed_images)
        sections.append(_render_plot("Breeds", caption, figure))
    return _PAGE.substitute(
        plotly=get_plotlyjs(),
        style=STYLE,
        title=html.escape(f"{model_name}: {names[0]}"),
        model=html.escape(model_name),
        outcome=html.escape(_capitalised(outcome)),
        kind="passed" if verdict.passed else "refused",
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        summary=html.escape(_summary(verdict, timings)),
        notes="".join(f"<p class=note>{html.escape(note)}</p>" for note in notes),
        sections="".join(sections),
    )


def _summary(verdict: Verdict, timings: Mapping[str, Timing]) -> str:
    num_rounds, num_requests = next(iter(timings.values())).latencies_ms.shape
    turns = f"in {num_rounds} rounds{' by turns' * (len(timings) > 1)}, {num_requests} requests of one client in each"
    return (
        f"{_capitalised(' against '.join(timings))}, through their servers: {verdict.num_images} test images; {turns}."
    )


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _render_checks(checks: Sequence[Check]) -> str:
    rows = "".join(
        f"<tr><td class={'good' if check.passed else 'bad'}>{'passed' if check.passed else 'refused'}</td>"
        f"<td>{html.escape(check.name)}</td><td>{html.escape(check.rule)}</td><td>{html.escape(check.details)}</td></tr>"
        for check in checks
    )
    head = "<tr><th>verdict</th><th>check</th><th>rule</th><th>found</th></tr>"
    return f'<section><h2>Checks</h2><div class="scroll"><table id=checks>{head}{rows}</table></div></section>'


def _render_scores(names: Sequence[str], verdict: Verdict) -> str:
    columns = [verdict.challenger, *([verdict.champion] if verdict.champion else [])]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = "".join(f"<tr><th>{label}</th>{_cells(columns, field, form)}</tr>" for field, label, form in _ROWS)
    return (
        '<section><h2>Figures</h2><div class="scroll"><table id=scores>'
        f"<tr><th></th>{head}</tr>{rows}</table></div></section>"
    )


def _cells(columns: Sequence[Scores], field: str, form: str) -> str:
    return "".join(f"<td>{html.escape(form.format(getattr(column, field)))}</td>" for column in columns)


def _interval_figure(comparison: Comparison, checks: Sequence[Check]) -> go.Figure:
    limit = next(check.limit for check in checks if check.name == "latency")
    accuracy, ratio = comparison.accuracy_change, comparison.p95_ratio
    panels = ((accuracy, 100.0, "accuracy change (points)", 0.0), (ratio, 1.0, "p95, times the champion's", 1.0))
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for column, (interval, scale, title, zero) in enumerate(panels, start=1):
        value, low, high = (each * scale for each in (interval.value, interval.low, interval.high))
        bars = {"type": "data", "symmetric": False, "array": [high - value], "arrayminus": [value - low], "width": 8}
        point = go.Scatter(
            x=[value],
            y=[0],
            error_x=bars,
            mode="markers+text",
            marker={"size": 12, "color": _CHALLENGER},
            text=[f"{value:+.2f}" if column == 1 else f"{value:.2f}"],
            textposition="top center",
            hovertemplate=f"{low:.2f} to {high:.2f}<extra></extra>",
            showlegend=False,
        )
        figure.add_trace(point, row=1, col=column)
        figure.add_vline(x=zero, line_color=_CHAMPION, line_width=1, row=1, col=column)
        figure.update_xaxes(title=title, row=1, col=column)
    figure.add_vline(x=limit, line_color=_BAD, line_dash="dash", row=1, col=2)
    figure.update_yaxes(visible=False, range=[-1, 1])
    figure.update_layout(height=190)
    return figure


def _latency_figure(timings: Mapping[str, Timing]) -> go.Figure:
    figure = make_subplots(rows=1, cols=2, column_widths=[0.68, 0.32], horizontal_spacing=0.1)
    for (name, timing), color in zip(timings.items(), (_CHALLENGER, _CHAMPION), strict=False):
        latencies = np.sort(timing.latencies_ms.ravel())
        shares = np.arange(1, len(latencies) + 1) / len(latencies)
        line = go.Scatter(x=latencies, y=shares, name=name, mode="lines", line={"color": color, "shape": "hv"})
        figure.add_trace(line, row=1, col=1)
        p95 = float(np.quantile(latencies, 0.95))
        figure.add_vline(x=p95, line_color=color, line_dash="dot", line_width=1, row=1, col=1)
        by_round = np.quantile(timing.latencies_ms, 0.95, axis=1)
        dots = go.Scatter(
            x=np.arange(1, len(by_round) + 1),
            y=by_round,
            name=name,
            mode="markers+lines",
            marker={"color": color, "size": 9},
            line={"width": 1},
            showlegend=False,
        )
        figure.add_trace(dots, row=1, col=2)
    figure.update_xaxes(title="latency (ms); dotted: p95", row=1, col=1)
    figure.update_yaxes(title="share answered", tickformat=".0%", range=[0, 1.02], row=1, col=1)
    figure.update_xaxes(title="round", dtick=1, row=1, col=2)
    figure.update_yaxes(title="p95 (ms)", rangemode="tozero", row=1, col=2)
    figure.update_layout(height=380, legend={"orientation": "h", "y": 1.12, "x": 0})
    return figure


def _breeds_figure(breeds: Sequence[BreedChange], check: Check, min_images: int) -> go.Figure:
    colors = [_BAD if breed.change < 0 else _GOOD for breed in breeds]
    bars = go.Bar(
        x=[breed.change * 100 for breed in breeds],
        y=[f"{breed.breed} ({breed.num_images})" for breed in breeds],
        orientation="h",
        marker={"color": colors, "opacity": [1.0 if breed.num_images >= min_images else 0.35 for breed in breeds]},
        customdata=[[breed.champion, breed.challenger] for breed in breeds],
        hovertemplate="%{y}: %{customdata[0]:.1%} to %{customdata[1]:.1%}<extra></extra>",
    )
    figure = go.Figure(bars)
    reach = max(100 * check.limit, *(abs(breed.change) * 100 for breed in breeds), 1.0) * 1.1
    figure.add_vline(x=-100 * check.limit, line_color=_BAD, line_dash="dash")
    figure.update_xaxes(title="change of recall (points); dashed: the limit", range=[-reach, reach], zeroline=True)
    figure.update_yaxes(autorange="reversed", tickfont={"size": 12}, dtick=1)
    figure.update_layout(height=130 + 21 * len(breeds), bargap=0.3)
    return figure


def _render_plot(title: str, caption: str, figure: go.Figure) -> str:
    figure.update_layout(
        template="plotly_white",
        margin={"l": 60, "r": 30, "t": 30, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13},
    )
    figure.update_yaxes(automargin=True)
    body = plotly.io.to_html(
        figure, full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
    )
    return (
        f"<section><h2>{html.escape(title)}</h2><p class=caption>{html.escape(caption)}</p>"
        f'<div class="plot">{body}</div></section>'
    )


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style
h1 { margin: 0 0 10px; font-size: 26px; letter-spacing: -.01em; }
#outcome { margin: 0; padding: 14px 18px; border-radius: 10px; color: #fff; font-size: 18px; font-weight: 600; }
#outcome.passed { background: #23794b; } #outcome.refused { background: #b23b3b; }
.note { padding: 8px 14px; background: #fdf4dd; border: 1px solid #ecd9a0; border-radius: 8px; color: var(--ink); }
th { color: var(--soft); font-weight: 600; font-size: 13px; }
#scores td { white-space: nowrap; }
.good { color: #23794b; font-weight: 600; } .bad { color: #b23b3b; font-weight: 600; }
</style>
<script>$plotly</script></head>
<body><main>
<header><h1>$model: the gate</h1><p id=outcome class=$kind>$outcome</p><p>$summary</p><p>$made</p>$notes</header>
$sections
</main></body></html>
""")
