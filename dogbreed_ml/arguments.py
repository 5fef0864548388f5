"""From a command line to a Command: YAML first, flags on top, every mistake one line.

jsonargparse does the parsing, typing and help; this module adds what it leaves out: flags win over YAML wherever they
stand, an unknown name gets the nearest known one, and a message is rule, value, way out. It loads neither torch nor
MLflow.
"""

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from dogbreed_ml import __version__
from dogbreed_ml.checks import nearest
from dogbreed_ml.config import (
    CategoricalDimension,
    Dimension,
    ExperimentConfig,
    FloatDimension,
    IntDimension,
    from_dict,
)
from dogbreed_ml.config_file import SECTIONS, field_types, load_config_file, suggest
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.options import CONFIG_VERBS, VERBS, Options, Verb

EXAMPLES: dict[Verb, str] = {
    "data": "dogbreed data --data.source folder --data.path photographs",
    "train": "dogbreed train --config experiments/quickstart.yaml --train.lr 0.01 --train.num_epochs 10",
    "tune": "dogbreed tune --config experiments/dogs-folder.yaml --data.path photographs --search.num_trials 40",
    "profile": "dogbreed profile --config experiments/finetune-layer4.yaml --data.path photographs",
    "evaluate": "dogbreed evaluate --config experiments/quickstart.yaml --version challenger",
    "promote": "dogbreed promote --config experiments/quickstart.yaml --dry-run",
    "history": "dogbreed history --config experiments/quickstart.yaml",
    "deploy": "dogbreed deploy --config experiments/quickstart.yaml --port 8080",
    "rollback": "dogbreed rollback --endpoint quickstart-resnet50",
    "endpoints": "dogbreed endpoints",
    "delete": "dogbreed delete quickstart-resnet50-8080",
    "predict": "dogbreed predict --model models:/quickstart-resnet50@challenger rex.jpg",
    "ui": "dogbreed ui --port 5001",
    "sagemaker-local": "dogbreed sagemaker-local start --port 5006",
}

_DIMENSIONS: dict[str, type[Dimension]] = {
    "float": FloatDimension,
    "int": IntDimension,
    "categorical": CategoricalDimension,
}
_SPACE = "search.space"


@dataclass(frozen=True, kw_only=True)
class Command:
    """One parsed command line."""

    options: Options
    """Which verb, and what it takes besides the config."""
    config: ExperimentConfig = dataclasses.field(default_factory=ExperimentConfig)
    """The defaults, under the YAML of --config, under the flags; only the defaults for a verb that reads no config."""
    json: bool = False
    verbose: bool = False
    quiet: bool = False
    print_config: bool = False


