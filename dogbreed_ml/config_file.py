"""From a config's YAML file to values by dotted name; every mistake one line that names the file."""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import ConfigError

SECTIONS: dict[str, Any] = {
    each.name: each.type for each in dataclasses.fields(ExperimentConfig) if dataclasses.is_dataclass(each.type)
}


def field_types() -> dict[str, Any]:
    """Type of each config field by dotted name."""
    types = {"name": str}
    for name, section in SECTIONS.items():
        types |= {f"{name}.{leaf}": hint for leaf, hint in get_type_hints(section).items()}
    return types


def load_config_file(path: Path) -> dict[str, Any]:
    """Reads a config file into values by dotted name; an empty file or section is all defaults."""
    import yaml
    from jsonargparse import get_loader

    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated_keys(node, path)
        # The same dialect as the flags': 1e-3 is a number. It takes `train:` alone for text, hence the second branch.
        values = get_loader("yaml")(text) if text.strip() else None
        if isinstance(values, str) and isinstance(node, yaml.MappingNode):
            values = {key.value: None for key, _ in node.value}
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; --config takes a YAML file, as in experiments/.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); --config takes a YAML file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text; --config takes a YAML file.") from error
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path} is not YAML: {error.problem or error.context}{line}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold fields and sections such as `train: {{lr: 0.01}}`, got {_brief(values)}.")
    return dict(_flat_values(values, path))


def _refuse_repeated_keys(node: Any, path: Path) -> None:
    """YAML's loaders let the last of two equal keys win in silence."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise ConfigError(f"{path} has {key.value!r} twice, again in line {line}; keep one.")
                seen.add(key.value)
            _refuse_repeated_keys(value, path)


def _flat_values(values: dict[Any, Any], path: Path) -> Iterator[tuple[str, Any]]:
    hints = field_types()
    for name, value in values.items():
        if name in SECTIONS:
            if not isinstance(value, dict | NoneType):
                raise ConfigError(f"{path}: {name} must be a section of fields, got {_brief(value)}.")
            inner = {f"{name}.{leaf}": each for leaf, each in (value or {}).items()}
        else:
            inner = {str(name): value}
        for dotted, each in inner.items():
            if dotted in hints and (dotted == "name" or name in SECTIONS):
                yield dotted, _number_as_text(each, hints[dotted])
            elif dotted in hints:
                raise ConfigError(f"{path}: write {dotted} as a field of its section, `{_nested(dotted, value)}`.")
            else:
                raise ConfigError(f"{path}: {dotted!r} is not a config key{suggest(dotted, [*hints, *SECTIONS])}")


def _number_as_text(value: Any, hint: Any) -> Any:
    """`resnet_version: 1`: where a field is text, an unquoted number is meant as text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if is_number and str in (hint, *get_args(hint)) else value


def _nested(dotted: str, value: Any) -> str:
    section, _, leaf = dotted.partition(".")
    return f"{section}: {{{leaf}: {value}}}"


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def suggest(name: str, known: Sequence[str], *, prefix: str = "") -> str:
    """Renders the end of a message, as config.nearest: the same leaf elsewhere first (--lr), then the nearest name."""
    leaf = name.rpartition(".")[2]
    by_leaf = {each.rpartition(".")[2]: each for each in reversed(known)}
    close = [by_leaf[leaf]] if leaf in by_leaf else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    close = close or [by_leaf[each] for each in difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.5)]
    return f"; did you mean {prefix}{close[0]}?" if close else "."
