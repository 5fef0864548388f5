"""MLproject = flags = dataclass; conda.yaml and requirements.txt hold one set of pins; make does what README says."""

import hashlib
import importlib.metadata
import json
import os
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.exceptions import ExecutionException
from mlflow.projects._project_spec import EntryPoint, load_project
from mlflow.utils.environment import _PythonEnv
from mlflow.utils.requirements_utils import _parse_requirements
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dogbreed_ml.arguments import Command, parse
from dogbreed_ml.config import ExperimentConfig, FloatDimension, flatten
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.options import CONFIG_VERBS, VERBS, PredictOptions

ROOT = Path(__file__).parents[2]
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture
def entry_points() -> dict[str, EntryPoint]:
    entry_points: dict[str, EntryPoint] = load_project(str(ROOT))._entry_points
    return entry_points


def parsed(entry_point: EntryPoint, parameters: dict[str, Any], storage_dir: Path) -> Command:
    """What our command line makes of the command that MLflow would run."""
    program, *arguments = shlex.split(entry_point.compute_command(parameters, str(storage_dir)))
    assert [program, *arguments[:2]] == ["python", "-m", "dogbreed_ml"]
    return parse(arguments[2:])


def test_every_verb_but_those_of_running_servers_is_an_entry_point(entry_points: dict[str, EntryPoint]) -> None:
    assert set(entry_points) == {"main", *VERBS} - {"ui", "endpoints", "rollback", "delete", "sagemaker-local"}


@pytest.mark.parametrize("name", ["main", *sorted(set(CONFIG_VERBS) - {"endpoints", "rollback", "delete"})])
def test_entry_point_without_parameters_is_the_dataclasses_defaults(
    name: str, entry_points: dict[str, EntryPoint], tmp_path: Path
) -> None:
    verb: Any = "train" if name == "main" else name
    expected = Command(options=VERBS[verb](), config=ExperimentConfig())
    assert parsed(entry_points[name], {}, tmp_path) == expected


@pytest.mark.parametrize("dotted", sorted(set(flatten(ExperimentConfig())) - {"search.space"}))
def test_every_config_field_is_a_parameter(dotted: str, entry_points: dict[str, EntryPoint], tmp_path: Path) -> None:
    default = flatten(ExperimentConfig())[dotted]
    text = default if isinstance(default, str) else json.dumps(default)
    assert parsed(entry_points["tune"], {dotted: text}, tmp_path).config == ExperimentConfig()


def test_parameters_with_spaces_and_json_reach_the_config(entry_points: dict[str, EntryPoint], tmp_path: Path) -> None:
    parameters = {
        "data.source": "folder",
        "data.path": "my photographs",
        "data.classes": '["Épagneul Breton", Boxer]',
        "search.space": '{"train.lr": {"type": "float", "low": 0.1, "high": 1}}',
    }
    config = parsed(entry_points["tune"], parameters, tmp_path).config
    assert config.data.path == "my photographs"
    assert config.data.classes == ["Épagneul Breton", "Boxer"]
    assert config.search.space == {"train.lr": FloatDimension(low=0.1, high=1)}


