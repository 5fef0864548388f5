"""Command lines and YAML files become commands, or one line that says what to do instead."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dogbreed_ml.arguments import EXAMPLES, Command, parse
from dogbreed_ml.config import (
    CategoricalDimension,
    ExperimentConfig,
    FloatDimension,
    IntDimension,
    flatten,
    to_dict,
)
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.options import (
    CONFIG_VERBS,
    VERBS,
    DataOptions,
    DeleteOptions,
    PredictOptions,
    SagemakerLocalOptions,
    TuneOptions,
    UiOptions,
)

Write = Callable[[str], str]

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes e.yaml in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write_yaml(text: str) -> str:
        Path("e.yaml").write_text(text, encoding="utf-8")
        return "e.yaml"

    return write_yaml


def tune(*argv: str) -> ExperimentConfig:
    return parse(["tune", *argv]).config


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- flags ---


def test_no_flags_are_the_dataclasses_defaults() -> None:
    assert parse(["tune"]) == Command(options=TuneOptions(), config=ExperimentConfig())


@pytest.mark.parametrize("dotted", flatten(ExperimentConfig()))
def test_every_field_is_a_flag_that_takes_its_own_default(dotted: str) -> None:
    value = flatten(ExperimentConfig())[dotted]
    if dotted == "search.space":
        text = json.dumps(to_dict(ExperimentConfig())["search"]["space"])
    else:
        text = value if isinstance(value, str) else json.dumps(value)
    assert tune(f"--{dotted}", text) == ExperimentConfig()


def test_flags_set_fields_of_every_type() -> None:
    config = tune(
        *("--name", "dogs", "--train.num_epochs", "7", "--train.lr=3e-2", "--tracking.system_metrics", "false"),
        *("--data.classes", "[Beagle, Boxer]", "--train.patience", "2", "--model.trainable", "layer4"),
    )
    assert (config.name, config.train.num_epochs, config.train.lr) == ("dogs", 7, 0.03)
    assert config.tracking.system_metrics is False
    assert config.data.classes == ["Beagle", "Boxer"]
    assert (config.train.patience, config.model.trainable) == (2, "layer4")


def test_null_unsets_an_optional_field_of_the_yaml(write: Write) -> None:
    path = write("train: {patience: 3}")
    assert tune("--config", path).train.patience == 3
    assert tune("--config", path, "--train.patience", "null").train.patience is None


@pytest.mark.parametrize("text", ["1", "1.5"])
def test_resnet_version_is_text_as_a_flag(text: str) -> None:
    assert tune("--model.resnet_version", text).model.resnet_version == text


def test_a_name_of_digits_is_text() -> None:
    assert tune("--name", "2024").name == "2024"


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("train.num_epochs", "1.5", "train.num_epochs must be a whole number, got '1.5'."),
        ("train.num_epochs", "ten", "train.num_epochs must be a whole number, got 'ten'."),
        ("train.num_epochs", "0", "train.num_epochs must be at least 1, got 0."),
        ("train.lr", "nan", "train.lr must be a number, got 'nan'."),
        ("train.lr", ".nan", "train.lr must be above 0, got nan."),
        ("train.lr", "null", "train.lr must be a number, got 'None'."),
        ("train.patience", "soon", "train.patience must be a whole number or null, got 'soon'."),
        ("tracking.system_metrics", "maybe", "tracking.system_metrics must be true or false, got 'maybe'."),
        ("data.source", "ftp", "data.source must be one of synthetic, folder, archive, s3, got 'ftp'."),
        ("data.classes", "Beagle", "data.classes must be a list, [A, B] (each text) or null, got 'Beagle'."),
        ("model.resnet_version", "2", "model.resnet_version must be one of 1, 1.5, got '2'."),
        ("search.space", "space.json", "search.space must be a mapping by dotted config name, as JSON or YAML, got"),
        ("name", "two words", "name must be letters, digits and single hyphens, at most 48, got 'two words'."),
    ],
)
def test_bad_value_is_one_line_with_rule_and_value(flag: str, value: str, message: str) -> None:
    assert refusal("tune", f"--{flag}", value).startswith(message)


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--train.num_epoch", "--train.num_epochs"),
        ("--trian.lr", "--train.lr"),
        ("--lr", "--train.lr"),
        ("--epochs", "--train.num_epochs"),
        ("--jsn", "--json"),
        ("--search.spaces", "--search.space"),
    ],
)
def test_unknown_flag_gets_the_nearest_known_one(flag: str, nearest: str) -> None:
    expected = f"{flag} is not a flag of dogbreed tune; did you mean {nearest}?"
    assert refusal("tune", flag, "1") == expected
    assert refusal("tune", f"{flag}=1") == expected


@pytest.mark.parametrize("flag", ["--train.num_e", "--search.num_t", "--train", "--js", "--conf"])
def test_abbreviations_are_refused(flag: str) -> None:
    assert refusal("tune", flag, "4").startswith(f"{flag} is not a flag of dogbreed tune")


def test_no_flag_reads_a_section_from_a_file(write: Write) -> None:
    """jsonargparse would offer --train FILE, whose order against --train.lr nobody could know."""
    assert refusal("tune", "--train", write("lr: 1")).startswith("--train is not a flag")


def test_flag_without_value_and_stray_value_are_named() -> None:
    assert refusal("tune", "--train.lr") == "--train.lr needs a value."
    assert refusal("tune", "--json", "true").startswith("'true' is not expected here; usage: dogbreed tune")


def test_verbose_and_quiet_exclude_each_other() -> None:
    assert "--verbose and --quiet" in refusal("tune", "--verbose", "--quiet")


# --- YAML ---


@pytest.mark.parametrize("order", ["before", "after"])
def test_flags_win_over_yaml_wherever_they_stand(order: str, write: Write) -> None:
    config, flags = ["--config", write("name: yaml\ntrain: {lr: 0.1, num_epochs: 9}")], ["--train.lr", "0.3"]
    got = tune(*config, *flags) if order == "after" else tune(*flags, *config)
    assert (got.train.lr, got.train.num_epochs, got.name) == (0.3, 9, "yaml")


@pytest.mark.parametrize("form", [["--config", "e.yaml"], ["--config=e.yaml"]])
def test_config_is_given_in_two_forms_and_needs_a_path(form: list[str], write: Write) -> None:
    write("name: dogs")
    assert tune(*form).name == "dogs"
    assert refusal("tune", "--config") == "--config needs the path of a YAML file."


def test_of_several_configs_the_later_win(tmp_path: Path, write: Write) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("train: {batch_size: 8}\nsearch: {space: {train.lr: {type: float, low: 0.1, high: 1.0}}}")
    config = write("name: dogs\ntrain: {lr: 0.1, batch_size: 4}")
    got = tune("--config", config, "--config", str(overlay))
    assert (got.name, got.train.lr, got.train.batch_size) == ("dogs", 0.1, 8)
    assert list(got.search.space) == ["train.lr"]
    overlay.write_text("train: {batch_size: many}")
    assert refusal("tune", "--config", config, "--config", str(overlay)).startswith(f"{overlay}: train.batch_size")


@pytest.mark.parametrize("text", ["1", "1.5", '"1"', "'1.5'"])
def test_resnet_version_is_text_in_yaml_with_and_without_quotes(text: str, write: Write) -> None:
    config = tune("--config", write(f"model: {{resnet_version: {text}}}"))
    assert config.model.resnet_version == text.strip("\"'")


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\n", "train: {}\nsearch:\n", "search: {space: null}"])
def test_empty_files_and_sections_are_defaults(text: str, write: Write) -> None:
    assert tune("--config", write(text)) == ExperimentConfig()


def test_numbers_are_read_as_the_flags_read_them(write: Write) -> None:
    """Plain YAML 1.1 takes 1e-3 for text."""
    config = tune(
        "--config", write("train: {lr: 1e-3}\nsearch: {space: {train.lr: {type: float, low: 1e-5, high: 1}}}")
    )
    assert config.train.lr == 1e-3
    assert config.search.space == {"train.lr": FloatDimension(low=1e-5, high=1)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lrr: 1}", "e.yaml: 'train.lrr' is not a config key; did you mean train.lr?"),
        ("trian: {lr: 1}", "e.yaml: 'trian' is not a config key; did you mean train?"),
        ("lr: 1", "e.yaml: 'lr' is not a config key; did you mean train.lr?"),
        ("train: {dropout: 0.1}", "e.yaml: 'train.dropout' is not a config key; did you mean model.dropout?"),
        ("zzz: 1", "e.yaml: 'zzz' is not a config key."),
        ("1: 2", "e.yaml: '1' is not a config key."),
        ("train: 3", "e.yaml: train must be a section of fields, got 3."),
        ("train.lr: 0.5", "e.yaml: write train.lr as a field of its section, `train: {lr: 0.5}`."),
        ("train: {lr: high}", "e.yaml: train.lr must be a number, got 'high'."),
        ("train: {num_epochs: true}", "e.yaml: train.num_epochs must be a whole number, got 'True'."),
        ("data: {classes: [Beagle, 1]}", "e.yaml: data.classes must be a list, [A, B] (each text) or null, got"),
        ("train: {lr: .nan}", "train.lr must be above 0, got nan."),
        ("train: {lr: null}", "train.lr must be a number, got null."),
        ("- train", "e.yaml must hold fields and sections such as `train: {lr: 0.01}`, got ['train']."),
        ("train", "e.yaml must hold fields and sections"),
        ("train: [", "e.yaml is not YAML: "),
        ("a: b: c", "e.yaml is not YAML: mapping values are not allowed here in line 1."),
        ("name: !!python/object:os.system x", "e.yaml is not YAML: could not determine a constructor"),
        ("? [a]\n: b", "e.yaml is not YAML: found unhashable key in line 1."),
        ("train: {lr: 1}\ntrain: {lr: 2}", "e.yaml has 'train' twice, again in line 2; keep one."),
        ("train:\n  lr: 1\n  lr: 2", "e.yaml has 'lr' twice, again in line 3; keep one."),
    ],
)
def test_bad_yaml_is_one_line_that_names_the_file(text: str, message: str, write: Write) -> None:
    assert refusal("tune", "--config", write(text)).startswith(message)


def test_missing_and_unreadable_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        refusal("tune", "--config", "no.yaml")
        == "no.yaml does not exist; --config takes a YAML file, as in experiments/."
    )
    Path("folder").mkdir()
    assert "Is a directory" in refusal("tune", "--config", "folder")
    Path("photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    assert refusal("tune", "--config", "photo.jpg") == "photo.jpg is not text; --config takes a YAML file."


def test_no_value_imports_a_python_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    """jsonargparse reads `class_path` as an import unless told not to."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    refusal("tune", "--search.space", "evil.Thing")
    refusal("tune", "--search.space", '{"train.lr": {"class_path": "evil.Thing"}}')
    refusal("tune", "--config", write("train: {class_path: evil.Thing}"))


