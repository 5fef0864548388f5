"""What logits are worth: metrics, per-breed tables, confusions, and their figures.

`compute_metrics` runs after every epoch of every trial; `evaluate_logits` once, for the best model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dogbreed_ml.errors import ImageError
from dogbreed_ml.transforms import Preprocessing, decode_image, to_square

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CONFUSED_PAIRS = 50
"""Pairs kept in an Evaluation, the most frequent first."""

_INK, _MUTED, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_BLUE, _RED, _GREY = "#2166ac", "#c0392b", "#9aa5b1"
_MAX_ANNOTATED = 25
"""Breeds up to which a cell of the confusion matrix has room for its number."""
_NUM_THUMBNAILS = 4
_THUMBNAIL = Preprocessing(image_size=160, crop_share=1.0)


def compute_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """loss (cross entropy, nats), accuracy_top1, accuracy_top5 (top K where K < 5) and f1_macro, shares in [0, 1].

    Logits (n, K) float, labels (n,) int64 in [0, K), n at least 1. f1_macro is the mean over the breeds that occur in
    labels or predictions, as in scikit-learn.
    """
    num_classes = logits.shape[1]
    top = logits.topk(min(5, num_classes), dim=1).indices
    predicted = top[:, 0]
    hits = top == labels[:, None]
    num_true = torch.bincount(labels, minlength=num_classes)
    num_predicted = torch.bincount(predicted, minlength=num_classes)
    num_right = torch.bincount(labels[hits[:, 0]], minlength=num_classes)
    num_either = num_true + num_predicted
    f1_macro = (2 * num_right / num_either.clamp(min=1)).sum() / (num_either > 0).sum()
    values = torch.stack(
        [
            torch.nn.functional.cross_entropy(logits.float(), labels),
            hits[:, 0].float().mean(),
            hits.any(dim=1).float().mean(),
            f1_macro,
        ]
    )
    # One copy to the host instead of four waits, where the logits lie on a GPU.
    return dict(zip(("loss", "accuracy_top1", "accuracy_top5", "f1_macro"), values.tolist(), strict=True))


@dataclass(frozen=True)
class BreedScore:
    """One row of the per-breed table; shares in [0, 1]."""

    breed: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class ConfusedPair:
    """Photographs of one breed that were taken for another."""

    breed: str
    taken_for: str
    count: int
    share: float
    """Of the breed's photographs, in [0, 1]."""
    mistaken: tuple[int, ...]
    """Indices of the mistaken photographs among those evaluated, the surest mistake first."""
    example: int | None
    """Index of a photograph of `taken_for`, the one recognised most surely; None where none was evaluated."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model's answers on one split, summed up."""

    classes: tuple[str, ...]
    metrics: dict[str, float]
    """As `compute_metrics` gives them."""
    top1_interval: tuple[float, float]
    """Wilson's 95 % interval of accuracy_top1."""
    breeds: tuple[BreedScore, ...]
    """In the order of the classes."""
    confusion: NDArray[np.int64]
    """(K, K) counts; a row is the breed, a column what it was taken for."""
    confused_pairs: tuple[ConfusedPair, ...]
    """The most frequent first; at most MAX_CONFUSED_PAIRS."""

    @cached_property
    def num_samples(self) -> int:
        return int(self.confusion.sum())

    def breed_rows(self) -> list[dict[str, Any]]:
        """The per-breed table, one dict a row: breed, precision, recall, f1, support."""
        return [vars(score).copy() for score in self.breeds]

    def confused_rows(self) -> list[dict[str, Any]]:
        """The most confused pairs, one dict a row: breed, taken_for, count, share."""
        names = ("breed", "taken_for", "count", "share")
        return [{name: getattr(pair, name) for name in names} for pair in self.confused_pairs]


