"""The figures of a training and of an evaluation, as matplotlib draws them; each title says what was found."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from dogbreed_ml.errors import ImageError
from dogbreed_ml.evaluation import ConfusedPair, Evaluation, Mistake
from dogbreed_ml.transforms import Preprocessing, decode_image, to_square

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, RED, GREY = "#2166ac", "#c0392b", "#9aa5b1"

_MAX_ANNOTATED = 25
"""Breeds up to which a cell of the confusion matrix has room for its number."""
_NUM_THUMBNAILS = 4
_THUMBNAIL = Preprocessing(image_size=160, crop_share=1.0)
_MISTAKE_COLUMNS = 6


class EpochMetrics(Protocol):
    """What the learning curves need of a train.EpochResult."""

    @property
    def epoch(self) -> int: ...

    @property
    def metrics(self) -> dict[str, float]: ...


class Photograph(Protocol):
    """What the thumbnails need of a data.Sample."""

    @property
    def path(self) -> Path: ...


def confusion_figure(evaluation: Evaluation) -> "Figure":
    """The confusion matrix: shares of each breed, what is right in blue, mistakes in red.

    Above 25 breeds look-alikes are put side by side and the counts left out; names stay readable at full size.
    """
    from matplotlib.figure import Figure

    num_classes = len(evaluation.classes)
    order = np.arange(num_classes) if num_classes <= _MAX_ANNOTATED else _by_likeness(evaluation.confusion)
    counts = evaluation.confusion[np.ix_(order, order)]
    names = [evaluation.classes[i] for i in order]
    side = max(6.0, num_classes * 0.6 if num_classes <= _MAX_ANNOTATED else num_classes * 0.18)
    figure = Figure(figsize=(side + 2.4, side + 2.8), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    _draw_shares(axes, counts)
    font_size = 9.0 if num_classes <= _MAX_ANNOTATED else 8.0
    axes.set_xticks(range(num_classes), names, rotation=90 if num_classes > 12 else 40, fontsize=font_size)
    axes.set_yticks(range(num_classes), names, fontsize=font_size)
    if 0 < num_classes <= 12:
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    title_size = 13.0 if num_classes <= _MAX_ANNOTATED else 26.0
    axes.set_xlabel("taken for", color=MUTED, fontsize=title_size * 0.8)
    axes.set_ylabel("breed", color=MUTED, fontsize=title_size * 0.8)
    set_title(figure, _confusion_title(evaluation), size=title_size)
    return figure


def _by_likeness(confusion: NDArray[np.int64]) -> NDArray[np.intp]:
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    distance = 1.0 - np.minimum(shares + shares.T, 1.0)
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    tree = linkage(condensed, method="average")
    leaves: NDArray[np.intp] = leaves_list(optimal_leaf_ordering(tree, condensed)).astype(np.intp)
    return leaves


def _draw_shares(axes: "Axes", counts: NDArray[np.int64]) -> None:
    num_classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(num_classes, dtype=bool)
    axes.imshow(np.where(diagonal, shares, np.nan), cmap="Blues", vmin=0, vmax=1.25)
    # Mistakes are few: their colour is full at half of a breed.
    axes.imshow(np.where(diagonal | (counts == 0), np.nan, shares), cmap="Reds", vmin=-0.08, vmax=0.5)
    axes.set(xlim=(-0.5, num_classes - 0.5), ylim=(num_classes - 0.5, -0.5))
    for edge in range(num_classes + 1):
        axes.axhline(edge - 0.5, color=GRID, linewidth=0.6)
        axes.axvline(edge - 0.5, color=GRID, linewidth=0.6)
    if num_classes > _MAX_ANNOTATED:
        return
    for row, column in np.argwhere(counts > 0):
        full = 0.7 if row == column else 0.3
        color = "white" if shares[row, column] > full else INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=9)


def _confusion_title(evaluation: Evaluation) -> str:
    low, high = evaluation.top1_interval
    share = evaluation.metrics["accuracy_top1"]
    title = f"{percent(share)} of {evaluation.num_samples} photographs recognised"
    title += f" (95 % interval {percent(low)} to {percent(high)})"
    if evaluation.confused_pairs:
        worst = evaluation.confused_pairs[0]
        times = "once" if worst.count == 1 else f"{worst.count} times"
        title += f"\nMost often mistaken: {worst.breed} for {worst.taken_for}, {times}"
    return title


def percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def set_title(figure: "Figure", title: str, *, size: float) -> None:
    figure.suptitle(title, fontsize=size, color=INK, fontweight="bold", x=0.02, ha="left")


def learning_curves_figure(epochs: Sequence[EpochMetrics]) -> "Figure":
    """Loss and accuracy by epoch (counted from 0), of at least one epoch; the best valid top-1 is marked.

    Without valid metrics, as of a refit on train and valid together, the train loss alone.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    validated = [result for result in epochs if "valid/accuracy_top1" in result.metrics]
    figure = Figure(figsize=(10 if validated else 5.5, 4.2), facecolor="white", layout="constrained")
    loss_axes = figure.add_subplot(1, 2 if validated else 1, 1)
    _draw_curves(loss_axes, epochs, {"train/loss": ("train", GREY), "valid/loss": ("valid", BLUE)})
    loss_axes.set_title("loss (nats)", loc="left", color=MUTED, fontsize=10)
    loss_axes.set_ylim(bottom=0)
    if not validated:
        first, last = (epochs[i].metrics.get("train/loss", float("nan")) for i in (0, -1))
        set_title(figure, f"Train loss goes from {first:.2f} to {last:.2f}", size=13)
        return figure
    share_axes = figure.add_subplot(1, 2, 2)
    shares = {"valid/accuracy_top5": ("valid top-5", GREY), "valid/accuracy_top1": ("valid top-1", BLUE)}
    _draw_curves(share_axes, epochs, shares)
    share_axes.set_title("share of valid photographs recognised", loc="left", color=MUTED, fontsize=10)
    share_axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    best = max(validated, key=lambda result: result.metrics["valid/accuracy_top1"])
    share = best.metrics["valid/accuracy_top1"]
    share_axes.plot(best.epoch, share, "o", color=RED, markersize=8, zorder=5)
    set_title(figure, f"Valid top-1 is best after epoch {best.epoch}: {percent(share)}", size=13)
    return figure


