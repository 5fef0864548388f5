"""What a training needs, prepared once per process and shared by its trials: weights, network, feeds."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dogbreed_ml.config import ExperimentConfig, ModelConfig, TrainConfig
from dogbreed_ml.data.loaders import ImageBatches
from dogbreed_ml.data.splits import Sample, Split, Splits
from dogbreed_ml.features import FeatureBatches, FeatureStore, FeatureTable, FrozenPrefix, Views
from dogbreed_ml.model import Network, Weights, build_network, load_weights, new_head, new_suffix
from dogbreed_ml.progress import NO_PROGRESS, Progress
from dogbreed_ml.spans import NO_SPANS, Spans
from dogbreed_ml.train import Batches
from dogbreed_ml.transforms import Preprocessing


@dataclass(frozen=True)
class Feeds:
    """The batches of each split, all of one kind: kept features for a suffix, or images for a whole network."""

    train: Batches
    valid: Batches
    test: Batches
    train_valid: Batches
    """train and valid together, for the refit."""
    table: FeatureTable | None
    """The plain views' table; None on the uncached path."""
    views: FeatureTable | None = None
    """The augmented views' table, where there are any."""

    def close(self) -> None:
        """Ends the worker processes of image feeds."""
        for batches in (self.train, self.valid, self.test, self.train_valid):
            if isinstance(batches, ImageBatches):
                batches.close()


def preprocessing_of(config: ExperimentConfig) -> Preprocessing:
    return Preprocessing(image_size=config.data.image_size, crop_share=config.data.crop_share)


def uses_features(config: ExperimentConfig) -> bool:
    """Whether the frozen prefix is computed once and kept: not where nothing is frozen or each epoch augments anew."""
    return config.model.trainable != "all" and (config.train.augmentation == "none" or config.train.num_views > 1)


def keeping_features(config: ExperimentConfig) -> ExperimentConfig:
    """The config itself where it keeps features; else what a feature pass over its images can be: the frozen whole
    network on plain images, whose 2,048 numbers an image fit wherever the images do."""
    if uses_features(config):
        return config
    return replace(
        config,
        model=replace(config.model, trainable="head"),
        train=replace(config.train, augmentation="none", num_views=1),
    )


