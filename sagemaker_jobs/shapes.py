"""Requests and answers against botocore's own model: what botocore checks on the client's side, and what only AWS does.

botocore itself checks keys and types, neither pattern, enum nor bounds; those are in its shapes all the same. The
mistakes are told in AWS's words.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

import botocore.session
import regex
from botocore import xform_name
from botocore.model import ListShape, MapShape, OperationModel, ServiceModel, Shape, StructureShape

_MAX_LISTED = 8
_INTEGERS = ("integer", "long")
_REQUIRED = "Member must not be null"
# Variables of a job and what a script is given: whatever a user's secrets are, they are there. Their names are not.
_SECRET = re.compile(r"(^|\.)(environment|hyperParameters|staticHyperParameters)(\.|$)")


class WrongTypeError(TypeError):
    """A value of another type than its shape."""


def isolated_session() -> botocore.session.Session:
    """A session that reads no profile and no file of the user's: neither may lead it anywhere, nor fail it."""
    nowhere: dict[str, tuple[None, None, str | None, None]] = {"profile": (None, None, None, None)}
    nowhere |= dict.fromkeys(("config_file", "credentials_file"), (None, None, os.devnull, None))
    return botocore.session.Session(session_vars=nowhere)


@cache
def service_model(service: str) -> ServiceModel:
    """`sagemaker` or `sagemaker-runtime`; the first call takes 0.2 s."""
    return isolated_session().get_service_model(service)


@cache
def method_name(service: str, operation: str) -> str | None:
    """CreateTrainingJob -> create_training_job; None where the service has no such operation."""
    if operation not in service_model(service).operation_names:
        return None
    return str(xform_name(operation))


def request_errors(service: str, operation: str, params: Mapping[str, Any]) -> list[str]:
    """Every constraint that a request breaks; raises WrongTypeError. A member that the model lacks is not looked at."""
    shape = _operation(service, operation).input_shape
    return [] if shape is None else list(_errors(shape, params, ""))


def unknown_members(service: str, operation: str, params: Mapping[str, Any]) -> list[str]:
    """Members of a request that the model lacks, and nulls."""
    shape = _operation(service, operation).input_shape
    return [] if shape is None else list(_unknown(shape, params, ""))


def answer_errors(service: str, operation: str, answer: Mapping[str, Any]) -> list[str]:
    """Where an answer is not what the model promises; raises WrongTypeError.

    Timestamps are epoch floats. A member that the model does not know is an error too.
    """
    shape = _operation(service, operation).output_shape
    if shape is None:
        return [f"{operation} answers nothing, got {sorted(answer)}"] if answer else []
    return [*_errors(shape, answer, ""), *_unknown(shape, answer, "")]


def answer_members(service: str, operation: str) -> frozenset[str]:
    """The members of an operation's answer."""
    shape = _operation(service, operation).output_shape
    return frozenset(shape.members) if isinstance(shape, StructureShape) else frozenset()


def structure_members(service: str, shape_name: str) -> frozenset[str]:
    """The members of a structure by its name in the model, such as TrainingJobSummary."""
    return frozenset(service_model(service).shape_for(shape_name).members)


def _operation(service: str, operation: str) -> OperationModel:
    return service_model(service).operation_model(operation)


def _errors(shape: Shape, value: Any, path: str) -> Iterator[str]:
    if isinstance(shape, StructureShape):
        yield from _structure_errors(shape, _typed(value, Mapping, shape, path), path)
    elif isinstance(shape, ListShape):
        _typed(value, list, shape, path)
        yield from _length_errors(shape, value, path)
        for index, each in enumerate(value, start=1):
            yield from _errors(shape.member, each, f"{path}.{index}.member")
    elif isinstance(shape, MapShape):
        _typed(value, Mapping, shape, path)
        yield from _length_errors(shape, value, path)
        for key, each in value.items():
            yield from _errors(shape.key, key, path)
            yield from _errors(shape.value, each, f"{path}.{key}.member")
    elif shape.type_name == "string":
        yield from _string_errors(shape, _typed(value, str, shape, path), path)
    elif shape.type_name in _INTEGERS:
        yield from _range_errors(shape, _typed(value, int, shape, path), path)
    elif shape.type_name in ("float", "double"):
        yield from _range_errors(shape, _typed(value, (int, float), shape, path), path)
    elif shape.type_name == "timestamp":
        _typed(value, (int, float), shape, path)
    elif shape.type_name == "boolean":
        _typed(value, bool, shape, path)


