"""The front door: exit statuses, what goes to stdout and what to stderr, and what the stages are handed."""

import io
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dogbreed_ml import cli
from dogbreed_ml.cli import main
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.errors import ConfigError, DataError, GateError
from dogbreed_ml.options import PromoteOptions
from dogbreed_ml.pipeline import data, promote
from dogbreed_ml.progress import NO_PROGRESS, TerminalProgress

logger = logging.getLogger("dogbreed_ml.some.stage")

Stage = Callable[[ExperimentConfig, Context], None]
UseStage = Callable[[Stage], None]


class Told:
    """A verb's answer."""

    def to_dict(self) -> dict[str, Any]:
        return {"name": "Épagneul"}

    def render(self) -> str:
        return "told"


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def use_stage(monkeypatch: pytest.MonkeyPatch) -> UseStage:
    """Puts a stage of the test's own in the place of `pipeline.data.describe_data`."""

    def use(stage: Stage) -> None:
        def describe_data(config: ExperimentConfig, *, context: Context) -> Told:
            stage(config, context)
            return Told()

        monkeypatch.setattr(data, "describe_data", describe_data)

    return use


def nothing(config: ExperimentConfig, context: Context) -> None:
    pass


def test_data_of_the_default_source_is_described_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["data", "--json", "--data.num_breeds", "3", "--data.num_per_breed", "6", "--data.image_size", "32"]
    assert main(argv) == 0
    out, _ = capfd.readouterr()
    described = json.loads(out)
    assert described["num_breeds"] == 3
    assert sum(described["num_images"].values()) == 18
    assert out.count("\n") == 1


def test_clear_features_of_nothing_frees_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--clear-features", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"freed_bytes": 0}


def test_answer_is_text_without_json(use_stage: UseStage, capfd: pytest.CaptureFixture[str]) -> None:
    use_stage(nothing)
    assert main(["data"]) == 0
    assert capfd.readouterr().out == "told\n"