@dataclass
class Workbench:
    """Prepares feeds and models for configs that share one data set.

    Pickled to a worker process it carries the splits and what identifies the weights, but no tensor.
    """

    splits: Splits
    project_dir: Path
    device: torch.device
    progress: Progress = NO_PROGRESS
    spans: Spans = NO_SPANS
    """Gets the phases of the feature pass."""
    _digests: dict[tuple[object, ...], str] = field(default_factory=dict)
    _weights: dict[tuple[object, ...], Weights] = field(default_factory=dict)
    _feeds: dict[tuple[object, ...], Feeds] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_weights": {}, "_feeds": {}, "progress": NO_PROGRESS, "spans": NO_SPANS}

    def close(self) -> None:
        """Ends the worker processes of its feeds."""
        for feeds in self._feeds.values():
            feeds.close()
        self._feeds.clear()

    @property
    def num_classes(self) -> int:
        return len(self.splits.classes)

    def weights(self, config: ModelConfig) -> Weights:
        key = _weights_key(config)
        if key not in self._weights:
            self._weights[key] = load_weights(config)
            self._digests[key] = self._weights[key].digest
        return self._weights[key]

    def network(self, config: ExperimentConfig) -> Network:
        """A new network with pretrained backbone and a head drawn from train.seed."""
        return build_network(config.model, self.num_classes, weights=self.weights(config.model), seed=config.train.seed)

    def model(self, config: ExperimentConfig) -> nn.Module:
        """What `fit` trains on `feeds(config)`: a suffix for kept features, else the whole network."""
        if not uses_features(config):
            return self.network(config)
        dropout, seed = config.model.dropout, config.train.seed
        if config.model.trainable == "head":
            return nn.Sequential(nn.Dropout(dropout), new_head(self.num_classes, seed=seed))
        return new_suffix(self.network(config), self.num_classes, dropout=dropout, seed=seed)

    def whole(self, config: ExperimentConfig, trained: nn.Module) -> Network:
        """The whole network around what `fit` trained."""
        if isinstance(trained, Network):
            return trained
        network = self.network(config)
        network.load_suffix(trained)
        return network

    def feeds(self, config: ExperimentConfig) -> Feeds:
        """The batches of each split; computes the features where they are not kept yet."""
        key = _feeds_key(config)
        if key not in self._feeds:
            build = self._feature_feeds if uses_features(config) else self._image_feeds
            self._feeds[key] = build(config)
        return self._feeds[key]

    def _train_valid(self) -> Split:
        return replace(self.splits.train, samples=self.splits.train.samples + self.splits.valid.samples)

    def has_features(self, config: ExperimentConfig) -> bool:
        """Whether the plain views' features are kept already, so that `feeds` makes no forward pass for them."""
        store, prefix = self._store(config), self._frozen_prefix(config)
        return store.has_table(self._everything(), prefix, preprocessing_of(config))

    def _everything(self) -> list[Sample]:
        splits = self.splits
        return [*splits.train.samples, *splits.valid.samples, *splits.test.samples]

    def _store(self, config: ExperimentConfig) -> FeatureStore:
        features_dir = self.project_dir / config.features.dir
        return FeatureStore(config.features, features_dir, device=self.device, progress=self.progress, spans=self.spans)

    def _frozen_prefix(self, config: ExperimentConfig) -> FrozenPrefix:
        return FrozenPrefix(
            weights_digest=self._digest(config.model),
            resnet_version=config.model.resnet_version,
            cut=config.model.trainable,
            build=partial(self._prefix, config),
        )

    def _feature_feeds(self, config: ExperimentConfig) -> Feeds:
        store, prefix = self._store(config), self._frozen_prefix(config)
        preprocessing = preprocessing_of(config)
        splits, train_valid = self.splits, self._train_valid()
        plain = store.table(self._everything(), prefix, preprocessing)
        views = None
        if config.train.num_views > 1:
            kept_views = Views(1, config.train.num_views - 1, config.train.augmentation, config.train.seed)
            views = store.table(train_valid.samples, prefix, preprocessing, views=kept_views)
        seed = config.train.seed
        return Feeds(
            train=FeatureBatches(splits.train, plain, views, seed=seed),
            valid=FeatureBatches(splits.valid, plain),
            test=FeatureBatches(splits.test, plain),
            train_valid=FeatureBatches(train_valid, plain, views, seed=seed),
            table=plain,
            views=views,
        )

    def _prefix(self, config: ExperimentConfig) -> nn.Module:
        return self.network(config).prefix

    def _digest(self, config: ModelConfig) -> str:
        key = _weights_key(config)
        if key not in self._digests:
            self.weights(config)
        return self._digests[key]

    def _image_feeds(self, config: ExperimentConfig) -> Feeds:
        preprocessing = preprocessing_of(config)

        def feed(split: Split, train: TrainConfig | None = None) -> ImageBatches:
            return ImageBatches(
                split,
                preprocessing,
                augmentation=train.augmentation if train else "none",
                num_workers=config.train.num_workers,
                seed=config.train.seed,
            )

        splits = self.splits
        return Feeds(
            train=feed(splits.train, config.train),
            valid=feed(splits.valid),
            test=feed(splits.test),
            train_valid=feed(self._train_valid(), config.train),
            table=None,
        )


def _weights_key(config: ModelConfig) -> tuple[object, ...]:
    return (config.weights, config.seed)


def _feeds_key(config: ExperimentConfig) -> tuple[object, ...]:
    """Whatever the feeds depend on, so that trials that differ in nothing of it share them."""
    train = config.train
    views = (train.augmentation, train.num_views, train.seed) if train.augmentation != "none" else ()
    model = (config.model.weights, config.model.seed, config.model.resnet_version, config.model.trainable)
    loading = () if uses_features(config) else (train.num_workers,)
    return (config.features, preprocessing_of(config), model, views, loading)
