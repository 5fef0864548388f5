"""The order of the stages; each verb of the command line is one function here."""

import logging
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreed_ml.backend import device_of
from dogbreed_ml.checkpoint import Checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits, describe, quarantine_rows
from dogbreed_ml.errors import SearchError
from dogbreed_ml.evaluation import (
    EpochMetrics,
    Evaluation,
    compute_metrics,
    confused_figure,
    confusion_figure,
    evaluate_logits,
    learning_curves_figure,
)
from dogbreed_ml.features import FeatureStore
from dogbreed_ml.model import Network
from dogbreed_ml.spans import SpanTotals
from dogbreed_ml.summaries import DataDescription, TrainSummary, TuneSummary
from dogbreed_ml.train import Batches, EpochResult, evaluate, fit
from dogbreed_ml.workbench import Feeds, Workbench, preprocessing_of

if TYPE_CHECKING:
    from dogbreed_ml.search import SearchResult
    from dogbreed_ml.serve import Prediction
    from dogbreed_ml.tracking import LoggedEpoch, Run, Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialObjective:
    """What the search calls for each trial: yields the epochs of one training; never looks at the test split."""

    bench: Workbench

    def __call__(self, config: ExperimentConfig) -> Iterator[EpochResult]:
        feeds = self.bench.feeds(config)
        yield from _epochs(self.bench, config, self.bench.model(config), feeds.train, valid=feeds.valid)


def describe_data(config: ExperimentConfig, *, context: Context) -> DataDescription:
    """Fetches, checks and splits the data set, and says what it found."""
    splits = load_splits(config.data, project_dir=context.project_dir, progress=context.progress)
    return DataDescription(describe(splits), quarantine_rows(splits))


def clear_features(config: ExperimentConfig, *, context: Context) -> int:
    """Deletes the kept features and returns the bytes freed."""
    return FeatureStore(config.features, context.project_dir / config.features.dir, device=device_of()).clear()


def train(config: ExperimentConfig, *, context: Context) -> TrainSummary:
    """One tracked run: fit, evaluate on valid and test, keep the model with the run (not registered)."""
    spans = SpanTotals()
    with spans.span("start"):
        from dogbreed_ml import pyfunc

    tracker, splits, bench = _opened(config, context, spans)
    with closing(bench), tracker, tracker.start_run(config.name, run_name="train") as run:
        _log_beginning(run, config, splits, context)
        with spans.span("features"):
            feeds = _logged_feeds(run, bench, config)
        with spans.span("train"):
            model, epochs = bench.model(config), []
            for result in _epochs(bench, config, model, feeds.train, valid=feeds.valid):
                logger.info("%s", result.render())
                run.log_epoch(result)
                epochs.append(result)
        with spans.span("evaluation"):
            valid = _evaluation(bench, model, feeds.valid)
            test = _evaluation(bench, model, feeds.test)
            _log_evaluation(run, test, splits, epochs)
        with spans.span("model"):
            network = bench.whole(config, model)
            model_uri = _log_model(pyfunc, tracker, run, network, splits, config)
        run.log_metrics({f"seconds/{stage}": seconds for stage, seconds in spans.seconds.items()})
        url = tracker.run_url(run)
    return TrainSummary(
        run_id=run.run_id,
        model_uri=model_uri,
        num_epochs=len(epochs),
        valid=valid.metrics,
        test=test.metrics,
        test_top1_interval=test.top1_interval,
        seconds=_rounded(spans),
        url=url,
    )


def tune(config: ExperimentConfig, *, context: Context) -> TuneSummary:
    """A search: parent run, a child run per trial, the best refitted, evaluated once on test and registered.

    The same command continues a search that was cut off, under its first parent.
    """
    spans = SpanTotals()
    with spans.span("start"):
        from dogbreed_ml.runs import data_inputs
        from dogbreed_ml.search import SearchStudy

    tracker, splits, bench = _opened(config, context, spans)
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
    ):
        study.begin(parent.run_id)
        _log_beginning(parent, config, splits, context)
        with spans.span("features"):
            feeds = _logged_feeds(parent, bench, config)
        with spans.span("search"):
            inputs = data_inputs(splits, names=("train", "valid"))
            result = study.run(TrialObjective(bench), tracker=tracker, parent=parent, inputs=inputs)
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
    from dogbreed_ml import pyfunc
    from dogbreed_ml.registry import register_challenger
    from dogbreed_ml.report import render_search_report

    best_value = result.best.value
    if best_value is None:
        raise SearchError(f"The best trial must have a value, trial {result.best.number} has none.")
    best_config = with_values(config, result.best.values)
    feeds = bench.feeds(best_config)
    with spans.span("refit"):
        model, epochs = bench.model(best_config), []
        on_both = config.search.refit == "train_valid"
        batches, valid = (feeds.train_valid, None) if on_both else (feeds.train, feeds.valid)
        for epoch in _epochs(bench, best_config, model, batches, valid=valid):
            parent.log_epoch(epoch)
            epochs.append(epoch)
            # Without a valid split nothing can stop early: the epoch that the trial kept ends the refit.
            if on_both and epoch.epoch == result.best.best_epoch:
                break
    with spans.span("evaluation"):
        test = _evaluation(bench, model, feeds.test)
        curves = _curves(tracker, result)
        parent.log_metrics(_valid_metrics(curves, result.best.best_epoch))
        _log_evaluation(parent, test, bench.splits, curves or epochs)
    with spans.span("model"):
        network = bench.whole(best_config, model)
        model_uri = _log_model(pyfunc, tracker, parent, network, bench.splits, best_config)
        version = register_challenger(
            tracker,
            config.registered_model_name,
            model_uri=model_uri,
            run_id=parent.run_id,
            tags={result.metric: f"{best_value:.6g}", "trial.number": str(result.best.number)},
        )
    with spans.span("report"):
        parent.set_tags(
            {"best_trial": str(result.best.number), "best_value": f"{best_value:.6g}"}
            | {f"best.{name}": str(value) for name, value in result.best.values.items()}
        )
        report = render_search_report(
            result, config=config, experiment_id=parent.experiment_id, test=test.metrics, interval=test.top1_interval
        )
        parent.log_text(report, "search_report.html")
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
        seconds=_rounded(spans),
        url=tracker.run_url(parent),
    )


