"""The config: what one experiment is, as frozen dataclasses.

YAML keys, command-line flags and these fields are the same names. A default lives here and nowhere else. A value
that breaks its rule raises ConfigError at construction.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args, get_type_hints
from urllib.parse import urlsplit

from dogbreed_ml.checks import nearest, require, require_choice, require_number
from dogbreed_ml.cloudconfig import HostingConfig, SagemakerConfig
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.policies import DeployConfig, ProfileConfig, PromotionConfig

Trainable = Literal["head", "layer4", "layer3", "all"]
Augmentation = Literal["none", "flip", "flip_crop", "randaugment"]
BackendName = Literal["auto", "torch-fp32", "torch-bf16", "torch-amp", "openvino-fp32", "openvino-bf16"]
SplitName = Literal["train", "valid", "test"]

NOT_RECORDED = "(not recorded)"
"""Stands for the value of an environment variable."""
_SECRET_PARAMETER = re.compile(r"(?i)(signature|sig|token|password|secret|credential|key)=")

_NAME_PATTERN = re.compile(r"[A-Za-z0-9](-?[A-Za-z0-9])*")


@dataclass(frozen=True)
class DataConfig:
    """The photographs: where they come from and how they are split."""

    source: Literal["synthetic", "folder", "archive", "s3"] = "synthetic"
    """Where the images come from: drawn breeds, a folder per breed, a zip or tar, or s3://bucket/prefix."""
    path: str | None = None
    """Folder; or URL, file or preset (udacity-dogs, oxford-iiit-pet) of an archive; or s3://bucket/prefix."""
    checksum: str | None = None
    """Expected checksum of an archive, as sha256:HEX or md5:HEX; presets bring their own where one is published."""
    dir: str = ".dogbreed/data"
    """Folder for what is drawn, downloaded and unpacked; relative to the project root."""
    num_breeds: int = 8
    """Breeds that the synthetic source draws, 2 to 60."""
    num_per_breed: int = 50
    """Images of each breed that the synthetic source draws."""
    image_size: int = 224
    """Side in pixels of the square that the network sees."""
    crop_share: float = 0.875
    """Share of the shorter side that the central square keeps; 0.875 is torchvision's, 1 keeps all of it."""
    max_per_class: int | None = None
    """At most so many images of each breed, chosen by seed; null takes all."""
    classes: list[str] | None = None
    """Only these breeds, by their cleaned names; null takes all."""
    valid_share: float = 0.15
    """Share of each breed's images held back to choose by, where the source has no split of its own."""
    test_share: float = 0.15
    """Share of each breed's images held back to report once, where the source has no split of its own."""
    seed: int = 0
    """Seed of the split, of max_per_class and of the synthetic breeds."""
    max_bad_share: float = 0.01
    """Largest share of unreadable images that is tolerated; they are quarantined, never deleted."""

    def __post_init__(self) -> None:
        # First, since other messages repeat the path.
        self._refuse_secrets()
        require_choice("data.source", self.source, ("synthetic", "folder", "archive", "s3"))
        if self.source == "synthetic":
            require(
                self.path is None,
                "data.path is read by the sources folder, archive and s3 only; add --data.source folder for a folder",
                self.path,
            )
        else:
            require(bool(self.path), f"data.path must be set for data.source={self.source}", self.path)
        if self.source == "s3":
            require(
                bool(re.fullmatch(r"s3://[^/]+(/.*)?", self.path or "")),
                "data.path must look like s3://bucket/prefix for data.source=s3",
                self.path,
            )
        if self.checksum is not None:
            require(
                bool(re.fullmatch(r"(sha256:[0-9a-fA-F]{64}|md5:[0-9a-fA-F]{32})", self.checksum)),
                "data.checksum must be sha256:HEX (64 digits) or md5:HEX (32 digits)",
                self.checksum,
            )
        require_number("data.num_breeds", self.num_breeds, low=2, high=60)
        require_number("data.num_per_breed", self.num_per_breed, low=3)
        require_number("data.image_size", self.image_size, low=32, high=1024)
        require_number("data.crop_share", self.crop_share, low=0.1, high=1)
        if self.max_per_class is not None:
            require_number("data.max_per_class", self.max_per_class, low=3)
        if self.classes is not None:
            require(len(set(self.classes)) >= 2, "data.classes must name at least 2 different breeds", self.classes)
        require_number("data.valid_share", self.valid_share, low=0, high=0.9, low_open=True)
        require_number("data.test_share", self.test_share, low=0, high=0.9, low_open=True)
        require(
            self.valid_share + self.test_share < 0.95,
            "data.valid_share + data.test_share must leave at least 0.05 to train on",
            self.valid_share + self.test_share,
        )
        require_number("data.seed", self.seed, low=0)
        require_number("data.max_bad_share", self.max_bad_share, low=0, high=1)

    def _refuse_secrets(self) -> None:
        """Every run and every model records the path."""
        parts = urlsplit(self.path or "")
        if parts.scheme in ("http", "https") and (parts.password or _SECRET_PARAMETER.search(parts.query)):
            raise ConfigError(
                f"data.path ({parts.scheme}://{parts.hostname}) must hold no password and no signature, since every "
                "run and every model records it; put that into ~/.netrc, which downloads read, or download the archive "
                "by other means and set data.path to the file."
            )


