"""Temperature, reliability and rejection on answers whose right values are known."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from dogbreed_ml.calibration import coverage_curve, expected_calibration_error, fit_temperature, reliability_bins


def honest_answers(num_samples: int, *, sharpened: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Labels drawn from softmax(logits); the logits are then multiplied by `sharpened`, their right temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (num_samples, 6))
    labels = (rng.random((num_samples, 1)) > np.cumsum(softmax(logits, axis=1), axis=1)).sum(axis=1)
    return (logits * sharpened).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("sharpened", [0.4, 1.0, 3.0])
def test_temperature_undoes_what_sharpened_the_logits(sharpened: float) -> None:
    assert fit_temperature(*honest_answers(20_000, sharpened=sharpened)) == pytest.approx(sharpened, rel=0.05)


def test_temperature_never_makes_the_log_loss_worse() -> None:
    logits, labels = honest_answers(60, sharpened=2.0)
    best = fit_temperature(logits, labels)

    def loss(temperature: float) -> float:
        probabilities = softmax(logits.astype(np.float64) / temperature, axis=1)
        return float(log_loss(labels, probabilities, labels=range(6)))

    assert loss(best) <= min(loss(t) for t in (0.5, 1.0, best * 0.97, best * 1.03, 5.0))


def test_temperature_stays_where_nothing_is_mistaken_and_is_bounded_where_everything_is() -> None:
    sure = (np.eye(3, dtype=np.float32) * 8)[[0, 1, 2]]
    assert fit_temperature(sure, np.array([0, 1, 2])) == 1.0
    assert fit_temperature(sure, np.array([1, 2, 0])) == pytest.approx(20.0, rel=0.01)


def answers() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    rng = np.random.default_rng(1)
    probabilities = rng.uniform(0.2, 1.0, 500)
    return probabilities, rng.random(500) < probabilities**2


def test_reliability_bins_equal_scikit_learns() -> None:
    probabilities, is_right = answers()
    accuracy, probability = calibration_curve(is_right, probabilities, n_bins=15, strategy="uniform")
    bins = reliability_bins(probabilities, is_right)
    assert [each.accuracy for each in bins] == pytest.approx(accuracy.tolist())
    assert [each.probability for each in bins] == pytest.approx(probability.tolist())
    assert sum(each.count for each in bins) == 500


def test_reliability_bins_take_zero_and_one() -> None:
    bins = reliability_bins(np.array([0.0, 1.0, 1.0]), np.array([False, True, False]))
    assert [(each.count, each.accuracy) for each in bins] == [(1, 0.0), (2, 0.5)]
    assert (bins[0].low, bins[-1].high) == (0.0, 1.0)


def test_calibration_error_is_the_weighted_gap() -> None:
    # 8 answers at 0.9, of which 6 are right, and 2 at 0.5, of which 1 is.
    bins = reliability_bins(np.array([0.9] * 8 + [0.5] * 2), np.array([True] * 6 + [False] * 2 + [True, False]))
    assert expected_calibration_error(bins) == pytest.approx(0.8 * 0.15)


def test_calibration_error_of_honest_answers_is_small() -> None:
    logits, labels = honest_answers(20_000, sharpened=1.0)
    for temperature, limit in ((1.0, 0.02), (0.3, 1.0)):
        probabilities = softmax(logits.astype(np.float64) / temperature, axis=1)
        bins = reliability_bins(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)
        error = expected_calibration_error(bins)
        assert error < limit
        assert (error > 0.1) == (temperature < 1)


def test_coverage_curve_counts_what_a_threshold_answers() -> None:
    curve = coverage_curve(np.array([0.9, 0.5, 0.5, 0.2]), np.array([True, True, False, False]))
    assert curve.thresholds.tolist() == [0.0, 0.2, 0.5, 0.9]
    assert curve.coverage.tolist() == [1.0, 1.0, 0.75, 0.25]
    assert curve.accuracy.tolist() == pytest.approx([0.5, 0.5, 2 / 3, 1.0])
    assert curve.at(0.0) == (1.0, 0.5)
    assert curve.at(0.5) == pytest.approx((0.75, 2 / 3))
    assert curve.at(0.6) == (0.25, 1.0)
    coverage, accuracy = curve.at(0.95)
    assert coverage == 0.0
    assert np.isnan(accuracy)


def test_coverage_curve_names_the_threshold_for_an_accuracy() -> None:
    curve = coverage_curve(np.array([0.9, 0.5, 0.5, 0.2]), np.array([True, True, False, False]))
    assert curve.threshold_for(0.4) == 0.0
    assert curve.threshold_for(0.6) == 0.5
    assert coverage_curve(np.array([0.9]), np.array([False])).threshold_for(0.6) is None
