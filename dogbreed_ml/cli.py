"""The front door: one command, a verb per stage.

Exit status: 0 done, 1 failed, 2 bad arguments or config, 3 a gate said no, 130 interrupted. The answer goes to stdout,
with --json one JSON object and nothing else; logs, progress and errors go to stderr. The only place that prints and
reads os.environ.
"""

import atexit
import gc
import json
import logging
import os
import shlex
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType, MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from dogbreed_ml.arguments import Command, parse
from dogbreed_ml.config import ExperimentConfig, to_dict, with_values
from dogbreed_ml.errors import ConfigError, DogbreedError, GateError
from dogbreed_ml.options import (
    DataOptions,
    DeleteOptions,
    DeployOptions,
    EndpointsOptions,
    EvaluateOptions,
    HistoryOptions,
    PredictOptions,
    ProfileOptions,
    PromoteOptions,
    RollbackOptions,
    SagemakerLocalOptions,
    TrainOptions,
    TuneOptions,
    UiOptions,
)

if TYPE_CHECKING:
    from rich.console import Console

    from dogbreed_ml.context import Context

_logger = logging.getLogger("dogbreed_ml")
_LOGGERS = (_logger, logging.getLogger("sagemaker_jobs"))

DONE, FAILED, BAD_ARGUMENTS, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