def evaluate_logits(logits: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str]) -> Evaluation:
    """Sums up logits (n, K), labels (n,) in [0, K), for K = len(classes) and n at least 1."""
    from scipy.stats import binomtest
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    logits_tensor = torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32))
    metrics = compute_metrics(logits_tensor, torch.from_numpy(labels))
    # topk, as compute_metrics has it, so that equal logits are decided alike.
    predicted = logits_tensor.topk(1, dim=1).indices[:, 0].numpy()
    every_label = np.arange(len(classes))
    confusion = confusion_matrix(labels, predicted, labels=every_label).astype(np.int64)
    scores = precision_recall_fscore_support(labels, predicted, labels=every_label, zero_division=0.0)
    rows = zip(classes, *(column.tolist() for column in scores), strict=True)
    interval = binomtest(int(np.trace(confusion)), len(labels)).proportion_ci(method="wilson")
    return Evaluation(
        classes=tuple(classes),
        metrics=metrics,
        top1_interval=(float(interval.low), float(interval.high)),
        breeds=tuple(BreedScore(*row) for row in rows),
        confusion=confusion,
        confused_pairs=_confused_pairs(confusion, logits_tensor, labels, predicted, classes),
    )


def _confused_pairs(
    confusion: NDArray[np.int64],
    logits: Tensor,
    labels: NDArray[np.int64],
    predicted: NDArray[np.int64],
    classes: Sequence[str],
) -> tuple[ConfusedPair, ...]:
    sureness = logits.softmax(dim=1).max(dim=1).values.numpy()
    support = confusion.sum(axis=1)
    true_labels, taken_labels = np.nonzero(confusion * (1 - np.eye(len(classes), dtype=np.int64)))
    counts = confusion[true_labels, taken_labels]
    order = np.lexsort((-counts / support[true_labels], -counts))[:MAX_CONFUSED_PAIRS]
    pairs = []
    for label, taken, count in zip(true_labels[order], taken_labels[order], counts[order].tolist(), strict=True):
        mistaken = np.flatnonzero((labels == label) & (predicted == taken))
        mistaken = mistaken[np.argsort(-sureness[mistaken], kind="stable")]
        # Of the breed's own photographs, one that was recognised, if any: sure mistakes make poor examples.
        own = np.flatnonzero(labels == taken)
        example = max(own.tolist(), key=lambda i: (predicted[i] == labels[i], sureness[i]), default=None)
        share = count / int(support[label])
        pairs.append(ConfusedPair(classes[label], classes[taken], count, share, tuple(mistaken.tolist()), example))
    return tuple(pairs)


class EpochMetrics(Protocol):
    """What the learning curves need of a train.EpochResult."""

    @property
    def epoch(self) -> int: ...

    @property
    def metrics(self) -> dict[str, float]: ...


class Photograph(Protocol):
    """What the thumbnails need of a data.Sample."""

    @property
    def path(self) -> "Path": ...


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
    axes.tick_params(length=0, colors=_INK)
    axes.spines[:].set_visible(False)
    title_size = 13.0 if num_classes <= _MAX_ANNOTATED else 26.0
    axes.set_xlabel("taken for", color=_MUTED, fontsize=title_size * 0.8)
    axes.set_ylabel("breed", color=_MUTED, fontsize=title_size * 0.8)
    _set_title(figure, _confusion_title(evaluation), size=title_size)
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
        axes.axhline(edge - 0.5, color=_GRID, linewidth=0.6)
        axes.axvline(edge - 0.5, color=_GRID, linewidth=0.6)
    if num_classes > _MAX_ANNOTATED:
        return
    for row, column in np.argwhere(counts > 0):
        full = 0.7 if row == column else 0.3
        color = "white" if shares[row, column] > full else _INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=9)


def _confusion_title(evaluation: Evaluation) -> str:
    low, high = evaluation.top1_interval
    share = evaluation.metrics["accuracy_top1"]
    title = f"{_percent(share)} of {evaluation.num_samples} photographs recognised"
    title += f" (95 % interval {_percent(low)} to {_percent(high)})"
    if evaluation.confused_pairs:
        worst = evaluation.confused_pairs[0]
        times = "once" if worst.count == 1 else f"{worst.count} times"
        title += f"\nMost often mistaken: {worst.breed} for {worst.taken_for}, {times}"
    return title


