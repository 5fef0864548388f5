"""The figures of a model's probabilities: whether they mean what they say, and what a threshold costs and brings."""

from typing import TYPE_CHECKING

from dogbreed_ml.calibration import NUM_BINS, ReliabilityBin
from dogbreed_ml.evaluation import Evaluation, ProbabilityReport
from dogbreed_ml.figures import BLUE, GREY, GRID, INK, MUTED, RED, percent, set_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WANTED_ACCURACIES = (0.95, 0.99)


def reliability_figure(report: ProbabilityReport) -> "Figure":
    """Accuracy over probability before and after the temperature, and how many photographs each bin holds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 5.4), facecolor="white", layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[4, 1])
    sides = (
        ("before the temperature", report.bins_raw, report.metrics["ece_raw"]),
        (f"after it ({report.temperature:.2f}), as served", report.bins, report.metrics["ece"]),
    )
    for column, (name, bins, error) in enumerate(sides):
        upper, lower = figure.add_subplot(grid[0, column]), figure.add_subplot(grid[1, column])
        _draw_reliability(upper, bins)
        upper.set_title(f"{name}: calibration error {percent(error)}", loc="left", color=MUTED, fontsize=10)
        _draw_counts(lower, bins)
        if column == 0:
            upper.set_ylabel("share that is right", color=MUTED)
            lower.set_ylabel("photographs", color=MUTED)
    error = report.metrics["ece"]
    set_title(figure, f"A probability is off by {percent(error)} on average", size=13)
    return figure


def _draw_reliability(axes: "Axes", bins: "Sequence[ReliabilityBin]") -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for each in bins:
        middle, width = (each.low + each.high) / 2, each.high - each.low
        axes.bar(middle, each.accuracy, width * 0.92, color=BLUE, alpha=0.85)
        axes.plot([middle, middle], sorted([each.accuracy, each.probability]), color=RED, linewidth=2)
        axes.plot(middle, each.probability, "_", color=RED, markersize=12, markeredgewidth=2)
    _finish(axes)
    axes.set_ylim(0, 1.02)


def _draw_counts(axes: "Axes", bins: "Sequence[ReliabilityBin]") -> None:
    for each in bins:
        axes.bar((each.low + each.high) / 2, each.count, 0.92 / NUM_BINS, color=GREY)
    _finish(axes)
    axes.set_xlabel(
        "probability of the breed named; red: its mean in each bin, and the gap to it", color=MUTED, fontsize=8
    )


def coverage_figure(report: ProbabilityReport, *, min_probability: float = 0.0) -> "Figure":
    """Coverage and accuracy over the rejection threshold; `min_probability`, where above 0, is marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    curve = report.coverage
    figure = Figure(figsize=(10.5, 4.4), facecolor="white", layout="constrained")
    by_threshold, by_coverage = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    by_threshold.step(curve.thresholds, curve.accuracy, color=BLUE, linewidth=2, where="pre", label="answers right")
    by_threshold.step(curve.thresholds, curve.coverage, color=GREY, linewidth=2, where="pre", label="answered")
    by_threshold.set_xlabel("threshold: answers below it are \u201cunsure\u201d", color=MUTED)
    if min_probability > 0:
        by_threshold.axvline(min_probability, color=RED, linewidth=1.5, label=f"configured: {min_probability:g}")
    by_threshold.legend(frameon=False, labelcolor=INK, fontsize=9, loc="lower left")
    by_threshold.set_ylim(0, 1.02)
    by_coverage.plot(curve.coverage, curve.accuracy, color=BLUE, linewidth=2)
    by_coverage.set_xlabel("photographs answered", color=MUTED)
    by_coverage.set_title("answers right, of those answered", loc="left", color=MUTED, fontsize=10)
    by_coverage.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axes in (by_threshold, by_coverage):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _finish(axes)
    set_title(figure, _coverage_title(report), size=13)
    return figure


def _coverage_title(report: ProbabilityReport) -> str:
    curve = report.coverage
    told = [f"All answered: {percent(float(curve.accuracy[0]))} right"]
    for wanted in _WANTED_ACCURACIES:
        threshold = curve.threshold_for(wanted)
        if curve.accuracy[0] < wanted and threshold is not None:
            coverage, _ = curve.at(threshold)
            told.append(f"{wanted:.0%} right at a threshold of {threshold:.2f}, which answers {percent(coverage)}")
    return "\n".join(told)


def breeds_figure(evaluation: Evaluation) -> "Figure":
    """Recall of each breed, the weakest on top, with its number of photographs; breeds without any are left out."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    scores = sorted(
        (each for each in evaluation.breeds if each.support), key=lambda each: (each.recall, each.f1, each.breed)
    )
    figure = Figure(figsize=(8.5, 1.4 + 0.22 * len(scores)), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    mean = evaluation.metrics["accuracy_top1"]
    axes.hlines(range(len(scores)), 0, [each.recall for each in scores], color=GRID, linewidth=5)
    axes.plot([each.recall for each in scores], range(len(scores)), "o", color=BLUE, markersize=6)
    axes.plot([each.precision for each in scores], range(len(scores)), "|", color=RED, markersize=9, markeredgewidth=2)
    axes.axvline(mean, color=GREY, linewidth=1, linestyle="--")
    names = [f"{each.breed} ({each.support})" for each in scores]
    axes.set_yticks(range(len(scores)), names, fontsize=8)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(
        "dot: share of the breed that is recognised; red: share of its answers that is right; dashed: all photographs",
        color=MUTED,
        fontsize=8,
    )
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=INK, length=0)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    weakest = scores[0]
    set_title(figure, f"Weakest breed: {weakest.breed}, {percent(weakest.recall)} of {weakest.support}", size=13)
    return figure


def _finish(axes: "Axes") -> None:
    axes.set_xlim(0, 1.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
