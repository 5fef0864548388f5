"""`dogbreed promote`: the gate, and the way back to an earlier champion."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.errors import GateError
from dogbreed_ml.options import PromoteOptions
from dogbreed_ml.pipeline.contenders import measure
from dogbreed_ml.pipeline.deploy import MEASURED_BACKEND_TAG, VERDICT_TAG
from dogbreed_ml.promotion import Scores, Verdict, judge

if TYPE_CHECKING:
    from dogbreed_ml.registry import ModelVersion
    from dogbreed_ml.tracking import Run, Tracker

RUN_NAME = "promote"
VERDICT_ARTIFACT = "promotion.json"

Outcome = Literal["passed", "refused", "forced"]


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What the gate said, and what came of it."""

    model: str
    version: int
    champion: int | None
    """Whom it was measured against."""
    outcome: Outcome
    moved: bool
    """Whether the version is champion now."""
    dry_run: bool
    reason: str | None
    run_id: str
    url: str | None
    verdict: Verdict
    notes: tuple[str, ...] = ()

    @property
    def is_refused(self) -> bool:
        return self.outcome == "refused"

    @property
    def is_forced(self) -> bool:
        return self.outcome == "forced"

    @property
    def _failed(self) -> str:
        return ", ".join(check.name for check in self.verdict.checks if not check.passed)

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        if self.is_refused:
            return f"version {self.version} is refused for its {self._failed}."
        if self.dry_run:
            return (
                f"version {self.version} may become champion{' by --force' * self.is_forced}; --dry-run moved nothing."
            )
        if self.is_forced:
            why = f"was refused for its {self._failed}" if self._failed else "had no champion to be measured against"
            return f"version {self.version} {why}, and is champion by --force: {self.reason}"
        replaced = f" in place of version {self.champion}" if self.champion is not None else ", the first"
        return f"version {self.version} passed, and is champion{replaced}."

    def to_dict(self) -> dict[str, Any]:
        fields = ("model", "version", "champion", "outcome", "moved", "dry_run", "reason", "run_id", "url")
        told = {name: getattr(self, name) for name in fields}
        return told | {"notes": list(self.notes), "verdict": self.verdict.to_dict()}

    def render(self) -> str:
        lines = [f"gate      {self.model}: {self.sentence}"]
        lines += [
            f"{check.name:9} {'passed ' if check.passed else 'refused'} {check.details}"
            for check in self.verdict.checks
        ]
        lines += [_render_scores(f"version {self.version}", self.verdict.challenger)]
        if self.verdict.champion is not None:
            lines.append(_render_scores(f"version {self.champion}", self.verdict.champion))
        lines += [f"note      {note}" for note in self.notes]
        return "\n".join([*lines, f"look      {self.url or 'make ui'} (run {self.run_id}, promotion.html)"])


@dataclass(frozen=True, kw_only=True)
class Return:
    """An earlier champion that is champion again."""

    model: str
    version: int
    replaced: int | None
    reason: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"outcome": "returned", "moved": True}

    def render(self) -> str:
        replaced = "" if self.replaced is None else f" in place of version {self.replaced}"
        return f"{self.model} version {self.version} is champion again{replaced}."


def promote(config: ExperimentConfig, options: PromoteOptions, *, context: Context) -> Promotion | Return:
    """Measures the challenger and the champion through their servers, and moves `champion` where that passed."""
    from dogbreed_ml.registry import link_model
    from dogbreed_ml.tracking import Tracker

    with Tracker.open(
        project_dir=context.project_dir, config=config.tracking, environment=context.environment
    ) as tracker:
        if options.to is not None:
            return _go_back(tracker, config.registered_model_name, options.to, reason=options.reason)
        challenger, champion = _contenders(tracker, config, options.version)
        splits = load_splits(config.data, project_dir=context.project_dir, progress=context.progress)
        with tracker.start_run(config.name, run_name=RUN_NAME) as run:
            run.log_config(config)
            run.log_environment(project_dir=context.project_dir, argv=context.argv, seed=config.train.seed)
            run.log_splits(splits, names=("test",))
            run.set_tags({"model.name": challenger.name, "model.version": str(challenger.version)})
            link_model(tracker, run.run_id, challenger)
            return _promote(tracker, run, config, options, challenger, champion, splits, context)


def _go_back(tracker: "Tracker", name: str, number: int, *, reason: str | None) -> Return:
    from dogbreed_ml.reigns import return_to

    _, replaced = return_to(tracker, name, number, reason=reason)
    return Return(model=name, version=number, replaced=replaced, reason=reason)


def _contenders(
    tracker: "Tracker", config: ExperimentConfig, reference: str
) -> "tuple[ModelVersion, ModelVersion | None]":
    from dogbreed_ml.registry import CHAMPION, find_alias, resolve_version

    challenger = resolve_version(tracker, config.registered_model_name, reference)
    champion = find_alias(tracker, challenger.name, CHAMPION)
    if champion is not None and champion.version == challenger.version:
        raise GateError(
            f"Version {challenger.version} of {challenger.name} ({reference}) is champion already; "
            f"`dogbreed tune` makes another challenger, --version NUMBER names one."
        )
    return challenger, champion


