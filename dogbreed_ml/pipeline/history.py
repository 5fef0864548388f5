"""`dogbreed history`: what was champion when, what the gate said, and what was live where, from MLflow alone."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.pipeline.deploy import VERDICT_TAG
from dogbreed_ml.summaries import render_table

if TYPE_CHECKING:
    from dogbreed_ml.deployments import DeploymentEvent
    from dogbreed_ml.reigns import Reign
    from dogbreed_ml.tracking import Tracker

_REASONS_WIDTH, _DETAILS_WIDTH = 80, 140


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
class History:
    """The reigns of a model's champions, the gate's verdicts and the events of its endpoints, oldest first."""

    model: str
    champion: int | None
    reigns: "tuple[Reign, ...]"
    verdicts: tuple[GateRecord, ...]
    deployments: "tuple[DeploymentEvent, ...]" = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "champion": self.champion,
            "reigns": [reign.to_dict() for reign in self.reigns],
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
            "deployments": [event.to_dict() for event in self.deployments],
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
            heads = ("time", "event", "version", "endpoint", "by", "what")
            lines += ["", *render_table(heads, self._timeline())]
        return "\n".join(lines)

    def _timeline(self) -> list[tuple[str, ...]]:
        """Champions and endpoints in one line of time."""
        rows = [(reign.since, _champion_row(reign)) for reign in self.reigns if reign.since is not None]
        rows += [(datetime.fromisoformat(event.time), _event_row(event)) for event in self.deployments]
        return [row for _, row in sorted(rows, key=lambda each: each[0])]

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
    """Reads the registry's reigns and the experiment's runs of the gate and of deployments; writes nothing."""
    from dogbreed_ml.deployments import list_events
    from dogbreed_ml.registry import CHAMPION, find_alias
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
            deployments=tuple(list_events(tracker, name)),
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


def _champion_row(reign: "Reign") -> tuple[str, ...]:
    since = _render_time(reign.since) if reign.since else "unknown"
    return (since, "champion", str(reign.version), "", reign.by or "-", reign.reason or reign.ground)


def _event_row(event: "DeploymentEvent") -> tuple[str, ...]:
    what = event.action if event.is_done else f"{event.action}: {event.outcome}"
    told = [event.target, event.endpoint_config or event.backend]
    told += [f"in place of {event.replaced_config}"] if event.replaced_config else []
    told += [f"smoke test {event.smoke}"] if event.smoke else []
    told += [f"may still be live: {event.left}"] if event.left else []
    told += [event.why]
    details = shorten("; ".join(each for each in told if each), _DETAILS_WIDTH, placeholder=" ...")
    time = _render_time(datetime.fromisoformat(event.time))
    return (time, what, str(event.version), event.endpoint, event.by, details)


def _verdict_row(verdict: GateRecord) -> tuple[str, ...]:
    outcome = f"{verdict.outcome}{' (dry run)' if verdict.dry_run else ''}"
    time = _render_time(datetime.fromisoformat(verdict.time))
    reasons = shorten(verdict.reasons, _REASONS_WIDTH, placeholder=" ...")
    return (time, str(verdict.version), verdict.against, outcome, verdict.run_id, reasons)


def _render_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
