"""The MLflow door: the store, its experiments, and the runs in them.

Nothing here uses MLflow's fluent API: a run is passed around, never "active".
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from mlflow.entities import Metric
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests.exceptions import RequestException

from dogbreed_ml.config import TrackingConfig
from dogbreed_ml.errors import TrackingError
from dogbreed_ml.provenance import HOST_TAG, is_gone, process_tags, user_name
from dogbreed_ml.runs import DatasetInput, Run, RunRef, Status, Terminated, data_inputs, raise_terminated, render_cause
from dogbreed_ml.runwriter import Creation, Outbox, RunWriter, is_transient
from dogbreed_ml.stores import answered, http_retries, is_http, resolve_store, set_up_http, without_password
from dogbreed_ml.systemmetrics import PREFIX as SYSTEM_METRICS_PREFIX

__all__ = [
    "ChildRun",
    "DatasetInput",
    "Run",
    "RunRef",
    "Status",
    "Terminated",
    "Tracker",
    "data_inputs",
    "raise_terminated",
    "render_cause",
]

logger = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"
RESUMED_TAG = "dogbreed.resumed"

_PAGE_SIZE = 1000
_OPENING_RETRIES = 2

T = TypeVar("T")


class _Parent(Protocol):
    @property
    def run_id(self) -> str: ...
    @property
    def experiment_id(self) -> str: ...


@dataclass(frozen=True)
class ChildRun:
    """A run under a parent, as the store has it."""

    run_id: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    tags: dict[str, str]
    metrics: dict[str, float]
    """Last values by name."""
    params: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoggedEpoch:
    """An epoch as the store keeps it."""

    epoch: int
    metrics: dict[str, float]


class Tracker:
    """A tracking store that answers, and the runs that this process writes to it.

    `open` for a command, `attach` for its worker processes; `close`, or leaving the with statement, ends its thread.
    """

    def __init__(
        self,
        tracking_uri: str,
        *,
        config: TrackingConfig,
        artifact_root: Path | None = None,
        handed_run_id: str | None = None,
    ):
        self.tracking_uri = tracking_uri
        self.config = config
        self._artifact_root = artifact_root
        self._handed_run_id = handed_run_id
        self.client = answered(tracking_uri, lambda: MlflowClient(tracking_uri))
        self._writer = RunWriter(self.client, store=without_password(tracking_uri), retry_s=config.retry_s)

    @classmethod
    def open(
        cls, *, project_dir: Path, config: TrackingConfig, environment: Mapping[str, str] | None = None
    ) -> "Tracker":
        """Opens MLFLOW_TRACKING_URI of `environment`, or mlflow.db in the project, and ends dead runs of this host.

        MLFLOW_RUN_ID of `environment`, which `mlflow run` sets, is the run that the first `start_run` takes.
        Raises TrackingError where the store does not answer.
        """
        environment = environment or {}
        store = resolve_store(environment.get("MLFLOW_TRACKING_URI"), project_dir.resolve())
        handed_run_id = environment.get("MLFLOW_RUN_ID") or None
        set_up_http(config.retry_s)
        with http_retries(_OPENING_RETRIES):
            tracker = cls(store.uri, config=config, artifact_root=store.artifact_root, handed_run_id=handed_run_id)
            answered(store.uri, tracker._reap)
        return tracker

    @classmethod
    def attach(cls, tracking_uri: str, *, config: TrackingConfig) -> "Tracker":
        """The same store for a worker process; it makes child runs only."""
        set_up_http(config.retry_s)
        return cls(tracking_uri, config=config)

    @classmethod
    def reach(cls, tracking_uri: str, *, config: TrackingConfig, timeout_s: int) -> "Tracker":
        """`attach` to a store that answers at once; TrackingError after about three times `timeout_s` without one."""
        tracker = cls.attach(tracking_uri, config=config)
        with http_retries(_OPENING_RETRIES, timeout_s=timeout_s):
            answered(tracking_uri, lambda: tracker.client.search_experiments(max_results=1))
        return tracker

    def start_run(
        self,
        experiment_name: str,
        *,
        run_name: str | None = None,
        run_id: str | None = None,
        parent: _Parent | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Run:
        """A new run; or with `run_id` that run again, RUNNING; or the run that `mlflow run` handed over.

        A child goes to its parent's experiment and is made in the background; any other run is there on return.
        Where `mlflow run` handed over a run and `run_id` is another, the handed one points to it and ends.
        """
        all_tags = {**process_tags(), **_source_tags(), **(tags or {})}
        if parent is not None:
            all_tags[PARENT_TAG] = parent.run_id
            return self._new_run(parent.experiment_id, run_name, all_tags)
        handed_run_id, self._handed_run_id = self._handed_run_id, None
        if run_id is None and handed_run_id is not None:
            run = self._taken_run(handed_run_id, run_name, {**process_tags(), **(tags or {})})
            self._warn_about_experiment(run, experiment_name)
        elif run_id is not None:
            self._handed_run_id = handed_run_id
            self.hand_over_to(run_id)
            run = self._taken_run(run_id, run_name, {**process_tags(), **(tags or {})})
        else:
            experiment_id = self.patiently(lambda: self._experiment_id(experiment_name))
            run = self._new_run(experiment_id, run_name, all_tags, handles_sigterm=True)
            run.flush()
        if self.config.system_metrics:
            run.start_system_metrics(
                tracking_uri=self.tracking_uri,
                interval_s=self.config.system_metrics_interval_s,
                first_step=self._next_system_step(run.run_id) if run_id is not None else 0,
            )
        return run

    def take_up(self, run_id: str, *, tags: Mapping[str, str]) -> Run:
        """A run of an earlier process, RUNNING again and written by this one; without system metrics of its own."""
        return self._taken_run(run_id, None, {**process_tags(), **tags})

    def find_tagged(self, experiment_id: str, name: str, value: str) -> list[MlflowRun]:
        """The runs of an experiment that carry this tag, the oldest first."""
        found = self.patiently(lambda: list(self._search([experiment_id], f"tags.`{name}` = '{value}'")))
        return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))

    def experiment_id(self, name: str) -> str:
        """The experiment's id; it is made where there is none."""
        return self.patiently(lambda: self._experiment_id(name))

    def hand_over_to(self, run_id: str) -> None:
        """A run that `mlflow run` handed over ends, pointing to the work's own run, which was made elsewhere."""
        handed_run_id, self._handed_run_id = self._handed_run_id, None
        if handed_run_id not in (None, run_id):
            self.end_run(str(handed_run_id), "FINISHED", tags={**process_tags(), RESUMED_TAG: run_id})

    def has_run(self, run_id: str) -> bool:
        """Whether the store has the run and it is not deleted."""
        return self._find(run_id) is not None

    def run_tags(self, run_id: str) -> dict[str, str]:
        """The tags of a run; TrackingError where there is none."""
        return dict(self._get(run_id).data.tags)

    def stored(self, run_id: str) -> MlflowRun:
        """A run as the store has it now; TrackingError where it has none."""
        return self._get(run_id)

    def child_runs(self, parent_run_id: str) -> list[ChildRun]:
        """All runs under a parent, whatever their status."""
        parent = self._get(parent_run_id)
        found = self.patiently(
            lambda: list(self._search([parent.info.experiment_id], f"tags.`{PARENT_TAG}` = '{parent_run_id}'"))
        )
        return [
            ChildRun(run.info.run_id, run.info.status, run.data.tags, run.data.metrics, run.data.params)
            for run in found
        ]

    def search_runs(self, experiment_name: str, filter_string: str, *, order_by: Sequence[str] = ()) -> list[MlflowRun]:
        """The runs of an experiment that fit MLflow's filter, however many; none where there is no such experiment."""
        experiment = self.patiently(lambda: self.client.get_experiment_by_name(experiment_name))
        if experiment is None:
            return []
        return self.patiently(lambda: list(self._search([experiment.experiment_id], filter_string, order_by)))

    def epochs(self, run_id: str) -> list[LoggedEpoch]:
        """The epochs that a run logged, train/ and valid/ metrics by step."""
        by_step: dict[int, dict[str, float]] = {}
        for name in self._get(run_id).data.metrics:
            if name.startswith(("train/", "valid/")):
                for metric in self._history(run_id, name):
                    by_step.setdefault(metric.step, {})[name] = metric.value
        return [LoggedEpoch(step, by_step[step]) for step in sorted(by_step)]

    def fetch_artifacts(self, run_id: str, artifact_dir: str, parent_dir: Path) -> Path:
        """Copies a folder of a run's artifacts below `parent_dir` and returns it; TrackingError where it has none."""
        try:
            return Path(self.patiently(lambda: self.client.download_artifacts(run_id, artifact_dir, str(parent_dir))))
        except OSError as error:
            raise TrackingError(f"The run {run_id} has no artifacts in {artifact_dir}: {error}") from error

    def end_run(self, run_id: str, status: Status, *, tags: Mapping[str, str]) -> None:
        """Ends a run that no living process writes."""

        def end() -> None:
            for name, value in tags.items():
                self.client.set_tag(run_id, name, value)
            self.client.set_terminated(run_id, status=status)

        self.patiently(end)

    def run_url(self, run: _Parent) -> str | None:
        """The run's page; None where the store is a database, which `make ui` shows."""
        if not is_http(self.tracking_uri):
            return None
        base = self.tracking_uri.rstrip("/")
        return f"{base}/#/experiments/{run.experiment_id}/runs/{run.run_id}"

    def patiently(self, call: Callable[[], T]) -> T:
        """Calls until the store answers, retry_s at most; what it refuses, and silence, become TrackingError.

        The call is made again after a lost answer, so doing it twice must do no harm.
        """
        start = time.monotonic()
        pause_s = 0.1
        while True:
            try:
                return call()
            except (MlflowException, RequestException) as error:
                if not is_transient(error) or time.monotonic() - start + pause_s > self.config.retry_s:
                    raise TrackingError(f"The tracking store {without_password(self.tracking_uri)}: {error}") from error
            time.sleep(pause_s)
            pause_s = min(5.0, pause_s * 2)

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _new_run(
        self, experiment_id: str, run_name: str | None, tags: dict[str, str], *, handles_sigterm: bool = False
    ) -> Run:
        outbox = Outbox(creation=Creation(experiment_id, run_name, tags, start_ms=int(time.time() * 1000)))
        run = Run(outbox, self._writer, experiment_id=experiment_id, handles_sigterm=handles_sigterm)
        self._writer.put(outbox, lambda _: None)
        return run

    def _taken_run(self, run_id: str, run_name: str | None, tags: dict[str, str]) -> Run:
        found = self._get(run_id)
        self.patiently(lambda: self.client.update_run(run_id, status="RUNNING", name=run_name))
        run = Run(
            Outbox(run_id=run_id),
            self._writer,
            experiment_id=found.info.experiment_id,
            known_params=found.data.params,
            handles_sigterm=True,
        )
        run.set_tags(tags)
        run.flush()
        return run

    def _experiment_id(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            if experiment.lifecycle_stage != "active":
                raise TrackingError(
                    f"The experiment {name!r} is deleted; restore it with `mlflow experiments restore -x "
                    f"{experiment.experiment_id}`, or choose another --name."
                )
            return str(experiment.experiment_id)
        location = self._artifact_root.as_uri() if self._artifact_root else None
        try:
            return str(self.client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            # Two commands may start at once.
            experiment = self.client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
                raise
            return str(experiment.experiment_id)

    def _warn_about_experiment(self, run: Run, experiment_name: str) -> None:
        if run.experiment_id != "0" or experiment_name == "Default":
            return
        logger.warning(
            "This run is in the experiment Default, where `mlflow run` made it; "
            "`mlflow run . --experiment-name %s` puts it where it belongs.",
            experiment_name,
        )

    def _next_system_step(self, run_id: str) -> int:
        name = f"{SYSTEM_METRICS_PREFIX}cpu_utilization_percentage"
        return max((metric.step for metric in self._history(run_id, name)), default=-1) + 1

    def _history(self, run_id: str, name: str) -> list[Metric]:
        return self.patiently(lambda: list(self.client.get_metric_history(run_id, name)))

    def _find(self, run_id: str) -> MlflowRun | None:
        def find() -> MlflowRun | None:
            try:
                return self.client.get_run(run_id)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

        run = self.patiently(find)
        return run if run is not None and run.info.lifecycle_stage == "active" else None

    def _get(self, run_id: str) -> MlflowRun:
        run = self._find(run_id)
        if run is None:
            raise TrackingError(f"The tracking store {without_password(self.tracking_uri)} has no run {run_id!r}.")
        return run

    def _search(
        self, experiment_ids: list[str], filter_string: str, order_by: Sequence[str] = ()
    ) -> Iterator[MlflowRun]:
        token: str | None = None
        while True:
            page = self.client.search_runs(
                experiment_ids,
                filter_string=filter_string,
                max_results=_PAGE_SIZE,
                order_by=list(order_by),
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _reap(self) -> None:
        """Ends as KILLED the RUNNING runs whose process ran on this host and is gone."""
        experiment_ids = [each.experiment_id for each in self.client.search_experiments(max_results=_PAGE_SIZE)]
        if not experiment_ids:
            return
        host = process_tags()[HOST_TAG]
        for run in self._search(experiment_ids, f"attributes.status = 'RUNNING' and tags.`{HOST_TAG}` = '{host}'"):
            if is_gone(run.data.tags):
                self.client.set_terminated(run.info.run_id, status="KILLED")
                logger.warning("The run %s (%s) was left RUNNING; ended as KILLED.", run.info.run_name, run.info.run_id)


def _source_tags() -> dict[str, str]:
    return {"mlflow.user": user_name(), "mlflow.source.name": "dogbreed", "mlflow.source.type": "LOCAL"}
