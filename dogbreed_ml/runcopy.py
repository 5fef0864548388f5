"""A run as one MLflow store has it, written into another; done twice, it changes nothing.

A bundle is a folder with an MLflow store of one run: `mlflow.db`, and `mlruns/` beside it.
"""

import sqlite3
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from mlflow.entities import DatasetInput, Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from dogbreed_ml.errors import TrackingError
from dogbreed_ml.stores import answered
from dogbreed_ml.tracking import PARENT_TAG, Status, Tracker

DATABASE_FILE: Final = "mlflow.db"

# MLflow's limits of one log_batch.
_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS = 1000, 100, 100
# Of the store that a run is in; the other store has its own.
_OWN_TAGS = ("mlflow.runName", PARENT_TAG, "dogbreed.event")


@dataclass(frozen=True)
class StoredRun:
    """One run with everything that it logged."""

    name: str
    status: str
    """MLflow's: RUNNING where it was cut off."""
    start_ms: int
    end_ms: int | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: tuple[Metric, ...]
    """Every point, with its time and step."""
    inputs: tuple[DatasetInput, ...] = ()
    artifacts_dir: Path | None = None

    def last(self, metric: str) -> Metric | None:
        """The point of the latest step."""
        points = [each for each in self.metrics if each.key == metric]
        return max(points, key=lambda each: (each.step, each.timestamp), default=None)


@cache
def empty_database() -> bytes:
    """MLflow's SQLite database without a run, for the same version of MLflow.

    MLflow makes one in 68 migrations, which take 2 s and more; a bundle that begins with a copy is there at once. Two
    processes get equal databases of unequal bytes: columns of an index come from a set.
    """
    with tempfile.TemporaryDirectory(prefix="dogbreed-store-") as folder:
        path = Path(folder) / DATABASE_FILE
        uri = f"sqlite:///{path}"
        answered(uri, lambda: MlflowClient(uri))
        with closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE experiments SET creation_time = 0, last_update_time = 0, artifact_location = ''")
            database.commit()
            database.execute("VACUUM")
        return path.read_bytes()


def read_bundle(folder: Path) -> StoredRun:
    """The run of a bundle; TrackingError where the folder holds none, or one that cannot be read."""
    database_path = folder / DATABASE_FILE
    if not database_path.is_file():
        raise TrackingError(f"A bundle must hold {DATABASE_FILE}; {folder.name} does not.")
    uri = f"sqlite:///{database_path}"

    def read() -> StoredRun:
        client = MlflowClient(uri)
        experiment_ids = [each.experiment_id for each in client.search_experiments()]
        runs = client.search_runs(experiment_ids, max_results=2)
        if len(runs) != 1:
            raise TrackingError(f"A bundle must hold one run, got {len(runs)}.")
        run = runs[0]
        artifacts_dir = folder / "mlruns" / run.info.run_id / "artifacts"
        return StoredRun(
            name=run.info.run_name,
            status=run.info.status,
            start_ms=run.info.start_time,
            end_ms=run.info.end_time,
            params=run.data.params,
            tags={name: value for name, value in run.data.tags.items() if name not in _OWN_TAGS},
            metrics=tuple(
                each for name in run.data.metrics for each in client.get_metric_history(run.info.run_id, name)
            ),
            inputs=tuple(run.inputs.dataset_inputs) if run.inputs else (),
            artifacts_dir=artifacts_dir if artifacts_dir.is_dir() else None,
        )

    return answered(uri, read)


def ensure_run(
    tracker: Tracker, experiment_id: str, *, tag: tuple[str, str], name: str, start_ms: int, parent_run_id: str | None
) -> str:
    """The oldest run that carries `tag`, made where there is none; its id."""
    tags = {tag[0]: tag[1]} | ({} if parent_run_id is None else {PARENT_TAG: parent_run_id})

    def ensure() -> str:
        # Asked anew at each attempt: the answer to a creation may have been lost.
        found = tracker.find_tagged(experiment_id, *tag)
        if found:
            return str(found[0].info.run_id)
        made = tracker.client.create_run(experiment_id, start_time=start_ms, tags=tags, run_name=name)
        return str(made.info.run_id)

    return tracker.patiently(ensure)


def write_run(tracker: Tracker, run_id: str, stored: StoredRun) -> None:
    """Everything but tags and status; points that are there already stay single, params keep their first value."""
    client = tracker.client
    existing = tracker.patiently(lambda: client.get_run(run_id))
    params = [Param(name, value) for name, value in stored.params.items() if name not in existing.data.params]
    for start in range(0, len(params), _MAX_PARAMS):
        chunk = params[start : start + _MAX_PARAMS]
        tracker.patiently(_batch(client, run_id, params=chunk))
    # MLflow's store takes a point of the same name, time, step and value once.
    for start in range(0, len(stored.metrics), _MAX_METRICS):
        points = stored.metrics[start : start + _MAX_METRICS]
        tracker.patiently(_batch(client, run_id, metrics=points))
    if stored.inputs:
        tracker.patiently(lambda: client.log_inputs(run_id, list(stored.inputs)))
    if stored.artifacts_dir is not None and any(stored.artifacts_dir.iterdir()):
        tracker.patiently(lambda: client.log_artifacts(run_id, str(stored.artifacts_dir)))


def build_point(name: str, value: float, *, time_ms: int, step: int = 0) -> Metric:
    """One value of a metric."""
    return Metric(name, float(value), time_ms, step)


def end_copy(
    tracker: Tracker,
    run_id: str,
    *,
    name: str,
    status: Status,
    end_ms: int,
    tags: Mapping[str, str],
    last: tuple[str, str],
) -> None:
    """Tags, name and status; `last` is set when all the rest is there."""
    rendered = [RunTag(key, value) for key, value in tags.items()]
    for start in range(0, len(rendered), _MAX_TAGS):
        tracker.patiently(_batch(tracker.client, run_id, tags=rendered[start : start + _MAX_TAGS]))
    tracker.patiently(lambda: tracker.client.update_run(run_id, name=name))
    tracker.patiently(lambda: tracker.client.set_terminated(run_id, status=status, end_time=end_ms))
    tracker.patiently(lambda: tracker.client.set_tag(run_id, *last))


def read_run(tracker: Tracker, run_id: str) -> StoredRun:
    """A run of an open store, without inputs and artifacts."""
    run = tracker.patiently(lambda: tracker.client.get_run(run_id))

    def points() -> tuple[Metric, ...]:
        return tuple(each for name in run.data.metrics for each in tracker.client.get_metric_history(run_id, name))

    return StoredRun(
        name=run.info.run_name,
        status=run.info.status,
        start_ms=run.info.start_time,
        end_ms=run.info.end_time,
        params=run.data.params,
        tags=dict(run.data.tags),
        metrics=tracker.patiently(points),
    )


def _batch(
    client: MlflowClient,
    run_id: str,
    *,
    params: Sequence[Param] = (),
    metrics: Sequence[Metric] = (),
    tags: Sequence[RunTag] = (),
) -> Callable[[], object]:
    return lambda: client.log_batch(
        run_id, params=list(params), metrics=list(metrics), tags=list(tags), synchronous=True
    )
