"""Figures: drawn without complaint for few and many breeds, with titles that say what was found."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from randomanswers import logits_of, names, random_answers

from dogbreed_ml.calibration_figures import breeds_figure, coverage_figure, reliability_figure
from dogbreed_ml.evaluation import ConfusedPair, Mistake, evaluate_logits, evaluate_probabilities
from dogbreed_ml.figures import confused_figure, confusion_figure, learning_curves_figure, mistakes_figure


@dataclass(frozen=True)
class Epoch:
    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Photograph:
    path: Path


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


def test_mistakes_figure_shows_each_with_what_it_is_and_what_it_was_taken_for(tmp_path: Path) -> None:
    samples = []
    for index, color in enumerate(("red", "blue")):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (60, 40), color).save(path)
        samples.append(Photograph(path))
    mistakes = [Mistake(1, "Saluki", "borzoi", 0.97), Mistake(0, "Black and tan coonhound", "Saluki", 0.6)]
    figure = mistakes_figure(mistakes, samples)
    figure.draw_without_rendering()
    assert figure.get_suptitle() == "Surest mistake: a Saluki taken for borzoi with 97%"
    pixels = [np.asarray(axes.get_images()[0].get_array())[0, 0].tolist() for axes in figure.axes]
    assert pixels == [[0, 0, 255], [255, 0, 0]]
    told = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert told == [["borzoi 97%", "is Saluki"], ["Saluki 60%", "is Black and tan coonh…"]]


def test_mistakes_figure_without_mistakes_says_so() -> None:
    assert mistakes_figure([], [Photograph(Path("x"))]).get_suptitle() == "No mistake in 1 photographs"


@pytest.mark.parametrize("num_classes", [8, 120])
def test_reliability_figure_tells_the_error_before_and_after(num_classes: int) -> None:
    logits, labels = random_answers(num_classes * 6, num_classes)
    report = evaluate_probabilities(logits, labels, names(num_classes), temperature=0.8)
    figure = reliability_figure(report)
    figure.draw_without_rendering()
    assert figure.get_suptitle() == f"A probability is off by {report.metrics['ece'] * 100:.1f} % on average"
    before, after = figure.axes[0].get_title(loc="left"), figure.axes[2].get_title(loc="left")
    assert f"{report.metrics['ece_raw'] * 100:.1f} %" in before
    assert "(0.80)" in after
    # A title wider than its figure would widen the picture when it is saved.
    assert figure.get_tightbbox().width <= figure.get_figwidth() + 0.1


def test_coverage_figure_names_the_thresholds_and_marks_the_configured_one() -> None:
    logits, labels = random_answers(400, 8)
    report = evaluate_probabilities(logits * 2, labels, names(8), temperature=1.0)
    figure = coverage_figure(report, min_probability=0.4)
    figure.draw_without_rendering()
    threshold = report.coverage.threshold_for(0.95)
    assert threshold is not None
    assert f"95% right at a threshold of {threshold:.2f}" in figure.get_suptitle()
    assert figure.axes[0].get_lines()[-1].get_label() == "configured: 0.4"
    assert figure.get_tightbbox().width <= figure.get_figwidth() + 0.1


def test_coverage_figure_of_a_model_without_a_mistake_promises_nothing_more() -> None:
    report = evaluate_probabilities(logits_of([0, 1], 2), np.array([0, 1]), names(2), temperature=1.0)
    assert coverage_figure(report).get_suptitle() == "All answered: 100.0 % right"


@pytest.mark.parametrize("num_classes", [8, 120])
def test_breeds_figure_has_the_weakest_breed_on_top(num_classes: int) -> None:
    logits, labels = random_answers(num_classes * 6, num_classes)
    evaluation = evaluate_logits(logits, labels, names(num_classes))
    figure = breeds_figure(evaluation)
    figure.draw_without_rendering()
    weakest = min(evaluation.breeds, key=lambda each: (each.recall, each.f1, each.breed))
    labels_shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels_shown[0] == f"{weakest.breed} ({weakest.support})"
    assert len(labels_shown) == num_classes
    assert weakest.breed in figure.get_suptitle()