class Answer(Protocol):
    """What a verb answers."""

    def to_dict(self) -> Any: ...

    def render(self) -> str: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status; `argv` is what follows the program's name."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    # Python's last act is to walk every object of torch and MLflow in search of garbage: 1.5 s for nothing.
    atexit.register(gc.freeze)
    try:
        text, status = _answer(parse(arguments), arguments)
    except ConfigError as error:
        return _fail(error, BAD_ARGUMENTS)
    except GateError as error:
        return _fail(error, REFUSED)
    except DogbreedError as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return INTERRUPTED
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader (`| head`) went away; Python would complain once more when it flushes stdout at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _fail(error: DogbreedError, status: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return status


def _answer(command: Command, arguments: Sequence[str]) -> tuple[str, int]:
    """What to print, and the exit status."""
    if command.print_config:
        import yaml

        return yaml.safe_dump(to_dict(command.config), sort_keys=False).rstrip(), DONE
    with _stdout_to_stderr(), _interrupted_by_signals(), _context(command, arguments) as context:
        answer = _run_verb(command, context)
    # A refusal of the gate is an answer too, with figures to read.
    status = REFUSED if getattr(answer, "is_refused", False) else DONE
    return json.dumps(answer.to_dict()) if command.json else answer.render(), status


def _run_verb(command: Command, context: "Context") -> Answer:
    # Here, not at the top: torch alone takes 2 s, which --help and a wrong flag need not wait for.
    options = command.options
    match options:
        case DataOptions():
            from dogbreed_ml.pipeline import data

            if options.clear_features:
                return _Freed(data.clear_features(command.config, context=context))
            return data.describe_data(command.config, context=context)
        case TrainOptions():
            return _train(options, command.config, context)
        case TuneOptions():
            return _tune(options, command.config, context)
        case ProfileOptions():
            return _profile(options, command.config, context)
        case EvaluateOptions():
            from dogbreed_ml.pipeline import evaluate

            return evaluate.evaluate(command.config, options, context=context)
        case PromoteOptions():
            from dogbreed_ml.pipeline import promote

            return promote.promote(command.config, options, context=context)
        case HistoryOptions():
            from dogbreed_ml.pipeline import history

            return history.list_history(command.config, context=context)
        case DeployOptions():
            return _deploy(options, command.config, context)
        case RollbackOptions():
            from sagemaker_jobs.endpoints import rollback

            return rollback.rollback(str(options.endpoint), command.config, context=context, reason=options.reason)
        case EndpointsOptions():
            from sagemaker_jobs.endpoints import endpointlist

            return endpointlist.list_all(command.config, options, context=context)
        case DeleteOptions():
            return _delete(options, command.config, context)
        case PredictOptions():
            from dogbreed_ml.pipeline import predict

            return predict.predict(options, context=context, stdin=sys.stdin.buffer)
        case UiOptions():
            return _exec_ui(options, context)
        case SagemakerLocalOptions():
            return _run_sagemaker_local(options, context)
    raise ConfigError(f"{type(options).__name__} has no stage.")


def _deploy(options: DeployOptions, config: ExperimentConfig, context: "Context") -> Answer:
    if options.print_policy:
        from sagemaker_jobs.endpoints import policies

        return policies.policies(config, endpoint=options.endpoint, tracking_uri=context.tracking_uri)
    if options.target == "sagemaker":
        from sagemaker_jobs.endpoints import deployment

        return deployment.deploy(config, options, context=context)
    from dogbreed_ml.pipeline import deploy

    return deploy.deploy(config, options, context=context)


def _delete(options: DeleteOptions, config: ExperimentConfig, context: "Context") -> Answer:
    from dogbreed_ml.pipeline import endpoints

    is_here = options.target == "local" or endpoints.has_endpoint(options.endpoint, context=context)
    if is_here and options.target != "sagemaker":
        return endpoints.delete(options, context=context)
    from sagemaker_jobs.endpoints import removal

    if options.target is None and not removal.is_configured(config):
        # It says which endpoints there are.
        return endpoints.delete(options, context=context)
    return removal.delete(options.endpoint, config, context=context, confirm=_confirm(), yes=options.yes)


def _confirm() -> Callable[[str], bool] | None:
    """Asks the person at the terminal; None where there is none."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(question: str) -> bool:
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return ask


def _train(options: TrainOptions, config: ExperimentConfig, context: "Context") -> Answer:
    if options.on == "local":
        from dogbreed_ml.pipeline import train

        return train.train(config, context=context)
    from sagemaker_jobs.training import training_job

    if options.dry_run:
        return training_job.plan(config, context=context)
    return training_job.train(config, context=context, question=_confirm())


def _tune(options: TuneOptions, config: ExperimentConfig, context: "Context") -> Answer:
    if options.attach is not None:
        config = with_values(config, {"search.engine": "sagemaker"})
    if config.search.engine == "optuna":
        if options.dry_run:
            raise ConfigError("--dry-run needs --search.engine sagemaker: a search here costs nothing but its time.")
        from dogbreed_ml.pipeline import tune

        if not options.sources:
            return tune.tune(config, context=context)
        from sagemaker_jobs.tuning import warmstart

        source = warmstart.Source.of(options.sources)
        findings = warmstart.fetch_findings(config, source.job_names)
        return tune.tune(config, context=context, earlier_run_ids=source.run_ids, findings=findings)
    from sagemaker_jobs.tuning import searchplan, tuning_job

    if options.dry_run:
        return searchplan.plan(config, context=context, warm_start=options.sources)
    return tuning_job.tune(
        config, context=context, attach=options.attach, warm_start=options.sources, question=_confirm()
    )


def _run_sagemaker_local(options: SagemakerLocalOptions, context: "Context") -> Answer:
    from sagemaker_jobs.local import command

    match options.action:
        case "start":
            server = command.Options(
                host=options.host,
                port=options.port,
                num_parallel_jobs=options.num_parallel_jobs,
                stop_grace_s=options.stop_grace_s,
                skip_requirements=options.skip_requirements,
            )
            if options.foreground:
                command.serve(context.project_dir, server, context.environment)
            return command.start(context.project_dir, server, context.environment)
        case "stop":
            return command.stop(context.project_dir)
        case "status":
            return command.status(context.project_dir)
    return command.logs(context.project_dir, str(options.job))


def _profile(options: ProfileOptions, config: ExperimentConfig, context: "Context") -> Answer:
    from dogbreed_ml.pipeline import profiled, suggest

    if options.suggest:
        return suggest.suggest(config, context=context)
    if options.from_ is not None:
        return profiled.judge_source(options.from_, config, context=context)
    return profiled.profile(config, context=context)


def _exec_ui(options: UiOptions, context: "Context") -> NoReturn:
    """Becomes the MLflow UI: its process, its signals, its exit status."""
    uri = context.tracking_uri
    if uri.startswith(("http://", "https://")):
        raise ConfigError(f"MLFLOW_TRACKING_URI is {uri}, a server with a UI of its own; open that address.")
    where = ["--backend-store-uri", uri, "--default-artifact-root", str(context.project_dir / "mlruns")]
    ui = [sys.executable, "-m", "mlflow", "ui", *where, "--host", options.host, "--port", str(options.port)]
    _logger.debug("%s", shlex.join(ui))
    # MLflow's job runners serve features that nothing here uses, and take three processes.
    os.execve(sys.executable, ui, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **context.environment})


@contextmanager
def _context(command: Command, arguments: Sequence[str]) -> "Iterator[Context]":
    """The outside world as the stages see it, with their logs on stderr for as long."""
    from rich.console import Console

    from dogbreed_ml.context import Context
    from dogbreed_ml.progress import NO_PROGRESS, TerminalProgress
    from dogbreed_ml.provenance import shown_arguments

    console = Console(file=sys.stderr)
    handler = _log_handler(console, names_level=command.verbose)
    for logger in _LOGGERS:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if command.verbose else logging.WARNING if command.quiet else logging.INFO)
    if not command.verbose:
        # MLflow tells of each table it makes and draws a bar for each file it copies; it sets its level when imported.
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        yield Context(
            project_dir=Path.cwd(),
            environment=MappingProxyType(dict(os.environ)),
            argv=("dogbreed", *shown_arguments(arguments)),
            progress=NO_PROGRESS if command.quiet else TerminalProgress(console=console),
        )
    except DogbreedError as error:
        _logger.debug("The error's origin:", exc_info=error)
        raise
    finally:
        for logger in _LOGGERS:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)


def _log_handler(console: "Console", *, names_level: bool) -> logging.Handler:
    if console.is_terminal:
        return _TerminalHandler(console)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s" if names_level else "%(message)s"))
    return handler


class _TerminalHandler(logging.Handler):
    """Through the progress bar's console, so that a line does not tear the bar; not wrapped as rich's own handler does,
    so that a command in it can be pasted."""

    def __init__(self, console: "Console") -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        level = (f"{record.levelname:8} ", f"logging.level.{record.levelname.lower()}")
        self._console.print(Text.assemble(level, self.format(record)), soft_wrap=True)


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keeps stdout for the answer: MLflow prints there, and so may a library's C code or a worker process."""
    sys.stdout.flush()
    stdout_fd = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(stdout_fd, 1)
        os.close(stdout_fd)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end a command as Ctrl-C does: runs are closed, workers stopped, status 130."""
    numbers = [signal.SIGTERM]
    # Under nohup the command outlives its terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, _interrupt_once) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt_once(signal_number: int, _: FrameType | None) -> NoReturn:
    # A second signal must not cut the cleaning up short; a terminal that is closed may send several.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _leave_closed_terminal()
    # Named, so that nobody is asked what only a person at the keyboard can answer.
    raise KeyboardInterrupt(signal.Signals(signal_number).name)


def _leave_closed_terminal() -> None:
    """Whatever writes to a terminal that is gone, a progress bar's end say, would fail, and be the error of the run."""
    null_fd = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        if stat.S_ISCHR(os.fstat(fd).st_mode) and not os.isatty(fd):
            os.dup2(null_fd, fd)
    os.close(null_fd)


class _Freed:
    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def to_dict(self) -> dict[str, int]:
        return {"freed_bytes": self.num_bytes}

    def render(self) -> str:
        return f"{self.num_bytes / 2**20:.1f} MiB of kept features deleted"