@dataclass(frozen=True)
class ModelConfig:
    """The ResNet50: its weights and how much of it is trained."""

    weights: str = "auto"
    """A torchvision name (IMAGENET1K_V2), a local file, `random`, or `auto`: cached or downloaded, else random."""
    resnet_version: str = "1.5"
    """1 has the stride on a block's first 1x1 convolution (Caffe, Keras), 1.5 on its 3x3 (torchvision)."""
    trainable: Trainable = "head"
    """What is trained: the linear head alone, or also layer4, layer3 and up, or all."""
    dropout: float = 0.0
    """Dropout before the linear head, a probability."""
    seed: int = 0
    """Seed of random weights."""

    def __post_init__(self) -> None:
        require(bool(self.weights), "model.weights must be a torchvision name, a file, random or auto", self.weights)
        require_choice("model.resnet_version", self.resnet_version, ("1", "1.5"))
        require_choice("model.trainable", self.trainable, get_args(Trainable))
        require_number("model.dropout", self.dropout, low=0, high=0.99)
        require_number("model.seed", self.seed, low=0)


@dataclass(frozen=True)
class FeaturesConfig:
    """The frozen prefix's outputs, computed once and kept."""

    dir: str = ".dogbreed/features"
    """Folder of the kept features; relative to the project root."""
    max_gib: float = 8.0
    """Largest size in GiB of one data set's features."""
    backend: BackendName = "auto"
    """What runs the frozen prefix; auto takes the fastest here that agrees with torch fp32."""

    def __post_init__(self) -> None:
        require(bool(self.dir), "features.dir must name a folder", self.dir)
        require_number("features.max_gib", self.max_gib, low=0, low_open=True)
        require_choice("features.backend", self.backend, get_args(BackendName))


