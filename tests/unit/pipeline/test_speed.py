"""The images/s of a few steps are those of the whole training, whoever keeps the other waiting."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dogbreed_ml.config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.pipeline.speed import images_per_s, pass_steps
from dogbreed_ml.train import fit
from dogbreed_ml.transforms import decode_image
from dogbreed_ml.workbench import Feeds, Workbench

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ExperimentConfig(
    data=DataConfig(num_breeds=3, num_per_breed=12, image_size=32), model=ModelConfig(weights="random")
)


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    return load_splits(CONFIG.data, project_dir=tmp_path_factory.mktemp("project"))


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Loader:
    """Batches out of worker processes as torch's DataLoader hands them out, each loaded in `load_s` of the clock: batch
    k by worker k modulo their number, at most four of a worker's ready, none before the epoch has begun."""

    clock: Clock
    num_workers: int
    load_s: float
    num_samples: int
    num_loaded: int = 0

    def __post_init__(self) -> None:
        self.labels = torch.arange(self.num_samples) % 3

    def batches(self, batch_size: int, *, order: Tensor | None, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        assert order is not None
        free_s = [self.clock.now_s] * self.num_workers
        asked_s = [self.clock.now_s] * (4 * self.num_workers)
        for number, rows in enumerate(order.split(batch_size)):
            worker = number % self.num_workers
            free_s[worker] = max(free_s[worker], asked_s[number]) + self.load_s
            self.clock.now_s = max(self.clock.now_s, free_s[worker])
            asked_s.append(self.clock.now_s)
            self.num_loaded += len(rows)
            yield torch.zeros(len(rows), 1), self.labels[rows]


class Computing(nn.Module):
    """A step takes `step_s` of the clock."""

    def __init__(self, clock: Clock, step_s: float):
        super().__init__()
        self.linear = nn.Linear(1, 3)
        self.clock, self.step_s = clock, step_s

    def forward(self, inputs: Tensor) -> Tensor:
        self.clock.now_s += self.step_s
        output: Tensor = self.linear(inputs)
        return output


@dataclass
class Timed(Workbench):
    """A workbench whose training is timed by a clock of its own."""

    loader: Loader | None = None
    network_s: float = 0.0

    def feeds(self, config: ExperimentConfig) -> Feeds:
        assert self.loader is not None
        return Feeds(self.loader, self.loader, self.loader, self.loader, table=None)

    def model(self, config: ExperimentConfig) -> nn.Module:
        assert self.loader is not None
        return Computing(self.loader.clock, self.network_s)


@pytest.mark.parametrize("num_images", [170, 1501], ids=["short epoch", "long epoch"])
@pytest.mark.parametrize("num_workers", [2, 8, 12])
@pytest.mark.parametrize(
    ("load_s", "step_s"), [(0.8, 0.001), (0.1, 0.3), (0.4, 0.2)], ids=["loader", "network", "either"]
)
def test_images_per_s_are_those_of_the_whole_training(
    splits: Splits,
    monkeypatch: pytest.MonkeyPatch,
    *,
    load_s: float,
    step_s: float,
    num_workers: int,
    num_images: int,
) -> None:
    clock = Clock()
    for module in ("train", "pipeline.speed"):
        monkeypatch.setattr(f"dogbreed_ml.{module}.perf_counter", clock)
    monkeypatch.setattr("dogbreed_ml.pipeline.speed.os.cpu_count", lambda: 8)
    loader = Loader(clock, num_workers, load_s, num_images)
    bench = Timed(splits, Path(), torch.device("cpu"), loader=loader, network_s=step_s)
    train = TrainConfig(num_epochs=1, batch_size=4, num_workers=num_workers, augmentation="flip")
    kept = images_per_s(bench, replace(CONFIG, train=train))
    spent_s = clock.now_s
    (result,) = fit(
        bench.model(CONFIG), loader, valid=None, config=train, metrics=lambda logits, labels: {}, num_classes=3,
        device=torch.device("cpu"),
    )  # fmt: skip
    whole = num_images / result.seconds
    # A pass of a long epoch has fewer steps than it over which to forget the wait for the first batch.
    assert 0.8 * whole < kept < 1.05 * whole
    if num_images == 170 and num_workers > 2 and load_s > 4 * step_s:
        # Measured whole: of six rounds of eight workers the last one is not full.
        assert kept == pytest.approx(whole, rel=0.01)
    # Warm-up and the first batches too.
    assert spent_s < 20


@pytest.mark.parametrize("num_images", [1, 5, 17])
def test_images_of_an_epoch_are_counted_as_they_were(
    splits: Splits, monkeypatch: pytest.MonkeyPatch, num_images: int
) -> None:
    clock = Clock()
    for module in ("train", "pipeline.speed"):
        monkeypatch.setattr(f"dogbreed_ml.{module}.perf_counter", clock)
    loader = Loader(clock, 1, 0.0, num_images)
    bench = Timed(splits, Path(), torch.device("cpu"), loader=loader, network_s=0.5)
    train = TrainConfig(batch_size=2)
    num_steps = (num_images + 1) // 2
    assert images_per_s(bench, replace(CONFIG, train=train)) == pytest.approx(num_images / (0.5 * num_steps))
    # Two warm steps of half a second, and passes until they took a second.
    num_passes = 2 if num_images == 1 else 1
    assert loader.num_loaded == 2 * min(2, num_images) + num_passes * num_images


@pytest.mark.parametrize(
    ("compute_s", "load_s", "num_epoch_steps", "num_workers", "expected"),
    [
        (1e-4, 0.0, 300, 0, 300),
        (1e-4, 0.0, 100_000, 0, 10_000),
        (0.05, 0.0, 1000, 0, 20),
        (0.3, 0.0, 1000, 0, 8),
        (1.0, 0.0, 1000, 0, 3),
        (60.0, 0.0, 1000, 0, 3),
        (60.0, 0.0, 2, 0, 2),
        (0.005, 0.005, 1000, 8, 100),
        (0.01, 0.04, 1000, 8, 40),
        (0.01, 0.04, 79, 8, 79),
        (0.01, 0.04, 1000, 3, 42),
        (0.04, 0.01, 1000, 3, 40),
        (0.1, 0.4, 1000, 8, 8),
        (0.4, 0.1, 1000, 8, 6),
        (0.4, 0.1, 11, 8, 11),
        (1.0, 0.1, 15, 8, 3),
    ],
)
def test_a_pass_is_long_enough_for_its_workers_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
    *,
    compute_s: float,
    load_s: float,
    num_epoch_steps: int,
    num_workers: int,
    expected: int,
) -> None:
    monkeypatch.setattr("dogbreed_ml.pipeline.speed.os.cpu_count", lambda: 8)
    found = pass_steps(num_epoch_steps, compute_s=compute_s, load_s=load_s, num_workers=num_workers)
    assert found == expected


