"""The search report: one HTML file that needs nothing else, for people who ask what won and what to try next."""

import html
import json
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from string import Template
from typing import Any

import optuna
import plotly.graph_objects as go
import plotly.io
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState, create_trial
from optuna.visualization import plot_optimization_history, plot_parallel_coordinate, plot_slice
from plotly.offline import get_plotlyjs

from dogbreed_ml.advice import build_advice
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.pages import STYLE
from dogbreed_ml.samplers import build_distributions
from dogbreed_ml.search import SearchResult, TrialRecord

SEARCH_REPORT_ARTIFACT = "search_report.html"

_ACCENT, _BEST_COLOR = "#2f6f8f", "#c8743a"
_SLICE_WIDTH_PX = 260
_MIN_TRIALS_FOR_IMPORTANCE = 4


def render_search_report(
    result: SearchResult,
    *,
    config: ExperimentConfig,
    experiment_id: str,
    test: Mapping[str, float] | None = None,
    interval: tuple[float, float] | None = None,
    base_url: str = "",
) -> str:
    """The whole page as text.

    `test` are the test metrics of the refitted best by bare name, `interval` the 95 % interval of accuracy_top1.
    Runs are linked as pages of the MLflow UI at `base_url`; without one, relative to the page that shows the report.
    """
    study = _study(result, config)
    importances = _importances(study)
    name = result.metric.partition("/")[2]
    test_value = (test or {}).get(name)
    advice = build_advice(
        config,
        result.best,
        result.trials,
        importances,
        test_value=test_value,
        test_interval=interval if name == "accuracy_top1" else None,
    )
    origin = f"{base_url.rstrip('/')}/" if base_url else ""
    link = f"{origin}#/experiments/{experiment_id}/runs/"
    return _PAGE.substitute(
        plotly=get_plotlyjs(),
        style=STYLE,
        name=html.escape(config.name),
        study=html.escape(result.study_name),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        summary=html.escape(_summary(result, config)),
        best=_render_best(result, test or {}, interval, link),
        advice="".join(f"<li>{html.escape(each)}</li>" for each in advice),
        plots="".join(_render_plot(*plot) for plot in _plots(study, result, importances)),
        table=_render_table(result, list(config.search.space), link),
    )


def _study(result: SearchResult, config: ExperimentConfig) -> optuna.Study:
    """The trials as Optuna's plots want them, in memory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=result.direction)
    distributions = build_distributions(config.search)
    states = {"COMPLETE": TrialState.COMPLETE, "PRUNED": TrialState.PRUNED, "FAILED": TrialState.FAIL}
    for trial in result.trials:
        params = {name: value for name, value in trial.values.items() if name in distributions}
        study.add_trial(
            create_trial(
                state=states[trial.state],
                value=trial.value,
                params=params,
                distributions={name: distributions[name] for name in params},
            )
        )
    return study


def _importances(study: optuna.Study) -> dict[str, float]:
    """Shares of the differences by dimension, most important first; empty where there is nothing to tell apart."""
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    if len(complete) < _MIN_TRIALS_FOR_IMPORTANCE or len({trial.value for trial in complete}) < 2:
        return {}
    varied = [name for name in complete[0].params if len({trial.params[name] for trial in complete}) > 1]
    if not varied:
        return {}
    evaluator = FanovaImportanceEvaluator(seed=0)
    return get_param_importances(study, evaluator=evaluator, params=varied)


def _plots(
    study: optuna.Study, result: SearchResult, importances: Mapping[str, float]
) -> list[tuple[str, str, go.Figure | None, str]]:
    """Title, what it shows, the figure or None, and what to say in its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = plot_optimization_history(study, target_name=result.metric)
        parallel = plot_parallel_coordinate(study, target_name=result.metric)
        slices = plot_slice(study, target_name=result.metric)
    history.update_traces(marker_color=_ACCENT, selector={"mode": "markers"})
    history.update_traces(line_color=_BEST_COLOR, selector={"mode": "lines"})
    # Plotly's own scale begins with white, which hides the worst trials.
    parallel.update_traces(line_colorscale=[[0, "#b9c7d1"], [1, _BEST_COLOR]], selector={"type": "parcoords"})
    slices.update_xaxes(exponentformat="e")
    names = list(result.best.values)
    slices.update_layout(width=max(3, len(names)) * _SLICE_WIDTH_PX + 140 if len(names) > 4 else None)
    return [
        ("History", "Each complete trial, and the best so far. Drag to zoom, double-click to go back.", history, ""),
        (
            "Importances",
            "How much of the differences between complete trials each hyperparameter explains (fANOVA).",
            _importance_figure(importances) if importances else None,
            "Needs at least four complete trials that differ in their values and results.",
        ),
        ("Parallel coordinates", "A line per complete trial. Drag along an axis to pick trials.", parallel, ""),
        ("Slices", "Each hyperparameter against the result; darker is later.", slices, ""),
    ]


