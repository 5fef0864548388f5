"""`dogbreed history`: what was champion when and why, and what the gate said, from MLflow alone."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.pipeline.deploy import BACKEND_TAG, BY_TAG, SINCE_TAG, UNMEASURED_TAG, VERDICT_TAG
from dogbreed_ml.pipeline.endpoints import ENDPOINT_TAG, UNTIL_TAG
from dogbreed_ml.summaries import render_table

if TYPE_CHECKING:
    from dogbreed_ml.registry import ModelVersion
    from dogbreed_ml.reigns import Reign
    from dogbreed_ml.tracking import Tracker

_REASONS_WIDTH = 80


@dataclass(frozen=True)
class GateRecord:
    """One verdict of the gate, as its run tells it."""

    time: str
    """ISO 8601, UTC."""
    model: str
    version: int
    against: str
    """The champion's version, or `no champion`."""
    outcome: str
    dry_run: bool
    reasons: str
    run_id: str


@dataclass(frozen=True)
class DeploymentRecord:
    """The last time that a version was served, as its tags tell it."""

    version: int
    endpoint: str
    backend: str
    since: str
    """ISO 8601, UTC."""
    until: str | None
    """None while it runs, or where its end was not seen."""
    by: str
    unmeasured_reason: str | None
    """Why it was served without a verdict."""


@dataclass(frozen=True)
class History:
    """The reigns of a model's champions, the gate's verdicts and what was served, oldest first."""

    model: str
    champion: int | None
    reigns: "tuple[Reign, ...]"
    verdicts: tuple[GateRecord, ...]
    deployments: tuple[DeploymentRecord, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "champion": self.champion,
            "reigns": [reign.to_dict() for reign in self.reigns],
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "deployments": [asdict(deployment) for deployment in self.deployments],
        }

    def render(self) -> str:
        champion = "no champion" if self.champion is None else f"version {self.champion} is champion"
        lines = [f"{self.model}: {champion}"]
        if self.reigns:
            heads: tuple[str, ...] = ("version", "champion from", "to", "ground", "top-1", "p95", "by", "reason")
            lines += ["", *render_table(heads, [self._reign_row(reign) for reign in self.reigns])]
        if self.verdicts:
            heads = ("gate", "version", "against", "verdict", "run", "reasons")
            lines += ["", *render_table(heads, [_verdict_row(verdict) for verdict in self.verdicts])]
        if self.deployments:
            heads = ("version", "served from", "to", "endpoint", "back end", "by", "unmeasured because")
            lines += ["", *render_table(heads, [_deployment_row(deployment) for deployment in self.deployments])]
        return "\n".join(lines)

    def _reign_row(self, reign: "Reign") -> tuple[str, ...]:
        figures = reign.figures or {}
        is_last = reign is self.reigns[-1] and reign.version == self.champion
        until = "now" if is_last else "unknown" if reign.until is None else _render_time(reign.until)
        return (
            str(reign.version),
            "unknown" if reign.since is None else _render_time(reign.since),
            until,
            reign.ground,
            f"{figures['accuracy_top1']:.2%}" if "accuracy_top1" in figures else "-",
            f"{figures['p95_ms']:.1f} ms" if "p95_ms" in figures else "-",
            reign.by or "-",
            reign.reason or ("the alias was moved by other means" if reign.ground == "outside" else ""),
        )


def list_history(config: ExperimentConfig, *, context: Context) -> History:
    """Reads the registry's reigns and the experiment's gate runs; writes nothing."""
    from dogbreed_ml.registry import CHAMPION, find_alias, list_versions
    from dogbreed_ml.reigns import list_reigns
    from dogbreed_ml.tracking import Tracker

    name = config.registered_model_name
    with Tracker.open(
        project_dir=context.project_dir, config=config.tracking, environment=context.environment
    ) as tracker:
        champion = find_alias(tracker, name, CHAMPION)
        return History(
            model=name,
            champion=None if champion is None else champion.version,
            reigns=tuple(list_reigns(tracker, name)),
            verdicts=tuple(each for each in _verdicts(tracker, config.name) if each.model == name),
            deployments=_deployments(list_versions(tracker, name)),
        )


def _verdicts(tracker: "Tracker", experiment_name: str) -> list[GateRecord]:
    runs = tracker.search_runs(experiment_name, f"tags.`{VERDICT_TAG}` != ''", order_by=["attributes.start_time ASC"])
    return [_record(run) for run in runs]


def _record(run: Any) -> GateRecord:
    tags = run.data.tags
    return GateRecord(
        time=datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds"),
        model=tags["model.name"],
        version=int(tags["model.version"]),
        against=tags["promotion.against"],
        outcome=tags[VERDICT_TAG],
        dry_run=tags["promotion.dry_run"] == "true",
        reasons=tags["promotion.reasons"],
        run_id=run.info.run_id,
    )


def _deployments(versions: "list[ModelVersion]") -> tuple[DeploymentRecord, ...]:
    served = [version for version in versions if SINCE_TAG in version.tags]
    return tuple(
        DeploymentRecord(
            version=version.version,
            endpoint=version.tags[ENDPOINT_TAG],
            backend=version.tags[BACKEND_TAG],
            since=version.tags[SINCE_TAG],
            until=version.tags.get(UNTIL_TAG) or None,
            by=version.tags[BY_TAG],
            unmeasured_reason=version.tags.get(UNMEASURED_TAG),
        )
        for version in sorted(served, key=lambda each: each.tags[SINCE_TAG])
    )


def _deployment_row(deployment: DeploymentRecord) -> tuple[str, ...]:
    since = _render_time(datetime.fromisoformat(deployment.since))
    until = _render_time(datetime.fromisoformat(deployment.until)) if deployment.until else "open"
    told = (deployment.endpoint, deployment.backend, deployment.by, deployment.unmeasured_reason or "")
    return (str(deployment.version), since, until, *told)


def _verdict_row(verdict: GateRecord) -> tuple[str, ...]:
    outcome = f"{verdict.outcome}{' (dry run)' if verdict.dry_run else ''}"
    time = _render_time(datetime.fromisoformat(verdict.time))
    reasons = shorten(verdict.reasons, _REASONS_WIDTH, placeholder=" ...")
    return (time, str(verdict.version), verdict.against, outcome, verdict.run_id, reasons)


def _render_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
