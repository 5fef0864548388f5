"""`dogbreed tune`: a search, and whatever comes after one, whoever drove it."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.debugging.epochs import EpochJudge
from dogbreed_ml.errors import ConfigError, SearchError
from dogbreed_ml.evaluation import Evaluation, compute_metrics
from dogbreed_ml.figures import EpochMetrics
from dogbreed_ml.pipeline.refit import Refitted, average, refit
from dogbreed_ml.pipeline.runprofiler import profiled_run
from dogbreed_ml.pipeline.stages import (
    evaluate_model,
    log_beginning,
    log_evaluation,
    log_model,
    logged_feeds,
    opened,
    rounded,
    run_epochs,
)
from dogbreed_ml.progress import TerminalProgress
from dogbreed_ml.spans import SpanTotals
from dogbreed_ml.summaries import TuneSummary
from dogbreed_ml.train import EpochResult
from dogbreed_ml.workbench import Workbench

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from dogbreed_ml.registry import ModelVersion
    from dogbreed_ml.search import SearchResult, TrialRecord
    from dogbreed_ml.tracking import LoggedEpoch, Run, Tracker
    from dogbreed_ml.warmstart import Finding


@dataclass(frozen=True)
class TrialObjective:
    """What the search calls for each trial: yields the epochs of one training; never looks at the test split."""

    bench: Workbench

    def __call__(self, config: ExperimentConfig) -> Iterator[EpochResult]:
        feeds = self.bench.feeds(config)
        yield from run_epochs(self.bench, config, self.bench.model(config), feeds.train, valid=feeds.valid)


def check_search(config: ExperimentConfig) -> None:
    """Raises ConfigError for what train does and a search, whoever drives it, does not."""
    if config.profile.debugger:
        stop_on = f" and profile.stop_on [{', '.join(config.profile.stop_on)}]" if config.profile.stop_on else ""
        raise ConfigError(
            f"profile.debugger must be false in a search, got true{stop_on}: no smdebug hook runs in its trials, they "
            "are judged by their epochs' figures. Pass --profile.debugger false --profile.stop_on [], and train the "
            "values that the search finds with the debugger on."
        )


def tune(
    config: ExperimentConfig,
    *,
    context: Context,
    earlier_run_ids: Sequence[str] = (),
    findings: "Sequence[Finding]" = (),
) -> TuneSummary:
    """A search: parent run, a child run per trial, the best refitted, evaluated once on test and registered.

    The same command continues a search that was cut off, under its first parent. A new one begins with what the
    searches under `earlier_run_ids` found, and with `findings`.
    """
    check_search(config)
    spans = SpanTotals()
    with spans.span("start"):
        from dogbreed_ml.runs import data_inputs
        from dogbreed_ml.search import SearchStudy
        from dogbreed_ml.warmstart import WARM_START_TAG, find_trials

    tracker, splits, bench = opened(config, context, spans)
    study = SearchStudy.open(
        config,
        fingerprint=splits.fingerprint,
        tracking_uri=tracker.tracking_uri,
        project_dir=context.project_dir,
        tracker=tracker,
    )
    with (
        closing(bench),
        tracker,
        study,
        tracker.start_run(config.name, run_name=study.study_name, run_id=study.parent_run_id) as parent,
        profiled_run(config, parent, project_dir=context.project_dir) as profiler,
    ):
        bench.spans = profiler.spans
        if earlier_run_ids or findings:
            found = [each for run_id in earlier_run_ids for each in find_trials(tracker, run_id, config=config)]
            if num_seeded := study.seed([*findings, *found]):
                logger.info("the search begins with %d earlier trials", num_seeded)
                sources = dict.fromkeys(each.source for each in (*findings, *found))
                parent.set_tags({WARM_START_TAG: ", ".join(sources)})
        study.begin(parent.run_id)
        log_beginning(parent, config, splits, context)
        profiler.note_data(spans.seconds["data"])
        with spans.span("features"):
            feeds = logged_feeds(parent, bench, config)
        with spans.span("search"):
            inputs = data_inputs(splits, names=("train", "valid"))
            console = context.progress.console if isinstance(context.progress, TerminalProgress) else None
            judge = EpochJudge.build(splits.train.labels, splits.classes, parameters=config.profile.tensor_rules)
            with profiler.search(bench):
                result = study.run(
                    TrialObjective(bench), tracker=tracker, parent=parent, inputs=inputs, console=console, judge=judge
                )
        summary = finish_search(config, result, bench=bench, tracker=tracker, parent=parent, spans=spans)
        study.finish()
    hit = feeds.table is not None and feeds.table.cached
    return replace(summary, cache_hits=int(hit), resumed=study.resumed)


def finish_search(
    config: ExperimentConfig,
    result: "SearchResult",
    *,
    bench: Workbench,
    tracker: "Tracker",
    parent: "Run",
    spans: SpanTotals,
) -> TuneSummary:
    """Whatever comes after a search, whoever drove it: refit, one look at test, model, registration, report."""
    best_value = result.best.value
    if best_value is None:
        raise SearchError(f"The best trial must have a value, trial {result.best.number} has none.")
    members = result.ranked[: config.search.ensemble]
    with spans.span("refit"):
        refitted = average(bench, [refit(bench, config, record) for record in members])
        for epoch in refitted.epochs:
            parent.log_epoch(epoch)
    with spans.span("evaluation"):
        curves = _curves(tracker, result)
        parent.log_metrics(_valid_metrics(curves, result.best.best_epoch))
        if config.search.ensemble > 1:
            _log_ensemble(parent, refitted, members, config)
        test = _evaluate_once(bench, refitted, parent, curves or refitted.epochs)
    tags = {result.metric: f"{best_value:.6g}", "trial.number": str(result.best.number)}
    with spans.span("model"):
        model_uri, version = _register(config, refitted, bench=bench, tracker=tracker, parent=parent, tags=tags)
    with spans.span("report"):
        _log_report(config, result, test, parent)
    parent.log_metrics({f"seconds/{stage}": seconds for stage, seconds in spans.seconds.items()})
    return TuneSummary(
        parent_run_id=parent.run_id,
        study_name=result.study_name,
        num_trials=len(result.trials),
        best_trial=result.best.number,
        metric=result.metric,
        best_value=best_value,
        best_params=result.best.values,
        model_uri=model_uri,
        model_name=version.name,
        model_version=version.version,
        test=test.metrics,
        test_top1_interval=test.top1_interval,
        seconds=rounded(spans),
        url=tracker.run_url(parent),
    )


def _evaluate_once(bench: Workbench, refitted: Refitted, parent: "Run", epochs: Sequence[EpochMetrics]) -> Evaluation:
    """The search's only look at the test split."""
    feeds = bench.feeds(refitted.config)
    test = evaluate_model(bench, refitted.model, feeds.test, temperature=refitted.temperature)
    log_evaluation(parent, test, bench.splits, epochs)
    return test


