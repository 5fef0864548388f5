"""One MLflow run: what may be logged to it, and how it ends."""

import json
import logging
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric
from mlflow.tracking import MlflowClient

from dogbreed_ml.config import ExperimentConfig, SplitName, flatten, to_dict, without_secrets
from dogbreed_ml.errors import TrackingError
from dogbreed_ml.provenance import environment_tags
from dogbreed_ml.runwriter import Outbox, RunWriter
from dogbreed_ml.systemmetrics import SystemMetrics

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from dogbreed_ml.data.splits import Splits
    from dogbreed_ml.train import EpochResult

__all__ = ["DatasetInput", "Run", "RunRef", "Status", "Terminated", "data_inputs", "raise_terminated", "render_cause"]

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

CONFIG_ARTIFACT = "config.yaml"
TRACEBACK_ARTIFACT = "failure/traceback.txt"
CAUSE_TAG = "failure.cause"
AROUND_TRAINING = ("promotion", "deploy", "sagemaker", "hosting")
"""Sections of the config that say nothing of how a model is trained."""

_INTERRUPTED_DEADLINE_S = 10.0
"""How long an interrupted command waits for the store: a person waits at the keyboard."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where the main thread was; like Ctrl-C it ends runs as KILLED."""


@dataclass(frozen=True)
class RunRef:
    """A run by its ids: the parent of runs that other processes make."""

    run_id: str
    experiment_id: str