def _percent(share: float) -> str:
    return f"{share * 100:.1f} %"


def _set_title(figure: "Figure", title: str, *, size: float) -> None:
    figure.suptitle(title, fontsize=size, color=_INK, fontweight="bold", x=0.02, ha="left")


def learning_curves_figure(epochs: Sequence[EpochMetrics]) -> "Figure":
    """Loss and accuracy by epoch (counted from 0), of at least one epoch; the best valid top-1 is marked.

    Without valid metrics, as of a refit on train and valid together, the train loss alone.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    validated = [result for result in epochs if "valid/accuracy_top1" in result.metrics]
    figure = Figure(figsize=(10 if validated else 5.5, 4.2), facecolor="white", layout="constrained")
    loss_axes = figure.add_subplot(1, 2 if validated else 1, 1)
    _draw_curves(loss_axes, epochs, {"train/loss": ("train", _GREY), "valid/loss": ("valid", _BLUE)})
    loss_axes.set_title("loss (nats)", loc="left", color=_MUTED, fontsize=10)
    loss_axes.set_ylim(bottom=0)
    if not validated:
        first, last = (epochs[i].metrics.get("train/loss", float("nan")) for i in (0, -1))
        _set_title(figure, f"Train loss goes from {first:.2f} to {last:.2f}", size=13)
        return figure
    share_axes = figure.add_subplot(1, 2, 2)
    shares = {"valid/accuracy_top5": ("valid top-5", _GREY), "valid/accuracy_top1": ("valid top-1", _BLUE)}
    _draw_curves(share_axes, epochs, shares)
    share_axes.set_title("share of valid photographs recognised", loc="left", color=_MUTED, fontsize=10)
    share_axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    best = max(validated, key=lambda result: result.metrics["valid/accuracy_top1"])
    share = best.metrics["valid/accuracy_top1"]
    share_axes.plot(best.epoch, share, "o", color=_RED, markersize=8, zorder=5)
    _set_title(figure, f"Valid top-1 is best after epoch {best.epoch}: {_percent(share)}", size=13)
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
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9)
    axes.set_xlabel("epoch", color=_MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_MUTED, length=3)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)


def confused_figure(pairs: Sequence[ConfusedPair], samples: Sequence[Photograph], *, max_pairs: int = 6) -> "Figure":
    """The most confused breeds: photographs that were mistaken, and one of the breed they were taken for.

    `samples` are those evaluated, in the same order. A photograph that cannot be read any more leaves its place grey.
    """
    from matplotlib.figure import Figure

    shown = list(pairs[:max_pairs])
    if not shown:
        figure = Figure(figsize=(8, 0.5), facecolor="white", layout="constrained")
        _set_title(figure, f"No breed was taken for another in {len(samples)} photographs", size=13)
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
        axes.set_title(pair.taken_for, loc="left", fontsize=10, color=_BLUE)
        if pair.example is None:
            axes.set_axis_off()
        else:
            _draw_thumbnail(axes, samples[pair.example], color=_BLUE)
        for column, index in enumerate(pair.mistaken[:_NUM_THUMBNAILS]):
            axes = figure.add_subplot(grid[row, column + 2])
            _draw_thumbnail(axes, samples[index], color=_RED)
            if column == 0:
                note = f"taken for it: {pair.breed}, {pair.count} of {round(pair.count / pair.share)}"
                axes.set_title(note, loc="left", fontsize=10, color=_RED)
    title = f"Most often mistaken: {shown[0].breed} for {shown[0].taken_for}"
    figure.suptitle(title, fontsize=13, color=_INK, fontweight="bold", x=0.15 / width, y=1 - 0.12 / height, ha="left")
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