def _register(
    config: ExperimentConfig,
    refitted: Refitted,
    *,
    bench: Workbench,
    tracker: "Tracker",
    parent: "Run",
    tags: Mapping[str, str],
) -> "tuple[str, ModelVersion]":
    """The refitted model, logged with the parent run and registered as challenger; its URI as a logged model first."""
    from dogbreed_ml import pyfunc
    from dogbreed_ml.registry import register_challenger

    model_uri = log_model(
        pyfunc,
        tracker,
        parent,
        network=bench.whole(refitted.config, refitted.model),
        splits=bench.splits,
        config=refitted.config,
        temperature=refitted.temperature,
    )
    name = config.registered_model_name
    return model_uri, register_challenger(tracker, name, model_uri=model_uri, run_id=parent.run_id, tags=tags)


def _log_report(config: ExperimentConfig, result: "SearchResult", test: Evaluation, parent: "Run") -> None:
    from dogbreed_ml.report import render_search_report

    best = result.best
    tags = {"best_trial": str(best.number), "best_value": f"{best.value:.6g}"}
    parent.set_tags(tags | {f"best.{name}": str(value) for name, value in best.values.items()})
    report = render_search_report(
        result, config=config, experiment_id=parent.experiment_id, test=test.metrics, interval=test.top1_interval
    )
    parent.log_text(report, "search_report.html")


def _log_ensemble(
    parent: "Run", refitted: Refitted, members: "Sequence[TrialRecord]", config: ExperimentConfig
) -> None:
    """The members by trial number, and what they come to together on valid, beside valid/ of the best alone."""
    if len(members) < config.search.ensemble:
        logger.warning("The ensemble has %d heads: no more trials were completed.", len(members))
    parent.set_tags({"ensemble.trials": ", ".join(str(record.number) for record in members)})
    together = compute_metrics(refitted.valid_logits / refitted.temperature, refitted.valid_labels)
    parent.log_metrics({f"ensemble/valid_{name}": value for name, value in together.items()})


def _curves(tracker: "Tracker", result: "SearchResult") -> "list[LoggedEpoch]":
    """The winning trial's epochs: the refit on train + valid has no valid curve of its own."""
    return [] if result.best.run_id is None else tracker.epochs(result.best.run_id)


def _valid_metrics(curves: "Sequence[LoggedEpoch]", epoch: int | None) -> dict[str, float]:
    """The winning trial's valid/ metrics at the epoch that it kept, for the parent run to be compared by."""
    kept = next((each.metrics for each in curves if each.epoch == epoch), {})
    return {name: value for name, value in kept.items() if name.startswith("valid/")}
