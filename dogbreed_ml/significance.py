"""Whether a difference is more than chance: paired answers, and latencies measured in turns."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 4999

_BATCH = 500
"""Resamples in memory at once."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


def mcnemar_p_value(num_gained: int, num_lost: int) -> float:
    """McNemar's exact two-sided test: how likely so unequal a division of the changed answers is by chance."""
    from scipy.stats import binomtest

    changed = num_gained + num_lost
    return float(binomtest(num_gained, changed).pvalue) if changed else 1.0


def accuracy_change(challenger: NDArray[np.bool_], champion: NDArray[np.bool_]) -> Interval:
    """Share of right answers (n,), challenger minus champion, with a bootstrap interval over the images."""
    from scipy.stats import bootstrap

    # A pair of answers is one observation, so the paired bootstrap is that of their differences.
    differences = challenger.astype(np.float64) - champion.astype(np.float64)
    # BCa, scipy's default, has no value where all differences are equal.
    found = bootstrap(
        (differences,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(differences.mean()), float(found.low), float(found.high))


def p95_ratio(challenger_ms: NDArray[np.float64], champion_ms: NDArray[np.float64]) -> Interval:
    """p95 of latencies (rounds, requests), challenger over champion, bootstrapped over rounds and their requests.

    A round is drawn for both, since what slows the machine for a while slows both; the requests in it for each alone.
    """
    from scipy.stats import bootstrap

    rng = np.random.default_rng(0)

    def resampled_p95(latencies: NDArray[np.float64], rounds: NDArray[np.intp]) -> NDArray[np.float64]:
        drawn = rng.integers(latencies.shape[1], size=(*rounds.shape, latencies.shape[1]))
        values = latencies[rounds[..., None], drawn]
        return np.asarray(np.quantile(values.reshape(*rounds.shape[:-1], -1), 0.95, axis=-1))

    def ratio(rounds: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        chosen = np.moveaxis(rounds, axis, -1).astype(np.intp)
        return resampled_p95(challenger_ms, chosen) / resampled_p95(champion_ms, chosen)

    found = bootstrap(
        (np.arange(len(champion_ms)),),
        ratio,
        n_resamples=NUM_RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    value = np.quantile(challenger_ms, 0.95) / np.quantile(champion_ms, 0.95)
    return Interval(float(value), float(found.low), float(found.high))
