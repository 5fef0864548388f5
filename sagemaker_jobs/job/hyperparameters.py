"""SageMaker's hyperparameters, which are text, as values of the config."""

import json
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dogbreed_ml.checks import nearest
from dogbreed_ml.config import ExperimentConfig, flatten
from dogbreed_ml.errors import ConfigError

_OTHERS = ("sagemaker_", "_")
"""Prefixes of what SageMaker and its toolkit put beside ours: sagemaker_program, _tuning_objective_metric."""


def parse_hyperparameters(hyperparameters: Mapping[str, Any], config: ExperimentConfig) -> dict[str, Any]:
    """Values by dotted config name, for `with_values`.

    Takes the request's text and what the training toolkit makes of it: it decodes whatever is JSON, so that the text
    "1" arrives as a number. Raises ConfigError for a name that is no config field.
    """
    own = {name: value for name, value in hyperparameters.items() if not name.startswith(_OTHERS)}
    known = flatten(config)
    for name in own:
        if name not in known:
            raise ConfigError(f"{name!r} is a hyperparameter but not a config field{nearest(name, list(known))}")
    return {name: _parse(name, value, _hint(config, name)) for name, value in own.items()}


def _hint(config: ExperimentConfig, name: str) -> Any:
    section, _, leaf = name.rpartition(".")
    return get_type_hints(type(getattr(config, section) if section else config))[leaf]


def _parse(name: str, value: Any, hint: Any) -> Any:
    """`value` as the field takes it; what fits no way is left for the field's own rule to refuse."""
    kinds = _kinds(hint)
    if isinstance(value, str):
        # The toolkit hands on a null as an empty text.
        if NoneType in kinds and value in ("", "null", "None"):
            return None
        if value[:1] == '"' or str not in kinds:
            value = _decoded(value)
    if value is None or type(value) in kinds:
        return value
    if bool in kinds and value in ("True", "False"):
        return value == "True"
    if str in kinds and not isinstance(value, list | dict):
        return json.dumps(value)
    try:
        if float in kinds and not isinstance(value, bool):
            return float(value)
        if int in kinds and not isinstance(value, bool) and float(value).is_integer():
            return int(float(value))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The hyperparameter {name} must be a number, got {value!r}.") from error
    return value


def _kinds(hint: Any) -> set[Any]:
    """The plain types that a field takes: of str | None, str and NoneType; of Literal["a"], str."""
    if get_origin(hint) is Literal:
        return {type(each) for each in get_args(hint)}
    members = get_args(hint) if get_origin(hint) not in (list, dict) else ()
    if members:
        return set().union(*map(_kinds, members))
    return {get_origin(hint) or hint}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