# --- search.space ---


def test_space_replaces_the_default_as_a_whole(write: Write) -> None:
    path = write("search: {space: {train.num_epochs: {type: int, low: 2, high: 10}}}")
    assert tune("--config", path).search.space == {"train.num_epochs": IntDimension(low=2, high=10)}
    space = json.dumps({"train.optimizer": {"type": "categorical", "choices": ["sgd", "adam"]}})
    for argv in (["--config", path, "--search.space", space], ["--search.space", space, "--config", path]):
        assert tune(*argv).search.space == {"train.optimizer": CategoricalDimension(choices=["sgd", "adam"])}


def test_choices_keep_their_types(write: Write) -> None:
    path = write("search: {space: {train.patience: {type: categorical, choices: [1e-2, two, 3, null, true]}}}")
    dimension = tune("--config", path).search.space["train.patience"]
    assert isinstance(dimension, CategoricalDimension)
    assert dimension.choices == [0.01, "two", 3, None, True]
    assert [type(each) for each in dimension.choices] == [float, str, int, type(None), bool]


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ('{"type": "float", "low": 2, "high": 1}', "search.space.train.lr: high must be at least 2.0, got 1.0."),
        ('{"low": 1, "high": 2}', "search.space.train.lr needs a type, one of float, int, categorical, got None."),
        ('{"type": "uniform"}', "search.space.train.lr needs a type, one of float, int, categorical, got 'uniform'."),
        ('{"type": ["float"]}', "search.space.train.lr needs a type"),
        ('{"type": "float", "lo": 1, "high": 2}', "search.space.train.lr has no 'lo'; did you mean low?"),
        ('{"type": "float", "low": 1}', "search.space.train.lr: the following arguments are required: high."),
        ('{"type": "float", "low": "a", "high": 2}', "search.space.train.lr.low must be a number, got 'a'."),
        ('{"type": "float", "low": .nan, "high": 2}', "search.space.train.lr: low must be a finite number, got nan."),
        ('{"type": "categorical", "choices": 3}', "search.space.train.lr.choices must be a list"),
        ("3", "search.space.train.lr must be a mapping such as {type: float, low: 0.1, high: 1}, got 3."),
    ],
)
def test_bad_dimension_is_one_line_that_names_it(dimension: str, message: str) -> None:
    assert refusal("tune", "--search.space", f'{{"train.lr": {dimension}}}').startswith(message)


