"""One class of tests, every sampler with every pruner."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from dogbreed_ml.config import (
    CategoricalDimension,
    Dimension,
    ExperimentConfig,
    FloatDimension,
    IntDimension,
    SearchConfig,
    TrackingConfig,
    TrainConfig,
)
from dogbreed_ml.search import SearchResult, SearchStudy
from dogbreed_ml.tracking import Tracker
from dogbreed_ml.train import EpochResult

SAMPLERS = ["tpe", "gp", "cmaes", "qmc", "random", "grid"]
PRUNERS = ["median", "hyperband", "none"]
NUM_TRIALS = 9


def test_every_sampler_and_pruner_of_the_config_is_tested() -> None:
    assert sorted(get_args(SearchConfig.__annotations__["sampler"])) == sorted(SAMPLERS)
    assert sorted(get_args(SearchConfig.__annotations__["pruner"])) == sorted(PRUNERS)


def objective(config: ExperimentConfig) -> Iterator[EpochResult]:
    """Best at lr 1e-2 and a batch of 32."""
    level = 0.9 - 0.2 * abs(math.log10(config.train.lr) + 2) - 0.05 * (config.train.batch_size != 32)
    for epoch in range(config.train.num_epochs):
        value = level * (1 - 0.5 ** (epoch + 1))
        yield EpochResult(epoch, epoch, {"valid/accuracy_top1": value, "train/loss": 1 - value}, 0.001, True)


def _config(sampler: str, pruner: str, *, seed: int = 0, num_trials: int = NUM_TRIALS) -> ExperimentConfig:
    lr = FloatDimension(low=1e-4, high=1e-1, log=True)
    if sampler == "grid":
        lr = FloatDimension(low=0.01, high=0.05, step=0.01)
    space: dict[str, Dimension] = {
        "train.lr": lr,
        "train.batch_size": CategoricalDimension(choices=[16, 32, 64]),
        "train.patience": CategoricalDimension(choices=[None, 2]),
        "train.num_epochs": IntDimension(low=3, high=6),
    }
    search = SearchConfig(
        sampler=sampler,  # type: ignore[arg-type]
        pruner=pruner,  # type: ignore[arg-type]
        num_trials=num_trials,
        seed=seed,
        space=space,
    )
    return ExperimentConfig(name=f"{sampler}-{pruner}", search=search, train=TrainConfig(num_epochs=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


@pytest.fixture
def tracker(folder: Path) -> Iterator[Tracker]:
    with Tracker.open(project_dir=folder, config=TrackingConfig(system_metrics=False)) as tracker:
        yield tracker


def _search(config: ExperimentConfig, tracker: Tracker, folder: Path, *, fingerprint: str) -> SearchResult:
    study = SearchStudy.open(
        config, fingerprint=fingerprint, tracking_uri=tracker.tracking_uri, project_dir=folder, tracker=tracker
    )
    with study, tracker.start_run(config.name, run_id=study.parent_run_id) as parent:
        result = study.run(objective, tracker=tracker, parent=parent)
        study.finish()
    return result


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("sampler", SAMPLERS)
class TestSearchEngines:
    def test_search_ends_with_a_best_trial_and_a_run_for_each(
        self, sampler: str, pruner: str, tracker: Tracker, folder: Path
    ) -> None:
        config = _config(sampler, pruner)
        result = _search(config, tracker, folder, fingerprint="a" * 16)
        assert len(result.trials) == NUM_TRIALS
        assert {trial.state for trial in result.trials} <= {"COMPLETE", "PRUNED"}
        assert pruner != "none" or {trial.state for trial in result.trials} == {"COMPLETE"}
        for trial in result.trials:
            assert set(trial.values) == set(config.search.space)
            assert type(trial.values["train.num_epochs"]) is int
            assert trial.values["train.patience"] in (None, 2)
        complete = [trial.value for trial in result.trials if trial.state == "COMPLETE" and trial.value is not None]
        assert result.best.value == max(complete)
        run_ids = {trial.run_id for trial in result.trials}
        parent_id = tracker.client.get_run(str(result.best.run_id)).data.tags["mlflow.parentRunId"]
        children = {run.run_id: run for run in tracker.child_runs(parent_id)}
        assert set(children) == run_ids
        for trial in result.trials:
            child = children[str(trial.run_id)]
            assert child.tags["trial.state"] == trial.state
            assert child.status == ("FINISHED" if trial.state == "COMPLETE" else "KILLED")
            assert child.metrics["objective"] == pytest.approx(trial.value)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_samples_the_same_values(sampler: str, tracker: Tracker, folder: Path) -> None:
    def values(seed: int, fingerprint: str) -> list[dict[str, Any]]:
        config = _config(sampler, "none", seed=seed, num_trials=6)
        return [trial.values for trial in _search(config, tracker, folder, fingerprint=fingerprint).trials]

    first = values(1, "b" * 16)
    assert values(1, "c" * 16) == first
    assert values(2, "d" * 16) != first
