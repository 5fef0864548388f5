"""The report's plots: figures of a recording, thinned so that a page stays small whatever was recorded."""

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dogbreed_ml.profiling.recordings import Recording, SystemSamples, Timeline

MAX_BINS: Final = 300
"""Columns of a heat map and points of a line."""
MAX_STEP_BINS: Final = 100
MAX_ROWS: Final = 64
"""Of a heat map: the GPUs, and the busiest cores beside them."""

_COLORS: Final = ("#2f6f8f", "#c8743a", "#23794b", "#8a6d1a", "#7a4f9e", "#b23b3b", "#5d6b76", "#4aa3a2")
_LEGEND: Final = {"orientation": "h", "yanchor": "bottom", "y": 1.03}
_OUTLIER: Final = "#b23b3b"
_LINES: Final = {
    "CPUUtilization": "CPU",
    "GPUUtilization": "GPU",
    "GPUMemoryUtilization": "GPU memory",
    "MemoryUsedPercent": "memory",
    "I/OWaitPercentage": "I/O wait",
}
_MEMORY_LINES: Final = ("MemoryUsedPercent", "GPUMemoryUtilization")
_PROCESS_LINE: Final = "this training's process (MiB)"
_STEP_PHASES: Final = ("data_wait", "transfer", "forward", "backward", "optimizer")


def utilisation_figure(system: SystemSamples, *, only: tuple[str, ...] = ()) -> go.Figure | None:
    """Percent over seconds since the start, the mean of a node's cores or GPUs; None where nothing was sampled."""
    figure = go.Figure()
    nodes = system.nodes
    for dimension, label in _LINES.items():
        if only and dimension not in only:
            continue
        for node in nodes:
            samples = system.select(dimension, node=node)
            if samples.empty:
                continue
            seconds, values = _binned_mean(samples, system)
            name = label if len(nodes) == 1 else f"{node} {label}"
            color = _COLORS[len(figure.data) % len(_COLORS)]
            figure.add_scatter(x=seconds, y=values, name=name, mode="lines", line={"color": color, "width": 1.8})
    if not figure.data:
        return None
    figure.update_yaxes(title="percent", range=[0, 102])
    figure.update_xaxes(title="seconds since the start")
    figure.update_layout(height=300, legend=_LEGEND, showlegend=True)
    return figure


def memory_figure(system: SystemSamples) -> go.Figure | None:
    """The machine's and the GPUs' in percent, and the training process's own in MiB, on an axis of its own."""
    figure = utilisation_figure(system, only=_MEMORY_LINES)
    if figure is None:
        return None
    for node in system.nodes:
        samples = system.select("ProcessMemoryMiB", node=node)
        if samples.empty:
            continue
        seconds, values = _binned_mean(samples, system)
        name = _PROCESS_LINE if len(system.nodes) == 1 else f"{node} {_PROCESS_LINE}"
        line = {"color": _COLORS[len(figure.data) % len(_COLORS)], "width": 1.8, "dash": "dot"}
        figure.add_scatter(x=seconds, y=values, name=name, mode="lines", yaxis="y2", line=line)
        # Without "auto" its ticks stand where those of the percents do, at 251 and 501.
        axis = {"title": "MiB", "overlaying": "y", "side": "right", "showgrid": False, "tickmode": "auto"}
        figure.update_layout(yaxis2={**axis, "rangemode": "tozero"})
    return figure


