"""Whether features of the back end that `auto` chooses classify as well as torch fp32's."""

import logging
from dataclasses import replace

import torch

from benchmarks.features import build_frozen, frozen_prefix, timed_table
from benchmarks.photographs import Photographs, collect
from benchmarks.results import Figure, Goal, Result
from benchmarks.settings import Settings
from dogbreed_ml.backend import MIN_COSINE, min_cosine
from dogbreed_ml.config import TrainConfig
from dogbreed_ml.data.splits import Split
from dogbreed_ml.evaluation import compute_metrics
from dogbreed_ml.features import FeatureBatches, FeatureTable
from dogbreed_ml.model import new_head
from dogbreed_ml.train import fit

logger = logging.getLogger(__name__)

NUM_HEAD_SEEDS = 5
HELD_OUT_SHARE = 0.3
_CONFIG = TrainConfig(num_epochs=15, lr=1e-3, optimizer="adam", batch_size=32)


def measure(settings: Settings) -> Result:
    """A linear probe on both features: the same photographs, the same head seeds."""
    quick = settings.is_quick
    photographs = collect(settings, "agreement", num_breeds=4 if quick else 120, num_per_breed=6 if quick else 50)
    train, held_out = split_per_breed(photographs)
    prefix = frozen_prefix(settings, build_frozen(settings)[0])
    logger.info("agreement: features by the back end that auto chooses")
    chosen, _ = timed_table(settings, photographs, prefix, name="agreement-auto")
    logger.info("agreement: features by torch-fp32 (%s ran at %.0f images/s)", chosen.backend, chosen.images_per_s)
    reference, _ = timed_table(settings, photographs, prefix, name="agreement-fp32", backend="torch-fp32")
    logger.info("agreement: %d heads", 2 * NUM_HEAD_SEEDS)
    accuracies = {
        name: tuple(
            100 * probe_accuracy(table, train, held_out, len(photographs.classes), seed=seed)
            for seed in range(NUM_HEAD_SEEDS)
        )
        for name, table in (("torch-fp32", reference), (f"the chosen {chosen.backend}", chosen))
    }
    figures = [
        Figure(f"linear probe on {name}, held-out top-1", values, "%", statistic="mean")
        for name, values in accuracies.items()
    ]
    difference = abs(figures[0].value - figures[-1].value)
    cosine = min_cosine(chosen.values, reference.values)
    figures += [
        Figure("difference of the means", (difference,), "points", Goal("at most", 0.3)),
        Figure("lowest cosine of any photograph's features", (cosine,), "", Goal("at least", MIN_COSINE)),
    ]
    notes = (
        f"{photographs.describe()}: {len(train)} to train on, {len(held_out)} held out, the same for both.",
        f"Mean over {NUM_HEAD_SEEDS} head seeds; {_CONFIG.optimizer}, lr {_CONFIG.lr:g}, {_CONFIG.num_epochs} epochs, "
        f"batch {_CONFIG.batch_size}. Weights drawn from ImageNet have probably seen photographs of Stanford Dogs.",
    )
    return Result("agreement", "accuracy on the chosen back end's features", tuple(figures), notes)


def split_per_breed(photographs: Photographs) -> tuple[Split, Split]:
    """To train on, and held out: 30 % of each breed (15 of 50)."""
    train, held_out = [], []
    for label in range(len(photographs.classes)):
        of_breed = photographs.of_breed(label)
        num_held_out = round(HELD_OUT_SHARE * len(of_breed))
        held_out += of_breed[:num_held_out]
        train += of_breed[num_held_out:]
    return Split("train", tuple(train)), Split("valid", tuple(held_out))


def probe_accuracy(table: FeatureTable, train: Split, held_out: Split, num_classes: int, *, seed: int) -> float:
    """Held-out top-1 in [0, 1] after the last epoch of a linear head."""
    epochs = fit(
        new_head(num_classes, seed=seed),
        FeatureBatches(train, table, seed=seed),
        valid=FeatureBatches(held_out, table),
        config=replace(_CONFIG, seed=seed),
        metrics=compute_metrics,
        num_classes=num_classes,
        device=torch.device("cpu"),
    )
    return [epoch.metrics["valid/accuracy_top1"] for epoch in epochs][-1]
