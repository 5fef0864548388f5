"""Tests and intervals: known values, coverage on simulated data, and what cannot be told apart."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dogbreed_ml.significance import accuracy_change, mcnemar_p_value, p95_ratio


@pytest.mark.parametrize(
    ("num_gained", "num_lost", "expected"),
    # By hand: twice the binomial tail at one half.
    [(0, 0, 1.0), (3, 3, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (1, 9, 22 / 1024), (0, 10, 2 / 1024)],
)
def test_mcnemar_is_the_exact_binomial_test(num_gained: int, num_lost: int, expected: float) -> None:
    assert mcnemar_p_value(num_gained, num_lost) == pytest.approx(expected)


def test_accuracy_change_has_the_interval_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(3)
    champion = rng.random(2000) < 0.7
    challenger = champion ^ (rng.random(2000) < 0.1)
    change = accuracy_change(challenger, champion)
    differences: NDArray[np.float64] = challenger.astype(np.float64) - champion.astype(np.float64)
    half = 1.96 * differences.std() / np.sqrt(len(differences))
    assert change.value == pytest.approx(differences.mean())
    assert (change.low, change.high) == pytest.approx((change.value - half, change.value + half), abs=0.1 * half)


def test_accuracy_change_of_equal_answers_is_nothing() -> None:
    answers = np.array([True, False, True])
    change = accuracy_change(answers, answers)
    assert (change.value, change.low, change.high) == (0.0, 0.0, 0.0)


def _latencies(seed: int, *, factor: float = 1.0, num_rounds: int = 5, drift: bool = True) -> NDArray[np.float64]:
    """Around 10 ms with a tail; the rounds drift alike for every seed, as one machine's do."""
    drifts = np.random.default_rng(99).uniform(0.8, 1.6, num_rounds) if drift else np.ones(num_rounds)
    jitter = np.random.default_rng(seed).lognormal(0.0, 0.25, (num_rounds, 40))
    return np.asarray(10 * factor * drifts[:, None] * jitter)


def test_ratio_of_a_server_to_its_like_covers_one() -> None:
    ratios = [p95_ratio(_latencies(seed), _latencies(seed + 100)) for seed in range(20)]
    assert sum(each.low <= 1 <= each.high for each in ratios) >= 17
    # What the gate refuses for by default.
    assert not any(each.low > 1.2 for each in ratios)


def test_ratio_of_a_server_three_times_slower_is_surely_above_its_limit() -> None:
    ratio = p95_ratio(_latencies(1, factor=3), _latencies(2))
    assert 1.2 < ratio.low < ratio.value < ratio.high
    assert ratio.low <= 3 <= ratio.high


def test_ratio_compares_rounds_in_pairs() -> None:
    champion = _latencies(1)
    ratio = p95_ratio(champion * 1.5, champion)
    assert ratio.value == pytest.approx(1.5)
    # Drawn apart, the rounds' drift of 0.8 to 1.6 alone would span more.
    assert ratio.high / ratio.low < 2


def test_one_hiccup_does_not_make_a_server_slower_for_sure() -> None:
    champion = _latencies(1, drift=False)
    challenger = _latencies(2, drift=False)
    challenger[2, :12] += 60
    ratio = p95_ratio(challenger, champion)
    assert ratio.value > 1.2
    assert ratio.low < 1.2


def test_intervals_are_the_same_again() -> None:
    assert p95_ratio(_latencies(1), _latencies(2)) == p95_ratio(_latencies(1), _latencies(2))
