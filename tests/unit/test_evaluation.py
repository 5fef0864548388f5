"""Metrics and probabilities against scikit-learn, and tables."""

import numpy as np
import pytest
import torch
from randomanswers import logits_of, names, random_answers
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

from dogbreed_ml.evaluation import (
    MAX_MISTAKES,
    ConfusedPair,
    Mistake,
    compute_metrics,
    evaluate_logits,
    evaluate_probabilities,
)


@pytest.mark.parametrize(("num_samples", "num_classes"), [(600, 120), (64, 8), (40, 6)])
def test_metrics_equal_scikit_learns(num_samples: int, num_classes: int) -> None:
    logits, labels = random_answers(num_samples, num_classes)
    metrics = compute_metrics(torch.from_numpy(logits), torch.from_numpy(labels))
    predicted = logits.argmax(axis=1)
    every_label = np.arange(num_classes)
    probabilities = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    assert metrics["loss"] == pytest.approx(log_loss(labels, probabilities, labels=every_label), rel=1e-5)
    assert metrics["accuracy_top1"] == pytest.approx(accuracy_score(labels, predicted))
    assert metrics["accuracy_top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=every_label))
    assert metrics["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_metrics_top5_of_two_breeds_is_one() -> None:
    logits, labels = random_answers(20, 2)
    assert compute_metrics(torch.from_numpy(logits), torch.from_numpy(labels))["accuracy_top5"] == 1.0


def test_metrics_f1_leaves_out_breeds_that_nobody_named() -> None:
    metrics = compute_metrics(torch.from_numpy(logits_of([0, 1], 5)), torch.tensor([0, 1]))
    assert metrics["f1_macro"] == 1.0


def test_evaluation_interval_is_wilsons() -> None:
    evaluation = evaluate_logits(logits_of([0] * 10, 2), np.array([0] * 8 + [1] * 2), names(2))
    assert evaluation.metrics["accuracy_top1"] == pytest.approx(0.8)
    assert evaluation.top1_interval == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_evaluation_breed_table_has_a_row_for_each_breed() -> None:
    evaluation = evaluate_logits(logits_of([0, 0, 1], 3), np.array([0, 1, 1]), names(3))
    assert evaluation.breed_rows() == [
        {"breed": "breed 0", "precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1},
        {"breed": "breed 1", "precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        {"breed": "breed 2", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
    ]
    assert evaluation.confusion.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert evaluation.num_samples == 3


def test_evaluation_accuracy_agrees_with_its_confusion_where_logits_are_equal() -> None:
    labels = np.arange(8)
    evaluation = evaluate_logits(np.zeros((8, 8), dtype=np.float32), labels, names(8))
    assert evaluation.metrics["accuracy_top1"] == np.trace(evaluation.confusion) / 8


def test_evaluation_confused_pairs_are_ordered_and_point_at_the_photographs() -> None:
    logits = logits_of([1, 1, 0, 2, 2, 1], 3)
    logits[1] *= 2  # The surer of the two mistakes.
    evaluation = evaluate_logits(logits, np.array([0, 0, 0, 2, 1, 1]), names(3))
    assert evaluation.confused_pairs == (
        ConfusedPair("breed 0", "breed 1", 2, 2 / 3, mistaken=(1, 0), example=5),
        ConfusedPair("breed 1", "breed 2", 1, 0.5, mistaken=(4,), example=3),
    )
    assert evaluation.confused_rows()[1] == {"breed": "breed 1", "taken_for": "breed 2", "count": 1, "share": 0.5}


def test_evaluation_confused_pair_of_a_breed_without_photographs_has_no_example() -> None:
    evaluation = evaluate_logits(logits_of([1], 2), np.array([0]), names(2))
    assert evaluation.confused_pairs[0].example is None


def test_probabilities_are_judged_before_and_after_the_temperature() -> None:
    logits, labels = random_answers(600, 8)
    report = evaluate_probabilities(logits * 5, labels, names(8), temperature=5.0)
    for suffix, scaled in (("", logits), ("_raw", logits * 5)):
        probabilities = softmax(scaled.astype(np.float64), axis=1)
        assert report.metrics[f"loss{suffix}"] == pytest.approx(log_loss(labels, probabilities, labels=range(8)))
    assert report.metrics["ece"] < report.metrics["ece_raw"]
    assert sum(each.count for each in report.bins) == 600
    assert report.coverage.at(0.0) == pytest.approx((1.0, accuracy_score(labels, logits.argmax(axis=1))))


def test_probability_report_tells_the_surest_mistakes_first() -> None:
    logits = logits_of([1, 1, 2], 3)
    logits[1] *= 2
    report = evaluate_probabilities(logits, np.array([0, 0, 2]), names(3), temperature=1.0)
    surest = float(softmax(logits.astype(np.float64), axis=1)[1].max())
    assert report.mistakes[0] == Mistake(1, "breed 0", "breed 1", surest)
    assert [each.index for each in report.mistakes] == [1, 0]


def test_probability_report_keeps_a_bounded_number_of_mistakes() -> None:
    report = evaluate_probabilities(logits_of([1] * 40, 2), np.zeros(40, dtype=np.int64), names(2), temperature=1.0)
    assert len(report.mistakes) == MAX_MISTAKES


def test_probability_report_has_a_row_for_each_threshold_and_bin() -> None:
    logits = logits_of([0, 1], 2) * np.float32(0.1)
    report = evaluate_probabilities(logits, np.array([0, 0]), names(2), temperature=1.0)
    rows = report.coverage_rows()
    assert [row["threshold"] for row in rows][:3] == [0.0, 0.05, 0.1]
    assert rows[0] == {"threshold": 0.0, "coverage": 1.0, "accuracy": 0.5}
    assert rows[-1]["coverage"] == 0.0
    assert [row["count"] for row in report.reliability_rows()] == [2]
