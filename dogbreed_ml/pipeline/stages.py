"""What the verbs share: the store opened, the data split, the beginning logged, a model evaluated and kept."""

import shlex
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreed_ml.backend import device_of
from dogbreed_ml.checkpoint import Checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig, without_secrets
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits, quarantine_rows
from dogbreed_ml.evaluation import Evaluation, compute_metrics, evaluate_logits
from dogbreed_ml.figures import EpochMetrics, confused_figure, confusion_figure, learning_curves_figure
from dogbreed_ml.model import Network
from dogbreed_ml.spans import SpanTotals
from dogbreed_ml.train import Batches, EpochResult, evaluate, fit
from dogbreed_ml.workbench import Feeds, Workbench, preprocessing_of

if TYPE_CHECKING:
    from dogbreed_ml.tracking import Run, Tracker

TEMPERATURE_METRIC = "temperature"


def opened(config: ExperimentConfig, context: Context, spans: SpanTotals) -> "tuple[Tracker, Splits, Workbench]":
    """The tracking store first, so that an absent one is told of before the data is fetched."""
    with spans.span("start"):
        from dogbreed_ml.tracking import Tracker

        tracker = Tracker.open(project_dir=context.project_dir, config=config.tracking, environment=context.environment)
    with spans.span("data"):
        splits = load_splits(config.data, project_dir=context.project_dir, progress=context.progress)
    bench = Workbench(splits, context.project_dir, device_of(), context.progress)
    return tracker, splits, bench


def run_epochs(
    bench: Workbench, config: ExperimentConfig, model: Any, batches: Batches, *, valid: Batches | None
) -> Generator[EpochResult]:
    yield from fit(
        model,
        batches,
        valid=valid,
        config=config.train,
        metrics=compute_metrics,
        num_classes=bench.num_classes,
        device=bench.device,
        spans=bench.spans,
    )


def log_beginning(run: "Run", config: ExperimentConfig, splits: Splits, context: Context) -> None:
    run.log_config(config)
    run.log_environment(project_dir=context.project_dir, argv=context.argv, seed=config.train.seed)
    run.log_splits(splits)
    if splits.bad_images:
        run.log_table(quarantine_rows(splits), "data/quarantine.csv")
    run.log_text(shlex.join(context.argv), "command.txt")


def logged_feeds(run: "Run", bench: Workbench, config: ExperimentConfig) -> Feeds:
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


def evaluate_model(bench: Workbench, model: Any, batches: Batches, *, temperature: float) -> Evaluation:
    evaluated = evaluate(model, batches, device=bench.device)
    return evaluate_logits(evaluated.logits.numpy() / temperature, evaluated.labels.numpy(), bench.splits.classes)


def log_evaluation(run: "Run", test: Evaluation, splits: Splits, epochs: Sequence[EpochMetrics]) -> None:
    low, high = test.top1_interval
    figures = {f"test/{name}": value for name, value in test.metrics.items()}
    run.log_metrics(figures | {"test/accuracy_top1_low": low, "test/accuracy_top1_high": high})
    run.log_table(test.breed_rows(), "evaluation/breeds.csv")
    run.log_table(test.confused_rows(), "evaluation/confused.csv")
    run.log_figure(learning_curves_figure(epochs), "evaluation/learning_curves.png")
    run.log_figure(confusion_figure(test), "evaluation/confusion.png")
    if test.confused_pairs:
        run.log_figure(confused_figure(test.confused_pairs, splits.test.samples), "evaluation/confused.png")


def log_model(
    pyfunc: Any,
    tracker: "Tracker",
    run: "Run",
    *,
    network: Network,
    splits: Splits,
    config: ExperimentConfig,
    temperature: float,
) -> str:
    checkpoint = Checkpoint(
        state_dict=dict(network.resnet.state_dict()),
        classes=splits.classes,
        preprocessing=preprocessing_of(config),
        resnet_version=config.model.resnet_version,
        config=without_secrets(config),
        temperature=temperature,
        data_fingerprint=splits.fingerprint,
    )
    run.log_metrics({TEMPERATURE_METRIC: temperature})
    run.flush()
    with tempfile.TemporaryDirectory() as folder:
        path = save_checkpoint(checkpoint, Path(folder) / "checkpoint.pt")
        model_uri: str = pyfunc.log_model(run.run_id, path, tracking_uri=tracker.tracking_uri)
    return model_uri


def rounded(spans: SpanTotals) -> dict[str, float]:
    return {stage: round(seconds, 3) for stage, seconds in spans.seconds.items()}
