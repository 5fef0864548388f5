"""How long a job will take, from a few steps made on this machine; and what that costs, where the price is known.

The instance is another machine: the estimate says so, and says what a job can cost at most.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from dogbreed_ml.backend import available_backends, build_backend, device_of
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.data.loaders import ImageBatches
from dogbreed_ml.data.splits import Split, Splits
from dogbreed_ml.evaluation import compute_metrics
from dogbreed_ml.features import decoded_batches
from dogbreed_ml.progress import NO_PROGRESS, Advance, Progress
from dogbreed_ml.train import Batches, evaluate, fit
from dogbreed_ml.workbench import Workbench, preprocessing_of, uses_features
from sagemaker_jobs.pricing import Price

_NUM_FEATURE_IMAGES = 16
_NUM_HEAD_STEPS = 16
_NUM_OTHER_IMAGES = 8
"""In the one step of a network with convolutions to train: the whole one trains on 6 images a second on 2 cores."""
_NUM_WARM_UP = 2
"""Images of a first, slow pass; of a single one batch normalization may find nothing to normalize by."""
_NUM_PARTS = 3
_PART_S = 3.0
"""About how long each part is measured at most: on a busy machine, fewer images."""


@dataclass(frozen=True)
class Speed:
    """Seconds an image takes on this machine."""

    feature_s: float
    """In the frozen prefix, decoding included; 0 where no features are kept."""
    train_s: float
    """In one epoch's training."""
    evaluation_s: float

    def features_s(self, config: ExperimentConfig, splits: Splits) -> float:
        """Of the one pass over all photographs; augmented views are of train and valid."""
        num_train_valid = len(splits.train) + len(splits.valid)
        num_views = config.train.num_views - 1
        return self.feature_s * (num_train_valid + len(splits.test) + num_train_valid * num_views)

    def training_s(self, config: ExperimentConfig, splits: Splits) -> float:
        """Of one training without its features."""
        epoch_s = self.train_s * len(splits.train) + self.evaluation_s * len(splits.valid)
        return config.train.num_epochs * epoch_s


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Times are this machine's; dollars are on-demand ones, None where no price is known."""

    features_s: float | None
    """None where the photographs are not here to be counted."""
    training_s: float | None
    """Of all trainings, one after the other."""
    num_trainings: int
    num_instances: int
    """Of each training."""
    max_runtime_s: int
    """SageMaker ends a training after that."""
    is_spot: bool
    num_feature_jobs: int = 0
    """Jobs before the trainings that compute their features."""
    are_features_local: bool = False
    """Whether this machine computes them, for nothing."""
    num_parallel: int = 1
    """Trainings at once."""
    keep_alive_s: int = 0
    """How long each instance stays, and is paid for, after a job."""
    price: Price | None = None

    @property
    def total_s(self) -> float | None:
        if self.training_s is None or self.features_s is None:
            return None
        return self.features_s + self.training_s

    @property
    def usd(self) -> float | None:
        """For what SageMaker does of `total_s`; several instances share the work, how well is not known.

        Instances that stay for the next job are counted once, after the last.
        """
        if self.price is None or self.training_s is None or self.features_s is None:
            return None
        paid_s = self.training_s + (0.0 if self.are_features_local else self.features_s)
        idle_s = self.keep_alive_s * self.num_instances * self.num_parallel
        return self.price.usd_per_hour * (paid_s + idle_s) / 3600

    @property
    def max_usd(self) -> float | None:
        """Where every job runs until SageMaker ends it, and no instance is taken up by the next."""
        if self.price is None:
            return None
        num_jobs = self.num_feature_jobs + self.num_trainings
        hours = num_jobs * self.num_instances * (self.max_runtime_s + self.keep_alive_s) / 3600
        return self.price.usd_per_hour * hours

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"total_s": self.total_s, "usd": self.usd, "max_usd": self.max_usd}

    def render(self) -> str:
        if self.features_s is None or self.training_s is None or self.total_s is None:
            lines = ["time    unknown: the photographs are in S3 and were not counted"]
        else:
            first = " in a job of their own" if self.num_feature_jobs else ""
            first = " here, not paid for" if self.are_features_local else first
            lines = [
                f"time    {self.total_s:.0f} s (features {self.features_s:.0f} s{first}, {self.num_trainings} x "
                f"training {self.training_s / self.num_trainings:.0f} s), measured on this machine: the instance "
                "differs, and its start takes minutes more"
            ]
        if self.price is None:
            return "\n".join(
                [*lines, "cost    unknown: neither AWS's Price List nor sagemaker.prices_path named a price"]
            )
        cost = "unknown" if self.usd is None else f"${self.usd:.2f} at this machine's speed"
        spot = "; spot capacity costs less" if self.is_spot else ""
        limits = f"sagemaker.max_runtime_s={self.max_runtime_s}"
        if self.num_feature_jobs:
            limits = f"{self.num_feature_jobs + self.num_trainings} jobs, {limits}"
        if self.keep_alive_s:
            limits += f", sagemaker.keep_alive_s={self.keep_alive_s}"
        most = f"at most ${self.max_usd:.2f} ({limits})"
        return "\n".join([*lines, f"cost    {cost}, {most}; {self.price.render()}{spot}"])