def parse(argv: Sequence[str]) -> Command:
    """Parses what follows the program's name; raises ConfigError, and SystemExit(0) once help or version is printed."""
    top = _TopParser(
        prog="dogbreed",
        usage="dogbreed VERB [--config FILE] [--SECTION.FIELD VALUE ...]",
        description="Experiment tracking around MLflow for people who fine-tune image classifiers.",
        epilog=_render_verbs(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"dogbreed-ml {__version__}")
    top.add_argument("verb", metavar="VERB", help="what to do; `dogbreed VERB --help` shows its flags")
    top.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = top.parse_args(list(argv) or ["--help"])
    for verb in VERBS:
        if verb == parsed.verb:
            return _parse_verb(verb, parsed.arguments)
    known = list(VERBS)
    raise ConfigError(f"{parsed.verb!r} is not a verb ({', '.join(known)}){suggest(parsed.verb, known)}")


class _TopParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; the verb comes first, its flags after it: dogbreed VERB --help.")


def _render_verbs() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {options.__doc__}" for verb, options in VERBS.items())
    return f"verbs:\n{verbs}\n\nexample:\n  {EXAMPLES['tune']}"


def _parse_verb(verb: Verb, argv: list[str]) -> Command:
    # Not at the top: it takes 0.1 s, which `dogbreed --help` need not wait for.
    from jsonargparse import ArgumentError

    parser = _build_parser(verb)
    base = None
    # No file names what is given by its place alone; parse_object would miss it.
    from_files: dict[str, Any] = {each.name: [""] for each in _option_fields(verb) if each.metadata["nargs"]}
    for path in _config_paths(argv) if verb in CONFIG_VERBS else []:
        from_files |= load_config_file(path)
        try:
            base = parser.parse_object(from_files)
        except ArgumentError as error:
            raise ConfigError(f"{path}: {_render_error(str(error), verb)}") from error
    try:
        values = parser.parse_args(argv, namespace=base).as_dict()
    except ArgumentError as error:
        raise ConfigError(_render_error(str(error), verb)) from error
    for each in _option_fields(verb):
        if each.metadata["nargs"] and values[each.name] == [""]:
            raise ConfigError(f"{each.metadata['metavar']} is required: dogbreed {verb} --help.")
    return _to_command(verb, values)


def _to_command(verb: Verb, values: dict[str, Any]) -> Command:
    config = ExperimentConfig()
    if verb in CONFIG_VERBS:
        values.pop("config")
        sections = {each.name: values.pop(each.name) for each in dataclasses.fields(ExperimentConfig)}
        space = sections["search"]["space"]
        dimensions = config.search.space if space is None else {key: _parse_dimension(key, space[key]) for key in space}
        sections["search"]["space"] = {key: dataclasses.asdict(each) for key, each in dimensions.items()}
        _refuse_nulls(sections)
        config = from_dict(sections)
    options = VERBS[verb](**{each.name: _option_value(each, values.pop(_flag(each))) for each in _option_fields(verb)})
    if values["verbose"] and values["quiet"]:
        raise ConfigError("--verbose and --quiet exclude each other; give one of them.")
    return Command(options=options, config=config, **values)


def _option_fields(verb: Verb) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(VERBS[verb])


def _flag(option: dataclasses.Field[Any]) -> str:
    """`from` is a word of Python's, hence the field `from_`."""
    return option.name.rstrip("_")


def _option_value(option: dataclasses.Field[Any], value: Any) -> Any:
    """What the parser gave as what the dataclass declares: paths as Path, the positional values as text or a tuple."""
    if option.metadata["nargs"] == "1":
        return value[0]
    if option.metadata["nargs"] == "+":
        return tuple(value)
    return Path(value) if option.type == Path | None and value is not None else value


def _refuse_nulls(sections: Mapping[str, Any]) -> None:
    """jsonargparse takes null for "not given" and lets it pass for every type."""
    for dotted, hint in field_types().items():
        section, _, leaf = dotted.rpartition(".")
        value = sections[section][leaf] if section else sections[leaf]
        if value is None and NoneType not in get_args(hint):
            raise ConfigError(f"{dotted} must be {_render_type(hint)}, got null.")


def _parse_dimension(key: str, values: Any) -> Dimension:
    from jsonargparse import ArgumentError, ArgumentParser

    name = f"{_SPACE}.{key}"
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} must be a mapping such as {{type: float, low: 0.1, high: 1}}, got {values!r}.")
    if str(values.get("type")) not in _DIMENSIONS:
        raise ConfigError(f"{name} needs a type, one of {', '.join(_DIMENSIONS)}, got {values.get('type')!r}.")
    dimension_type = _DIMENSIONS[values["type"]]
    known = [each.name for each in dataclasses.fields(dimension_type)]
    for each in values:
        if each not in known:
            raise ConfigError(f"{name} has no {each!r}{nearest(str(each), known)}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(dimension_type, as_group=False)
    try:
        return dimension_type(**parser.parse_object(dict(values)).as_dict())
    except ArgumentError as error:
        raise ConfigError(_render_type_error(str(error), get_type_hints(dimension_type), prefix=f"{name}.")) from error
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


@cache
def _build_parser(verb: Verb) -> Any:
    from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

    class Formatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
        """Leaves the example on its line."""

    # Values are data: none of them may name a Python object to import.
    set_parsing_settings(docstring_parse_attribute_docstrings=True, import_path_denylist=["*"])
    parser = ArgumentParser(
        prog=f"dogbreed {verb}",
        usage=_render_usage(verb),
        description=f"{VERBS[verb].__doc__}.",
        epilog=f"example:\n  {EXAMPLES[verb]}",
        formatter_class=Formatter,
        # Ours prints the config as it was resolved and checked, search.space included.
        print_config=None,
        exit_on_error=False,
        allow_abbrev=False,
    )
    for option in _option_fields(verb):
        _add_option(parser, option)
    if verb != "ui":
        parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
    parser.add_argument("--verbose", action="store_true", help="log more, on stderr")
    parser.add_argument("--quiet", action="store_true", help="log warnings and errors only, and show no progress")
    if verb in CONFIG_VERBS:
        parser.add_argument("--print_config", action="store_true", help="print the resolved config as YAML and stop")
        parser.add_argument(
            "--config", metavar="FILE", help="the experiment's YAML; of several the later win, flags over all"
        )
        _add_config_flags(parser)
    return parser


def _add_option(parser: Any, option: dataclasses.Field[Any]) -> None:
    text, metavar, nargs = (option.metadata[key] for key in ("help", "metavar", "nargs"))
    flag = f"--{_flag(option).replace('_', '-')}"
    if nargs:
        choices = {"choices": get_args(option.type)} if get_origin(option.type) is Literal else {}
        parser.add_argument(option.name, nargs=1 if nargs == "1" else nargs, metavar=metavar, help=text, **choices)
    elif option.type is bool:
        parser.add_argument(flag, action="store_true", help=text)
    else:
        kind = str | None if option.type == Path | None else option.type
        parser.add_argument(flag, type=kind, default=option.default, metavar=metavar, help=text)


def _render_usage(verb: Verb) -> str:
    options = _option_fields(verb)
    positional = [each for each in options if each.metadata["nargs"]]
    words = [f"{each.metadata['metavar']}{' ...' * (each.metadata['nargs'] == '+')}" for each in positional]
    words += ["[--config FILE] [--SECTION.FIELD VALUE ...]"] if verb in CONFIG_VERBS else []
    words += ["[--OPTION ...]"] if len(positional) < len(options) else []
    return " ".join(["dogbreed", verb, *words, *(["[--json]"] if verb != "ui" else [])])


def _add_config_flags(parser: Any) -> None:
    parser.add_class_arguments(ExperimentConfig, as_group=False, skip=set(SECTIONS))
    for name, section in SECTIONS.items():
        group = parser.add_argument_group((section.__doc__ or name).strip().rstrip("."))
        group.add_class_arguments(section, name, as_group=False, skip={"space"})
        if name == "search":
            default = {key: dataclasses.asdict(each) for key, each in ExperimentConfig().search.space.items()}
            group.add_argument(
                f"--{_SPACE}",
                type=dict[str, Any],
                metavar="SPACE",
                help="Dimensions by dotted config name, as JSON or YAML, replacing the default as a whole: "
                f"{{train.lr: {{type: float, low: 1.0e-4, high: 0.1, log: true}}}}. Default: {default}",
            )


def _config_paths(argv: Sequence[str]) -> list[Path]:
    """Finds each --config ahead of the parse proper, so that the flags before it win over it too."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", action="append", type=Path, default=[])
    try:
        paths: list[Path] = first.parse_known_args(argv)[0].config
    except argparse.ArgumentError as error:
        raise ConfigError("--config needs the path of a YAML file.") from error
    return paths


def _render_error(message: str, verb: Verb) -> str:
    """One line for a jsonargparse message."""
    config_flags = list(field_types()) if verb in CONFIG_VERBS else []
    if match := re.match(r"unrecognized arguments: (\S+)", message):
        argument = match[1].partition("=")[0]
        if not argument.startswith("-"):
            return f"{argument!r} is not expected here; usage: {_render_usage(verb)}."
        known = [each.lstrip("-") for each in re.findall(r"^ +(--[\w.-]+)", _build_parser(verb).format_help(), re.M)]
        return f"{argument} is not a flag of dogbreed {verb}{suggest(argument.lstrip('-'), known, prefix='--')}"
    if match := re.match(r"argument (\S+): expected (?:one|at least one) argument", message):
        return f"{match[1].partition('/')[0]} needs a value."
    types = (field_types() if config_flags else {}) | {each.name: each.type for each in _option_fields(verb)}
    return _render_type_error(message, types)


def _render_type_error(message: str, types: Mapping[str, Any], *, prefix: str = "") -> str:
    key = re.match(r'Parser key "([^"]+)"', message)
    value = re.search(r"Given value: (.*)\Z", message, re.DOTALL) or re.search(r"Got value: (.*)\Z", message, re.DOTALL)
    if key and value and key[1] in types:
        return f"{prefix}{key[1]} must be {_render_type(types[key[1]])}, got {value[1].strip()!r}."
    return f"{prefix.rstrip('.')}{': ' if prefix else ''}{' '.join(message.split())}."


def _render_type(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    if hint in names:
        return names[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is list:
        return f"a list, [A, B] (each {_render_type(arguments[0])})"
    if origin is dict:
        return "a mapping by dotted config name, as JSON or YAML"
    return " or ".join(map(_render_type, arguments))