class Pooled(nn.Module):
    """Images as their mean colours."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3)) / 255


class OfColours(Workbench):
    """A workbench of real images and loaders, whose network takes no time."""

    def model(self, config: ExperimentConfig) -> nn.Module:
        return nn.Sequential(Pooled(), nn.Linear(3, self.num_classes))


@pytest.mark.slow  # 3 s, and eight processes; its siblings are timed by a clock of their own
@pytest.mark.filterwarnings("ignore:This DataLoader will create 8 worker processes:UserWarning")
def test_eight_real_workers_are_not_said_to_load_more_than_they_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_s, num_workers = 0.05, 8

    def slow(content: bytes) -> Any:
        time.sleep(image_s)
        return decode_image(content)

    monkeypatch.setattr("dogbreed_ml.data.loaders.decode_image", slow)
    config = replace(
        CONFIG,
        data=DataConfig(num_breeds=2, num_per_breed=40, image_size=32),
        train=TrainConfig(batch_size=2, num_workers=num_workers, augmentation="flip"),
    )
    bench = OfColours(load_splits(config.data, project_dir=tmp_path), tmp_path, torch.device("cpu"))
    try:
        kept = images_per_s(bench, config)
        assert len(bench.feeds(config).train.worker_pids) == num_workers  # type: ignore[attr-defined]
    finally:
        bench.close()
    assert 0 < kept <= num_workers / image_s