def test_grid_sampler_with_the_default_space_says_what_it_needs() -> None:
    assert "needs a step" in refusal("tune", "--search.sampler", "grid")


# --- verbs ---


def test_unknown_verb_gets_the_nearest() -> None:
    assert refusal("tuen") == f"'tuen' is not a verb ({', '.join(VERBS)}); did you mean tune?"
    assert refusal("--json", "tune").startswith("unrecognized arguments: --json; the verb comes first")


def test_predict_takes_images_and_one_source_of_the_model() -> None:
    options = parse(["predict", "a.jpg", "b c.jpg", "--checkpoint", "best.pt", "--out", "sheet.png"]).options
    assert options == PredictOptions(images=("a.jpg", "b c.jpg"), checkpoint=Path("best.pt"), out=Path("sheet.png"))
    options = parse(["predict", "--model", "models:/dogs-resnet50@challenger", "--", "-d.jpg"]).options
    assert options == PredictOptions(images=("-d.jpg",), model="models:/dogs-resnet50@challenger")
    assert parse(["predict", "-", "--endpoint", "http://127.0.0.1:8080"]).options == PredictOptions(
        images=("-",), endpoint="http://127.0.0.1:8080"
    )
    for argv in (["a.jpg"], ["a.jpg", "--checkpoint", "x", "--model", "y"]):
        assert refusal("predict", *argv).startswith(
            "predict needs one of --checkpoint FILE, --model URI and --endpoint"
        )
    assert "images" in refusal("predict", "--checkpoint", "x")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["predict", "a.jpg", "--model", "best.pt"], "models:/NAME@challenger, got 'best.pt'"),
        (["predict", "a.jpg", "--endpoint", "localhost"], "an http:// or https:// address, got 'localhost'"),
        (["predict", "a.jpg", "--checkpoint", "x", "--out", "sheet.pdf"], "a .png or .html file, got 'sheet.pdf'"),
        (["promote", "--force"], "--force needs --reason TEXT"),
        (["promote", "--force", "--reason", " "], "--force needs --reason TEXT"),
        (["promote", "--to", "3", "--dry-run"], "--to excludes --force and --dry-run"),
        (["deploy", "--unmeasured"], "--unmeasured needs --reason TEXT"),
        (["deploy", "--port", "70000"], "--port must be 0 to 65535, got 70000"),
        (["deploy", "--target", "cloud"], "target must be one of"),
        (
            ["deploy", "--expires", "4h"],
            "--endpoint, --expires, --dry-run, --first, --no-wait and --drop-replaced need",
        ),
        (["deploy", "--target", "sagemaker", "--detach"], "--detach needs --target local"),
        (["rollback"], "rollback needs --endpoint NAME"),
    ],
)
def test_options_that_break_a_rule_are_refused(argv: list[str], message: str) -> None:
    assert message in refusal(*argv)


