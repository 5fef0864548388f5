"""Hyperparameters as text, and as the training toolkit decodes them."""

import json
from typing import Any

import pytest

from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.errors import ConfigError
from sagemaker_jobs.job.hyperparameters import parse_hyperparameters

CONFIG = ExperimentConfig()


def _toolkit(value: str) -> Any:
    """What sagemaker-training makes of a hyperparameter's text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("train.lr", "0.01", 0.01),
        ("train.lr", "1", 1.0),
        ("train.batch_size", "32", 32),
        ("train.batch_size", "32.0", 32),
        ("train.optimizer", "sgd", "sgd"),
        ("train.optimizer", '"sgd"', "sgd"),
        ("train.patience", "null", None),
        ("train.patience", "2", 2),
        ("model.resnet_version", "1", "1"),
        ("model.resnet_version", "1.5", "1.5"),
        ("model.weights", "1e-3", "1e-3"),
        ("profile.enabled", "true", True),
        ("profile.enabled", "True", True),
        ("data.classes", '["Beagle", "Xolo"]', ["Beagle", "Xolo"]),
        ("name", "dogs", "dogs"),
    ],
)
def test_value_is_the_fields_own_whether_or_not_it_was_decoded(name: str, text: str, expected: Any) -> None:
    assert parse_hyperparameters({name: text}, CONFIG) == {name: expected}
    decoded = parse_hyperparameters({name: _toolkit(text)}, CONFIG)
    if name != "model.weights":
        assert decoded == {name: expected}
    assert type(decoded[name]) is type(expected)
    with_values(CONFIG, decoded)


def test_toolkits_empty_text_for_null_is_null() -> None:
    assert parse_hyperparameters({"train.patience": ""}, CONFIG) == {"train.patience": None}


def test_what_sagemaker_adds_is_left_out() -> None:
    added = {"sagemaker_program": "train.py", "_tuning_objective_metric": "objective", "train.seed": "1"}
    assert parse_hyperparameters(added, CONFIG) == {"train.seed": 1}


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'train.bach_size'.*did you mean train.batch_size"):
        parse_hyperparameters({"train.bach_size": "8"}, CONFIG)


def test_number_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="train.lr must be a number, got 'fast'"):
        parse_hyperparameters({"train.lr": "fast"}, CONFIG)
