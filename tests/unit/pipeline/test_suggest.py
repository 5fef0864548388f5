"""What `dogbreed profile --suggest` tries, and what it leaves behind."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml

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
from dogbreed_ml.pipeline.suggest import (
    MAX_S,
    MIN_GAIN,
    OVERLAY_FILE,
    SuggestSummary,
    dimensions,
    suggest,
)
from dogbreed_ml.workbench import Workbench

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = ExperimentConfig(
    data=DataConfig(num_breeds=3, num_per_breed=12, image_size=32),
    model=ModelConfig(weights="random"),
    features=FeaturesConfig(backend="torch-fp32"),
    train=TrainConfig(num_epochs=2, batch_size=4),
)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(project_dir=tmp_path_factory.mktemp("project"))


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


def test_what_was_not_tried_in_time_is_named(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("dogbreed_ml.pipeline.suggest.perf_counter", lambda: now_s)
    seen: list[int] = []

    def measure(bench: Workbench, config: ExperimentConfig) -> float:
        """A third of the time each; twice as many images in a batch of twice as many."""
        nonlocal now_s
        del bench
        now_s += MAX_S / 3
        seen.append(config.train.batch_size)
        return 10.0 * config.train.batch_size

    config = replace(CONFIG, train=TrainConfig(batch_size=1, precision="bf16"))
    summary = suggest(config, context=context, measure=measure)
    # The first, then bf16 and fp32; at the end the config once more.
    assert len(seen) == 4
    (note,) = summary.notes
    assert note == "Not tried, because 120 s were over: --train.batch_size 2."
    assert note in summary.render()
    check_suggestion(summary, config)


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
    photographs_dir: Path, weights_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is.
    monkeypatch.setattr("dogbreed_ml.pipeline.suggest.MAX_S", 1e6)
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