def test_stdout_is_the_answer_alone(use_stage: UseStage, capfd: pytest.CaptureFixture[str]) -> None:
    """MLflow prints its "View run" lines on stdout, C code writes to the descriptor, workers inherit it."""

    def noisy(config: ExperimentConfig, context: Context) -> None:
        print("from Python")
        os.write(1, b"from C\n")
        logger.info("from a stage")

    use_stage(noisy)
    assert main(["data", "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"name": "Épagneul"}
    assert [line for line in err.splitlines() if line.startswith("from")] == ["from Python", "from C", "from a stage"]


@pytest.mark.parametrize(
    ("flags", "shown"),
    [([], ["info", "warning"]), (["--quiet"], ["warning"]), (["--verbose"], ["debug", "info", "warning"])],
)
def test_logs_go_to_stderr_by_level(
    flags: list[str], shown: list[str], use_stage: UseStage, capfd: pytest.CaptureFixture[str]
) -> None:
    def logging_stage(config: ExperimentConfig, context: Context) -> None:
        logger.debug("debug")
        logger.info("info")
        logger.warning("warning")

    use_stage(logging_stage)
    assert main(["data", *flags]) == 0
    assert [line.split()[-1] for line in capfd.readouterr().err.splitlines()] == shown
    assert logging.getLogger("dogbreed_ml").handlers == []


def test_stages_are_handed_the_outside_world(
    use_stage: UseStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[ExperimentConfig, Context]] = []
    use_stage(lambda config, context: seen.append((config, context)))
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    argv = ["data", "--train.lr", "0.5"]
    assert main(argv) == 0
    assert main([*argv, "--quiet"]) == 0
    (config, context), (_, quiet) = seen
    assert config.train.lr == 0.5
    assert context.project_dir == tmp_path
    assert context.environment["MLFLOW_RUN_ID"] == "abc"
    assert context.argv == ("dogbreed", *argv)
    assert isinstance(context.progress, TerminalProgress)
    assert quiet.progress is NO_PROGRESS
    with pytest.raises(TypeError):
        context.environment["MLFLOW_RUN_ID"] = "def"  # type: ignore[index]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError("rule,\n  way out."), 2), (DataError("rule,\n  way out."), 1), (KeyboardInterrupt(), 130)],
)
def test_errors_are_one_line_and_an_exit_status(
    error: BaseException, status: int, use_stage: UseStage, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(config: ExperimentConfig, context: Context) -> None:
        raise error

    use_stage(fail)
    assert main(["data", "--json"]) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ("error: interrupted.\n" if status == 130 else "error: rule, way out.\n")


def test_verbose_shows_where_an_error_comes_from(use_stage: UseStage, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(config: ExperimentConfig, context: Context) -> None:
        raise DataError("rule.") from ZeroDivisionError("cause")

    use_stage(fail)
    assert main(["data", "--verbose"]) == 1
    err = capfd.readouterr().err
    assert "ZeroDivisionError: cause" in err
    assert err.endswith("error: rule.\n")


def test_a_bug_is_not_hidden(use_stage: UseStage) -> None:
    def bug(config: ExperimentConfig, context: Context) -> None:
        raise ZeroDivisionError

    use_stage(bug)
    with pytest.raises(ZeroDivisionError):
        main(["data"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_command_as_ctrl_c_does(number: signal.Signals, use_stage: UseStage) -> None:
    cleaned: list[bool] = []

    def signalled(config: ExperimentConfig, context: Context) -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            # A closed terminal may send more than one, and what closed it another.
            for each in (signal.SIGHUP, signal.SIGTERM):
                os.kill(os.getpid(), each)
            cleaned.append(True)

    use_stage(signalled)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    assert main(["data"]) == 130
    assert cleaned == [True]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == before


def test_terminal_that_is_gone_fails_nobody_who_writes_to_it(use_stage: UseStage) -> None:
    terminal_fd, stderr_fd = os.openpty()
    kept_fd = os.dup(2)
    os.dup2(stderr_fd, 2)
    os.close(stderr_fd)

    def hung_up(config: ExperimentConfig, context: Context) -> None:
        os.close(terminal_fd)
        try:
            os.kill(os.getpid(), signal.SIGHUP)
            signal.pause()
        finally:
            os.write(2, b"the end of a progress bar")

    use_stage(hung_up)
    try:
        assert main(["data"]) == 130
    finally:
        os.dup2(kept_fd, 2)
        os.close(kept_fd)


def test_command_under_nohup_outlives_its_terminal(use_stage: UseStage, monkeypatch: pytest.MonkeyPatch) -> None:
    outlived: list[bool] = []

    def hung_up(config: ExperimentConfig, context: Context) -> Any:
        os.kill(os.getpid(), signal.SIGHUP)
        outlived.append(True)
        raise ConfigError("done.")

    use_stage(hung_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["data"]) == 2
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert outlived == [True]


def test_wrong_flag_is_one_line_and_status_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--lr", "1"]) == 2
    assert capfd.readouterr() == ("", "error: --lr is not a flag of dogbreed tune; did you mean --train.lr?\n")


def test_print_config_is_yaml_that_gives_the_same_config(capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["tune", "--train.lr", "0.5", "--data.classes", "[Beagle, Boxer]", "--print_config"]
    assert main(argv) == 0
    first = capfd.readouterr().out
    Path("again.yaml").write_text(first, encoding="utf-8")
    assert main(["tune", "--config", "again.yaml", "--print_config"]) == 0
    assert capfd.readouterr().out == first
    assert "lr: 0.5" in first


def test_predict_with_a_file_that_is_no_checkpoint_fails_with_1(capfd: pytest.CaptureFixture[str]) -> None:
    Path("a.jpg").touch()
    Path("best.pt").write_text("not a checkpoint")
    assert main(["predict", "a.jpg", "--checkpoint", "best.pt"]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "best.pt" in err


@pytest.mark.parametrize("uri", [None, "sqlite:///elsewhere.db"])
def test_ui_becomes_mlflow_on_this_projects_store(
    uri: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def execve(path: str, argv: list[str], environment: dict[str, str]) -> None:
        ran.append(argv)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "execve", execve)
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["ui", "--port", "5055"]) == 130
    (argv,) = ran
    assert argv[1:4] == ["-m", "mlflow", "ui"]
    assert argv[argv.index("--backend-store-uri") + 1] == (uri or f"sqlite:///{tmp_path}/mlflow.db")
    assert argv[argv.index("--port") + 1] == "5055"


def test_ui_of_a_server_names_its_address(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert main(["ui"]) == 2
    assert "http://127.0.0.1:5000" in capfd.readouterr().err


def test_tracking_uri_is_mlflows_default_anchored_at_the_project(tmp_path: Path) -> None:
    assert Context(tmp_path).tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    set_uri = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000"}
    assert Context(tmp_path, environment=set_uri).tracking_uri == "http://127.0.0.1:5000"
    assert Context(tmp_path, environment={"MLFLOW_TRACKING_URI": ""}).tracking_uri.startswith("sqlite:")


class Refused(Told):
    """A refusal of the gate: an answer that ends the command with 3."""

    is_refused = True


@pytest.mark.parametrize(("flags", "printed"), [([], "told\n"), (["--json"], '{"name": "\\u00c9pagneul"}\n')])
def test_refusal_is_answered_and_ends_with_3(
    flags: list[str], printed: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(promote, "promote", lambda config, options, *, context: Refused())
    assert main(["promote", *flags]) == 3
    assert capfd.readouterr().out == printed


def test_what_the_gate_does_not_allow_ends_with_3(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(config: ExperimentConfig, options: PromoteOptions, *, context: Context) -> None:
        raise GateError(f"version {options.to} was never champion")

    monkeypatch.setattr(promote, "promote", refuse)
    assert main(["promote", "--to", "7"]) == 3
    assert capfd.readouterr() == ("", "error: version 7 was never champion\n")


def test_log_line_on_a_terminal_is_not_wrapped() -> None:
    """A command in it can be pasted."""
    out = io.StringIO()
    handler = cli._log_handler(Console(file=out, width=40, force_terminal=True, color_system=None), names_level=False)
    command = "aws sagemaker stop-training-job --region eu-west-1 --training-job-name [quickstart]-train-1a2b3c"
    handler.emit(logging.LogRecord("dogbreed_ml", logging.WARNING, "", 0, "  %s", (command,), None))
    assert out.getvalue() == f"WARNING    {command}\n"