def _promote(
    tracker: "Tracker",
    run: "Run",
    config: ExperimentConfig,
    options: PromoteOptions,
    challenger: "ModelVersion",
    champion: "ModelVersion | None",
    splits: Splits,
    context: Context,
) -> Promotion:
    from dogbreed_ml.promotion_page import PROMOTION_PAGE_ARTIFACT, render_promotion_page

    measured, notes = measure(
        tracker, config, challenger, champion, splits, context=context, may_go_alone=options.force
    )
    labels = [splits.classes[sample.label] for sample in splits.test.samples]
    against = measured.get(champion.version) if champion is not None else None
    verdict = judge(measured[challenger.version], against, labels, config=config.promotion)
    is_complete = champion is None or against is not None
    outcome: Outcome = "passed" if verdict.passed and is_complete else "forced" if options.force else "refused"
    promotion = Promotion(
        model=challenger.name,
        version=challenger.version,
        champion=None if champion is None else champion.version,
        outcome=outcome,
        moved=outcome != "refused" and not options.dry_run,
        dry_run=options.dry_run,
        reason=options.reason,
        run_id=run.run_id,
        url=tracker.run_url(run),
        verdict=verdict,
        notes=notes,
    )
    timings = {_title(number, challenger.version): each.timing for number, each in measured.items()}
    page = render_promotion_page(verdict, timings, model_name=challenger.name, outcome=promotion.sentence, notes=notes)
    run.log_text(json.dumps(promotion.to_dict(), indent=2), VERDICT_ARTIFACT)
    run.log_text(page, PROMOTION_PAGE_ARTIFACT)
    run.log_metrics(_metrics(verdict))
    run.set_tags(_run_tags(promotion))
    run.flush()
    if not options.dry_run:
        _record(tracker, promotion, challenger, champion)
    return promotion


def _record(
    tracker: "Tracker", promotion: Promotion, challenger: "ModelVersion", champion: "ModelVersion | None"
) -> None:
    """Tags on both versions, then the alias: a champion without a verdict must not be seen."""
    from dogbreed_ml.registry import set_version_tags
    from dogbreed_ml.reigns import begin_reign

    scores = promotion.verdict.challenger
    tags = {
        "promotion.run_id": promotion.run_id,
        "promotion.time": datetime.now(UTC).isoformat(timespec="seconds"),
        "promotion.against": "no champion" if champion is None else str(champion.version),
        "promotion.reasons": "; ".join(promotion.verdict.reasons),
        "promotion.reason": (promotion.reason or "") if promotion.outcome == "forced" else "",
        **_figure_tags("promotion", scores),
    }
    # The verdict last: who reads it finds the rest.
    set_version_tags(tracker, challenger, tags | {VERDICT_TAG: promotion.outcome})
    if champion is not None:
        tags = {
            "challenged.by": str(challenger.version),
            "challenged.run_id": promotion.run_id,
            "challenged.outcome": promotion.outcome,
        }
        measured = promotion.verdict.champion
        set_version_tags(tracker, champion, tags | (_figure_tags("challenged", measured) if measured else {}))
    if promotion.outcome != "refused":
        begin_reign(
            tracker,
            challenger,
            promotion.outcome,
            replaces=promotion.champion,
            reason=promotion.reason if promotion.outcome == "forced" else None,
            run_id=promotion.run_id,
            figures={name: getattr(scores, name) for name in ("accuracy_top1", "p95_ms")},
        )


def _figure_tags(prefix: str, scores: Scores) -> dict[str, str]:
    return {f"{prefix}.{name}": _figure(value) for name, value in asdict(scores).items()}


def _run_tags(promotion: Promotion) -> dict[str, str]:
    tags = {VERDICT_TAG: promotion.outcome, "promotion.dry_run": str(promotion.dry_run).lower()}
    tags["promotion.against"] = "no champion" if promotion.champion is None else str(promotion.champion)
    tags["promotion.reasons"] = "; ".join(promotion.verdict.reasons)
    if promotion.reason:
        tags["promotion.reason"] = promotion.reason
    return tags | {MEASURED_BACKEND_TAG: promotion.verdict.challenger.backend}


def _metrics(verdict: Verdict) -> dict[str, float]:
    metrics = {f"challenger/{name}": value for name, value in _numbers(verdict.challenger).items()}
    if verdict.champion is not None:
        metrics |= {f"champion/{name}": value for name, value in _numbers(verdict.champion).items()}
    comparison = verdict.comparison
    if comparison is not None:
        for name, interval in (("accuracy_change", comparison.accuracy_change), ("p95_ratio", comparison.p95_ratio)):
            metrics |= {f"comparison/{name}{end}": each for end, each in _ends(asdict(interval)).items()}
        metrics["comparison/p_value"] = comparison.p_value
    return metrics


def _ends(interval: Mapping[str, float]) -> dict[str, float]:
    return {"": interval["value"], "_low": interval["low"], "_high": interval["high"]}


def _numbers(scores: Scores) -> dict[str, float]:
    return {name: value for name, value in asdict(scores).items() if not isinstance(value, str)}


def _figure(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _title(number: int, challenger: int) -> str:
    return f"version {number} ({'challenger' if number == challenger else 'champion'})"


def _render_scores(name: str, scores: Scores) -> str:
    return (
        f"{name:9} top-1 {scores.accuracy_top1:.2%}, F1 {scores.f1_macro:.3f}, worst {scores.worst_breed} "
        f"{scores.worst_recall:.0%}, ECE {scores.calibration_error:.3f}; p50 {scores.p50_ms:.1f} ms, "
        f"p95 {scores.p95_ms:.1f} ms, {scores.images_per_s:.0f} images/s ({scores.backend})"
    )
