"""What to try next after a search: a few rules over its trials, each said with its numbers."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dogbreed_ml.config import (
    CategoricalDimension,
    Dimension,
    ExperimentConfig,
    FloatDimension,
    IntDimension,
    with_values,
)
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.trials import TrialRecord

_EDGE_SHARE = 0.07
"""A best value within this share of the range from its end counts as at the edge."""
_MIN_FOR_EDGES = 4
_TRIALS_PER_DIMENSION = 8
_MIN_FOR_PLATEAU = 12
_DOMINANT, _NEGLIGIBLE = 0.7, 0.08


def build_advice(
    config: ExperimentConfig,
    best: TrialRecord,
    trials: Sequence[TrialRecord],
    importances: Mapping[str, float],
    *,
    test_value: float | None,
    test_interval: tuple[float, float] | None,
) -> list[str]:
    """Plain sentences, the most useful first; never empty."""
    num_complete = sum(trial.state == "COMPLETE" for trial in trials)
    advice = [
        *(_edges(config, best, importances) if num_complete >= _MIN_FOR_EDGES else ()),
        *_failures(trials),
        *_overfit(best, test_value, test_interval),
        *_importances(config, best, importances),
        *(list(_plateau(config, best, trials)) or _amount(config, trials)),
        *_pruned(config, trials),
    ]
    if not advice:
        advice.append(
            "Nothing stands out: the best trial is well inside the space and the trials agree. A deeper cut "
            f"(model.trainable={_deeper(config)}) or more photographs are what is left."
        )
    return advice


def _edges(config: ExperimentConfig, best: TrialRecord, importances: Mapping[str, float]) -> Iterator[str]:
    for name, dimension in config.search.space.items():
        edge = _edge(dimension, best.values.get(name))
        # Where a hyperparameter decides nothing, that its best value is at the edge is chance.
        if edge is None or importances.get(name, 1.0) < _NEGLIGIBLE:
            continue
        end, wider = edge
        text = f"{name} is best at {_number(best.values[name])}, at the {end} of its range"
        try:
            with_values(config, {name: wider})
        except ConfigError:
            yield f"{text}; that is as far as it goes."
        else:
            yield f"{text}: widen it, for example to {_number(wider)}."


def _edge(dimension: Dimension, value: Any) -> tuple[str, Any] | None:
    """Which end a value is at and a value beyond it; None inside, and where there is no order."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(dimension, CategoricalDimension):
        numbers = sorted(c for c in dimension.choices if isinstance(c, int | float) and not isinstance(c, bool))
        if len(numbers) < 3 or len(numbers) != len(dimension.choices) or value not in (numbers[0], numbers[-1]):
            return None
        end = "low end" if value == numbers[0] else "high end"
        return end, _same_kind(value, value / 2 if end == "low end" else value * 2)
    low, high = float(dimension.low), float(dimension.high)
    if high <= low:
        return None
    if dimension.log:
        share = math.log(value / low) / math.log(high / low)
        below, above = low / 10, high * 10
    else:
        share = (value - low) / (high - low)
        below, above = low - (high - low) / 2, high + (high - low) / 2
    if isinstance(dimension, IntDimension):
        below, above = min(math.floor(below), low - 1), max(math.ceil(above), high + 1)
    if share <= _EDGE_SHARE:
        return "low end", _same_kind(value, below)
    if share >= 1 - _EDGE_SHARE:
        return "high end", _same_kind(value, above)
    return None


def _same_kind(value: float, other: float) -> float:
    return int(other) if isinstance(value, int) else other


def _failures(trials: Sequence[TrialRecord]) -> Iterator[str]:
    failed = [trial for trial in trials if trial.state == "FAILED"]
    if not failed:
        return
    (cause, count), *_ = Counter(trial.cause or "unknown" for trial in failed).most_common(1)
    yield f"{len(failed)} of {len(trials)} trials failed, {count} with “{cause}”: take such values out of the space."


def _overfit(best: TrialRecord, test_value: float | None, test_interval: tuple[float, float] | None) -> Iterator[str]:
    if test_value is None or test_interval is None or best.value is None:
        return
    if test_interval[0] <= best.value <= test_interval[1]:
        return
    if best.value > test_interval[1]:
        yield (
            f"The best trial has {best.value:.4f} on valid but {test_value:.4f} on test, outside its interval: the "
            "search has fitted the valid split. A larger data.valid_share or fewer trials would tell more."
        )


def _importances(config: ExperimentConfig, best: TrialRecord, importances: Mapping[str, float]) -> Iterator[str]:
    if len(importances) < 2:
        return
    ordered = sorted(importances.items(), key=lambda each: -each[1])
    name, share = ordered[0]
    idle = [other for other, other_share in ordered if other_share < _NEGLIGIBLE and other in best.values]
    if share >= _DOMINANT:
        text = f"{name} alone explains {share:.0%} of the differences"
        if idle:
            fixed = ", ".join(f"{other}={_number(best.values[other])}" for other in idle)
            text += f"; fix {fixed} and give the trials to {name}"
        yield f"{text}."


def _plateau(config: ExperimentConfig, best: TrialRecord, trials: Sequence[TrialRecord]) -> Iterator[str]:
    position = [trial.number for trial in trials].index(best.number) + 1
    if len(trials) >= _MIN_FOR_PLATEAU and position <= len(trials) / 2:
        yield (
            f"The best came with trial {position} of {len(trials)} and nothing after it was better: "
            f"{max(8, position + position // 2)} trials would do, and what would help is a deeper cut "
            f"(model.trainable={_deeper(config)}) or more photographs."
        )


def _pruned(config: ExperimentConfig, trials: Sequence[TrialRecord]) -> Iterator[str]:
    pruned = sum(trial.state == "PRUNED" for trial in trials)
    if len(trials) >= _MIN_FOR_PLATEAU and pruned / len(trials) > 0.7:
        values = [trial.values for trial in trials if trial.state == "COMPLETE"]
        names = [name for name, each in config.search.space.items() if isinstance(each, FloatDimension | IntDimension)]
        ranges = [f"{n} {_number(min(v[n] for v in values))} to {_number(max(v[n] for v in values))}" for n in names]
        told = ", ".join(ranges) or "few choices"
        yield f"{pruned} of {len(trials)} trials were pruned; what was not lies in {told}: narrow the space to it."


def _amount(config: ExperimentConfig, trials: Sequence[TrialRecord]) -> Iterator[str]:
    wanted = _TRIALS_PER_DIMENSION * len(config.search.space)
    if len(trials) < wanted and config.search.sampler != "grid":
        dimensions = "one dimension" if len(config.search.space) == 1 else f"{len(config.search.space)} dimensions"
        amount = "One trial is too" if len(trials) == 1 else f"{len(trials)} trials are too"
        yield f"{amount} few for {dimensions}; search.num_trials={wanted} would show more."


def _deeper(config: ExperimentConfig) -> str:
    return {"head": "layer4", "layer4": "layer3", "layer3": "all", "all": "all"}[config.model.trainable]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