def _draw_curves(axes: "Axes", epochs: Sequence[EpochMetrics], curves: dict[str, tuple[str, str]]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.margins(x=0.03, y=0.1)
    for name, (label, color) in curves.items():
        points = [(result.epoch, result.metrics[name]) for result in epochs if name in result.metrics]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=color, linewidth=2, marker="o", markersize=4 if len(points) < 30 else 0, label=label)
    if axes.lines:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    axes.set_xlabel("epoch", color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, length=3)
    axes.grid(axis="y", color=GRID, linewidth=0.8)


def confused_figure(pairs: Sequence[ConfusedPair], samples: Sequence[Photograph], *, max_pairs: int = 6) -> "Figure":
    """The most confused breeds: photographs that were mistaken, and one of the breed they were taken for.

    `samples` are those evaluated, in the same order. A photograph that cannot be read any more leaves its place grey.
    """
    from matplotlib.figure import Figure

    shown = list(pairs[:max_pairs])
    if not shown:
        figure = Figure(figsize=(8, 0.5), facecolor="white", layout="constrained")
        set_title(figure, f"No breed was taken for another in {len(samples)} photographs", size=13)
        return figure
    width, height = 1.75 * (_NUM_THUMBNAILS + 1.3) + 0.3, 2.1 * len(shown) + 0.6
    figure = Figure(figsize=(width, height), facecolor="white")
    # The slim column keeps the example, on the left, apart from the mistakes.
    grid = figure.add_gridspec(
        len(shown),
        _NUM_THUMBNAILS + 2,
        width_ratios=[1.0, 0.2] + [1.0] * _NUM_THUMBNAILS,
        left=0.15 / width,
        right=1 - 0.15 / width,
        bottom=0.1 / height,
        top=1 - 0.8 / height,
        wspace=0.06,
        hspace=0.2,
    )
    for row, pair in enumerate(shown):
        axes = figure.add_subplot(grid[row, 0])
        axes.set_title(pair.taken_for, loc="left", fontsize=10, color=BLUE)
        if pair.example is None:
            axes.set_axis_off()
        else:
            _draw_thumbnail(axes, samples[pair.example], color=BLUE)
        for column, index in enumerate(pair.mistaken[:_NUM_THUMBNAILS]):
            axes = figure.add_subplot(grid[row, column + 2])
            _draw_thumbnail(axes, samples[index], color=RED)
            if column == 0:
                note = f"taken for it: {pair.breed}, {pair.count} of {round(pair.count / pair.share)}"
                axes.set_title(note, loc="left", fontsize=10, color=RED)
    title = f"Most often mistaken: {shown[0].breed} for {shown[0].taken_for}"
    figure.suptitle(title, fontsize=13, color=INK, fontweight="bold", x=0.15 / width, y=1 - 0.12 / height, ha="left")
    return figure