@dataclass(frozen=True)
class TrainConfig:
    """One training: the hyperparameters of a single trial."""

    num_epochs: int = 5
    """Passes over the train split."""
    batch_size: int = 32
    """Images of one optimizer step."""
    lr: float = 1.0e-3
    """Peak learning rate."""
    optimizer: Literal["adamw", "sgd", "adam"] = "adamw"
    """adamw, sgd (momentum 0.9, Nesterov) or adam."""
    weight_decay: float = 1.0e-4
    """Weight decay (adamw: decoupled; sgd and adam: L2), not applied to biases and norms."""
    schedule: Literal["cosine", "one_cycle", "none"] = "cosine"
    """Learning rate over the steps: cosine to 0, one_cycle (warm-up, then cosine), or none (constant)."""
    label_smoothing: float = 0.0
    """Share of each label spread over all breeds."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs each breed's loss by the inverse of its share in train."""
    augmentation: Augmentation = "none"
    """How train images are varied; with a frozen prefix it needs num_views above 1 to be cached."""
    num_views: int = 1
    """Views kept of each train image: the plain one and num_views - 1 augmented ones; 1 augments afresh each epoch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the trained part: auto is bf16 autocast on CUDA and for convolutions on a CPU with AVX512-BF16, else fp32."""
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    """Order in memory of a batch of images or feature maps; auto takes it as loaded: images channels_last, kept
    feature maps contiguous. `dogbreed profile --suggest` tries the other."""
    patience: int | None = None
    """Stop after so many epochs without a lower valid/loss, and keep the best epoch's weights; null never stops."""
    num_workers: int = 2
    """Worker processes that decode images where features are not kept."""
    seed: int = 0
    """Seed of the head's first weights, of the order of batches and of augmentation."""

    def __post_init__(self) -> None:
        require_number("train.num_epochs", self.num_epochs, low=1)
        require_number("train.batch_size", self.batch_size, low=1)
        require_number("train.lr", self.lr, low=0, low_open=True)
        require_choice("train.optimizer", self.optimizer, ("adamw", "sgd", "adam"))
        require_number("train.weight_decay", self.weight_decay, low=0)
        require_choice("train.schedule", self.schedule, ("cosine", "one_cycle", "none"))
        require_number("train.label_smoothing", self.label_smoothing, low=0, high=0.99)
        require_choice("train.class_weights", self.class_weights, ("none", "balanced"))
        require_choice("train.augmentation", self.augmentation, get_args(Augmentation))
        require_number("train.num_views", self.num_views, low=1, high=64)
        require(
            self.num_views == 1 or self.augmentation != "none",
            "train.num_views above 1 needs train.augmentation other than none",
            self.num_views,
        )
        require(
            self.num_views <= 2 or self.augmentation != "flip",
            "train.num_views must be at most 2 for train.augmentation=flip (an image has one mirror image)",
            self.num_views,
        )
        require_choice("train.precision", self.precision, ("auto", "fp32", "bf16"))
        require_choice("train.memory_format", self.memory_format, ("auto", "channels_last", "contiguous"))
        if self.patience is not None:
            require_number("train.patience", self.patience, low=1)
        require_number("train.num_workers", self.num_workers, low=1)
        require_number("train.seed", self.seed, low=0)


@dataclass(frozen=True, kw_only=True)
class FloatDimension:
    """A float hyperparameter in [low, high]."""

    type: Literal["float"] = "float"
    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        require(math.isfinite(self.low), "low must be a finite number", self.low)
        require_number("high", self.high, low=self.low)
        require(not self.log or self.low > 0, "low must be above 0 where log is true", self.low)
        require(not (self.log and self.step is not None), "step must be null where log is true", self.step)
        if self.step is not None:
            require_number("step", self.step, low=0, low_open=True)


@dataclass(frozen=True, kw_only=True)
class IntDimension:
    """An integer hyperparameter in [low, high], both included."""

    type: Literal["int"] = "int"
    low: int
    high: int
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
        require_number("high", self.high, low=self.low)
        require(not self.log or self.low > 0, "low must be above 0 where log is true", self.low)
        require(not self.log or self.step == 1, "step must be 1 where log is true", self.step)
        require_number("step", self.step, low=1)


@dataclass(frozen=True, kw_only=True)
class CategoricalDimension:
    """A hyperparameter that takes one of the choices."""

    type: Literal["categorical"] = "categorical"
    choices: list[bool | int | float | str | None]

    def __post_init__(self) -> None:
        require(len(self.choices) > 0, "choices must not be empty", self.choices)
        require(len({repr(c) for c in self.choices}) == len(self.choices), "choices must differ", self.choices)
        # NaN is the one value that does not equal itself.
        require(all(c == c for c in self.choices), "choices must not hold NaN", self.choices)


Dimension = FloatDimension | IntDimension | CategoricalDimension


def _default_space() -> dict[str, Dimension]:
    return {
        "train.lr": FloatDimension(low=1e-4, high=1e-1, log=True),
        "train.batch_size": CategoricalDimension(choices=[16, 32, 64]),
    }


