"""The cached and the uncached path are one training seen twice."""

import hashlib
import pickle
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dogbreed_ml.config import ExperimentConfig, Trainable, with_values
from dogbreed_ml.data.splits import Sample, Split, Splits
from dogbreed_ml.evaluation import compute_metrics
from dogbreed_ml.features import FeatureBatches
from dogbreed_ml.train import Batches, evaluate, fit
from dogbreed_ml.workbench import Workbench, uses_features

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    samples = []
    for number in range(24):
        pixels = rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)
        pixels[..., number % 3] //= 4
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        samples.append(Sample(path, number % 3, hashlib.sha256(path.read_bytes()).hexdigest()))
    train, valid, test = samples[:12], samples[12:18], samples[18:]
    return Splits(
        classes=("A", "B", "C"),
        train=Split("train", tuple(train)),
        valid=Split("valid", tuple(valid)),
        test=Split("test", tuple(test)),
        fingerprint="0" * 16,
        source="drawn for the test",
    )


@pytest.fixture
def bench(splits: Splits, tmp_path: Path) -> Iterator[Workbench]:
    with closing(Workbench(splits, tmp_path, CPU)) as bench:
        yield bench


@pytest.fixture
def config() -> ExperimentConfig:
    return with_values(
        ExperimentConfig(),
        {
            "data.image_size": 32,
            "model.weights": "random",
            "features.backend": "torch-fp32",
            "train.batch_size": 4,
            "train.num_epochs": 2,
            # Plain gradients: Adam's first steps have the size of lr whatever the gradient, so that a difference in
            # its last digit can turn a step around.
            "train.lr": 0.01,
            "train.optimizer": "sgd",
            "train.precision": "fp32",
        },
    )


def logits_after_training(bench: Workbench, config: ExperimentConfig, model: nn.Module, train: Batches) -> Tensor:
    for _ in fit(model, train, valid=None, config=config.train, metrics=compute_metrics, num_classes=3, device=CPU):
        pass
    with closing(bench._image_feeds(config)) as images:
        return evaluate(bench.whole(config, model), images.test, device=CPU).logits


@pytest.mark.parametrize("trainable", ["head", "layer4"])
def test_cached_and_uncached_training_give_the_same_logits_and_head(
    bench: Workbench, config: ExperimentConfig, trainable: Trainable
) -> None:
    config = with_values(config, {"model.trainable": trainable})
    cached, uncached = bench.model(config), bench.network(config)
    feeds = bench.feeds(config)
    assert isinstance(feeds.train, FeatureBatches)
    cached_logits = logits_after_training(bench, config, cached, feeds.train)
    with closing(bench._image_feeds(config)) as images:
        uncached_logits = logits_after_training(bench, config, uncached, images.train)
    rtol, atol = (1e-3, 1e-4) if trainable == "head" else (1e-2, 1e-3)
    torch.testing.assert_close(cached_logits, uncached_logits, rtol=rtol, atol=atol)
    head = bench.whole(config, cached).resnet.fc.weight
    torch.testing.assert_close(head, uncached.resnet.fc.weight, rtol=rtol, atol=atol)
    start = bench.network(config).resnet.fc.weight
    assert (head - start).abs().max() > 10 * atol


def test_features_are_used_unless_nothing_is_frozen_or_each_epoch_augments(config: ExperimentConfig) -> None:
    assert uses_features(config)
    assert not uses_features(with_values(config, {"model.trainable": "all"}))
    assert not uses_features(with_values(config, {"train.augmentation": "flip_crop"}))
    assert uses_features(with_values(config, {"train.augmentation": "flip_crop", "train.num_views": 3}))


def test_trials_that_differ_in_hyperparameters_alone_share_their_feeds(
    bench: Workbench, config: ExperimentConfig
) -> None:
    feeds = bench.feeds(config)
    assert bench.feeds(with_values(config, {"train.lr": 0.5, "train.batch_size": 2, "model.dropout": 0.3})) is feeds
    assert bench.feeds(with_values(config, {"data.crop_share": 1.0})) is not feeds


def test_workbench_travels_to_a_worker_without_tensors(bench: Workbench, config: ExperimentConfig) -> None:
    bench.feeds(config)
    sent = pickle.dumps(bench)
    assert len(sent) < 20_000
    table = pickle.loads(sent).feeds(config).table
    assert table is not None
    assert table.cached


@pytest.fixture
def deep_and_slow(config: ExperimentConfig) -> ExperimentConfig:
    return with_values(config, {"model.trainable": "all", "train.num_epochs": 1, "train.augmentation": "flip_crop"})


def test_whole_network_trains_from_images(bench: Workbench, deep_and_slow: ExperimentConfig) -> None:
    before = bench.network(deep_and_slow).resnet.conv1.weight.detach().clone()
    network = bench.model(deep_and_slow)
    feeds = bench.feeds(deep_and_slow)
    assert feeds.table is None
    logits = logits_after_training(bench, deep_and_slow, network, feeds.train)
    assert logits.shape == (6, 3)
    assert not torch.equal(bench.whole(deep_and_slow, network).resnet.conv1.weight, before)


def test_train_valid_holds_both_splits(bench: Workbench, config: ExperimentConfig) -> None:
    feeds = bench.feeds(replace(config))
    assert (feeds.train.num_samples, feeds.valid.num_samples, feeds.train_valid.num_samples) == (12, 6, 18)
