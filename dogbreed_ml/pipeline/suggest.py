"""`dogbreed profile --suggest`: tries what the rules advise, a few steps each, and keeps what is faster."""

import logging
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
from dogbreed_ml.profiling.recordings import STEP_PREFIX
from dogbreed_ml.profiling.timeline import TimelineRecorder
from dogbreed_ml.train import Batches, fit, uses_bf16
from dogbreed_ml.workbench import Workbench, uses_features

logger = logging.getLogger(__name__)

OVERLAY_FILE: Final = ".dogbreed/profiles/suggestion.yaml"

MIN_GAIN: Final = 1.05
"""What is not faster by a twentieth is noise."""

_MEMORY_FORMATS: Final = ("channels_last", "contiguous")
_NUM_WARM_STEPS: Final = 3
_NUM_STEPS: Final = 8
_FINAL_ROUNDS: Final = 3
_MAX_PASSES: Final = 5
_ENOUGH_S: Final = 1.0
"""Short passes are repeated until they took so long together; the fastest counts, since noise only slows."""


@dataclass(frozen=True)
class Attempt:
    """One setting, measured beside the best until then."""

    values: dict[str, Any]
    """What differs from the config, by dotted name."""
    images_per_s: float
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
            f"{'better' if each.is_better else 'no    '}  {each.images_per_s:8.1f} images/s  {_flags(each.values)}"
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
    """Of the training steps after the first few, in the fastest of a few passes."""
    start, speeds = perf_counter(), list[float]()
    while not speeds or (len(speeds) < _MAX_PASSES and perf_counter() - start < _ENOUGH_S):
        speeds.append(_pass_images_per_s(bench, config))
    return max(speeds)


def suggest(config: ExperimentConfig, *, context: Context, measure: Measure = images_per_s) -> SuggestSummary:
    """Tries loader workers, precision, memory format and batch size in turn, each on top of the best so far, and writes
    the overlay.

    Kept features are used where they are there. Raises what a training with this config would.
    """
    splits = load_splits(config.data, project_dir=context.project_dir, progress=context.progress)
    bench = Workbench(splits, context.project_dir, device_of(), context.progress)
    attempts: list[Attempt] = []
    best: dict[str, Any] = {}
    with closing(bench):
        # The first pass of a process pays for what later ones find done.
        measure(bench, config)
        for name, choices in dimensions(config, num_samples=bench.feeds(config).train.num_samples):
            speed = measure(bench, with_values(config, best))
            for value in choices:
                values = {**best, name: value}
                tried = measure(bench, with_values(config, values))
                # Twice, in turns: on a machine that does other things too, one pass may be twice as slow as the next.
                is_better = tried > MIN_GAIN * speed and measure(
                    bench, with_values(config, values)
                ) > MIN_GAIN * measure(bench, with_values(config, best))
                attempts.append(Attempt(values, round(tried, 1), is_better))
                logger.info("%s: %.1f images/s, %.1f before", _flags(values), tried, speed)
                if is_better:
                    best, speed = values, tried
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
        overlay_path=str(_write_overlay(context.project_dir / OVERLAY_FILE, best)) if best else None,
        notes=notes,
    )


def dimensions(config: ExperimentConfig, *, num_samples: int) -> Iterator[tuple[str, list[Any]]]:
    """What may be tried with this config; the values that it has already are left out."""
    now = flatten(config)
    cores = os.cpu_count() or 1
    has_convolutions = config.model.trainable != "head" or not uses_features(config)
    if not uses_features(config):
        # Not more than the cores: torch warns of it.
        yield "train.num_workers", [n for n in sorted({1, max(1, cores // 2), cores}) if n != now["train.num_workers"]]
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


def _pass_images_per_s(bench: Workbench, config: ExperimentConfig) -> float:
    feeds = bench.feeds(config)
    batch_size = config.train.batch_size
    num_samples = min(feeds.train.num_samples, (_NUM_WARM_STEPS + _NUM_STEPS) * batch_size)
    recorder = TimelineRecorder()
    train = _First(feeds.train, num_samples)
    short = replace(config.train, num_epochs=1, patience=None)
    for _ in fit(
        bench.model(config), train, valid=None, config=short,
        metrics=lambda logits, labels: {}, num_classes=bench.num_classes, device=bench.device, spans=recorder,
    ):  # fmt: skip
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
    steps = [event for event in recorder.events() if event.name == f"{STEP_PREFIX}TRAIN"]
    # The whole of a short epoch rather than nothing of it.
    first = _NUM_WARM_STEPS if len(steps) > _NUM_WARM_STEPS else 0
    spent_us = steps[-1].start_us + steps[-1].duration_us - steps[first].start_us
    return sum(train.batch_sizes[first:]) / max(spent_us, 1) * 1e6


class _First:
    """The first samples of other batches."""

    def __init__(self, batches: Batches, num_samples: int):
        self._batches = batches
        self.num_samples = num_samples
        self.labels = batches.labels[:num_samples]
        self.batch_sizes: list[int] = []
        """Of each batch that was handed out; an epoch's last one is short."""

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        rows = torch.arange(self.num_samples) if order is None else order
        for inputs, labels in self._batches.batches(batch_size, order=rows, epoch=epoch):
            self.batch_sizes.append(len(labels))
            yield inputs, labels


def _write_overlay(path: Path, values: Mapping[str, Any]) -> Path:
    """Sections and fields, to be merged into an experiment's YAML."""
    nested: dict[str, dict[str, Any]] = {}
    for dotted, value in values.items():
        section, _, leaf = dotted.partition(".")
        nested.setdefault(section, {})[leaf] = value
    return write_whole(path, yaml.safe_dump(nested, sort_keys=False))


def _flags(values: Mapping[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in values.items())