def test_delete_takes_a_name() -> None:
    assert parse(["delete", "dogs-8080"]).options == DeleteOptions(endpoint="dogs-8080")
    argv = ["delete", "dogs", "--target", "sagemaker", "--yes", "--sagemaker.region", "eu-west-1"]
    command = parse(argv)
    assert command.options == DeleteOptions(endpoint="dogs", target="sagemaker", yes=True)
    assert command.config.sagemaker.region == "eu-west-1"


def test_config_file_does_not_stand_for_what_is_given_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "dogs.yaml"
    path.write_text("name: dogs\n", encoding="utf-8")
    for argv in (["delete", "rex", "--config", str(path)], ["delete", "--config", str(path), "rex"]):
        command = parse(argv)
        assert (command.options, command.config.name) == (DeleteOptions(endpoint="rex"), "dogs")
    with pytest.raises(ConfigError, match="NAME is required: dogbreed delete --help"):
        parse(["delete", "--config", str(path)])


def test_config_flags_belong_to_the_verbs_that_read_them() -> None:
    assert refusal("predict", "a.jpg", "--train.lr", "1").startswith("--train.lr is not a flag of dogbreed predict")
    assert refusal("ui", "--json") == "--json is not a flag of dogbreed ui."
    assert parse(["data", "--clear-features"]).options == DataOptions(clear_features=True)
    assert refusal("tune", "--clear-features").startswith("--clear-features is not a flag of dogbreed tune")


