"""The strategies of a tuning job, Optuna underneath: what to try next, and which running job to give up.

One thread uses one strategy.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from sagemaker_jobs.local.ranges import parse_value, render_value
from sagemaker_jobs.local.stopping import is_below_median, is_value

StrategyName = Literal["Bayesian", "Random", "Hyperband", "Grid"]

_STUDY_NAME = "tuning-job"
"""One name for all: Optuna derives a job's Hyperband bracket from it, and RandomSeed must give the same ones again."""

_MAX_STARTUP_JOBS = 10
_REDUCTION_FACTOR = 3


@dataclass(frozen=True)
class Prior:
    """A training job of an earlier tuning job."""

    values: Mapping[str, str]
    """By hyperparameter; more than those that are searched."""
    objective: float


@dataclass(frozen=True)
class Search:
    """What a strategy needs to know of its tuning job."""

    strategy: StrategyName
    distributions: Mapping[str, BaseDistribution]
    maximize: bool
    seed: int
    """At least 0; Optuna takes it modulo 2**32."""
    num_jobs: int
    num_parallel: int
    stops_early: bool = False
    """The median rule."""
    min_resource: int = 1
    max_resource: int | None = None
    """Epochs of a whole job; Hyperband needs it."""
    prior: Sequence[Prior] = ()
    """What is known already; Bayesian learns from those whose values are all within the ranges."""


@dataclass(frozen=True)
class Suggestion:
    """Values for the next training job, as the strings that it gets."""

    number: int
    """Counts from 0."""
    values: dict[str, str]


class _OpenGrid(GridSampler):
    """A grid that leaves it to the tuning job when to stop: `Study.stop` is for `Study.optimize` only."""

    def after_trial(self, *_: object) -> None:
        return


class Strategy:
    """Suggests values, learns from jobs' ends, and judges running jobs."""

    def __init__(self, search: Search):
        self._search = search
        # Its announcement of each study and trial is no line of the server's log.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            study_name=_STUDY_NAME,
            direction="maximize" if search.maximize else "minimize",
            sampler=_build_sampler(search),
            pruner=_build_pruner(search),
        )
        known = [trial for prior in search.prior if (trial := _known_trial(prior, search.distributions))]
        self._study.add_trials(known)
        self.num_known = len(known)
        """Jobs of earlier tuning jobs that the search starts from."""
        self._trials: dict[int, Trial] = {}
        self._num_reported: dict[int, int] = {}
        self._completed: list[tuple[float, ...]] = []

    def suggest(self) -> Suggestion:
        """The next values; a grid gives each combination once in its first `num_jobs` suggestions."""
        trial = self._study.ask(dict(self._search.distributions))
        number = trial.number - self.num_known
        self._trials[number] = trial
        return Suggestion(number, {name: render_value(value) for name, value in trial.params.items()})

    def is_hopeless(self, number: int, series: Sequence[float]) -> bool:
        """Whether a running job should be stopped, given its objective values so far, one an epoch.

        Called with each longer series; values that came since the last call are judged one by one.
        """
        if self._search.strategy == "Hyperband":
            return self._is_dropped_by_hyperband(number, series)
        return self._search.stops_early and is_below_median(series, self._completed, maximize=self._search.maximize)

    def tell(self, number: int, value: float | None, *, series: Sequence[float], is_whole: bool) -> None:
        """Takes in a job's end: its final objective value, or None where it has none; `is_whole` if nothing stopped it.

        A job that was stopped early counts with the value that it had reached.
        """
        trial = self._trials.pop(number)
        self._num_reported.pop(number, None)
        if value is None or not is_value(value):
            self._study.tell(trial, state=TrialState.FAIL)
            return
        self._study.tell(trial, value)
        if is_whole and series:
            self._completed.append(tuple(series))

    def _is_dropped_by_hyperband(self, number: int, series: Sequence[float]) -> bool:
        trial, known = self._trials[number], self._num_reported.get(number, 0)
        self._num_reported[number] = len(series)
        for epoch in range(known + 1, len(series) + 1):
            trial.report(series[epoch - 1], step=epoch)
            # A job whose last epoch is MaxResource is left to save its model and end by itself.
            if epoch > (self._search.max_resource or epoch) or trial.should_prune():
                return True
        return False


def _known_trial(prior: Prior, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial | None:
    """None where a value is missing or outside its range."""
    try:
        params = {name: parse_value(prior.values[name], each) for name, each in distributions.items()}
        return create_trial(params=params, distributions=dict(distributions), value=prior.objective)
    except (KeyError, ValueError):
        return None


def _build_sampler(search: Search) -> BaseSampler:
    seed = search.seed % 2**32
    match search.strategy:
        case "Random":
            return RandomSampler(seed=seed)
        case "Grid":
            grid = {
                name: list(distribution.choices)
                for name, distribution in search.distributions.items()
                if isinstance(distribution, CategoricalDistribution)
            }
            return _OpenGrid(grid, seed=seed)
        case "Bayesian" | "Hyperband":
            startup = max(4, min(_MAX_STARTUP_JOBS, search.num_jobs // 3))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                # Liars keep parallel jobs from the point that another one is at.
                return TPESampler(seed=seed, n_startup_trials=startup, constant_liar=search.num_parallel > 1)


def _build_pruner(search: Search) -> BasePruner:
    if search.strategy != "Hyperband":
        return NopPruner()
    return HyperbandPruner(
        min_resource=search.min_resource,
        max_resource=search.max_resource or search.min_resource,
        reduction_factor=_REDUCTION_FACTOR,
    )
