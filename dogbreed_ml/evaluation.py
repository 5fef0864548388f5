"""What logits are worth: metrics, per-breed tables, confusions, and whether their probabilities can be believed.

`compute_metrics` runs after every epoch of every trial; `evaluate_logits` once, for the best model;
`evaluate_probabilities` for a model that is to serve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dogbreed_ml.calibration import (
    CoverageCurve,
    ReliabilityBin,
    coverage_curve,
    expected_calibration_error,
    reliability_bins,
)

MAX_CONFUSED_PAIRS = 50
"""Pairs kept in an Evaluation, the most frequent first."""

MAX_MISTAKES = 24
"""Mistakes kept in a ProbabilityReport, the surest first."""


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


@dataclass(frozen=True)
class Mistake:
    """One photograph that was taken for another breed."""

    index: int
    """Among those evaluated."""
    breed: str
    taken_for: str
    probability: float
    """Of the breed that it was taken for, in [0, 1]."""


@dataclass(frozen=True, eq=False)
class ProbabilityReport:
    """What a model's probabilities, softmax(logits / temperature), are worth."""

    temperature: float
    metrics: dict[str, float]
    """loss (log loss, nats) and ece, the expected calibration error; both also before the temperature, as *_raw."""
    bins: tuple[ReliabilityBin, ...]
    bins_raw: tuple[ReliabilityBin, ...]
    """Before the temperature."""
    coverage: CoverageCurve
    mistakes: tuple[Mistake, ...]
    """The surest first; at most MAX_MISTAKES."""

    def coverage_rows(self) -> list[dict[str, float]]:
        """One dict for each threshold of 0.00, 0.05, ... 0.95: threshold, coverage, accuracy of what is answered."""
        rows = []
        for threshold in np.linspace(0, 0.95, 20).round(2).tolist():
            coverage, accuracy = self.coverage.at(threshold)
            rows.append({"threshold": threshold, "coverage": coverage, "accuracy": accuracy})
        return rows

    def reliability_rows(self) -> list[dict[str, Any]]:
        """One dict a bin: low, high, count, probability, accuracy."""
        return [vars(each).copy() for each in self.bins]


def evaluate_probabilities(
    logits: NDArray[np.float32], labels: NDArray[np.int64], classes: Sequence[str], *, temperature: float
) -> ProbabilityReport:
    """Of logits (n, K), labels (n,) in [0, K), for K = len(classes) and n at least 1."""
    from scipy.special import softmax
    from sklearn.metrics import log_loss

    wide = logits.astype(np.float64)
    metrics: dict[str, float] = {}
    bins: dict[str, tuple[ReliabilityBin, ...]] = {}
    for suffix, divisor in (("_raw", 1.0), ("", temperature)):
        probabilities = softmax(wide / divisor, axis=1)
        predicted, sureness = probabilities.argmax(axis=1), probabilities.max(axis=1)
        is_right = predicted == labels
        bins[suffix] = reliability_bins(sureness, is_right)
        metrics[f"loss{suffix}"] = float(log_loss(labels, probabilities, labels=np.arange(len(classes))))
        metrics[f"ece{suffix}"] = expected_calibration_error(bins[suffix])
    wrong = np.flatnonzero(~is_right)
    surest = wrong[np.argsort(-sureness[wrong], kind="stable")][:MAX_MISTAKES]
    return ProbabilityReport(
        temperature=temperature,
        metrics=metrics,
        bins=bins[""],
        bins_raw=bins["_raw"],
        coverage=coverage_curve(sureness, is_right),
        mistakes=tuple(Mistake(int(i), classes[labels[i]], classes[predicted[i]], float(sureness[i])) for i in surest),
    )