def _structure_errors(shape: StructureShape, value: Mapping[str, Any], path: str) -> Iterator[str]:
    for name in shape.required_members:
        if value.get(name) is None:
            yield _render(None, _join(path, name), _REQUIRED)
    for name, member in shape.members.items():
        if value.get(name) is not None:
            yield from _errors(member, value[name], _join(path, name))


def _string_errors(shape: Shape, value: str, path: str) -> Iterator[str]:
    yield from _length_errors(shape, value, path)
    pattern = shape.metadata.get("pattern")
    # AWS matches the whole value, whether or not the pattern has anchors.
    if pattern and (compiled := _compiled(pattern)) and not compiled.fullmatch(value):
        yield _render(value, path, f"Member must satisfy regular expression pattern: {pattern}")
    if shape.enum and value not in shape.enum:
        # AWS prints them all, and an instance has hundreds of types.
        nearest = get_close_matches(value, shape.enum, _MAX_LISTED, cutoff=0.0)
        listed = shape.enum if len(shape.enum) <= _MAX_LISTED else [*nearest, "..."]
        yield _render(value, path, f"Member must satisfy enum value set: [{', '.join(listed)}]")


def _length_errors(shape: Shape, value: Any, path: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and len(value) < low:
        yield _render(value, path, f"Member must have length greater than or equal to {low}")
    if high is not None and len(value) > high:
        yield _render(value, path, f"Member must have length less than or equal to {high}")


def _range_errors(shape: Shape, value: float, path: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if isinstance(value, float) and not math.isfinite(value):
        yield _render(value, path, "Member must be a finite number")
    if low is not None and value < low:
        yield _render(value, path, f"Member must have value greater than or equal to {low}")
    if high is not None and value > high:
        yield _render(value, path, f"Member must have value less than or equal to {high}")


def _unknown(shape: Shape, value: Any, path: str) -> Iterator[str]:
    if isinstance(shape, StructureShape):
        for name, each in value.items():
            if name not in shape.members:
                yield f"'{_join(path, name)}' is no member of {shape.name}"
            elif each is None:
                yield f"'{_join(path, name)}' is null"
            else:
                yield from _unknown(shape.members[name], each, _join(path, name))
    elif isinstance(shape, ListShape):
        for index, each in enumerate(value, start=1):
            yield from _unknown(shape.member, each, f"{path}.{index}.member")
    elif isinstance(shape, MapShape):
        for key, each in value.items():
            yield from _unknown(shape.value, each, f"{path}.{key}.member")


def _typed(value: Any, types: type | tuple[type, ...], shape: Shape, path: str) -> Any:
    # bool is an int for Python, and no number for AWS.
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        raise WrongTypeError(f"{type(value).__name__} can not be converted to {shape.type_name} at '{path}'.")
    return value


def _join(path: str, name: str) -> str:
    name = name[:1].lower() + name[1:]
    return f"{path}.{name}" if path else name


def _render(value: Any, path: str, constraint: str) -> str:
    said = "Value null" if value is None else f"Value '{value}'"
    if value is not None and (match := _SECRET.search(path)) and (match[3] or isinstance(value, Mapping)):
        said = "Value (not shown)"
    return f"{said} at '{path}' failed to satisfy constraint: {constraint}"


@cache
def _compiled(pattern: str) -> "regex.Pattern[str] | None":
    # Java's \p{...} is regex's too, and not re's. One pattern pairs UTF-16 surrogates, which Python's text does not
    # have; it allows every character but control characters, and checks nothing here.
    try:
        return regex.compile(pattern)
    except regex.error:
        return None