@dataclass(frozen=True)
class SearchConfig:
    """The search: what is varied, by whom, and for how long."""

    engine: Literal["optuna", "sagemaker"] = "optuna"
    """Who drives it: Optuna here, or SageMaker's tuner with a training job a trial."""
    metric: str = "valid/accuracy_top1"
    """The metric that decides, as an epoch logs it."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """Whether more of the metric is better."""
    num_trials: int = 20
    """Trials in all, those of an interrupted search counted in."""
    num_parallel: int = 1
    """Worker processes that run trials at once, sharing the features."""
    sampler: Literal["tpe", "gp", "cmaes", "qmc", "random", "grid"] = "tpe"
    """Optuna's sampler."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Optuna's pruner."""
    timeout_s: float | None = None
    """No trial starts after so many seconds; null has no limit."""
    refit: Literal["train", "train_valid"] = "train_valid"
    """What the best trial's hyperparameters are trained on for the registered model."""
    ensemble: int = 1
    """Heads of the best so many trials, averaged into the registered model; above 1 needs model.trainable=head."""
    seed: int = 0
    """Seed of the sampler."""
    features_on: Literal["local", "sagemaker"] = "local"
    """Where the features for SageMaker's tuner are computed: on this machine, or by a first training job."""
    space: dict[str, Dimension] = field(default_factory=_default_space)
    """Dimensions by dotted config name: {train.lr: {type: float, low: 1.0e-4, high: 0.1, log: true}}."""

    def __post_init__(self) -> None:
        require(
            bool(re.fullmatch(r"(train|valid)/[A-Za-z0-9_]+", self.metric)),
            "search.metric must be a train/ or valid/ metric (the test split is looked at once, at the end)",
            self.metric,
        )
        require_choice("search.engine", self.engine, ("optuna", "sagemaker"))
        require_choice("search.features_on", self.features_on, ("local", "sagemaker"))
        if self.engine == "sagemaker":
            require(
                self.sampler not in ("cmaes", "qmc"),
                "search.sampler must be tpe or gp (Bayesian), random or grid for search.engine=sagemaker",
                self.sampler,
            )
        require_choice("search.direction", self.direction, ("maximize", "minimize"))
        require_number("search.num_trials", self.num_trials, low=1)
        require_number("search.num_parallel", self.num_parallel, low=1)
        require_choice("search.sampler", self.sampler, ("tpe", "gp", "cmaes", "qmc", "random", "grid"))
        require_choice("search.pruner", self.pruner, ("median", "hyperband", "none"))
        if self.timeout_s is not None:
            require_number("search.timeout_s", self.timeout_s, low=0, low_open=True)
        require_choice("search.refit", self.refit, ("train", "train_valid"))
        require_number("search.ensemble", self.ensemble, low=1, high=64)
        require_number("search.seed", self.seed, low=0)
        require(len(self.space) > 0, "search.space must have at least one dimension", self.space)
        for name, dimension in self.space.items():
            if self.sampler == "grid" and isinstance(dimension, FloatDimension):
                require(
                    dimension.step is not None,
                    f"search.space.{name} needs a step (or categorical choices) for search.sampler=grid",
                    dimension.step,
                )


@dataclass(frozen=True)
class TrackingConfig:
    """What is recorded in MLflow besides params, metrics and artifacts."""

    system_metrics: bool = True
    """Whether the parent run records CPU, memory, disk, network and GPU use."""
    system_metrics_interval_s: float = 5.0
    """Seconds between two samples of the system metrics."""
    retry_s: float = 300.0
    """How long writes wait for a tracking server that is away before the command fails, in seconds."""

    def __post_init__(self) -> None:
        require_number("tracking.system_metrics_interval_s", self.system_metrics_interval_s, low=0.1)
        require_number("tracking.retry_s", self.retry_s, low=0)


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment, the same on a laptop and on SageMaker."""

    name: str = "dogbreed"
    """The MLflow experiment; letters, digits and hyphens, at most 48. The registered model is <name>-resnet50."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    promotion: PromotionConfig = field(default_factory=PromotionConfig)
    deploy: DeployConfig = field(default_factory=DeployConfig)
    sagemaker: SagemakerConfig = field(default_factory=SagemakerConfig)
    hosting: HostingConfig = field(default_factory=HostingConfig)

    def __post_init__(self) -> None:
        require(
            bool(_NAME_PATTERN.fullmatch(self.name)) and len(self.name) <= 48,
            "name must be letters, digits and single hyphens, at most 48",
            self.name,
        )
        for dotted in self.search.space:
            self._check_searchable(dotted)
        self._check_ensemble()

    @property
    def registered_model_name(self) -> str:
        return f"{self.name}-resnet50"

    def _check_ensemble(self) -> None:
        if self.search.ensemble == 1:
            return
        rule = "search.ensemble above 1 averages linear heads over one frozen network"
        require(self.model.trainable == "head", f"{rule}: model.trainable must be head", self.model.trainable)
        others = [name for name in self.search.space if not name.startswith("train.") and name != "model.dropout"]
        require(not others, f"{rule}: search.space may name train fields and model.dropout only", others)

    def _check_searchable(self, dotted: str) -> None:
        known = [name for name in flatten(self) if is_searchable(name)]
        if dotted not in known:
            raise ConfigError(
                "search.space may name any field of model, features or train, data.image_size and data.crop_share, "
                f"got {dotted!r}{nearest(dotted, known)}"
            )
        section, _, leaf = dotted.partition(".")
        takes = get_type_hints(type(getattr(self, section)))[leaf]
        if isinstance(self.search.space[dotted], FloatDimension) and takes in (int, int | None):
            raise ConfigError(f"search.space.{dotted} must be of type int or categorical, got float.")


