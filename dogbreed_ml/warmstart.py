"""What earlier searches found, as the start of another: trials read back from MLflow, and a space drawn closer."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dogbreed_ml.config import Dimension, ExperimentConfig, FloatDimension, IntDimension, SearchConfig, flatten
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.trialrun import OBJECTIVE_METRIC, STATE_TAG

if TYPE_CHECKING:
    from dogbreed_ml.tracking import ChildRun, Tracker

logger = logging.getLogger(__name__)

WARM_START_TAG = "search.warm_start"
"""Of a parent run: the searches that it began with."""

_TASK_SECTIONS = ("data.", "model.", "train.")
# Where the images lie says nothing about them.
_PLACES = ("data.dir", "data.path", "train.num_workers")

_BEST_SHARE, _FEWEST_BEST, _MARGIN = 0.25, 3, 0.1


@dataclass(frozen=True)
class Finding:
    """A completed trial of an earlier search."""

    values: dict[str, Any]
    """By dotted config name."""
    value: float
    """Of the metric that both searches have."""
    source: str
    """A parent run's id or a tuning job's name."""


def parse_value(dimension: Dimension, text: str) -> bool | int | float | str | None:
    """A hyperparameter of a job, or a param of an MLflow run, as a value of the dimension's type; ConfigError."""
    try:
        if isinstance(dimension, FloatDimension):
            return float(text)
        if isinstance(dimension, IntDimension):
            return int(text)
    except ValueError as error:
        raise ConfigError(f"A value of {dimension} must be a number, got {text!r}.") from error
    for choice in dimension.choices:
        # A job has JSON, MLflow has Python's own text.
        if text == str(choice) or (not isinstance(choice, str) and text == json.dumps(choice)):
            return choice
    raise ConfigError(f"A value of the dimension must be one of {dimension.choices}, got {text!r}.")


def contains(dimension: Dimension, value: Any) -> bool:
    """Whether a search of the dimension could draw this value, but for its step."""
    if isinstance(dimension, FloatDimension | IntDimension):
        return not isinstance(value, bool | str | None) and dimension.low <= value <= dimension.high
    return any(value == choice and type(value) is type(choice) for choice in dimension.choices)


def find_trials(tracker: "Tracker", run_id: str, *, config: ExperimentConfig) -> list[Finding]:
    """The completed trials under a parent run, whoever drove them.

    Raises TrackingError where there is no such run, ConfigError where its trials were for another metric or did not
    vary what this search varies.
    """
    complete = [child for child in tracker.child_runs(run_id) if child.tags.get(STATE_TAG) == "COMPLETE"]
    if not complete:
        raise ConfigError(f"--warm-start {run_id} must name the parent run of a search; it has no completed trials.")
    search = config.search
    for name, wanted in (("search.metric", search.metric), ("search.direction", search.direction)):
        theirs = complete[0].params.get(name)
        if theirs != wanted:
            raise ConfigError(f"--warm-start {run_id} must name a search with {name}={wanted}, this one has {theirs}.")
    _warn_of_differences(config, complete[0], run_id)
    return [
        Finding(
            {name: _parse_param(child, name, dimension) for name, dimension in search.space.items()},
            child.metrics[OBJECTIVE_METRIC],
            run_id,
        )
        for child in complete
        if OBJECTIVE_METRIC in child.metrics
    ]


def fitting(findings: Iterable[Finding], search: SearchConfig) -> list[Finding]:
    """Those whose values lie in the space; how many do not is logged."""
    found = list(findings)
    kept = [
        each
        for each in found
        if set(each.values) >= set(search.space)
        and all(contains(dimension, each.values[name]) for name, dimension in search.space.items())
    ]
    if len(kept) < len(found):
        num_outside = len(found) - len(kept)
        logger.warning("%d of %d earlier trials lie outside search.space and are left out", num_outside, len(found))
    return kept


def narrowed(search: SearchConfig, findings: Sequence[Finding]) -> dict[str, Dimension]:
    """The space around the best quarter of the findings, three at least, and a tenth of each range beyond.

    Ranges keep their scale and are never wider than they were; lists of choices keep those of the best. Fewer than
    three findings narrow nothing.
    """
    sign = 1 if search.direction == "maximize" else -1
    ranked = sorted(findings, key=lambda each: -sign * each.value)
    best = ranked[: max(_FEWEST_BEST, math.ceil(len(ranked) * _BEST_SHARE))]
    if len(best) < _FEWEST_BEST:
        logger.warning("%d earlier trials are too few to narrow search.space by", len(best))
        return dict(search.space)
    return {name: _around(dimension, [each.values[name] for each in best]) for name, dimension in search.space.items()}


def _around(dimension: Dimension, values: Sequence[Any]) -> Dimension:
    if isinstance(dimension, FloatDimension | IntDimension):
        # A step counts from the low end; another low end would be another grid.
        if dimension.step not in (None, 1):
            return dimension
        scale: Callable[[float], float] = math.log if dimension.log else float
        back: Callable[[float], float] = math.exp if dimension.log else float
        margin = _MARGIN * (scale(dimension.high) - scale(dimension.low))
        low = max(dimension.low, back(scale(min(values)) - margin))
        high = min(dimension.high, back(scale(max(values)) + margin))
        if isinstance(dimension, IntDimension):
            return replace(dimension, low=math.floor(low), high=math.ceil(high))
        return replace(dimension, low=low, high=high)
    return replace(dimension, choices=[choice for choice in dimension.choices if choice in values])


def _parse_param(child: "ChildRun", name: str, dimension: Dimension) -> Any:
    if name not in child.params:
        raise ConfigError(f"The earlier trial {child.run_id} has no param {name}, which search.space varies.")
    if isinstance(dimension, FloatDimension | IntDimension):
        return parse_value(dimension, child.params[name])
    try:
        return parse_value(dimension, child.params[name])
    except ConfigError:
        # No choice of this space; `fitting` leaves it out.
        return child.params[name]


def _warn_of_differences(config: ExperimentConfig, child: "ChildRun", source: str) -> None:
    """Their values count as ours, so what they were measured with is worth a look."""
    differing = [
        f"{name}={child.params[name]}"
        for name, value in flatten(config).items()
        if name.startswith(_TASK_SECTIONS)
        and name not in config.search.space
        and name not in _PLACES
        and name in child.params
        and child.params[name] != _render(value)
    ]
    if differing:
        logger.warning("the trials of %s were made with %s, unlike these", source, ", ".join(differing))


def _render(value: Any) -> str:
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
