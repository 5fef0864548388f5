"""The config's own rules; how it is read from YAML and flags is in test_arguments.py."""

import ast
import dataclasses
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dogbreed_ml import config as config_module
from dogbreed_ml.checks import nearest
from dogbreed_ml.config import (
    NOT_RECORDED,
    CategoricalDimension,
    DataConfig,
    ExperimentConfig,
    FloatDimension,
    IntDimension,
    SearchConfig,
    TrainConfig,
    config_hash,
    flatten,
    from_dict,
    to_dict,
    with_values,
)
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.provenance import shown_arguments

DEFAULTS = flatten(ExperimentConfig())

BAD_VALUES = [
    ("name", "two words"),
    ("name", "-dogs"),
    ("name", "a--b"),
    ("name", "x" * 49),
    ("data.source", "ftp"),
    ("data.path", "photographs"),
    ("data.checksum", "sha256:12"),
    ("data.num_breeds", 1),
    ("data.num_breeds", 61),
    ("data.num_per_breed", 2),
    ("data.image_size", 31),
    ("data.crop_share", 0.05),
    ("data.crop_share", 1.01),
    ("data.max_per_class", 2),
    ("data.classes", ["Beagle"]),
    ("data.classes", ["Beagle", "Beagle"]),
    ("data.valid_share", 0),
    ("data.test_share", 1),
    ("data.seed", -1),
    ("data.max_bad_share", 1.5),
    ("model.weights", ""),
    ("model.resnet_version", "2"),
    ("model.trainable", "layer2"),
    ("model.dropout", 1),
    ("features.dir", ""),
    ("features.max_gib", 0),
    ("features.backend", "tensorrt"),
    ("train.num_epochs", 0),
    ("train.batch_size", 0),
    ("train.lr", 0),
    ("train.optimizer", "lion"),
    ("train.weight_decay", -1e-3),
    ("train.schedule", "linear"),
    ("train.label_smoothing", 1),
    ("train.class_weights", "inverse"),
    ("train.augmentation", "mixup"),
    ("train.num_views", 0),
    ("train.num_views", 65),
    ("train.precision", "fp16"),
    ("train.memory_format", "nhwc"),
    ("train.patience", 0),
    ("train.num_workers", 0),
    ("train.seed", -1),
    ("search.metric", "test/accuracy_top1"),
    ("search.direction", "up"),
    ("search.num_trials", 0),
    ("search.num_parallel", 0),
    ("search.sampler", "bohb"),
    ("search.pruner", "asha"),
    ("search.timeout_s", 0),
    ("search.refit", "test"),
    ("search.space", {}),
    ("search.seed", -1),
    ("tracking.system_metrics_interval_s", 0),
    ("tracking.retry_s", -1),
]


