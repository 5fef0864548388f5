"""Earlier trials as a start: read from MLflow's texts, kept where they fit, put into a study, and a space narrowed."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from dogbreed_ml.config import (
    CategoricalDimension,
    Dimension,
    ExperimentConfig,
    FloatDimension,
    IntDimension,
    SearchConfig,
    TrainConfig,
    flatten,
)
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.search import SearchStudy
from dogbreed_ml.tracking import ChildRun
from dogbreed_ml.warmstart import Finding, find_trials, fitting, narrowed

SPACE: dict[str, Dimension] = {
    "train.lr": FloatDimension(low=1e-4, high=1e-1, log=True),
    "train.num_epochs": IntDimension(low=1, high=20),
    "train.optimizer": CategoricalDimension(choices=["adamw", "sgd", "adam"]),
    "train.patience": CategoricalDimension(choices=[None, 3]),
}


def search(**changes: Any) -> SearchConfig:
    return SearchConfig(space=SPACE, num_trials=4, **changes)


def config(**changes: Any) -> ExperimentConfig:
    return ExperimentConfig(name="dogs", search=search(**changes), train=TrainConfig(weight_decay=0.5))


class Store:
    """The children of one parent run."""

    def __init__(self, children: Sequence[ChildRun]):
        self.children = children

    def child_runs(self, _: str) -> Sequence[ChildRun]:
        return self.children


def child(number: int, values: dict[str, Any], *, state: str = "COMPLETE", **params: str) -> ChildRun:
    """As MLflow gives it back: every param is text."""
    texts = {name: str(value) for name, value in (flatten(config()) | values).items()} | params
    return ChildRun(f"run-{number}", "FINISHED", {"trial.state": state}, {"objective": 0.5 + number / 100}, texts)


VALUES = {"train.lr": 0.0012345678901234567, "train.num_epochs": 7, "train.optimizer": "sgd", "train.patience": None}


def test_find_trials_reads_values_with_their_types() -> None:
    store: Any = Store([child(1, VALUES), child(2, VALUES, state="PRUNED"), child(3, VALUES, state="FAILED")])
    assert find_trials(store, "parent", config=config()) == [Finding(VALUES, 0.51, "parent")]


def test_find_trials_says_what_those_trials_had_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    store: Any = Store([child(1, VALUES, **{"train.weight_decay": "0.25", "data.path": "elsewhere"})])
    with caplog.at_level(logging.WARNING):
        find_trials(store, "parent", config=config())
    assert caplog.messages == ["the trials of parent were made with train.weight_decay=0.25, unlike these"]


@pytest.mark.parametrize(
    ("children", "message"),
    [
        ([], "no completed trials"),
        (
            [child(1, VALUES, **{"search.metric": "valid/loss"})],
            "search.metric=valid/accuracy_top1, this one has valid",
        ),
        ([child(1, VALUES, **{"search.direction": "minimize"})], "search.direction=maximize"),
        ([child(1, VALUES, **{"train.lr": "quick"})], "must be a number, got 'quick'"),
    ],
)
def test_find_trials_refuses_another_kind_of_search(children: list[ChildRun], message: str) -> None:
    store: Any = Store(children)
    with pytest.raises(ConfigError, match=message):
        find_trials(store, "parent", config=config())


def finding(value: float, **values: Any) -> Finding:
    named = {name.replace("__", "."): each for name, each in values.items()}
    return Finding(VALUES | named, value, "parent")


def test_fitting_leaves_out_what_the_space_does_not_hold(caplog: pytest.LogCaptureFixture) -> None:
    outside = [finding(0.9, train__lr=0.5), finding(0.9, train__optimizer="lion"), finding(0.9, train__patience=True)]
    with caplog.at_level(logging.WARNING):
        assert fitting([finding(0.8), *outside], search()) == [finding(0.8)]
    assert caplog.messages == ["3 of 4 earlier trials lie outside search.space and are left out"]


def test_narrowed_is_the_space_around_the_best() -> None:
    good = [finding(0.9 + n / 100, train__lr=lr, train__num_epochs=10 + n) for n, lr in enumerate((1e-3, 2e-3, 4e-3))]
    bad = [finding(0.1, train__lr=0.09, train__num_epochs=1, train__optimizer="adam") for _ in range(9)]
    space = narrowed(search(), [*bad, *good])

    lr = space["train.lr"]
    assert isinstance(lr, FloatDimension)
    # A tenth of three decades beyond each end.
    assert lr.low == pytest.approx(1e-3 / 10**0.3)
    assert lr.high == pytest.approx(4e-3 * 10**0.3)
    assert lr.log
    assert space["train.num_epochs"] == IntDimension(low=8, high=14)
    assert space["train.optimizer"] == CategoricalDimension(choices=["sgd"])
    assert space["train.patience"] == CategoricalDimension(choices=[None])


def test_narrowed_goes_no_further_than_the_space_and_needs_three() -> None:
    edge = [finding(0.9, train__lr=1e-4, train__num_epochs=1)] * 3
    space = narrowed(search(), edge)
    assert isinstance(space["train.lr"], FloatDimension)
    assert space["train.lr"].low == 1e-4
    assert isinstance(space["train.num_epochs"], IntDimension)
    assert space["train.num_epochs"].low == 1
    assert narrowed(search(), edge[:2]) == SPACE


def test_narrowed_minimizes_where_the_search_does() -> None:
    losses = [finding(0.1, train__num_epochs=15)] * 3 + [finding(0.9, train__num_epochs=2)] * 9
    space = narrowed(search(metric="valid/loss", direction="minimize"), losses)
    assert space["train.num_epochs"] == IntDimension(low=13, high=17)


def open_study(folder: Path, wanted: ExperimentConfig) -> SearchStudy:
    return SearchStudy.open(wanted, fingerprint="f", tracking_uri="fake://", project_dir=folder)


def test_study_begins_with_findings_once(tmp_path: Path) -> None:
    found = [finding(0.8), finding(0.7, train__lr=9.0)]
    with open_study(tmp_path, config()) as study:
        assert study.seed(found) == 1
        assert study.seed(found) == 0
    with open_study(tmp_path, config()) as study:
        assert study.seed(found) == 0
        (trial,) = study.study.get_trials()
    assert (trial.state, trial.value, trial.params) == (TrialState.COMPLETE, 0.8, VALUES)


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_study_refuses_findings_that_its_sampler_would_not_use(tmp_path: Path, sampler: str) -> None:
    with open_study(tmp_path, config(sampler=sampler)) as study, pytest.raises(ConfigError, match="learns from trials"):
        study.seed([finding(0.8)])
