"""Images/s of a training's first steps, as near as a few seconds come to those of the whole training."""

import itertools
import math
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Final

import torch
from torch import Tensor

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.train import Batches, EpochResult, fit
from dogbreed_ml.workbench import Workbench, uses_features

_ENOUGH_S: Final = 1.0
"""Warm steps and passes are repeated until they took so long together, or until _MAX_WARM_STEPS and _MAX_PASSES."""
_MAX_WARM_STEPS: Final = 3
_MAX_PASSES: Final = 5
_MAX_PASS_S: Final = 3.0
"""A pass has no more steps than fit into it, but _MIN_STEPS: steps of a large batch may take 5 s on a laptop."""
_MIN_STEPS: Final = 3
_NUM_STEPS: Final = 8
"""In a pass, where they fit."""
_NUM_ROUNDS: Final = 5
"""So many batches a worker process, where they fit: N workers bring the first N batches at one time."""


def images_per_s(bench: Workbench, config: ExperimentConfig) -> float:
    """Of the first steps of an epoch, from its start to its end, in the median of a few such passes.

    A pass loads as many batches as it trains, so that none comes from before the clock was started: with workers that
    had read ahead, twelve of them would seem to load twice what they can. The wait for the first batch counts, as it
    does in every epoch.
    """
    feed = bench.feeds(config).train
    num_workers = 0 if uses_features(config) else config.train.num_workers
    batch_size = config.train.batch_size
    train = _Part(feed, batch_size)
    if num_workers:
        train.start(num_workers, batch_size)
    num_epochs = _MAX_WARM_STEPS + _MAX_PASSES
    epochs = fit(
        bench.model(config), train, valid=None, config=replace(config.train, num_epochs=num_epochs, patience=None),
        metrics=lambda logits, labels: {}, num_classes=bench.num_classes, device=bench.device,
    )  # fmt: skip
    with closing(epochs):
        warm_s = _until_enough(epochs, at_most=_MAX_WARM_STEPS)
        compute_s, load_s = train.parts_of_step(warm_s[-1], num_workers)
        num_epoch_steps = math.ceil(feed.num_samples / batch_size)
        num_steps = pass_steps(num_epoch_steps, compute_s=compute_s, load_s=load_s, num_workers=num_workers)
        train.limit = min(feed.num_samples, num_steps * batch_size)
        passes_s = _until_enough(epochs, at_most=_MAX_PASSES)
    return train.limit / max(median(passes_s), 1e-9)


def pass_steps(num_epoch_steps: int, *, compute_s: float, load_s: float, num_workers: int) -> int:
    """How many steps of an epoch are measured where each computes for about `compute_s`, and `num_workers` together
    need `load_s` for a batch; no workers stand for kept features."""
    step_s = max(compute_s + load_s, 1e-9)
    # For any number of workers as many, so that the wait for the first batch weighs the same in each.
    most_workers = max(num_workers, os.cpu_count() or 1) if num_workers else 0
    wanted = max(_NUM_STEPS, _ENOUGH_S / step_s, _NUM_ROUNDS * most_workers)
    num_steps = math.ceil(min(wanted, max(_MIN_STEPS, _MAX_PASS_S / step_s)))
    if num_workers and load_s > compute_s:
        # Whole rounds of the workers: nine batches take eight workers as long as sixteen.
        num_steps = num_workers * math.ceil(num_steps / num_workers)
    is_short = num_epoch_steps < 2 * num_steps and num_epoch_steps * step_s <= 2 * _MAX_PASS_S
    return num_epoch_steps if is_short else min(num_steps, num_epoch_steps)


def _until_enough(epochs: Iterator[EpochResult], *, at_most: int) -> list[float]:
    """The seconds of the next epochs, until they are _ENOUGH_S together. An epoch's loss is read from the device before
    its seconds are, so that every step is done by then."""
    seconds: list[float] = []
    for result in itertools.islice(epochs, at_most):
        seconds.append(result.seconds)
        if sum(seconds) >= _ENOUGH_S:
            break
    return seconds


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

    def parts_of_step(self, epoch_s: float, num_workers: int) -> tuple[float, float]:
        """Seconds of computing and of loading a step, by an epoch of few steps that took `epoch_s`: what it waited, all
        workers would have loaded a batch in."""
        num_steps, waited_s = len(self._waits_s), sum(self._waits_s)
        return (epoch_s - waited_s) / num_steps, waited_s / max(num_steps, num_workers)