def is_searchable(dotted: str) -> bool:
    """Whether trials may differ in this field and still be scored on the same valid split."""
    return dotted in ("data.image_size", "data.crop_share") or dotted.split(".")[0] in ("model", "features", "train")


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


def _walk(section: _Dataclass, prefix: str) -> Iterator[tuple[str, Any]]:
    for each in fields(section):
        value = getattr(section, each.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from _walk(value, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}", value


def flatten(config: ExperimentConfig) -> dict[str, Any]:
    """Leaf fields by dotted name; search.space stays one dict."""
    return dict(_walk(config, ""))


def with_values(config: ExperimentConfig, values: Mapping[str, Any]) -> ExperimentConfig:
    """The config with leaf fields replaced by dotted name.

    Raises ConfigError for an unknown name or a value that breaks its rule.
    """
    sections: dict[str, dict[str, Any]] = {}
    known = flatten(config)
    for dotted, value in values.items():
        if dotted not in known:
            raise ConfigError(f"{dotted!r} is not a config field{nearest(dotted, list(known))}")
        section, _, leaf = dotted.rpartition(".")
        sections.setdefault(section, {})[leaf] = value
    top = sections.pop("", {})
    parts = {name: dataclasses.replace(getattr(config, name), **leaves) for name, leaves in sections.items()}
    return dataclasses.replace(config, **top, **parts)


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Nested plain values, ready for YAML or JSON; ExperimentConfig's own constructor order."""
    return dataclasses.asdict(config)


def without_secrets(config: ExperimentConfig) -> ExperimentConfig:
    """The config as it may be recorded: of sagemaker.environment the names alone."""
    hidden = dict.fromkeys(config.sagemaker.environment, NOT_RECORDED)
    return dataclasses.replace(config, sagemaker=dataclasses.replace(config.sagemaker, environment=hidden))


def from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """The inverse of `to_dict`, for a config stored in a checkpoint; raises ConfigError."""
    dimension_types = {"float": FloatDimension, "int": IntDimension, "categorical": CategoricalDimension}
    sections: dict[str, Any] = {}
    section_types = {each.name: each.type for each in fields(ExperimentConfig)}
    try:
        for name, value in values.items():
            section_type = section_types[name]
            if name == "search":
                space = {dotted: dimension_types[d["type"]](**d) for dotted, d in value["space"].items()}
                value = {**value, "space": space}
            sections[name] = section_type(**value) if isinstance(section_type, type) and name != "name" else value
        return ExperimentConfig(**sections)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"The stored config does not fit this version of dogbreed-ml: {error}.") from error


def config_hash(config: ExperimentConfig, *, without: tuple[str, ...] = ()) -> str:
    """16 hex digits over all leaf fields but those of the dotted names in `without`."""
    values = to_dict(config)
    for dotted in without:
        section, _, leaf = dotted.rpartition(".")
        del values[section][leaf]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