class Run:
    """A run that this process writes; a context manager that leaves no run RUNNING.

    It ends FINISHED; FAILED with the tag failure.cause and the traceback after an exception; KILLED after Ctrl-C or
    SIGTERM. Every method but the `log_` ones for files returns at once; what the store refuses, and a store that
    stays away, surface as TrackingError at the next call.
    """

    def __init__(
        self,
        outbox: Outbox,
        writer: RunWriter,
        *,
        experiment_id: str,
        known_params: Mapping[str, str] | None = None,
        handles_sigterm: bool = False,
    ):
        self.experiment_id = experiment_id
        self._outbox = outbox
        self._writer = writer
        self._params = dict(known_params or {})
        self._known_params = dict(known_params or {})
        self._handles_sigterm = handles_sigterm
        self._previous_handler: Any = None
        self._system_metrics: SystemMetrics | None = None
        self._is_ended = False

    @property
    def run_id(self) -> str:
        """The server's id; waits until the run is made."""
        if self._outbox.run_id is None:
            self.flush()
        if self._outbox.run_id is None:
            raise TrackingError("The run was not made; the first error of this run says why.")
        return self._outbox.run_id

    @property
    def ref(self) -> RunRef:
        return RunRef(self.run_id, self.experiment_id)

    # What is logged ------------------------------------------------------------------------------------------------

    def log_config(self, config: ExperimentConfig, *, is_trial: bool = False) -> None:
        """Logs every leaf field as a param by its dotted name, and the whole as config.yaml.

        A trial has neither config.yaml nor the sections AROUND_TRAINING: its parent has both, and MLflow takes 100
        params in one request.

        MLflow's params cannot change: where a resumed run has another value (num_trials may grow), the new one
        becomes the tag `resumed.<name>`. Values of sagemaker.environment, which may be passwords, stay out.
        """
        config = without_secrets(config)
        left_out = AROUND_TRAINING if is_trial else ()
        params = {
            name: render_param(value)
            for name, value in flatten(config).items()
            if name.partition(".")[0] not in left_out
        }
        changed = {name: value for name, value in params.items() if self._known_params.get(name, value) != value}
        self.log_params({name: value for name, value in params.items() if name not in changed})
        self.set_tags({f"resumed.{name}": value for name, value in changed.items()})
        if not is_trial:
            self.log_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), CONFIG_ARTIFACT)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs params not yet logged; TrackingError where one has another value already."""
        rendered = {name: render_param(value) for name, value in params.items()}
        for name, value in rendered.items():
            if self._params.get(name, value) != value:
                raise TrackingError(
                    f"A param is logged once: {name} is {self._params[name]!r}, got {value!r}; "
                    f"use a tag for what changes."
                )
        new = [(name, value) for name, value in rendered.items() if name not in self._params]
        self._params.update(new)
        self._put(lambda outbox: outbox.params.extend(new))

    def log_epoch(self, result: "EpochResult") -> None:
        """Logs an epoch's metrics at the step of its number; an epoch of before a resumption at the time it had."""
        self.log_metrics(result.metrics, step=result.epoch, time_ms=result.ended_ms)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int | None = None, time_ms: int | None = None) -> None:
        """Logs metrics at `step` (0 where None) with the time of this call, or `time_ms` since 1970."""
        at_ms = int(time.time() * 1000) if time_ms is None else time_ms
        logged = [Metric(name, float(value), at_ms, step or 0) for name, value in metrics.items()]
        self._put(lambda outbox: outbox.metrics.extend(logged))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        rendered = [(name, render_param(value)) for name, value in tags.items()]
        self._put(lambda outbox: outbox.tags.extend(rendered))

    def log_inputs(self, inputs: Sequence[DatasetInput]) -> None:
        self._put(lambda outbox: outbox.inputs.extend(inputs))

    def log_splits(self, splits: "Splits", *, names: Sequence[SplitName] = ("train", "valid", "test")) -> None:
        """Logs each split as a data set of the run; the fingerprint is the digest, the split's name the context."""
        self.log_inputs(data_inputs(splits, names=names))

    def log_environment(self, *, project_dir: Path, argv: Sequence[str], seed: int) -> None:
        """Tags: git commit and dirtiness, seed, versions, host and the command line that repeats the run."""
        self.set_tags(environment_tags(project_dir=project_dir, argv=argv, seed=seed))

    def log_text(self, text: str, artifact_path: str) -> None:
        self._put(
            lambda outbox: outbox.uploads.append(lambda client, run_id: client.log_text(run_id, text, artifact_path))
        )

    def log_artifact(self, path: Path, *, artifact_dir: str = "") -> None:
        """Uploads a file, or a folder with what is in it; returns when it is there."""

        def upload(client: MlflowClient, run_id: str) -> None:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), artifact_dir or None)
            else:
                client.log_artifact(run_id, str(path), artifact_dir or None)

        self._put(lambda outbox: outbox.uploads.append(upload))
        self.flush()

    def log_figure(self, figure: "Figure", artifact_path: str) -> None:
        """Uploads a matplotlib figure in the format of the path's suffix; returns when it is there."""
        target = PurePosixPath(artifact_path)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / target.name
            figure.savefig(path, bbox_inches="tight")
            self.log_artifact(path, artifact_dir="" if str(target.parent) == "." else str(target.parent))

    def log_table(self, rows: "Iterable[Mapping[str, Any]] | pandas.DataFrame", artifact_path: str) -> None:
        """Uploads rows as CSV."""
        import pandas

        frame = rows if isinstance(rows, pandas.DataFrame) else pandas.DataFrame(list(rows))
        self.log_text(frame.to_csv(index=False), artifact_path)

    def start_system_metrics(self, *, tracking_uri: str, interval_s: float, first_step: int = 0) -> None:
        """Samples this machine's use into the run until it ends."""
        self._system_metrics = SystemMetrics(
            lambda metrics, step: self.log_metrics(metrics, step=step),
            run_id=self.run_id,
            tracking_uri=tracking_uri,
            interval_s=interval_s,
            first_step=first_step,
        )

    # How it ends ---------------------------------------------------------------------------------------------------

    def flush(self, deadline_s: float | None = None) -> None:
        """Waits until everything queued is written, tracking.retry_s at most without a deadline; TrackingError."""
        self._writer.flush(self._outbox, deadline_s=deadline_s)

    def finish(self, status: Status = "FINISHED", *, cause: str | None = None, deadline_s: float | None = None) -> None:
        """Writes what is queued, then the status; a second call does nothing."""
        if self._is_ended:
            return
        if self._system_metrics is not None:
            self._system_metrics.stop()
            self._system_metrics = None
        if cause is not None:
            self.set_tags({CAUSE_TAG: cause})
        # A refused write surfaces here, before the run is called FINISHED.
        self.flush(deadline_s)
        end_ms = int(time.time() * 1000)

        def end(outbox: Outbox) -> None:
            outbox.status = (status, end_ms)

        self._put(end)
        self.flush(deadline_s)
        self._is_ended = True

    def fail(self, error: BaseException, *, deadline_s: float | None = None) -> None:
        """Ends FAILED with the error's cause and traceback."""
        self.log_text("".join(traceback.format_exception(error)), TRACEBACK_ARTIFACT)
        self.finish("FAILED", cause=render_cause(error), deadline_s=deadline_s)

    def __enter__(self) -> Self:
        if self._handles_sigterm and threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.getsignal(signal.SIGTERM)
            if self._previous_handler is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, raise_terminated)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._leave_finished()
            else:
                self._leave_after(error)
        finally:
            if self._previous_handler is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _leave_finished(self) -> None:
        try:
            self.finish("FINISHED")
        except TrackingError as error:
            self._leave_after(error)
            raise

    def _leave_after(self, error: BaseException) -> None:
        is_kill = not isinstance(error, Exception)
        deadline_s = _INTERRUPTED_DEADLINE_S if is_kill or isinstance(error, TrackingError) else None
        # The first attempt may raise what the store refused before, the second what it refuses of the cause.
        for attempt in range(3):
            try:
                if is_kill or attempt == 2:
                    self.finish("KILLED" if is_kill else "FAILED", deadline_s=deadline_s)
                else:
                    self.fail(error, deadline_s=deadline_s)
                return
            except TrackingError as refusal:
                last_refusal = refusal
        logger.error("The run could not be ended: %s", last_refusal)

    def _put(self, change: Callable[[Outbox], None]) -> None:
        if self._is_ended:
            raise TrackingError("The run has ended; log before it does.")
        self._writer.put(self._outbox, change)


def raise_terminated(signal_number: int, _: FrameType | None) -> None:
    """A SIGTERM handler: raises once, so that a second signal does not cut the cleaning up short."""
    signal.signal(signal_number, signal.SIG_IGN)
    raise Terminated(f"signal {signal_number}")


def render_cause(error: BaseException) -> str:
    """`ValueError: message`, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def data_inputs(
    splits: "Splits", *, names: Sequence[SplitName] = ("train", "valid", "test")
) -> tuple[DatasetInput, ...]:
    """The splits as MLflow's data set inputs.

    MLflow takes inputs of one name and digest for one data set, hence the split in the name.
    """
    inputs = []
    for name in names:
        split = splits.split(name)
        profile = {"num_images": len(split), "num_breeds": len(splits.classes), "fingerprint": splits.fingerprint}
        dataset = Dataset(
            name=f"{splits.source} [{name}]"[-500:],
            digest=splits.fingerprint,
            source_type="dogbreed",
            source=json.dumps({"source": splits.source, "split": name}),
            profile=json.dumps(profile),
        )
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", name)]))
    return tuple(inputs)


def render_param(value: Any) -> str:
    """A value as MLflow shows it: text as it is, lists and dicts as JSON, dataclasses as their fields."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=lambda each: vars(each), sort_keys=isinstance(value, dict))
    return str(value)
