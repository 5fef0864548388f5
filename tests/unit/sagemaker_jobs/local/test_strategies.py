import math
from collections.abc import Mapping
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sagemaker_jobs.local.strategies import Search, Strategy, StrategyName

SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1.0, log=True),
    "depth": IntDistribution(1, 8),
    "optimizer": CategoricalDistribution(["sgd", "adam"]),
}
GRID: dict[str, BaseDistribution] = {
    "size": CategoricalDistribution(["16", "32"]),
    "optimizer": CategoricalDistribution(["sgd", "adam", "lion"]),
}


def search(strategy: StrategyName, **changes: Any) -> Search:
    given: dict[str, Any] = {"distributions": SPACE, "maximize": True, "seed": 3, "num_jobs": 30, "num_parallel": 1}
    return Search(strategy=strategy, **(given | changes))


def objective(values: Mapping[str, str]) -> float:
    """Best, 0.0, at lr = 0.01."""
    return -((math.log10(float(values["lr"])) + 2) ** 2)


def run(strategy: Strategy, num_jobs: int) -> list[float]:
    found = []
    for _ in range(num_jobs):
        suggestion = strategy.suggest()
        found.append(objective(suggestion.values))
        strategy.tell(suggestion.number, found[-1], series=found[-1:], is_whole=True)
    return found


@pytest.mark.parametrize("name", ["Bayesian", "Random", "Hyperband"])
def test_strategy_suggests_values_within_the_ranges(name: StrategyName) -> None:
    strategy = Strategy(search(name, max_resource=9))

    for number in range(12):
        suggestion = strategy.suggest()
        assert suggestion.number == number
        assert 1e-4 <= float(suggestion.values["lr"]) <= 1.0
        assert int(suggestion.values["depth"]) in range(1, 9)
        assert suggestion.values["optimizer"] in ("sgd", "adam")
        strategy.tell(number, objective(suggestion.values), series=(), is_whole=True)


@pytest.mark.parametrize("name", ["Bayesian", "Random", "Hyperband", "Grid"])
def test_strategy_repeats_itself_with_the_same_seed(name: StrategyName) -> None:
    def draw(seed: int) -> list[dict[str, str]]:
        strategy = Strategy(search(name, seed=seed, distributions=GRID if name == "Grid" else SPACE, max_resource=9))
        drawn = []
        for _ in range(6):
            suggestion = strategy.suggest()
            strategy.tell(suggestion.number, 0.5, series=(), is_whole=True)
            drawn.append(suggestion.values)
        return drawn

    assert draw(2**40 + 1) == draw(2**40 + 1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize("num_parallel", [1, 3])
def test_grid_gives_each_combination_once(num_parallel: int) -> None:
    strategy = Strategy(search("Grid", distributions=GRID, num_jobs=6, num_parallel=num_parallel))
    seen, running = [], []

    for _ in range(6):
        running.append(strategy.suggest())
        seen.append(tuple(sorted(running[-1].values.items())))
        if len(running) == num_parallel:
            ended = running.pop(0)
            # A job that failed is not repeated either.
            strategy.tell(ended.number, None if ended.number == 1 else 0.5, series=(), is_whole=True)

    assert len(set(seen)) == 6


def test_bayesian_learns_what_random_does_not() -> None:
    seeds = range(5)
    learned = [max(run(Strategy(search("Bayesian", seed=seed)), 30)[20:]) for seed in seeds]
    drawn = [max(run(Strategy(search("Random", seed=seed)), 30)[20:]) for seed in seeds]

    assert sum(learned) / len(learned) > sum(drawn) / len(drawn)
    # Within a third of a decade of the best learning rate.
    assert min(learned) > -0.1


def test_bayesian_suggests_for_jobs_side_by_side_and_after_failures() -> None:
    strategy = Strategy(search("Bayesian", num_parallel=4))
    suggestions = [strategy.suggest() for _ in range(4)]

    for suggestion in suggestions:
        strategy.tell(suggestion.number, math.nan, series=(), is_whole=True)
    assert len({suggestion.values["lr"] for suggestion in suggestions}) == 4
    assert strategy.suggest().number == 4


def test_early_stopping_follows_the_median_of_completed_jobs() -> None:
    strategy = Strategy(search("Random", stops_early=True))
    for level in (0.4, 0.5, 0.6):
        suggestion = strategy.suggest()
        strategy.tell(suggestion.number, level, series=(level, level), is_whole=True)
    # A job that somebody stopped sets no standard.
    suggestion = strategy.suggest()
    strategy.tell(suggestion.number, 0.9, series=(0.9,), is_whole=False)
    number = strategy.suggest().number

    assert strategy.is_hopeless(number, (0.49,))
    assert not strategy.is_hopeless(number, (0.1, 0.51))


def test_without_early_stopping_no_job_is_hopeless() -> None:
    strategy = Strategy(search("Random"))
    for level in (0.4, 0.5, 0.6):
        suggestion = strategy.suggest()
        strategy.tell(suggestion.number, level, series=(level, level), is_whole=True)

    assert not strategy.is_hopeless(strategy.suggest().number, (0.0,))


def hyperband(levels: list[float], *, min_resource: int = 1, num_epochs: int = 9) -> list[int]:
    """Epochs that each of the jobs ran, side by side, when each emits its level in every epoch."""
    strategy = Strategy(
        search("Hyperband", num_jobs=len(levels), num_parallel=len(levels), min_resource=min_resource, max_resource=9)
    )
    numbers = [strategy.suggest().number for _ in levels]
    epochs = dict.fromkeys(numbers, 0)
    running = list(numbers)
    for epoch in range(1, num_epochs + 1):
        for number in list(running):
            epochs[number] = epoch
            if strategy.is_hopeless(number, [levels[number]] * epoch):
                running.remove(number)
                strategy.tell(number, levels[number], series=[levels[number]] * epoch, is_whole=False)
    return [epochs[number] for number in numbers]


def test_hyperband_gives_the_good_jobs_more_epochs() -> None:
    levels = [1.0 - 0.05 * index for index in range(18)]
    epochs = hyperband(levels)

    assert epochs[0] == 9
    assert sum(epochs[:6]) > sum(epochs[12:])
    assert min(epochs) < 9


def test_hyperband_stops_no_job_before_min_resource() -> None:
    epochs = hyperband([1.0 - 0.05 * index for index in range(18)], min_resource=3)

    assert min(epochs) == 3


def test_hyperband_stops_a_job_that_goes_on_past_max_resource() -> None:
    assert hyperband([0.5], num_epochs=9) == [9]
    assert hyperband([0.5], num_epochs=30) == [10]


def test_hyperband_sees_every_value_of_a_series_that_grew_by_several() -> None:
    levels = [1.0 - 0.05 * index for index in range(18)]
    strategy = Strategy(search("Hyperband", num_jobs=18, num_parallel=18, max_resource=9))
    numbers = [strategy.suggest().number for _ in levels]
    dropped = [number for number in numbers if strategy.is_hopeless(number, [levels[number]] * 9)]

    assert dropped
    assert 0 not in dropped
