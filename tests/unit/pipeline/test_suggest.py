"""What `dogbreed profile --suggest` tries, how it measures, and what it leaves behind."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from torch import Tensor, nn

from dogbreed_ml.config import (
    DataConfig,
    ExperimentConfig,
    FeaturesConfig,
    ModelConfig,
    TrainConfig,
    flatten,
    with_values,
)
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.pipeline.suggest import (
    MIN_GAIN,
    OVERLAY_FILE,
    SuggestSummary,
    dimensions,
    images_per_s,
    pass_steps,
    suggest,
)
from dogbreed_ml.train import fit
from dogbreed_ml.transforms import decode_image
from dogbreed_ml.workbench import Feeds, Workbench

CONFIG = ExperimentConfig(
    data=DataConfig(num_breeds=3, num_per_breed=12, image_size=32),
    model=ModelConfig(weights="random"),
    features=FeaturesConfig(backend="torch-fp32"),
    train=TrainConfig(num_epochs=2, batch_size=4),
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Where other programs work too, torch's threads wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(project_dir=tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def splits(context: Context) -> Splits:
    return load_splits(CONFIG.data, project_dir=context.project_dir)


def check_suggestion(summary: SuggestSummary, config: ExperimentConfig) -> None:
    """What holds whatever was faster."""
    for each in summary.attempts:
        assert each.images_per_s > 0
        assert each.is_better == (each.images_per_s > MIN_GAIN * each.before_images_per_s)
    if not summary.best:
        assert summary.overlay_path is None
        assert summary.after_images_per_s == summary.before_images_per_s
        assert "nothing was faster" in summary.render()
        return
    assert summary.best in [each.values for each in summary.attempts if each.is_better]
    assert summary.after_images_per_s > summary.before_images_per_s
    assert summary.overlay_path is not None
    overlay = yaml.safe_load(Path(summary.overlay_path).read_text())
    values = {f"{section}.{leaf}": value for section, fields in overlay.items() for leaf, value in fields.items()}
    assert values == summary.best
    changed = flatten(with_values(config, values))
    assert {name for name, value in flatten(config).items() if changed[name] != value} == set(summary.best)
    assert f"overlay {summary.overlay_path}" in summary.render()


# What is tried ------------------------------------------------------------------------------------------------------


def test_settings_are_tried_on_real_steps_of_a_head(context: Context) -> None:
    config = replace(CONFIG, train=TrainConfig(batch_size=1, precision="fp32"))
    summary = suggest(config, context=context)
    assert {"train.batch_size", "train.precision"} == {name for each in summary.attempts for name in each.values}
    check_suggestion(summary, config)


@pytest.mark.parametrize("lasts", [True, False])
def test_each_setting_that_is_faster_joins_the_suggestion(context: Context, lasts: bool) -> None:
    calls: list[ExperimentConfig] = []

    def measure(bench: Workbench, config: ExperimentConfig) -> float:
        """One image at a time in fp32: 10 images/s. Larger batches and bf16 help, channels_last does not."""
        del bench
        calls.append(config)
        gain = config.train.batch_size * (2 if config.train.precision == "bf16" else 1)
        # A setting is tried twice; the best one is measured again at the end.
        return 10.0 * gain if lasts or calls.count(config) <= 2 else 10.0

    config = replace(CONFIG, model=ModelConfig(weights="random", trainable="layer4"))
    config = replace(config, train=TrainConfig(batch_size=1, precision="fp32"))
    summary = suggest(config, context=context, measure=measure)
    assert summary.before_images_per_s == 10
    assert {"train.memory_format": "channels_last", "train.precision": "bf16"} in [x.values for x in summary.attempts]
    check_suggestion(summary, config)
    if lasts:
        assert summary.best == {"train.precision": "bf16", "train.batch_size": 2}
        assert summary.after_images_per_s == 40
        assert "raise train.lr" in summary.render()
    else:
        assert any(each.is_better for each in summary.attempts)
        assert summary.best == {}


def test_a_gain_that_is_gone_the_second_time_is_told_by_the_figures_that_decided(context: Context) -> None:
    seen: list[str] = []

    def measure(bench: Workbench, config: ExperimentConfig) -> float:
        """bf16 looks twice as fast, once; then it is fp32 that gains."""
        del bench
        seen.append(config.train.precision)
        return {"bf16": 20.0, "fp32": 10.0}[seen[-1]] if seen.count("bf16") < 2 else 18.0

    config = replace(CONFIG, train=TrainConfig(batch_size=8, precision="fp32"))
    summary = suggest(config, context=context, measure=measure)
    assert seen[:5] == ["fp32", "fp32", "bf16", "bf16", "fp32"]
    (attempt,) = summary.attempts
    assert (attempt.images_per_s, attempt.before_images_per_s, attempt.is_better) == (18, 18, False)
    assert "no          18.0 images/s, 18.0 without  --train.precision bf16" in summary.render()
    assert summary.to_dict()["attempts"][0]["before_images_per_s"] == 18
    check_suggestion(summary, config)


@pytest.mark.parametrize("speeds_up", [True, False])
def test_an_earlier_suggestion_does_not_outlive_a_later_one(context: Context, speeds_up: bool) -> None:
    path = context.project_dir / OVERLAY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("train:\n  batch_size: 999\n")

    def measure(bench: Workbench, config: ExperimentConfig) -> float:
        del bench
        return 20.0 if speeds_up and config.train.precision == "bf16" else 10.0

    summary = suggest(replace(CONFIG, train=TrainConfig(precision="fp32")), context=context, measure=measure)
    assert path.exists() == speeds_up
    if speeds_up:
        assert yaml.safe_load(path.read_text()) == {"train": {"precision": "bf16"}}
    assert (summary.overlay_path == str(path)) == speeds_up


def test_what_is_tried_depends_on_what_is_trained() -> None:
    def tried(trainable: Literal["head", "layer4", "all"], *, num_cores: int = 8, **train: Any) -> dict[str, list[Any]]:
        config = replace(
            CONFIG,
            model=ModelConfig(weights="random", trainable=trainable),
            train=TrainConfig(**{"num_workers": 1, "batch_size": 4, **train}),
        )
        return dict(dimensions(config, num_samples=1000, num_cores=num_cores))

    assert tried("head", precision="fp32") == {"train.precision": ["bf16"], "train.batch_size": [8, 16]}
    # A head has no convolution that bf16 would help.
    assert tried("head")["train.precision"] == (["fp32"] if torch.cuda.is_available() else ["bf16"])
    kept_maps = tried("layer4", precision="bf16")
    assert kept_maps["train.memory_format"] == ["channels_last"]
    assert kept_maps["train.precision"] == ["fp32"]
    for images in (tried("all"), tried("layer4", augmentation="flip"), tried("head", augmentation="flip")):
        assert list(images) == ["train.num_workers", "train.precision", "train.memory_format", "train.batch_size"]
        assert images["train.num_workers"] == [4, 8]
        assert images["train.memory_format"] == ["contiguous"]
    assert tried("all", num_workers=3)["train.num_workers"] == [1, 4, 8]
    assert tried("all", num_cores=1)["train.num_workers"] == []
    assert tried("all", memory_format="contiguous")["train.memory_format"] == ["channels_last"]


@pytest.mark.slow  # 60 s: a dozen settings of ResNet50's own steps
def test_settings_of_a_network_trained_on_photographs_are_tried(
    photographs_dir: Path, weights_path: Path, tmp_path: Path
) -> None:
    config = ExperimentConfig(
        data=DataConfig(source="folder", path=str(photographs_dir / "dogs"), image_size=64, max_per_class=3),
        model=ModelConfig(weights=str(weights_path), resnet_version="1", trainable="layer4"),
        train=TrainConfig(batch_size=2, augmentation="flip", num_workers=1, memory_format="contiguous"),
    )
    summary = suggest(config, context=Context(project_dir=tmp_path))
    names = {name for each in summary.attempts for name in each.values}
    assert names == {"train.num_workers", "train.precision", "train.memory_format", "train.batch_size"}, names
    assert {
        each.values["train.memory_format"] for each in summary.attempts if "train.memory_format" in each.values
    } == {"channels_last"}
    check_suggestion(summary, config)


# How it is measured -------------------------------------------------------------------------------------------------


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
    for module in ("train", "pipeline.suggest"):
        monkeypatch.setattr(f"dogbreed_ml.{module}.perf_counter", clock)
    monkeypatch.setattr("dogbreed_ml.pipeline.suggest.os.cpu_count", lambda: 8)
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
    assert 0.8 * whole < kept < MIN_GAIN * whole
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
    for module in ("train", "pipeline.suggest"):
        monkeypatch.setattr(f"dogbreed_ml.{module}.perf_counter", clock)
    loader = Loader(clock, 1, 0.0, num_images)
    bench = Timed(splits, Path(), torch.device("cpu"), loader=loader, network_s=0.5)
    train = TrainConfig(batch_size=2)
    num_steps = (num_images + 1) // 2
    assert images_per_s(bench, replace(CONFIG, train=train)) == pytest.approx(num_images / (0.5 * num_steps))
    # The warm steps, and passes until they took a second, at most five.
    num_passes = 2 if num_images == 1 else 1
    assert loader.num_loaded == min(3 * 2, num_images) + num_passes * num_images


@pytest.mark.parametrize(
    ("step_s", "num_epoch_steps", "num_workers", "expected"),
    [
        (1e-4, 300, 0, 300),
        (1e-4, 100_000, 0, 10_000),
        (0.05, 1000, 0, 20),
        (1.0, 1000, 0, 8),
        (1.0, 1000, 16, 16),
        (60.0, 1000, 0, 8),
        (60.0, 5, 0, 5),
        (0.01, 1000, 8, 104),
        (0.05, 1000, 8, 40),
        (0.05, 79, 8, 79),
        (0.05, 1000, 3, 42),
        (0.5, 1000, 8, 8),
        (0.5, 15, 8, 8),
    ],
)
def test_a_pass_is_long_enough_for_its_workers_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, step_s: float, num_epoch_steps: int, num_workers: int, expected: int
) -> None:
    monkeypatch.setattr("dogbreed_ml.pipeline.suggest.os.cpu_count", lambda: 8)
    assert pass_steps(step_s, num_epoch_steps, num_workers=num_workers) == expected


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
    context: Context, monkeypatch: pytest.MonkeyPatch
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
    splits = load_splits(config.data, project_dir=context.project_dir)
    bench = OfColours(splits, context.project_dir, torch.device("cpu"))
    try:
        kept = images_per_s(bench, config)
        assert len(bench.feeds(config).train.worker_pids) == num_workers  # type: ignore[attr-defined]
    finally:
        bench.close()
    assert 0 < kept <= num_workers / image_s