@pytest.mark.parametrize(("dotted", "value"), BAD_VALUES, ids=[f"{name}={value}" for name, value in BAD_VALUES])
def test_bad_value_is_refused_by_name_and_value(dotted: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        with_values(ExperimentConfig(), {dotted: value})
    message = str(caught.value)
    assert dotted in message
    assert repr(value) in message
    assert "\n" not in message


@pytest.mark.parametrize("dotted", [name for name, value in DEFAULTS.items() if type(value) in (int, float)])
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_every_number_refuses_nan_and_infinity(dotted: str, value: float) -> None:
    with pytest.raises(ConfigError, match=dotted):
        with_values(ExperimentConfig(), {dotted: value})


@pytest.mark.parametrize("dotted", ["data.max_per_class", "train.patience", "search.timeout_s"])
def test_every_optional_number_refuses_nan(dotted: str) -> None:
    with pytest.raises(ConfigError, match=dotted):
        with_values(ExperimentConfig(), {dotted: math.nan})


def test_every_field_has_a_docstring() -> None:
    """The help texts are these; a field without one would show nothing."""
    tree = ast.parse(Path(inspect.getfile(config_module)).read_text(encoding="utf-8"))
    silent = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                section = isinstance(field, ast.AnnAssign) and "Config" in ast.unparse(field.annotation)
                if isinstance(field, ast.AnnAssign) and not told and not section:
                    silent.append(f"{node.name}.{ast.unparse(field.target)}")
    assert silent == []


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExperimentConfig().name = "other"  # type: ignore[misc]


def test_shares_must_leave_something_to_train_on() -> None:
    with pytest.raises(ConfigError, match="leave at least 0.05 to train on"):
        DataConfig(valid_share=0.5, test_share=0.5)


def test_s3_source_wants_a_bucket() -> None:
    assert DataConfig(source="s3", path="s3://dogs/photographs").path == "s3://dogs/photographs"
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        DataConfig(source="s3", path="https://dogs")


def test_views_need_an_augmentation_that_has_so_many() -> None:
    assert TrainConfig(num_views=2, augmentation="flip").num_views == 2
    with pytest.raises(ConfigError, match="needs train.augmentation"):
        TrainConfig(num_views=2)
    with pytest.raises(ConfigError, match="one mirror image"):
        TrainConfig(num_views=3, augmentation="flip")


def test_grid_sampler_needs_steps() -> None:
    with pytest.raises(ConfigError, match="needs a step"):
        SearchConfig(sampler="grid", space={"train.lr": FloatDimension(low=0.1, high=1)})
    stepped = SearchConfig(sampler="grid", space={"train.lr": FloatDimension(low=0.1, high=1, step=0.3)})
    assert stepped.sampler == "grid"


@pytest.mark.parametrize(
    ("dimension", "values", "match"),
    [
        (FloatDimension, {"low": 2, "high": 1}, "high must be at least 2"),
        (FloatDimension, {"low": math.nan, "high": 1}, "low must be a finite number"),
        (FloatDimension, {"low": 0, "high": math.nan}, "high must be"),
        (FloatDimension, {"low": 0, "high": math.inf}, "high must be"),
        (FloatDimension, {"low": 0, "high": 1, "log": True}, "above 0 where log"),
        (FloatDimension, {"low": 1, "high": 2, "log": True, "step": 0.1}, "null where log"),
        (FloatDimension, {"low": 1, "high": 2, "step": 0}, "step must be above 0"),
        (IntDimension, {"low": 2, "high": 1}, "high must be at least 2"),
        (IntDimension, {"low": 0, "high": 8, "log": True}, "above 0 where log"),
        (IntDimension, {"low": 1, "high": 8, "log": True, "step": 2}, "1 where log"),
        (IntDimension, {"low": 1, "high": 8, "step": 0}, "step must be at least 1"),
        (CategoricalDimension, {"choices": []}, "must not be empty"),
        (CategoricalDimension, {"choices": [1, 1]}, "must differ"),
        (CategoricalDimension, {"choices": [1.0, math.nan]}, "NaN"),
    ],
)
def test_dimension_refuses(dimension: type, values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        dimension(**values)


def test_categorical_tells_true_from_1() -> None:
    assert CategoricalDimension(choices=[True, 1]).choices == [True, 1]


@pytest.mark.parametrize("dotted", ["data.seed", "data.path", "search.num_trials", "tracking.retry_s", "name"])
def test_search_may_not_vary_what_changes_the_splits(dotted: str) -> None:
    """Trials are compared on the same valid images, so nothing that moves an image between splits may vary."""
    with pytest.raises(ConfigError, match=f"search.space may name .*{dotted}"):
        ExperimentConfig(search=SearchConfig(space={dotted: IntDimension(low=1, high=2)}))


def test_misspelt_dimension_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"'train.lrr'; did you mean train.lr\?$"):
        ExperimentConfig(search=SearchConfig(space={"train.lrr": FloatDimension(low=1, high=2)}))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"Overfit_ratio_treshold": 2}, "'ratio_treshold' is not a parameter of Overfit; did you mean ratio_threshold"),
        ({"DeadRelu_nothing": 2}, "'nothing' is not a parameter of DeadRelu"),
        ({"Overfit_patience": "long"}, "Overfit_patience must be a whole number of at least 0, got 'long'"),
        ({"Overfits_patience": 2}, "'Overfits' is no rule; did you mean Overfit"),
        ({"overfit_patience": 2}, "'overfit' is no rule; did you mean Overfit"),
        ({"StepOutlier_stddev": None}, "must have a value for StepOutlier_stddev, got None"),
        ({"StepOutlier_std": 3}, "std is an invalid parameter name"),
        ({"StepOutlier": 3}, "does not follow naming scheme"),
    ],
)
def test_parameters_of_rules_are_checked_before_anything_runs(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProfileConfig(rules=rules)


@pytest.mark.parametrize(("name", "end"), [("train.batchsize", "; did you mean train.batch_size?"), ("zzz", ".")])
def test_nearest_ends_a_message(name: str, end: str) -> None:
    assert nearest(name, list(DEFAULTS)) == end


def test_flatten_names_every_leaf_once() -> None:
    assert DEFAULTS["train.lr"] == 1e-3
    assert DEFAULTS["name"] == "dogbreed"
    num_leaves = sum(len(v) if isinstance(v, dict) else 1 for v in to_dict(ExperimentConfig()).values())
    assert len(DEFAULTS) == num_leaves


def test_with_values_changes_only_what_it_names() -> None:
    config = with_values(ExperimentConfig(), {"train.lr": 0.5, "model.trainable": "layer4", "name": "dogs"})
    changed = {name: value for name, value in flatten(config).items() if value != DEFAULTS[name]}
    assert changed == {"train.lr": 0.5, "model.trainable": "layer4", "name": "dogs"}


def test_with_values_refuses_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"'train.learning_rate' is not a config field"):
        with_values(ExperimentConfig(), {"train.learning_rate": 0.5})