def heat_map_figure(system: SystemSamples) -> go.Figure | None:
    """A row for each core and each GPU, a column for each moment, their utilisation as colour."""
    rows: dict[str, pd.DataFrame] = {}
    for dimension in ("CPUUtilization", "GPUUtilization"):
        samples = system.select(dimension)
        if samples.empty:
            continue
        names = samples["name"].astype(str).to_numpy(dtype=object)
        labels = names if len(system.nodes) == 1 else samples["node"].astype(str).to_numpy(dtype=object) + " " + names
        rows[dimension] = _heat_rows(samples, labels, system)
    if not rows:
        return None
    if (cores := rows.get("CPUUtilization")) is not None:
        num_cores = max(0, MAX_ROWS - len(rows.get("GPUUtilization", ())))
        busiest = cores.mean(axis=1).nlargest(num_cores).index
        rows["CPUUtilization"] = cores[cores.index.isin(busiest)]
    table = pd.concat(rows.values()).head(MAX_ROWS)
    seconds = _bin_seconds(system, table.shape[1])
    figure = go.Figure(
        go.Heatmap(
            z=table.to_numpy(),
            x=seconds,
            y=[str(label) for label in table.index],
            colorscale="YlOrRd",
            zmin=0,
            zmax=100,
            colorbar={"title": "percent", "thickness": 12},
            hovertemplate="%{y} at %{x:.1f} s: %{z:.0f} %<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(title="seconds since the start")
    figure.update_layout(height=170 + 20 * len(table))
    return figure


def step_histogram_figure(timeline: Timeline, limits_ms: Mapping[str, float]) -> go.Figure | None:
    """Durations of the steps of each mode; a line where outliers begin."""
    by_mode = {mode: timeline.steps(mode)["duration_us"].to_numpy() / 1e3 for mode in timeline.modes}
    if not by_mode:
        return None
    every = np.concatenate(list(by_mode.values()))
    edges = np.histogram_bin_edges(every, bins=min(60, max(5, len(every) // 4)))
    figure = go.Figure()
    for color, (mode, durations) in zip(_COLORS, by_mode.items(), strict=False):
        counts, _ = np.histogram(durations, bins=edges)
        centres, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
        figure.add_bar(x=centres, y=counts, width=widths, name=mode, marker_color=color, opacity=0.8)
        if mode in limits_ms:
            figure.add_vline(x=limits_ms[mode], line_dash="dash", line_color=color)
    # Logarithmic, so that one outlier among thousands is seen.
    figure.update_yaxes(title="steps", type="log", rangemode="tozero")
    figure.update_xaxes(title="milliseconds")
    figure.update_layout(height=300, barmode="overlay", showlegend=True)
    return figure


def step_series_figure(timeline: Timeline, outliers: Mapping[str, list[dict[str, float]]]) -> go.Figure | None:
    """Durations step by step (the longest of a bin where there are many), outliers marked."""
    figure = go.Figure()
    for color, mode in zip(_COLORS, timeline.modes, strict=False):
        steps = timeline.steps(mode)
        bins = _step_bins(steps["step"], MAX_BINS)
        longest = (steps["duration_us"] / 1e3).groupby(steps["step"].map(bins)).max()
        first = _first_steps(bins)
        figure.add_scatter(x=first, y=longest, mode="lines", name=mode, line={"color": color, "width": 1.5})
        found = outliers.get(mode, [])
        if found:
            figure.add_scatter(
                x=[each["step"] for each in found],
                y=[each["duration_ms"] for each in found],
                mode="markers",
                name=f"{mode} outliers",
                marker={"color": _OUTLIER, "symbol": "x", "size": 8},
            )
    if not figure.data:
        return None
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="milliseconds", rangemode="tozero")
    figure.update_layout(height=300, legend=_LEGEND)
    return figure


def step_parts_figure(timeline: Timeline) -> go.Figure | None:
    """Where a training step's time goes: mean milliseconds of each phase, over the steps and the workers; what is left
    is `other`."""
    mode = next((mode for mode in timeline.modes if mode != "EVAL"), None)
    if mode is None:
        return None
    steps, parts = timeline.steps(mode), timeline.parts(mode)
    parts = parts[parts["name"].isin(_phase_names(parts))]
    if parts.empty:
        return None
    bins = _step_bins(steps["step"], MAX_STEP_BINS)
    by_bin = (steps["duration_us"] / 1e3).groupby(steps["step"].map(bins))
    first, total, counts = _first_steps(bins), by_bin.mean(), by_bin.size()
    figure, used = go.Figure(), 0.0 * total
    for color, (name, events) in zip(_COLORS, parts.groupby("name", observed=True), strict=False):
        own = events["step"].map(bins)
        mean = ((events["duration_us"] / 1e3).groupby(own).sum() / counts).reindex(total.index).fillna(0.0)
        used = used + mean
        figure.add_bar(x=first, y=mean, name=str(name), marker_color=color)
    other = (total - used).clip(lower=0)
    figure.add_bar(x=first, y=other, name="other", marker_color="#d5dbe0")
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="milliseconds a step")
    figure.update_layout(height=320, barmode="stack", bargap=0.05, legend=_LEGEND)
    return figure


def balance_figure(histograms: Mapping[str, list[float]]) -> go.Figure | None:
    """A worker's or GPU's utilisation, as the share of the time spent in each tenth of 0 to 100 %."""
    if not histograms:
        return None
    figure = go.Figure()
    for color, (where, shares) in zip(_COLORS * 8, histograms.items(), strict=False):
        figure.add_bar(x=[f"{10 * n} to {10 * n + 10} %" for n in range(10)], y=shares, name=where, marker_color=color)
    figure.update_yaxes(title="share of the time", tickformat=".0%")
    figure.update_layout(height=280, legend=_LEGEND)
    return figure


def all_figures(recording: Recording, details: Mapping[str, Mapping[str, Any]]) -> dict[str, go.Figure | None]:
    """Every figure by name; `details` are those of the verdicts, by rule."""
    modes = details.get("StepOutlier", {}).get("modes", {})
    limits = {mode: each["limit_ms"] for mode, each in modes.items()}
    outliers = {mode: each["outliers"] for mode, each in modes.items()}
    system, timeline = recording.system, recording.timeline
    return {
        "utilisation": utilisation_figure(system),
        "heat-map": heat_map_figure(system),
        "step-parts": step_parts_figure(timeline),
        "step-series": step_series_figure(timeline, outliers),
        "step-histogram": step_histogram_figure(timeline, limits),
        "memory": memory_figure(system),
        "balance": balance_figure(details.get("LoadBalancing", {}).get("histograms", {})),
    }


def _phase_names(parts: pd.DataFrame) -> list[str]:
    """Ours where they were recorded, else the names that took longest."""
    known = [name for name in _STEP_PHASES if (parts["name"] == name).any()]
    if known:
        return known
    return [str(each) for each in parts.groupby("name", observed=True)["duration_us"].sum().nlargest(6).index]


def _step_bins(numbers: "pd.Series[int]", most: int) -> "pd.Series[int]":
    """The bin of each step by its number, which several workers may share; at most `most` bins of equal size."""
    unique = np.unique(numbers)
    return pd.Series(np.arange(len(unique)) * min(len(unique), most) // max(len(unique), 1), index=unique)


def _first_steps(bins: "pd.Series[int]") -> "pd.Series[int]":
    """The number of the first step of each bin."""
    return bins.index.to_series().groupby(bins).first()


def _num_bins(samples: pd.DataFrame) -> int:
    """No more than there are moments, so that no bin is empty for want of samples."""
    per_name = int(samples.groupby(["node", "name"], observed=True)["value"].size().max())
    return max(1, min(MAX_BINS, per_name))


def _bin_of(samples: pd.DataFrame, system: SystemSamples, num_bins: int) -> Any:
    length = max(system.end_s - system.start_s, 1e-9)
    share = (samples["timestamp_s"].to_numpy() - system.start_s) / length
    return (share * num_bins).astype(np.int64).clip(0, num_bins - 1)


def _bin_seconds(system: SystemSamples, num_bins: int) -> Any:
    width = (system.end_s - system.start_s) / num_bins
    return (np.arange(num_bins) + 0.5) * width


def _binned_mean(samples: pd.DataFrame, system: SystemSamples) -> tuple[Any, Any]:
    num_bins = _num_bins(samples)
    means = samples["value"].groupby(_bin_of(samples, system, num_bins)).mean()
    return _bin_seconds(system, num_bins)[means.index.to_numpy()], means.to_numpy()


def _heat_rows(samples: pd.DataFrame, labels: Any, system: SystemSamples) -> pd.DataFrame:
    every = system.select("CPUUtilization")
    num_bins = _num_bins(samples if every.empty else every)
    means = samples["value"].groupby([labels, _bin_of(samples, system, num_bins)]).mean().unstack()
    # Samples come a little early or late, and leave a moment without one.
    means = means.reindex(columns=range(num_bins)).ffill(axis=1, limit=1)
    return means.loc[sorted(means.index, key=_natural)]


def _natural(label: object) -> list[int | str]:
    """cpu2 before cpu10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(label))]
