"""What profiling costs: the same trainings with the collectors and without, in turns."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from itertools import count
from math import exp
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from benchmarks.photographs import collect
from benchmarks.results import Goal, Result, each, ratios
from benchmarks.settings import Settings
from dogbreed_ml.backend import device_of
from dogbreed_ml.config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.debugging.debugger import Debugger
from dogbreed_ml.debugging.epochs import EpochJudge
from dogbreed_ml.model import new_head
from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.profiling.session import profiled
from dogbreed_ml.spans import NO_SPANS, Spans
from dogbreed_ml.train import Batches, EpochResult, build_loss, fit
from dogbreed_ml.workbench import Workbench

logger = logging.getLogger(__name__)

NUM_CLASSES = 8
SAVE_INTERVAL = 10
NUM_EPOCHS = 300
"""Of the trial that the epoch rules judge."""

Training = Callable[[Spans], float]
"""Trains from the same beginning each time; returns the seconds of the loop."""


class _InMemory:
    """Random features, as a table of kept ones would give them."""

    def __init__(self, num_samples: int):
        generator = torch.Generator().manual_seed(0)
        self.num_samples = num_samples
        self.features = torch.randn(num_samples, 2048, generator=generator)
        self.labels = torch.arange(num_samples) % NUM_CLASSES

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in (torch.arange(self.num_samples) if order is None else order).split(batch_size):
            yield self.features[rows], self.labels[rows]


def measure(settings: Settings) -> Result:
    """On kept features the cost is a time a step, on the uncached path a share of the training."""
    folder = settings.folder("profiling")
    kept, num_steps = _kept_training(num_epochs=2 if settings.is_quick else 40)
    kept(NO_SPANS)
    pairs = [_turns(kept, folder) for _ in range(settings.num_repetitions)]
    per_step_us = [1e6 * (with_s - without_s) / num_steps for with_s, without_s in pairs]
    saving_ms = [_saving_s(folder) * 1e3 for _ in range(settings.num_repetitions)]
    judging_ms = [1e3 * _judging_s() for _ in range(settings.num_repetitions)]
    uncached = _uncached_pairs(settings, folder)
    step_ms = [1e3 * without_s / steps for _, without_s, steps in uncached]
    shares = [100 * (ratio - 1) for ratio in ratios([w for w, _, _ in uncached], [wo for _, wo, _ in uncached])]
    figures = (
        each("kept features: one step without profiling", [1e6 * pair[1] / num_steps for pair in pairs], "us"),
        each("kept features: collectors, a step", per_step_us, "us", goal=Goal("at most", 20)),
        each("kept features: tensors saved every 10 steps, a trial of 50 steps", saving_ms, "ms"),
        each("search: one trial of 300 epochs judged", judging_ms, "ms", goal=Goal("at most", 1)),
        each("uncached, trainable=layer4: one step without profiling", step_ms, "ms"),
        each("uncached, trainable=layer4: collectors", shares, "%", goal=Goal("at most", 2)),
    )
    notes = (
        "Collectors: the system sampler every 500 ms in its thread, and the step timeline; each pair is with, without, "
        "without, with. Files are written after the loop and are not in these times.",
        f"Kept features: a linear head on {num_steps} steps of 32 random feature rows, one torch thread. Tensors: "
        "smdebug's hook beside the same head, against no hook.",
        f"The trial that is judged has {NUM_EPOCHS} epochs, most of them without a better loss, and 133 breeds: three "
        "of four rules find an issue in nearly every epoch.",
        "A negative cost is noise.",
    )
    return Result("profiling", "what profiling costs", figures, notes)


def _turns(training: Training, folder: Path) -> tuple[float, float]:
    """Seconds with and without the collectors, each the sum of two turns."""
    seconds = {True: 0.0, False: 0.0}
    for is_profiled in (True, False, False, True):
        if is_profiled:
            with tempfile.TemporaryDirectory(dir=folder) as target, profiled(Path(target), ProfileConfig()) as session:
                seconds[True] += training(session.spans)
        else:
            seconds[False] += training(NO_SPANS)
    return seconds[True], seconds[False]


def _fit_s(
    model: nn.Module, batches: Batches, config: TrainConfig, spans: Spans, device: torch.device, num_classes: int
) -> float:
    start = perf_counter()
    for _ in fit(
        model, batches, valid=None, config=config, metrics=lambda logits, labels: {}, num_classes=num_classes,
        device=device, spans=spans,
    ):  # fmt: skip
        if device.type == "cuda":
            torch.cuda.synchronize()
    return perf_counter() - start


def _kept_training(num_epochs: int) -> tuple[Training, int]:
    """A head on 50 steps an epoch, and how many steps two turns of it take."""
    batches, config = _InMemory(50 * 32), TrainConfig(num_epochs=num_epochs, batch_size=32)

    def train(spans: Spans) -> float:
        return _fit_s(new_head(NUM_CLASSES, seed=0), batches, config, spans, torch.device("cpu"), NUM_CLASSES)

    return train, 2 * 50 * num_epochs


_run_numbers = count()


def _saving_s(folder: Path) -> float:
    """What smdebug's hook adds to a training of 50 steps, judging left out."""
    batches, config = _InMemory(50 * 32), TrainConfig(num_epochs=1, batch_size=32)
    seconds = []
    for is_saved in (False, True):
        model, loss = new_head(NUM_CLASSES, seed=0), build_loss(batches.labels, config, NUM_CLASSES)
        tensors_dir = folder / f"tensors-{next(_run_numbers)}"
        opened = Debugger.open(tensors_dir, save_interval=SAVE_INTERVAL, max_gib=1) if is_saved else nullcontext()
        with opened as debugger:
            if debugger is not None:
                debugger.watch(model, loss)
            results = fit(
                model, batches, valid=None, config=config, metrics=lambda logits, labels: {}, num_classes=NUM_CLASSES,
                device=torch.device("cpu"), loss_function=loss,
            )  # fmt: skip
            start = perf_counter()
            list(debugger.epochs(results) if debugger is not None else results)
            seconds.append(perf_counter() - start)
    return seconds[1] - seconds[0]