def test_ui_takes_an_address() -> None:
    assert parse(["ui", "--port", "8080"]).options == UiOptions(port=8080)
    assert refusal("ui", "--port", "http") == "port must be a whole number, got 'http'."


# --- help ---


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_teaches_it(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([verb, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert EXAMPLES[verb] in shown  # type: ignore[index]
    if verb in CONFIG_VERBS:
        assert all(f"--{dotted} " in shown for dotted in flatten(ExperimentConfig()))
        assert "One training: the hyperparameters of a single trial:" in shown
        assert "Peak learning rate. (type: float, default: 0.001)" in shown


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_the_verbs(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown and options.__doc__ in shown for verb, options in VERBS.items())


@pytest.mark.parametrize("verb", VERBS)
def test_help_examples_parse(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXPERIMENTS.parent)
    program, *argv = EXAMPLES[verb].split()  # type: ignore[index]
    assert program == "dogbreed"
    assert isinstance(parse(argv).options, VERBS[verb])  # type: ignore[index]


# --- experiments ---


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_experiment_parses_and_is_named_after_its_file(path: Path) -> None:
    argv = ["--config", str(path)]
    if "given as --data.path" in path.read_text(encoding="utf-8"):
        assert refusal("tune", *argv).startswith("data.path must be set for data.source=folder")
        argv += ["--data.path", "photographs"]
    config = tune(*argv)
    assert config.name == path.stem
    assert (config.model.weights == "auto") == (path.stem == "quickstart")
    assert config.search.num_trials >= 8


def test_udacity_experiment_is_the_first_users_search() -> None:
    space = tune("--config", str(EXPERIMENTS / "udacity-dogs.yaml")).search.space
    assert space == {
        "train.lr": FloatDimension(low=1e-3, high=1e-1, log=True),
        "train.batch_size": CategoricalDimension(choices=[20, 34, 40, 60, 75]),
        "train.num_epochs": IntDimension(low=2, high=10),
    }


def test_sagemaker_local_takes_an_action_and_logs_a_job() -> None:
    flags = ["--port", "0", "--num-parallel-jobs", "3", "--stop-grace-s", "1.5"]
    assert parse(["sagemaker-local", "start", *flags]).options == SagemakerLocalOptions(
        action="start", port=0, num_parallel_jobs=3, stop_grace_s=1.5
    )
    assert parse(["sagemaker-local", "logs", "rex"]).options == SagemakerLocalOptions(action="logs", job="rex")
    for arguments in (["logs"], ["stop", "rex"]):
        assert "logs needs the name of a job, and only logs takes one" in refusal("sagemaker-local", *arguments)
    assert "invalid choice: 'begin'" in refusal("sagemaker-local", "begin")
