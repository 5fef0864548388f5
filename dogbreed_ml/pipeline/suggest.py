"""`dogbreed profile --suggest`: tries what the rules advise, a few steps each, and keeps what is faster."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import yaml

from dogbreed_ml.backend import device_of
from dogbreed_ml.config import ExperimentConfig, flatten, with_values
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.files import write_whole
from dogbreed_ml.pipeline.speed import images_per_s
from dogbreed_ml.train import uses_bf16
from dogbreed_ml.workbench import Workbench, uses_features

logger = logging.getLogger(__name__)

OVERLAY_FILE: Final = ".dogbreed/profiles/suggestion.yaml"

MAX_S: Final = 120.0
"""After it no further setting is tried; a step of the whole of ResNet50 may take seconds."""
MIN_GAIN: Final = 1.05
"""What is not faster by a twentieth is noise."""

_MEMORY_FORMATS: Final = ("channels_last", "contiguous")
_MIN_EPOCH_STEPS: Final = 8
"""No batch is tried that leaves an epoch fewer."""
_FINAL_ROUNDS: Final = 3


@dataclass(frozen=True)
class Attempt:
    """One setting, measured beside the best until then."""

    values: dict[str, Any]
    """What differs from the config, by dotted name."""
    images_per_s: float
    before_images_per_s: float
    """Of the best until then. Where both were measured again, both figures are the second ones, which decided."""
    is_better: bool


@dataclass(frozen=True, kw_only=True)
class SuggestSummary:
    """What was tried, and the best of it."""

    attempts: tuple[Attempt, ...]
    best: dict[str, Any]
    """Dotted names to values; empty where nothing was faster."""
    before_images_per_s: float
    """Of the config as it was; measured again in turn with `after`, medians."""
    after_images_per_s: float
    overlay_path: str | None = None
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def render(self) -> str:
        lines = [
            f"{'better' if each.is_better else 'no    '}  {each.images_per_s:8.1f} images/s, "
            f"{each.before_images_per_s:.1f} without  {_flags(each.values)}"
            for each in self.attempts
        ]
        lines.append(f"before  {self.before_images_per_s:8.1f} images/s")
        lines.append(f"after   {self.after_images_per_s:8.1f} images/s  {_flags(self.best) or 'nothing was faster'}")
        lines += self.notes
        if self.overlay_path is not None:
            lines.append(f"overlay {self.overlay_path}")
        return "\n".join(lines)


Measure = Callable[[Workbench, ExperimentConfig], float]


def suggest(config: ExperimentConfig, *, context: Context, measure: Measure = images_per_s) -> SuggestSummary:
    """Tries loader workers, precision, memory format and batch size in turn, each on top of the best so far, and writes
    the overlay; an earlier one is deleted. After MAX_S no further setting is begun.

    Kept features are used where they are there. Raises what a training with this config would.
    """
    splits = load_splits(config.data, project_dir=context.project_dir, progress=context.progress)
    overlay_path = context.project_dir / OVERLAY_FILE
    with closing(Workbench(splits, context.project_dir, device_of(), context.progress)) as bench:
        num_samples = bench.feeds(config).train.num_samples
        # Whatever comes of this: it would be laid over an experiment as what was found now.
        overlay_path.unlink(missing_ok=True)
        search = _Search(bench, config, measure)
        search.run(dimensions(config, num_samples=num_samples, num_cores=os.cpu_count() or 1))
        before, after = search.paired()
    best = search.best
    if best and after <= MIN_GAIN * before:
        logger.info("The gain did not last: %.1f and %.1f images/s.", before, after)
        best, after = {}, before
    notes: tuple[str, ...] = ()
    if search.untried:
        left_out = ", ".join(map(_flags, search.untried))
        notes += (f"Not tried, because {MAX_S:.0f} s were over: {left_out}.",)
    if "train.batch_size" in best:
        notes += ("A larger batch takes fewer steps: raise train.lr with it, and look at the accuracy.",)
    return SuggestSummary(
        attempts=tuple(search.attempts),
        best=best,
        before_images_per_s=round(before, 3),
        after_images_per_s=round(after, 3),
        overlay_path=str(_write_overlay(overlay_path, best)) if best else None,
        notes=notes,
    )


@dataclass
class _Search:
    """Settings tried one after the other, from its making on."""

    bench: Workbench
    config: ExperimentConfig
    measure: Measure
    attempts: list[Attempt] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    untried: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end_s = perf_counter() + MAX_S

    def run(self, choices: Iterable[tuple[str, list[Any]]]) -> None:
        # The first pass of a process pays for what later ones find done.
        self._speed({})
        for name, values in choices:
            speed: float | None = None
            for value in values:
                if self._is_over:
                    self.untried.append({name: value})
                    continue
                attempt = self._tried({**self.best, name: value}, speed or self._speed(self.best))
                self.attempts.append(attempt)
                # Of the best until now, measured last.
                speed = attempt.before_images_per_s
                if attempt.is_better:
                    self.best, speed = attempt.values, attempt.images_per_s

    def paired(self) -> tuple[float, float]:
        """Images/s before and after, in turns, so that what slows the machine slows both; medians."""
        before, after = list[float](), list[float]()
        while len(before) < _FINAL_ROUNDS and not (before and self._is_over):
            before.append(self._speed({}))
            if self.best:
                after.append(self._speed(self.best))
        return median(before), median(after or before)

    @property
    def _is_over(self) -> bool:
        return perf_counter() >= self._end_s

    def _speed(self, values: Mapping[str, Any]) -> float:
        return self.measure(self.bench, with_values(self.config, values))

    def _tried(self, values: dict[str, Any], speed: float) -> Attempt:
        """`values` beside the best, whose images/s were `speed`."""
        before, after = speed, self._speed(values)
        if after > MIN_GAIN * before:
            # Twice, in turns: on a machine that does other things too, one pass may be twice as slow as the next.
            after, before = self._speed(values), self._speed(self.best)
        logger.info("%s: %.1f images/s, %.1f without", _flags(values), after, before)
        return Attempt(values, round(after, 3), round(before, 3), after > MIN_GAIN * before)


def dimensions(config: ExperimentConfig, *, num_samples: int, num_cores: int) -> Iterator[tuple[str, list[Any]]]:
    """What may be tried with this config; the values that it has already are left out."""
    now = flatten(config)
    has_convolutions = config.model.trainable != "head" or not uses_features(config)
    if not uses_features(config):
        # Not more than the cores: torch warns of it.
        counts = sorted({1, max(1, num_cores // 2), num_cores})
        yield "train.num_workers", [n for n in counts if n != now["train.num_workers"]]
    is_bf16 = uses_bf16(config.train, device_of(), has_convolutions=has_convolutions)
    yield "train.precision", ["fp32" if is_bf16 else "bf16"]
    if has_convolutions:
        yield "train.memory_format", [each for each in _MEMORY_FORMATS if each != _memory_format(config)]
    largest = num_samples // _MIN_EPOCH_STEPS
    yield "train.batch_size", [n for n in (2 * now["train.batch_size"], 4 * now["train.batch_size"]) if n <= largest]


def _memory_format(config: ExperimentConfig) -> str:
    """What batches are in: as loaded, images are in channels_last order and kept feature maps contiguous."""
    if config.train.memory_format != "auto":
        return config.train.memory_format
    return "contiguous" if uses_features(config) else "channels_last"


def _write_overlay(path: Path, values: Mapping[str, Any]) -> Path:
    """Sections and fields, to be merged into an experiment's YAML."""
    nested: dict[str, dict[str, Any]] = {}
    for dotted, value in values.items():
        section, _, leaf = dotted.partition(".")
        nested.setdefault(section, {})[leaf] = value
    return write_whole(path, yaml.safe_dump(nested, sort_keys=False))


def _flags(values: Mapping[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in values.items())
