import math

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sagemaker_jobs.local.errors import ValidationException
from sagemaker_jobs.local.ranges import num_combinations, parse_ranges, render_value


def continuous(low: str, high: str, scaling: str | None = None) -> dict[str, object]:
    given = {"Name": "lr", "MinValue": low, "MaxValue": high}
    return {"ContinuousParameterRanges": [given | ({"ScalingType": scaling} if scaling else {})]}


def integer(low: str, high: str, scaling: str | None = None) -> dict[str, object]:
    given = {"Name": "depth", "MinValue": low, "MaxValue": high}
    return {"IntegerParameterRanges": [given | ({"ScalingType": scaling} if scaling else {})]}


@pytest.mark.parametrize(
    ("low", "high", "scaling", "is_log"),
    [
        ("0.001", "0.1", "Linear", False),
        ("0.1", "0.2", "Logarithmic", True),
        ("0.001", "0.1", "Auto", True),
        ("0.001", "0.1", None, True),
        ("0.01", "0.1", "Auto", False),
        ("0", "1", "Auto", False),
        ("-1", "1", "Auto", False),
    ],
)
def test_continuous_range_follows_its_scaling_type(low: str, high: str, scaling: str | None, is_log: bool) -> None:
    parsed = parse_ranges(continuous(low, high, scaling))

    assert parsed == {"lr": FloatDistribution(float(low), float(high), log=is_log)}


@pytest.mark.parametrize(
    ("low", "high", "scaling", "is_log"),
    [
        ("1", "9", "Linear", False),
        ("1", "9", "Logarithmic", True),
        ("1", "256", "Auto", True),
        ("0", "256", None, False),
    ],
)
def test_integer_range_follows_its_scaling_type(low: str, high: str, scaling: str | None, is_log: bool) -> None:
    assert parse_ranges(integer(low, high, scaling)) == {"depth": IntDistribution(int(low), int(high), log=is_log)}


def test_categorical_range_keeps_its_strings() -> None:
    parsed = parse_ranges({"CategoricalParameterRanges": [{"Name": "size", "Values": ["16", '"adam"', "true"]}]})

    assert parsed == {"size": CategoricalDistribution(["16", '"adam"', "true"])}


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({}, "at least one range"),
        ({"AutoParameters": [{"Name": "lr", "ValueHint": "0.1"}]}, "AutoParameters are not supported"),
        (continuous("0", "1", "Logarithmic"), "greater than 0; MinValue of lr is 0.0"),
        (continuous("0", "0.9", "ReverseLogarithmic"), "ReverseLogarithmic .lr. is not supported"),
        (integer("1", "9", "ReverseLogarithmic"), "ReverseLogarithmic .depth. is not supported"),
        (continuous("2", "1"), "MinValue of lr must be at most MaxValue, got 2.0 and 1.0"),
        (continuous("nan", "1"), "MinValue of the continuous hyperparameter lr must be a number, got 'nan'"),
        (continuous("0", "inf"), "MaxValue of the continuous hyperparameter lr must be a number"),
        (integer("1", "2.5"), "MaxValue of the integer hyperparameter depth must be an integer, got '2.5'"),
        ({"CategoricalParameterRanges": [{"Name": "c", "Values": ["a", "a"]}]}, "values of c must differ"),
        (
            {**integer("1", "2"), "CategoricalParameterRanges": [{"Name": "depth", "Values": ["1"]}]},
            "depth has two ranges",
        ),
    ],
)
def test_ranges_that_cannot_be_searched_are_refused(ranges: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationException, match=message):
        parse_ranges(ranges)


def test_ranges_count_together() -> None:
    names = [f"h{index}" for index in range(31)]
    ranges = {
        "IntegerParameterRanges": [{"Name": name, "MinValue": "1", "MaxValue": "2"} for name in names[:20]],
        "CategoricalParameterRanges": [{"Name": name, "Values": ["a"]} for name in names[20:]],
    }

    with pytest.raises(ValidationException, match="at most 30 ranges in all, got 31"):
        parse_ranges(ranges)


def test_grid_is_of_categorical_hyperparameters_only() -> None:
    two = {
        "CategoricalParameterRanges": [{"Name": "a", "Values": ["1", "2"]}, {"Name": "b", "Values": ["x", "y", "z"]}]
    }

    assert num_combinations(parse_ranges(two)) == 6
    with pytest.raises(ValidationException, match="depth has a range of numbers"):
        num_combinations(parse_ranges(integer("1", "2")))


def test_rendered_values_lose_nothing() -> None:
    assert [render_value(value) for value in (7, "adam", 1e-5)] == ["7", "adam", "1e-05"]
    assert float(render_value(math.pi / 1e4)) == math.pi / 1e4