def _importance_figure(importances: Mapping[str, float]) -> go.Figure:
    names = list(importances)[::-1]
    shares = [importances[name] for name in names]
    bar = go.Bar(x=shares, y=names, orientation="h", marker_color=_ACCENT, text=[f"{s:.0%}" for s in shares])
    figure = go.Figure(bar)
    figure.update_traces(textposition="outside", cliponaxis=False)
    figure.update_xaxes(range=[0, 1.08], tickformat=".0%")
    figure.update_layout(height=120 + 46 * len(names))
    return figure


def _render_plot(title: str, caption: str, figure: go.Figure | None, instead: str) -> str:
    body = f'<p class="none">{html.escape(instead)}</p>'
    if figure is not None:
        figure.update_layout(
            template="plotly_white",
            title=None,
            margin={"l": 60, "r": 30, "t": 40, "b": 50},
            font={"family": "system-ui, sans-serif", "size": 13},
        )
        body = plotly.io.to_html(
            figure, full_html=False, include_plotlyjs=False, config={"displayModeBar": False, "responsive": True}
        )
    return (
        f"<section><h2>{html.escape(title)}</h2><p class=caption>{html.escape(caption)}</p>"
        f'<div class="plot">{body}</div></section>'
    )


def _summary(result: SearchResult, config: ExperimentConfig) -> str:
    counts = {state: sum(trial.state == state for trial in result.trials) for state in ("COMPLETE", "PRUNED", "FAILED")}
    seconds = sum(trial.seconds for trial in result.trials)
    told = ", ".join(f"{count} {state.lower()}" for state, count in counts.items() if count)
    return (
        f"{len(result.trials)} trials ({told}) by {config.search.sampler} with {config.search.pruner} pruning; "
        f"{seconds:.1f} s of training in all; {result.direction} {result.metric}."
    )


def _render_best(
    result: SearchResult, test: Mapping[str, float], interval: tuple[float, float] | None, link: str
) -> str:
    best = result.best
    tiles = [(f"best {result.metric}", _figure(best.value))]
    for name, value in test.items():
        shown = _figure(value)
        if name == "accuracy_top1" and interval:
            shown += f"<small>95 %: {interval[0]:.4f} to {interval[1]:.4f}</small>"
        tiles.append((f"test/{name}", shown))
    rendered = "".join(f"<div class=tile><b>{value}</b><span>{html.escape(name)}</span></div>" for name, value in tiles)
    params = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_figure(value))}</td></tr>"
        for name, value in best.values.items()
    )
    flags = " ".join(f"--{name} {_flag(value)}" for name, value in best.values.items())
    return (
        f"<div class=tiles>{rendered}</div><div class=columns><table class=params>{params}</table>"
        f"<div><p>Trial {best.number}, {_run_link(best, link)}: {best.num_epochs} epochs, "
        f"{best.seconds:.2f} s; the value is that of epoch {best.best_epoch}, counted from 0.</p>"
        f"<p>As flags:</p><pre>{html.escape(flags)}</pre></div></div>"
    )


