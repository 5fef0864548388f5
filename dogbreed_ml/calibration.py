"""Whether probabilities mean what they say: a temperature that makes them, bins that show it, a threshold's cost.

Probability means that of the breed named, the largest of softmax(logits / temperature).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
"""Bins of equal width over [0, 1], as in Guo et al., On Calibration of Modern Neural Networks (2017)."""

_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] at which softmax(logits / temperature) has the lowest log loss.

    Logits (n, K), labels (n,) in [0, K), n at least 1; of images that the weights were not trained on. The order of
    breeds, and so accuracy, stays as it is. Where nothing is mistaken every lower temperature is better, down to
    probabilities of 1 that a few images cannot vouch for: then 1.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    wide = np.asarray(logits, dtype=np.float64)
    if (wide.argmax(axis=1) == labels).all():
        return 1.0
    rows = np.arange(len(labels))

    def log_loss(log_temperature: float) -> float:
        return -float(log_softmax(wide / np.exp(log_temperature), axis=1)[rows, labels].mean())

    # Over the logarithm: the loss is convex in 1 / temperature, hence has one minimum there too.
    found = minimize_scalar(log_loss, bounds=(np.log(_MIN_TEMPERATURE), np.log(_MAX_TEMPERATURE)), method="bounded")
    return round(float(np.exp(found.x)), 4)


@dataclass(frozen=True)
class ReliabilityBin:
    """Images whose probability fell into one bin."""

    low: float
    high: float
    count: int
    probability: float
    """Their mean probability."""
    accuracy: float
    """Share of them that is right."""


def reliability_bins(
    probabilities: NDArray[np.float64], is_right: NDArray[np.bool_], *, num_bins: int = NUM_BINS
) -> tuple[ReliabilityBin, ...]:
    """The bins that hold images, in order; probabilities (n,) of the breeds named, is_right (n,), n at least 1."""
    from scipy.stats import binned_statistic

    values = [probabilities, is_right.astype(np.float64)]
    means, edges, places = binned_statistic(probabilities, values, "mean", bins=num_bins, range=(0.0, 1.0))
    counts = np.bincount(places - 1, minlength=num_bins)
    return tuple(
        ReliabilityBin(float(edges[i]), float(edges[i + 1]), int(counts[i]), float(means[0][i]), float(means[1][i]))
        for i in np.flatnonzero(counts)
    )


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """The bins' mean distance between probability and accuracy, weighted by their images; in [0, 1]."""
    gaps = [abs(each.probability - each.accuracy) for each in bins]
    return float(np.average(gaps, weights=[each.count for each in bins]))


@dataclass(frozen=True, eq=False)
class CoverageCurve:
    """What a rejection threshold costs and brings: each row is one threshold, rising."""

    thresholds: NDArray[np.float64]
    """0, then each probability that occurs: images at or above it are answered."""
    coverage: NDArray[np.float64]
    """Share of all images that is answered."""
    accuracy: NDArray[np.float64]
    """Share of the answered that is right."""

    def at(self, threshold: float) -> tuple[float, float]:
        """Coverage and accuracy at a threshold in [0, 1]; accuracy is NaN where nothing is answered."""
        place = int(np.searchsorted(self.thresholds, threshold))
        if place == len(self.thresholds):
            return 0.0, float("nan")
        return float(self.coverage[place]), float(self.accuracy[place])

    def threshold_for(self, accuracy: float) -> float | None:
        """The lowest threshold whose answers are right in at least this share; None where none is."""
        enough = np.flatnonzero(self.accuracy >= accuracy)
        return float(self.thresholds[enough[0]]) if len(enough) else None


def coverage_curve(probabilities: NDArray[np.float64], is_right: NDArray[np.bool_]) -> CoverageCurve:
    """Over probabilities (n,) of the breeds named, is_right (n,), n at least 1."""
    order = np.argsort(probabilities, kind="stable")
    rising, right = probabilities[order], is_right[order]
    num_answered = np.arange(len(rising), 0, -1)
    num_right = np.cumsum(right[::-1])[::-1]
    # Of equal probabilities all are answered or none.
    thresholds, first = np.unique(rising, return_index=True)
    return CoverageCurve(
        thresholds=np.concatenate([[0.0], thresholds]),
        coverage=np.concatenate([[1.0], num_answered[first] / len(rising)]),
        accuracy=np.concatenate([[num_right[0] / len(rising)], num_right[first] / num_answered[first]]),
    )
