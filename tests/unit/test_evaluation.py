"""Metrics against scikit-learn, tables, and figures that say what was found."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

from dogbreed_ml.evaluation import (
    ConfusedPair,
    compute_metrics,
    confused_figure,
    confusion_figure,
    evaluate_logits,
    learning_curves_figure,
)


@dataclass(frozen=True)
class Epoch:
    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Photograph:
    path: Path


def random_answers(num_samples: int, num_classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    generator = np.random.default_rng(0)
    labels = np.concatenate([np.arange(num_classes), generator.integers(0, num_classes, num_samples - num_classes)])
    logits = generator.normal(size=(num_samples, num_classes)).astype(np.float32)
    logits[np.arange(num_samples), labels] += 1.5
    return logits, labels


def logits_of(predicted: list[int], num_classes: int) -> NDArray[np.float32]:
    return (np.eye(num_classes, dtype=np.float32) * 5)[predicted]


def names(num_classes: int) -> list[str]:
    return [f"breed {i}" for i in range(num_classes)]


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


@pytest.mark.parametrize("num_classes", [2, 8, 30])
def test_confusion_figure_names_every_breed_and_the_finding(num_classes: int) -> None:
    logits, labels = random_answers(num_classes * 5, num_classes)
    evaluation = evaluate_logits(logits, labels, names(num_classes))
    figure = confusion_figure(evaluation)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert {text.get_text() for text in axes.get_xticklabels()} == set(names(num_classes))
    # A breed stands at the same place on both sides.
    assert [t.get_text() for t in axes.get_xticklabels()] == [t.get_text() for t in axes.get_yticklabels()]
    assert f"{evaluation.metrics['accuracy_top1'] * 100:.1f} %" in figure.get_suptitle()


def test_confusion_figure_without_a_mistake_says_all_are_right() -> None:
    evaluation = evaluate_logits(logits_of([0, 1], 2), np.array([0, 1]), names(2))
    figure = confusion_figure(evaluation)
    assert figure.get_suptitle().startswith("100.0 % of 2 photographs")
    assert "mistaken" not in figure.get_suptitle()


def test_learning_curves_figure_marks_the_best_epoch() -> None:
    shares = [0.2, 0.7, 0.6]
    epochs = [
        Epoch(i, {"train/loss": 1.0, "valid/loss": 1.1, "valid/accuracy_top1": share, "valid/accuracy_top5": 0.9})
        for i, share in enumerate(shares)
    ]
    figure = learning_curves_figure(epochs)
    figure.draw_without_rendering()
    assert figure.get_suptitle() == "Valid top-1 is best after epoch 1: 70.0 %"
    marker = figure.axes[1].get_lines()[-1]
    assert (list(marker.get_xdata()), list(marker.get_ydata())) == ([1], [0.7])  # type: ignore[arg-type]


def test_learning_curves_figure_without_valid_metrics_shows_the_train_loss() -> None:
    figure = learning_curves_figure([Epoch(0, {"train/loss": 1.5}), Epoch(1, {"train/loss": 0.25})])
    figure.draw_without_rendering()
    assert figure.get_suptitle() == "Train loss goes from 1.50 to 0.25"
    assert len(figure.axes) == 1


def test_learning_curves_figure_of_one_epoch_is_drawn() -> None:
    learning_curves_figure([Epoch(0, {"valid/accuracy_top1": 0.5})]).draw_without_rendering()


def test_confused_figure_shows_mistakes_beside_an_example(tmp_path: Path) -> None:
    samples = []
    for index, color in enumerate(("red", "green", "blue")):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (60, 40), color).save(path)
        samples.append(Photograph(path))
    figure = confused_figure([ConfusedPair("Saluki", "borzoi", 2, 0.5, (0, 1), 2)], samples)
    figure.draw_without_rendering()
    pixels = [np.asarray(axes.get_images()[0].get_array())[0, 0].tolist() for axes in figure.axes]
    assert pixels == [[0, 0, 255], [255, 0, 0], [0, 128, 0]]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["borzoi", "taken for it: Saluki, 2 of 4", ""]


def test_confused_figure_survives_a_photograph_that_is_gone(tmp_path: Path) -> None:
    figure = confused_figure([ConfusedPair("a", "b", 1, 1.0, (0,), None)], [Photograph(tmp_path / "gone.jpg")])
    figure.draw_without_rendering()


def test_confused_figure_without_mistakes_says_so() -> None:
    figure = confused_figure([], [Photograph(Path("x"))])
    assert figure.get_suptitle() == "No breed was taken for another in 1 photographs"