def test_from_dict_is_the_inverse_of_to_dict_through_json() -> None:
    config = with_values(
        ExperimentConfig(),
        {
            "train.patience": 3,
            "data.classes": ["Beagle", "Boxer"],
            "search.space": {
                "train.num_epochs": IntDimension(low=1, high=9, step=2),
                "train.lr": FloatDimension(low=1e-4, high=1, log=True),
                "train.optimizer": CategoricalDimension(choices=["sgd", "adam"]),
            },
        },
    )
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("stored", [{"train": {"learning_rate": 1}}, {"optimiser": {}}])
def test_from_dict_refuses_what_another_version_stored(stored: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not fit this version"):
        from_dict(stored)


def test_config_hash_sees_every_field_but_those_left_out() -> None:
    base = ExperimentConfig()
    assert config_hash(base) == config_hash(ExperimentConfig())
    assert config_hash(with_values(base, {"train.lr": 0.5})) != config_hash(base)
    more_trials = with_values(base, {"search.num_trials": 99})
    assert config_hash(more_trials) != config_hash(base)
    without = ("search.num_trials",)
    assert config_hash(more_trials, without=without) == config_hash(base, without=without)


def test_registered_model_is_named_after_the_experiment() -> None:
    assert ExperimentConfig(name="dogs").registered_model_name == "dogs-resnet50"


@pytest.mark.parametrize("name", ["train.num_epochs", "train.patience", "data.image_size"])
def test_float_dimension_over_a_whole_number_is_refused(name: str) -> None:
    space = {name: FloatDimension(low=1.0, high=100.0)}
    with pytest.raises(ConfigError, match=f"search.space.{name} must be of type int or categorical, got float"):
        with_values(ExperimentConfig(), {"search.space": space})


@pytest.mark.parametrize(
    "path",
    [
        "https://rex:woof-4711@host/dogs.zip",
        "https://host/dogs.zip?X-Amz-Signature=woof-4711",
        "http://host/d?token=woof-4711",
    ],
)
def test_secret_in_the_datas_address_is_refused_and_not_repeated(path: str) -> None:
    with pytest.raises(ConfigError, match="netrc") as caught:
        DataConfig(source="archive", path=path)
    assert "woof-4711" not in str(caught.value)
    assert DataConfig(source="archive", path="https://host/dogs.zip?version=2").path


def test_command_line_is_recorded_without_the_jobs_environment() -> None:
    given = [
        "train",
        "--sagemaker.environment",
        '{"TOKEN": "woof"}',
        "--name",
        "dogs",
        "--sagemaker.environment.A=woof",
    ]
    shown = shown_arguments(given)
    assert shown == [
        "train",
        "--sagemaker.environment",
        NOT_RECORDED,
        "--name",
        "dogs",
        f"--sagemaker.environment.A={NOT_RECORDED}",
    ]