def predict(paths: Sequence[Path], *, model: str, context: Context) -> "list[Prediction]":
    """The breeds on image files, from a checkpoint file or a model URI (models:/..., runs:/...)."""
    from dogbreed_ml.serve import Predictor

    checkpoint_path = Path(model)
    if ":/" in model:
        from dogbreed_ml.pyfunc import fetch_checkpoint

        checkpoint_path = fetch_checkpoint(model, tracking_uri=context.tracking_uri)
    return Predictor.load(checkpoint_path).predict([path.read_bytes() for path in paths])


def _opened(config: ExperimentConfig, context: Context, spans: SpanTotals) -> "tuple[Tracker, Splits, Workbench]":
    """The tracking store first, so that an absent one is told of before the data is fetched."""
    with spans.span("start"):
        from dogbreed_ml.tracking import Tracker

        tracker = Tracker.open(project_dir=context.project_dir, config=config.tracking, environment=context.environment)
    with spans.span("data"):
        splits = load_splits(config.data, project_dir=context.project_dir, progress=context.progress)
    bench = Workbench(splits, context.project_dir, device_of(), context.progress)
    return tracker, splits, bench


def _epochs(
    bench: Workbench, config: ExperimentConfig, model: Any, batches: Batches, *, valid: Batches | None
) -> Iterator[EpochResult]:
    return fit(
        model,
        batches,
        valid=valid,
        config=config.train,
        metrics=compute_metrics,
        num_classes=bench.num_classes,
        device=bench.device,
    )


def _log_beginning(run: "Run", config: ExperimentConfig, splits: Splits, context: Context) -> None:
    run.log_config(config)
    run.log_environment(project_dir=context.project_dir, argv=context.argv, seed=config.train.seed)
    run.log_splits(splits)
    if splits.bad_images:
        run.log_table(quarantine_rows(splits), "data/quarantine.csv")
    run.log_text(shlex.join(context.argv), "command.txt")


def _logged_feeds(run: "Run", bench: Workbench, config: ExperimentConfig) -> Feeds:
    feeds = bench.feeds(config)
    tags = {"model.weights": bench.weights(config.model).name, "features.cached": "false"}
    if feeds.table is not None:
        tags |= {"features.backend": feeds.table.backend, "features.cached": str(feeds.table.cached).lower()}
        tags["features.key"] = feeds.table.key
        run.log_metrics({"features/images_per_s": feeds.table.images_per_s})
    else:
        tags["features.backend"] = "none: the whole network is run each epoch"
    run.set_tags(tags)
    return feeds


def _curves(tracker: "Tracker", result: "SearchResult") -> "list[LoggedEpoch]":
    """The winning trial's epochs: the refit on train + valid has no valid curve of its own."""
    return [] if result.best.run_id is None else tracker.epochs(result.best.run_id)


def _valid_metrics(curves: "Sequence[LoggedEpoch]", epoch: int | None) -> dict[str, float]:
    """The winning trial's valid/ metrics at the epoch that it kept, for the parent run to be compared by."""
    kept = next((each.metrics for each in curves if each.epoch == epoch), {})
    return {name: value for name, value in kept.items() if name.startswith("valid/")}


def _evaluation(bench: Workbench, model: Any, batches: Batches) -> Evaluation:
    evaluated = evaluate(model, batches, device=bench.device)
    return evaluate_logits(evaluated.logits.numpy(), evaluated.labels.numpy(), bench.splits.classes)


def _log_evaluation(run: "Run", test: Evaluation, splits: Splits, epochs: Sequence[EpochMetrics]) -> None:
    low, high = test.top1_interval
    figures = {f"test/{name}": value for name, value in test.metrics.items()}
    run.log_metrics(figures | {"test/accuracy_top1_low": low, "test/accuracy_top1_high": high})
    run.log_table(test.breed_rows(), "evaluation/breeds.csv")
    run.log_table(test.confused_rows(), "evaluation/confused.csv")
    run.log_figure(learning_curves_figure(epochs), "evaluation/learning_curves.png")
    run.log_figure(confusion_figure(test), "evaluation/confusion.png")
    if test.confused_pairs:
        run.log_figure(confused_figure(test.confused_pairs, splits.test.samples), "evaluation/confused.png")


def _log_model(
    pyfunc: Any, tracker: "Tracker", run: "Run", network: Network, splits: Splits, config: ExperimentConfig
) -> str:
    checkpoint = Checkpoint(
        state_dict=dict(network.resnet.state_dict()),
        classes=splits.classes,
        preprocessing=preprocessing_of(config),
        resnet_version=config.model.resnet_version,
        config=config,
    )
    run.flush()
    with tempfile.TemporaryDirectory() as folder:
        path = save_checkpoint(checkpoint, Path(folder) / "checkpoint.pt")
        model_uri: str = pyfunc.log_model(run.run_id, path, tracking_uri=tracker.tracking_uri)
    return model_uri


def _rounded(spans: SpanTotals) -> dict[str, float]:
    return {stage: round(seconds, 3) for stage, seconds in spans.seconds.items()}