@pytest.mark.parametrize("name", ["lr", "train.num_e"])
def test_unknown_parameter_is_refused(name: str, entry_points: dict[str, EntryPoint], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--{name} is not a flag"):
        parsed(entry_points["tune"], {name: 3}, tmp_path)


def test_config_is_found_from_the_callers_folder(
    entry_points: dict[str, EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mlflow run /path/to/repo -P config=my.yaml`: the command runs in the repository, the file lies elsewhere."""
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("name: mine", encoding="utf-8")
    command = entry_points["tune"].compute_command({"config": "my.yaml"}, str(tmp_path))
    monkeypatch.chdir(ROOT)
    assert parse(shlex.split(command)[3:]).config.name == "mine"


def test_missing_config_is_refused_before_anything_runs(entry_points: dict[str, EntryPoint], tmp_path: Path) -> None:
    with pytest.raises(ExecutionException, match="no such file"):
        entry_points["tune"].compute_command({"config": "no.yaml"}, str(tmp_path))


def test_predict_takes_an_image_and_a_model(
    entry_points: dict[str, EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my dog.jpg").touch()
    command = parsed(entry_points["predict"], {"image": "my dog.jpg", "model": "models:/dogs@challenger"}, tmp_path)
    assert command.options == PredictOptions(images=(str(tmp_path / "my dog.jpg"),), model="models:/dogs@challenger")


def test_every_requirement_is_one_pin_without_an_address() -> None:
    assert [line for line in REQUIREMENTS if "==" not in line or "://" in line or line.startswith("-")] == []
    assert sorted(REQUIREMENTS, key=lambda line: line.split("==")[0]) == REQUIREMENTS


def test_requirements_hold_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = {canonicalize_name(Requirement(line).name): Requirement(line) for line in REQUIREMENTS}
    for text in [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]:
        asked = Requirement(text)
        (pin,) = pins[canonicalize_name(asked.name)].specifier
        assert asked.specifier.contains(pin.version), f"run `make lock`: {asked} is pinned at {pin.version}"


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_requirements_serve_linux_and_macos(system: str) -> None:
    platform = {"sys_platform": system, "platform_machine": "x86_64" if system == "linux" else "arm64"}
    names = {
        requirement.name
        for requirement in map(Requirement, REQUIREMENTS)
        if requirement.marker is None or requirement.marker.evaluate({**platform, "python_full_version": "3.11.9"})
    }
    assert {"torch", "torchvision", "mlflow", "optuna", "sagemaker", "smdebug", "boto3", "pytest", "openvino"} <= names
    assert ("triton" in names) == (system == "linux")


def test_installed_packages_are_the_pinned_ones() -> None:
    for requirement in map(Requirement, REQUIREMENTS):
        if requirement.marker is None or requirement.marker.evaluate():
            installed = importlib.metadata.version(requirement.name)
            assert requirement.specifier.contains(installed), f"run `make install`: {requirement}, not {installed}"


def test_conda_yaml_holds_the_same_pins() -> None:
    environment = _PythonEnv.from_conda_yaml(str(ROOT / "conda.yaml"))
    assert environment.python == "3.11"
    parsed_pins = _parse_requirements(environment.dependencies, is_constraint=False, base_dir=str(ROOT))
    assert [requirement.req_str for requirement in parsed_pins] == REQUIREMENTS


def test_conda_yaml_changes_with_the_pins() -> None:
    """MLflow names a conda environment by this file's text alone, and would reuse an old one."""
    text = (ROOT / "conda.yaml").read_text(encoding="utf-8")
    checksum = hashlib.sha256((ROOT / "requirements.txt").read_bytes()).hexdigest()
    assert f"# requirements.txt sha256: {checksum}" in text.splitlines(), "run `make lock`"
    assert yaml.safe_load(text)["dependencies"][0] == "python=3.11"


def make(*arguments: str) -> str:
    # Under `make test` this make is a child of another, which would have it say where it enters and leaves.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def test_make_alone_shows_the_targets() -> None:
    shown = make()
    assert shown == make("help")
    targets = [line.split()[1] for line in shown.splitlines()]
    assert targets == ["help", "install", "tune", "ui", "check", "test", "test-all", "bench", "lock"]


def test_make_tune_is_mlflow_run_on_the_quickstart() -> None:
    (command,) = [line for line in make("-n", "-o", ".venv/.installed", "tune").splitlines() if "mlflow run" in line]
    arguments = shlex.split(command)[1:]
    assert arguments[:5] == ["mlflow", "run", ".", "-e", "tune"]
    assert arguments[arguments.index("--env-manager") + 1] == "local"
    config = arguments[arguments.index("-P") + 1].removeprefix("config=")
    name = parse(["tune", "--config", str(ROOT / config)]).config.name
    assert arguments[arguments.index("--experiment-name") + 1] == name == "quickstart"


def test_make_test_leaves_out_what_costs_time_or_money() -> None:
    assert '-m "not slow and not gpu and not aws"' in make("-n", "-o", ".venv/.installed", "test")
    assert '-m "not aws"' in make("-n", "-o", ".venv/.installed", "test-all")