def _render_table(result: SearchResult, names: list[str], link: str) -> str:
    heads = ["trial", "run", "state", result.metric, *names, "epochs", "seconds"]
    has_causes = any(trial.cause for trial in result.trials)
    heads += ["cause"] * has_causes
    head = "".join(f"<th>{html.escape(each)}</th>" for each in heads)
    rows = []
    for trial in result.trials:
        cells = [
            f"<td data-v={trial.number}>{trial.number}</td>",
            f"<td>{_run_link(trial, link)}</td>",
            f"<td class={trial.state.lower()}>{trial.state.lower()}</td>",
            _cell(trial.value),
            *(_cell(trial.values.get(name)) for name in names),
            _cell(trial.num_epochs),
            f'<td data-v="{trial.seconds:.4f}">{trial.seconds:.2f}</td>',
            *([f"<td class=cause>{html.escape(trial.cause or '')}</td>"] * has_causes),
        ]
        kind = " class=winner" if trial.number == result.best.number else ""
        rows.append(f"<tr{kind}>{''.join(cells)}</tr>")
    return f"<table id=trials><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(value: Any) -> str:
    if value is None:
        return "<td data-v=''>-</td>"
    return f'<td data-v="{html.escape(str(value))}">{html.escape(_figure(value))}</td>'


def _run_link(trial: TrialRecord, link: str) -> str:
    if trial.run_id is None:
        return "no run"
    return f'<a href="{html.escape(link + trial.run_id)}" target="_top">trial-{trial.number:04d}</a>'


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _flag(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name: search report</title>
<style>
$style
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 8px 0 14px; }
.tile { flex: 1 1 150px; border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 22px; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile:first-child { background: var(--accent); border-color: var(--accent); color: #fff; }
.tile span, .tile small { display: block; font-size: 12.5px; font-weight: 400; opacity: .75; }
.columns { display: grid; grid-template-columns: minmax(220px, 1fr) 2fr; gap: 24px; align-items: start; }
.columns p { margin: 6px 0; }
pre { margin: 0; padding: 10px 12px; background: var(--back); border: 1px solid var(--line); border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
ul { margin: 0; padding-left: 20px; } li { margin: 4px 0; }
th, td { white-space: nowrap; }
.params th { font-weight: 500; color: var(--soft); }
#trials { width: 100%; font-size: 14px; }
#trials th { cursor: pointer; color: var(--soft); font-weight: 600; font-size: 13px; }
#trials th:hover { color: var(--accent); }
#trials .cause { min-width: 260px; white-space: normal; font-size: 13px; }
.winner td { background: #eef6f1; font-weight: 600; }
.complete { color: #23794b; } .pruned { color: #8a6d1a; } .failed { color: #b23b3b; }
@media (max-width: 700px) { .columns { grid-template-columns: 1fr; } }
</style>
<script>$plotly</script></head>
<body><main>
<header><h1>$name: what the search found</h1><p>$summary</p><p>Study $study, $made</p></header>
<section><h2>Best trial</h2>$best</section>
<section><h2>What to try next</h2><ul>$advice</ul></section>
$plots
<section><h2>Trials</h2><p class=caption>A click on a heading sorts. <span id="frame-hint" hidden>MLflow's frame
opens a run in a new tab only: Ctrl-click it (Mac: Cmd-click).</span></p><div class="scroll">$table</div></section>
</main>
<script>
document.querySelectorAll("#trials th").forEach((head, column) => head.addEventListener("click", () => {
  const body = document.querySelector("#trials tbody");
  const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const up = head.dataset.up !== "1";
  head.dataset.up = up ? "1" : "0";
  const order = (a, b) => key(a) === "" ? 1 : key(b) === "" ? -1
    : (up ? 1 : -1) * key(a).localeCompare(key(b), undefined, { numeric: true });
  const number = text => text !== "" && !isNaN(text);
  const compare = (a, b) => number(key(a)) && number(key(b)) ? (up ? 1 : -1) * (key(a) - key(b)) : order(a, b);
  [...body.rows].sort(compare).forEach(row => body.append(row));
}));
// MLflow shows this page under a blob: address, where "#/experiments/..." leads nowhere, in a sandbox whose links open
// in new tabs alone.
if (location.protocol === "blob:") {
  document.querySelectorAll("a[target=_top]").forEach(link => {
    link.href = new URL(link.getAttribute("href"), new URL(location.href).origin + "/").href;
    link.title = "Ctrl-click (Mac: Cmd-click) opens the run in a new tab";
  });
  document.getElementById("frame-hint").hidden = false;
}
</script>
</body></html>
""")