def estimate_jobs(
    config: ExperimentConfig,
    splits: Splits | None,
    *,
    price: Price | None,
    num_trainings: int = 1,
    num_parallel: int = 1,
    num_feature_jobs: int = 0,
    are_features_local: bool = False,
    progress: Progress = NO_PROGRESS,
) -> Estimate:
    """Measures a few steps (about 10 s on an idle machine) and multiplies."""
    features_s = training_s = None
    if splits is not None:
        with progress.track("measuring a few steps here", _NUM_PARTS, "parts") as advance:
            speed = measure_speed(config, splits, advance=advance)
        features_s = speed.features_s(config, splits)
        training_s = num_trainings * speed.training_s(config, splits)
    return Estimate(
        features_s=features_s,
        training_s=training_s,
        num_trainings=num_trainings,
        num_instances=config.sagemaker.instance_count,
        max_runtime_s=config.sagemaker.max_runtime_s,
        is_spot=config.sagemaker.spot,
        num_feature_jobs=num_feature_jobs,
        are_features_local=are_features_local,
        num_parallel=min(num_parallel, num_trainings),
        keep_alive_s=config.sagemaker.keep_alive_s,
        price=price,
    )


def measure_speed(config: ExperimentConfig, splits: Splits, *, advance: Advance = lambda _: None) -> Speed:
    """A few images and steps of this config, with random weights: no number of theirs takes another time."""
    config = replace(config, model=replace(config.model, weights="random"))
    device = device_of()
    bench = Workbench(splits, Path(), device)
    if not uses_features(config):

        def images(num_images: int) -> ImageBatches:
            return ImageBatches(
                _first(splits.train, num_images),
                preprocessing_of(config),
                augmentation=config.train.augmentation,
                num_workers=0,
                seed=config.train.seed,
            )

        advance(1)
        most = min(_NUM_OTHER_IMAGES, len(splits.train))
        return Speed(0.0, *_time_epoch(bench, config, images, most=most, batch_size=most, advance=advance))
    feature_s, shape = _time_features(bench, config, splits)
    advance(1)
    is_head = config.model.trainable == "head"
    most = min(len(splits.train), _NUM_HEAD_STEPS * config.train.batch_size if is_head else _NUM_OTHER_IMAGES)

    def drawn(num_images: int) -> _Drawn:
        return _Drawn(num_images, shape, bench.num_classes)

    batch_size = config.train.batch_size
    return Speed(feature_s, *_time_epoch(bench, config, drawn, most=most, batch_size=batch_size, advance=advance))


def _time_features(bench: Workbench, config: ExperimentConfig, splits: Splits) -> tuple[float, tuple[int, ...]]:
    """Seconds an image, and the features' shape."""
    # OpenVINO is faster and takes seconds to compile; and an instance with a GPU has none.
    name = next(each for each in available_backends(bench.device) if each.startswith("torch"))
    preprocessing = preprocessing_of(config)
    prefix = bench.network(config).prefix
    backend = build_backend(name, prefix, image_size=preprocessing.image_size, device=bench.device)
    samples = _first(splits.train, _NUM_FEATURE_IMAGES).samples

    def run(num_images: int) -> tuple[int, ...]:
        decoded = decoded_batches(samples[:num_images], preprocessing, batch_size=backend.batch_size)
        shapes = [output.shape[1:] for output in backend.run(decoded)]
        return tuple(map(int, shapes[0]))

    # The first pass of a module chooses its algorithms.
    start = perf_counter()
    shape = run(_NUM_WARM_UP)
    num_images = _num_within(perf_counter() - start, most=len(samples))
    start = perf_counter()
    run(num_images)
    return (perf_counter() - start) / num_images, shape


def _time_epoch(
    bench: Workbench,
    config: ExperimentConfig,
    batches_of: Callable[[int], Batches],
    *,
    most: int,
    batch_size: int,
    advance: Advance,
) -> tuple[float, float]:
    """Seconds an image takes in training and in evaluation, with at most so many images; a first epoch warms up."""
    model = bench.model(config)
    train = replace(config.train, num_epochs=1, batch_size=batch_size, patience=None)

    def train_s(batches: Batches) -> float:
        (result,) = fit(
            model,
            batches,
            valid=None,
            config=train,
            metrics=compute_metrics,
            num_classes=bench.num_classes,
            device=bench.device,
        )
        return result.seconds

    # A head is quick whatever the machine; its first images say nothing of the others.
    is_quick = config.model.trainable == "head"
    warm_up_s = train_s(batches_of(_NUM_WARM_UP))
    batches = batches_of(most if is_quick else _num_within(warm_up_s, most=most))
    epoch_s = train_s(batches)
    advance(1)
    start = perf_counter()
    evaluate(model, batches, device=bench.device)
    evaluation_s = perf_counter() - start
    advance(1)
    return epoch_s / batches.num_samples, evaluation_s / batches.num_samples


def _num_within(warm_up_s: float, *, most: int) -> int:
    """How many images take about _PART_S, where those of the warm-up took so long."""
    return max(_NUM_WARM_UP, min(most, int(_NUM_WARM_UP * _PART_S / warm_up_s)))


def _first(split: Split, num_samples: int) -> Split:
    return replace(split, samples=split.samples[:num_samples])


class _Drawn:
    """Features drawn at random."""

    def __init__(self, num_samples: int, shape: tuple[int, ...], num_classes: int):
        generator = torch.Generator().manual_seed(0)
        self._values = torch.randn(num_samples, *shape, generator=generator)
        self.labels = torch.arange(num_samples) % num_classes

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        indices = torch.arange(self.num_samples) if order is None else order
        for rows in indices.split(batch_size):
            yield self._values[rows], self.labels[rows]
