"""`dogbreed profile --suggest`: tries what the rules advise, a few steps each, and keeps what is faster."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import torch
import yaml
from torch import Tensor

from dogbreed_ml.backend import device_of
from dogbreed_ml.config import ExperimentConfig, flatten, with_values
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.files import write_whole
from dogbreed_ml.train import Batches, fit, uses_bf16
from dogbreed_ml.workbench import Workbench, uses_features

logger = logging.getLogger(__name__)

OVERLAY_FILE: Final = ".dogbreed/profiles/suggestion.yaml"

MIN_GAIN: Final = 1.05
"""What is not faster by a twentieth is noise."""

_MEMORY_FORMATS: Final = ("channels_last", "contiguous")
_NUM_WARM_STEPS: Final = 3
_NUM_STEPS: Final = 8
"""The fewest that are measured; data that hold fewer are measured whole."""
_NUM_ROUNDS: Final = 5
"""So many batches a worker process, where the time allows: N workers bring the first N batches at one time."""
_ENOUGH_S: Final = 1.0
"""Passes are repeated until they took so long together, or until _MAX_PASSES."""
_MAX_PASSES: Final = 5
_MAX_PASS_S: Final = 3.0
"""A pass has no more steps than fit into it, but _NUM_STEPS."""
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


def images_per_s(bench: Workbench, config: ExperimentConfig) -> float:
    """Of the first steps of an epoch, from its start to its end, in the median of a few such passes.

    A pass loads as many batches as it trains, so that none comes from before the clock was started: with workers that
    had read ahead, twelve of them would seem to load twice what they can. The wait for the first batch counts, as it
    does in every epoch.
    """
    feed = bench.feeds(config).train
    num_workers = 0 if uses_features(config) else config.train.num_workers
    batch_size = config.train.batch_size
    train = _Part(feed, _NUM_WARM_STEPS * batch_size)
    if num_workers:
        train.start(num_workers, batch_size)
    epochs = fit(
        bench.model(config), train, valid=None, config=replace(config.train, num_epochs=1 + _MAX_PASSES, patience=None),
        metrics=lambda logits, labels: {}, num_classes=bench.num_classes, device=bench.device,
    )  # fmt: skip
    with closing(epochs):
        step_s = train.step_s(next(epochs).seconds, num_workers)
        num_steps = pass_steps(step_s, math.ceil(feed.num_samples / batch_size), num_workers=num_workers)
        train.limit = min(feed.num_samples, num_steps * batch_size)
        passes: list[float] = []
        for result in epochs:
            # The loss of an epoch is read from the device before its time is: every step is done by then.
            passes.append(result.seconds)
            if sum(passes) >= _ENOUGH_S:
                break
    return train.limit / max(median(passes), 1e-9)


def pass_steps(step_s: float, num_epoch_steps: int, *, num_workers: int) -> int:
    """How many steps of an epoch are measured where one takes about `step_s`."""
    most_workers = max(num_workers, os.cpu_count() or 1) if num_workers else 0
    # For any number of workers as many, so that the wait for the first batch weighs the same in each.
    wanted = max(_ENOUGH_S / max(step_s, 1e-9), _NUM_ROUNDS * most_workers)
    num_steps = max(_NUM_STEPS, math.ceil(min(wanted, _MAX_PASS_S / max(step_s, 1e-9))))
    # Whole rounds of the workers: nine batches take eight workers as long as sixteen.
    num_steps = num_workers * math.ceil(num_steps / num_workers) if num_workers else num_steps
    is_short = num_epoch_steps < 2 * num_steps and num_epoch_steps * step_s <= 2 * _MAX_PASS_S
    return num_epoch_steps if is_short else min(num_steps, num_epoch_steps)


def suggest(config: ExperimentConfig, *, context: Context, measure: Measure = images_per_s) -> SuggestSummary:
    """Tries loader workers, precision, memory format and batch size in turn, each on top of the best so far, and writes
    the overlay; an earlier one is deleted.

    Kept features are used where they are there. Raises what a training with this config would.
    """
    splits = load_splits(config.data, project_dir=context.project_dir, progress=context.progress)
    bench = Workbench(splits, context.project_dir, device_of(), context.progress)
    overlay_path = context.project_dir / OVERLAY_FILE
    attempts: list[Attempt] = []
    best: dict[str, Any] = {}
    with closing(bench):
        num_samples = bench.feeds(config).train.num_samples
        # Whatever comes of this: it would be laid over an experiment as what was found now.
        overlay_path.unlink(missing_ok=True)
        # The first pass of a process pays for what later ones find done.
        measure(bench, config)
        for name, choices in dimensions(config, num_samples=num_samples, num_cores=os.cpu_count() or 1):
            speed = measure(bench, with_values(config, best))
            for value in choices:
                attempt = _tried(bench, config, {**best, name: value}, best=best, speed=speed, measure=measure)
                attempts.append(attempt)
                if attempt.is_better:
                    best, speed = attempt.values, attempt.images_per_s
        before, after = _paired(bench, config, best, measure)
    if best and after <= MIN_GAIN * before:
        logger.info("The gain did not last: %.1f and %.1f images/s.", before, after)
        best, after = {}, before
    notes: tuple[str, ...] = ()
    if "train.batch_size" in best:
        notes += ("A larger batch takes fewer steps: raise train.lr with it, and look at the accuracy.",)
    return SuggestSummary(
        attempts=tuple(attempts),
        best=best,
        before_images_per_s=round(before, 1),
        after_images_per_s=round(after, 1),
        overlay_path=str(_write_overlay(overlay_path, best)) if best else None,
        notes=notes,
    )


def _tried(
    bench: Workbench,
    config: ExperimentConfig,
    values: dict[str, Any],
    *,
    best: Mapping[str, Any],
    speed: float,
    measure: Measure,
) -> Attempt:
    """`values` beside `best`, whose images/s were `speed`."""
    before, after = speed, measure(bench, with_values(config, values))
    if after > MIN_GAIN * before:
        # Twice, in turns: on a machine that does other things too, one pass may be twice as slow as the next.
        after, before = measure(bench, with_values(config, values)), measure(bench, with_values(config, best))
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
    largest = num_samples // _NUM_STEPS
    yield "train.batch_size", [n for n in (2 * now["train.batch_size"], 4 * now["train.batch_size"]) if n <= largest]


def _memory_format(config: ExperimentConfig) -> str:
    """What batches are in: as loaded, images are in channels_last order and kept feature maps contiguous."""
    if config.train.memory_format != "auto":
        return config.train.memory_format
    return "contiguous" if uses_features(config) else "channels_last"


def _paired(
    bench: Workbench, config: ExperimentConfig, best: Mapping[str, Any], measure: Measure
) -> tuple[float, float]:
    """Images/s before and after, in turns, so that what slows the machine slows both."""
    speeds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_FINAL_ROUNDS):
        speeds[0].append(measure(bench, config))
        if best:
            speeds[1].append(measure(bench, with_values(config, best)))
    return median(speeds[0]), median(speeds[1] or speeds[0])


class _Part:
    """The first samples of other batches, up to `limit`, in each epoch's own order."""

    def __init__(self, batches: Batches, limit: int):
        self._batches = batches
        self.num_samples = batches.num_samples
        self.labels = batches.labels
        self.limit = min(limit, self.num_samples)
        self._waits_s: list[float] = []
        """For each batch of the last epoch."""

    def start(self, num_workers: int, batch_size: int) -> None:
        """Loads a batch with each worker process."""
        rows = torch.arange(min(self.num_samples, num_workers * batch_size))
        for _ in self._batches.batches(batch_size, order=rows, epoch=0):
            pass

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        rows = torch.arange(self.num_samples) if order is None else order
        self._waits_s = []
        start = perf_counter()
        for batch in self._batches.batches(batch_size, order=rows[rows < self.limit], epoch=epoch):
            self._waits_s.append(perf_counter() - start)
            yield batch
            start = perf_counter()

    def step_s(self, epoch_s: float, num_workers: int) -> float:
        """What a step takes about, by a short epoch of `epoch_s`; its waits are those of a whole round of workers."""
        num_steps, waited_s = len(self._waits_s), sum(self._waits_s)
        return (epoch_s - waited_s) / num_steps + waited_s / max(num_steps, num_workers)


def _write_overlay(path: Path, values: Mapping[str, Any]) -> Path:
    """Sections and fields, to be merged into an experiment's YAML."""
    nested: dict[str, dict[str, Any]] = {}
    for dotted, value in values.items():
        section, _, leaf = dotted.partition(".")
        nested.setdefault(section, {})[leaf] = value
    return write_whole(path, yaml.safe_dump(nested, sort_keys=False))


def _flags(values: Mapping[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in values.items())