def _judging_s() -> float:
    """What the rules over epochs take for one long trial that ails; the median of 50 times."""
    judge = EpochJudge({f"breed-{number}": 100 for number in range(133)})
    trial = [
        EpochResult(
            epoch, 10 * (epoch + 1), {"train/loss": 0.2 + exp(-epoch / 5), "valid/loss": 0.6 + epoch / 1000}, 1.0, True
        )
        for epoch in range(NUM_EPOCHS)
    ]
    seconds = []
    for _ in range(50):
        start = perf_counter()
        judge(trial)
        seconds.append(perf_counter() - start)
    return median(seconds)


def _uncached_pairs(settings: Settings, folder: Path) -> list[tuple[float, float, int]]:
    """Seconds with, without, and the steps of the latter, of images decoded anew each epoch."""
    quick = settings.is_quick
    photographs = collect(settings, "profiling", num_breeds=NUM_CLASSES, num_per_breed=6 if quick else 30)
    config = ExperimentConfig(
        data=DataConfig(source="folder", path=str(photographs.dir), image_size=64 if quick else 224),
        model=ModelConfig(weights=settings.weights, resnet_version=settings.resnet_version, trainable="layer4"),
        train=TrainConfig(num_epochs=1, batch_size=16, augmentation="flip"),
    )
    device = device_of()
    bench = Workbench(load_splits(config.data, project_dir=folder), folder, device)
    with closing(bench):
        train = bench.feeds(config).train

        def run(spans: Spans) -> float:
            return _fit_s(bench.model(config), train, config.train, spans, device, bench.num_classes)

        # The loader's processes start with the first epoch.
        run(NO_SPANS)
        steps = 2 * -(-train.num_samples // config.train.batch_size)
        return [(*_turns(run, folder), steps) for _ in range(settings.num_repetitions)]