def _draw_thumbnail(axes: "Axes", photograph: Photograph, *, color: str) -> None:
    try:
        square = to_square(decode_image(photograph.path.read_bytes()), _THUMBNAIL)
    # The user's folder may have changed during a long search; a figure is no reason to lose the search.
    except (OSError, ImageError):
        square = np.full((_THUMBNAIL.image_size, _THUMBNAIL.image_size, 3), 230, dtype=np.uint8)
    axes.imshow(square)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=color, linewidth=2)


def mistakes_figure(mistakes: Sequence[Mistake], samples: Sequence[Photograph], *, max_shown: int = 18) -> "Figure":
    """The surest mistakes as thumbnails, the surest first: what each shows, and what it was taken for.

    `samples` are those evaluated, in the same order. A photograph that cannot be read any more leaves its place grey.
    """
    from matplotlib.figure import Figure

    shown = list(mistakes[:max_shown])
    if not shown:
        figure = Figure(figsize=(8, 0.5), facecolor="white", layout="constrained")
        set_title(figure, f"No mistake in {len(samples)} photographs", size=13)
        return figure
    num_rows = -(-len(shown) // _MISTAKE_COLUMNS)
    width, height = 1.9 * _MISTAKE_COLUMNS + 0.3, 2.35 * num_rows + 0.6
    figure = Figure(figsize=(width, height), facecolor="white")
    edges = {"left": 0.15 / width, "right": 1 - 0.15 / width, "bottom": 0.1 / height, "top": 1 - 1.0 / height}
    grid = figure.add_gridspec(num_rows, _MISTAKE_COLUMNS, wspace=0.1, hspace=0.32, **edges)
    for place, mistake in enumerate(shown):
        axes = figure.add_subplot(grid[place // _MISTAKE_COLUMNS, place % _MISTAKE_COLUMNS])
        _draw_thumbnail(axes, samples[mistake.index], color=RED)
        taken = f"{_shortened(mistake.taken_for)} {mistake.probability:.0%}"
        axes.text(0, 1.12, taken, transform=axes.transAxes, fontsize=9, color=RED)
        axes.text(0, 1.02, f"is {_shortened(mistake.breed)}", transform=axes.transAxes, fontsize=9, color=BLUE)
    first = shown[0]
    title = f"Surest mistake: a {first.breed} taken for {first.taken_for} with {first.probability:.0%}"
    figure.suptitle(title, fontsize=13, color=INK, fontweight="bold", x=0.15 / width, y=1 - 0.12 / height, ha="left")
    return figure


def _shortened(name: str) -> str:
    """As much of a breed's name as stands above a thumbnail."""
    return name if len(name) <= 20 else f"{name[:19]}…"
