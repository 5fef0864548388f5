"""What was put live when, by whom, with what verdict and why: one run of the model's experiment a change.

An event is a run of its own, so that an interrupted or failed change is on record as every interrupted run is; the tags
of the model version say the same of its last deployment, for who looks at the model's page.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, cast

from dogbreed_ml.provenance import user_name
from dogbreed_ml.registry import ModelVersion, link_model, load_version, set_version_tags
from dogbreed_ml.runs import CAUSE_TAG, Run
from dogbreed_ml.tracking import Tracker

Target = Literal["local", "sagemaker"]
Action = Literal["deploy", "update", "rollback", "reap", "delete", "ended"]
"""`ended` is a local server that was stopped where it ran in front."""

BACKEND_TAG, ENDPOINT_TAG = "serving.backend", "serving.endpoint"
SINCE_TAG, UNTIL_TAG, BY_TAG = "serving.since", "serving.until", "serving.by"
"""The end is empty while the version is served, or where its server was killed."""
UNMEASURED_TAG = "serving.unmeasured_reason"

_PREFIX = "deployment."
ACTION_TAG = f"{_PREFIX}action"
_NOTES = ("target", "endpoint", "endpoint_config", "replaced_config", "smoke", "backend", "why", "left")
_OUTCOMES = {"FINISHED": "done", "FAILED": "failed", "KILLED": "interrupted", "RUNNING": "under way"}
_MODEL_SUFFIX = "-resnet50"


@dataclass(frozen=True, kw_only=True)
class DeploymentEvent:
    """One change of one endpoint, as its run tells it."""

    time: str
    """ISO 8601, UTC; when it began."""
    action: str
    outcome: str
    """done, under way, interrupted, failed, `smoke failed`, `rolled back`."""
    target: str
    """local or sagemaker."""
    endpoint: str
    model: str
    version: int
    by: str
    run_id: str
    endpoint_config: str | None = None
    """What it serves, or served at the end, by SageMaker's name for it."""
    replaced_config: str | None = None
    smoke: str | None = None
    """What the smoke test said."""
    backend: str | None = None
    why: str | None = None
    """The reason that was given, or the cause of a failure."""
    left: str | None = None
    """What may still be live, and cost money, after it failed."""

    @property
    def is_done(self) -> bool:
        return self.outcome == "done"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Noted(Protocol):
    """What an event is about."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...


class EventRecord:
    """An event while it happens."""

    def __init__(self, run: Run):
        self._run = run

    @property
    def run_id(self) -> str:
        return self._run.run_id

    def note(self, **notes: str | None) -> None:
        """Adds fields of DeploymentEvent: target, endpoint_config, replaced_config, smoke, backend, why, left, outcome.

        Without `outcome`, the run's own end is the outcome.
        """
        unknown = set(notes) - {*_NOTES, "outcome", "action"}
        if unknown:
            raise TypeError(f"An event has no {', '.join(sorted(unknown))}.")
        self._run.set_tags({f"{_PREFIX}{key}": value for key, value in notes.items() if value is not None})


@contextmanager
def recorded(
    tracker: Tracker, action: Action, *, target: Target, endpoint: str, version: Noted, why: str | None = None
) -> Iterator[EventRecord]:
    """The event's run; it ends FAILED or KILLED with what leaves the with statement."""
    tags = {
        ACTION_TAG: action,
        f"{_PREFIX}target": target,
        f"{_PREFIX}endpoint": endpoint,
        "model.name": version.name,
        "model.version": str(version.version),
        **({f"{_PREFIX}why": why} if why else {}),
    }
    with tracker.start_run(experiment_of(version.name), run_name=f"{action} {endpoint}", tags=tags) as run:
        run.set_tags({"mlflow.user": user_name()})
        run.flush()
        if isinstance(version, ModelVersion):
            link_model(tracker, run.run_id, version)
        yield EventRecord(run)


def list_events(tracker: Tracker, model: str, *, endpoint: str | None = None) -> list[DeploymentEvent]:
    """The events of a registered model's endpoints, oldest first; with `endpoint`, those of that one alone."""
    conditions = f"tags.`{ACTION_TAG}` != '' and tags.`model.name` = '{model}'"
    if endpoint is not None:
        conditions += f" and tags.`{_PREFIX}endpoint` = '{endpoint}'"
    runs = tracker.search_runs(experiment_of(model), conditions, order_by=["attributes.start_time ASC"])
    return [_event(run) for run in runs]


def experiment_of(model: str) -> str:
    """The experiment that the registered model belongs to: a config's `name`."""
    return model.removesuffix(_MODEL_SUFFIX)


def mark_live(
    tracker: Tracker,
    version: ModelVersion,
    *,
    endpoint: str,
    backend: str,
    since: str,
    unmeasured_reason: str | None = None,
) -> None:
    """Notes with the version where it is served; `since` is ISO 8601, UTC."""
    tags = {
        BACKEND_TAG: backend,
        ENDPOINT_TAG: endpoint,
        SINCE_TAG: since,
        UNTIL_TAG: "",
        BY_TAG: user_name(),
    }
    if unmeasured_reason is not None:
        tags[UNMEASURED_TAG] = unmeasured_reason
    set_version_tags(tracker, version, tags)


def mark_ended(tracker: Tracker, model: str, number: int, *, endpoint: str) -> None:
    """Notes until when the version was served there, unless another endpoint has served it since."""
    version = load_version(tracker, model, number)
    if version.tags.get(ENDPOINT_TAG) == endpoint:
        set_version_tags(tracker, version, {UNTIL_TAG: utc_now()})


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _event(run: Any) -> DeploymentEvent:
    tags = cast(Mapping[str, str], run.data.tags)
    notes: dict[str, Any] = {key: tags.get(f"{_PREFIX}{key}") for key in _NOTES}
    return DeploymentEvent(
        time=datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds"),
        action=tags[ACTION_TAG],
        outcome=tags.get(f"{_PREFIX}outcome") or _OUTCOMES.get(run.info.status, run.info.status),
        model=tags["model.name"],
        version=int(tags["model.version"]),
        by=tags.get("mlflow.user", ""),
        run_id=run.info.run_id,
        **(notes | {"why": notes["why"] or tags.get(CAUSE_TAG)}),
    )
