"""The hyperparameter ranges of a tuning job in Optuna's terms, and Optuna's values as SageMaker's strings."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sagemaker_jobs.local.errors import ValidationException

MAX_HYPERPARAMETERS = 30
"""All ranges of a tuning job together; botocore's model bounds each list alone."""

KINDS = {
    "IntegerParameterRanges": "integer",
    "ContinuousParameterRanges": "continuous",
    "CategoricalParameterRanges": "categorical",
}

_AUTO_LOGARITHMIC_RATIO = 100.0
"""Auto takes the logarithmic scale from this ratio of the ends on: AWS does not publish its rule."""


def parse_ranges(ranges: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """Distributions by hyperparameter name; raises ValidationException for a range that AWS refuses too."""
    if ranges.get("AutoParameters"):
        raise ValidationException("AutoParameters are not supported by the local SageMaker; give ranges instead.")
    distributions: dict[str, BaseDistribution] = {}
    for name, distribution in _each(ranges):
        if name in distributions:
            raise ValidationException(f"The hyperparameter {name} has two ranges; a hyperparameter has one.")
        distributions[name] = distribution
    if not distributions:
        raise ValidationException("ParameterRanges must have at least one range to search.")
    if len(distributions) > MAX_HYPERPARAMETERS:
        raise ValidationException(
            f"ParameterRanges must have at most {MAX_HYPERPARAMETERS} ranges in all, got {len(distributions)}."
        )
    return distributions


def num_combinations(distributions: Mapping[str, BaseDistribution]) -> int:
    """The size of the grid; raises ValidationException where one range is not categorical, as AWS does."""
    count = 1
    for name, distribution in distributions.items():
        if not isinstance(distribution, CategoricalDistribution):
            raise ValidationException(
                f"The Grid strategy searches categorical hyperparameters only; {name} has a range of numbers."
            )
        count *= len(distribution.choices)
    return count


def render_value(value: object) -> str:
    """A sampled value as the training job gets it; a float keeps all its digits."""
    return repr(value) if isinstance(value, float) else str(value)


def parse_value(text: str, distribution: BaseDistribution) -> object:
    """A training job's string as a value of the distribution's kind, or None; it need not be within the range."""
    try:
        match distribution:
            case IntDistribution():
                return int(text)
            case FloatDistribution():
                return float(text)
    except ValueError:
        return None
    return text


def _each(ranges: Mapping[str, Any]) -> Iterator[tuple[str, BaseDistribution]]:
    for given in ranges.get("IntegerParameterRanges", []):
        ends = [_integer(given, key) for key in ("MinValue", "MaxValue")]
        yield given["Name"], IntDistribution(ends[0], ends[1], log=_is_logarithmic(given, ends[0], ends[1]))
    for given in ranges.get("ContinuousParameterRanges", []):
        low, high = (_number(given, key) for key in ("MinValue", "MaxValue"))
        yield given["Name"], FloatDistribution(low, high, log=_is_logarithmic(given, low, high))
    for given in ranges.get("CategoricalParameterRanges", []):
        values = given["Values"]
        if len(set(values)) < len(values):
            raise ValidationException(f"The values of {given['Name']} must differ from each other, got {values}.")
        yield given["Name"], CategoricalDistribution(values)


def _integer(given: Mapping[str, str], key: str) -> int:
    try:
        return int(given[key])
    except ValueError:
        raise ValidationException(
            f"{key} of the integer hyperparameter {given['Name']} must be an integer, got {given[key]!r}."
        ) from None


def _number(given: Mapping[str, str], key: str) -> float:
    try:
        number = float(given[key])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValidationException(
            f"{key} of the continuous hyperparameter {given['Name']} must be a number, got {given[key]!r}."
        )
    return number


def _is_logarithmic(given: Mapping[str, str], low: float, high: float) -> bool:
    """Checks the ends too, since which ones are allowed depends on the scale."""
    name, scaling = given["Name"], given.get("ScalingType", "Auto")
    if low > high:
        raise ValidationException(f"MinValue of {name} must be at most MaxValue, got {low} and {high}.")
    if scaling == "ReverseLogarithmic":
        raise ValidationException(f"ScalingType ReverseLogarithmic ({name}) is not supported by the local SageMaker.")
    if scaling == "Logarithmic" and low <= 0:
        raise ValidationException(
            f"Logarithmic scaling works only for ranges that are greater than 0; MinValue of {name} is {low}."
        )
    return scaling == "Logarithmic" or (scaling == "Auto" and low > 0 and high / low >= _AUTO_LOGARITHMIC_RATIO)
