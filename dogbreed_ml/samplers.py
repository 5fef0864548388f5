"""Optuna's samplers and pruners, set up for searches of eight to a few hundred short trials."""

import math
import warnings
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    GridSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from dogbreed_ml.config import (
    Dimension,
    ExperimentConfig,
    FloatDimension,
    IntDimension,
    SearchConfig,
)

_MAX_STARTUP_TRIALS = 10
_PRUNER_STARTUP_TRIALS = 4
_PRUNER_WARMUP_EPOCHS = 1


class _OpenGrid(GridSampler):
    """A grid that leaves it to the search when to stop: `Study.stop` is for `Study.optimize` only."""

    def after_trial(self, *_: object) -> None:
        return


def build_distributions(search: SearchConfig) -> dict[str, BaseDistribution]:
    """The search space in Optuna's terms, by dotted config name."""
    return {name: _distribution(dimension) for name, dimension in search.space.items()}


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, FloatDimension):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    if isinstance(dimension, IntDimension):
        return IntDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    return CategoricalDistribution(dimension.choices)


def grid_values(dimension: Dimension) -> list[Any]:
    """All values of a dimension on the grid; a float dimension has a step there, an int without one counts by one."""
    if isinstance(dimension, FloatDimension):
        if dimension.step is None:
            return [dimension.low]
        # The small share keeps a last point that rounding would lose: 0.1 to 0.3 by 0.1 has three.
        count = math.floor((dimension.high - dimension.low) / dimension.step + 1e-9) + 1
        return [min(dimension.high, dimension.low + index * dimension.step) for index in range(count)]
    if isinstance(dimension, IntDimension):
        return list(range(dimension.low, dimension.high + 1, dimension.step))
    return list(dimension.choices)


def num_possible_trials(search: SearchConfig) -> int:
    """num_trials, or the size of the grid where that is smaller."""
    if search.sampler != "grid":
        return search.num_trials
    return min(search.num_trials, math.prod(len(grid_values(dimension)) for dimension in search.space.values()))


def build_sampler(search: SearchConfig, *, worker: int, num_earlier_trials: int) -> BaseSampler:
    """The sampler, seeded by search.seed, the worker and how far the study is.

    A continued study would otherwise draw its first values again, and each worker the same ones. A grid's order and a
    quasi-random sequence are one for all workers and are kept track of in the study, so their seed stays.
    """
    seed = int(np.random.SeedSequence((search.seed, worker, num_earlier_trials)).generate_state(1)[0])
    startup = max(4, min(_MAX_STARTUP_TRIALS, search.num_trials // 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match search.sampler:
            case "tpe":
                # Liars keep parallel workers from the point that another one is at.
                return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=search.num_parallel > 1)
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
            case "cmaes":
                return CmaEsSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)
            case "qmc":
                return QMCSampler(
                    scramble=True,
                    seed=search.seed,
                    independent_sampler=RandomSampler(seed=seed),
                    warn_asynchronous_seeding=False,
                    warn_independent_sampling=False,
                )
            case "random":
                return RandomSampler(seed=seed)
            case "grid":
                values = {name: grid_values(dimension) for name, dimension in search.space.items()}
                return _OpenGrid(values, seed=search.seed)


def build_pruner(config: ExperimentConfig) -> BasePruner:
    """The pruner; it compares trials epoch by epoch from the second epoch on."""
    match config.search.pruner:
        case "median":
            return MedianPruner(n_startup_trials=_PRUNER_STARTUP_TRIALS, n_warmup_steps=_PRUNER_WARMUP_EPOCHS)
        case "hyperband":
            return HyperbandPruner(min_resource=1, max_resource=_most_epochs(config), reduction_factor=3)
        case "none":
            return NopPruner()


def _most_epochs(config: ExperimentConfig) -> int:
    dimension = config.search.space.get("train.num_epochs")
    if dimension is None:
        return config.train.num_epochs
    if isinstance(dimension, IntDimension | FloatDimension):
        return int(dimension.high)
    return max(choice for choice in dimension.choices if isinstance(choice, int))
