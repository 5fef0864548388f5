"""`dogbreed train`: one tracked run."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from dogbreed_ml.calibration import fit_temperature
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.errors import TrainingError
from dogbreed_ml.evaluation import Evaluation
from dogbreed_ml.pipeline.runprofiler import RunProfiler, profiled_run
from dogbreed_ml.pipeline.stages import (
    evaluate_model,
    log_beginning,
    log_evaluation,
    log_model,
    logged_feeds,
    opened,
    rounded,
)
from dogbreed_ml.spans import SpanTotals
from dogbreed_ml.summaries import TrainSummary
from dogbreed_ml.train import EpochResult, evaluate
from dogbreed_ml.workbench import Feeds, Workbench

if TYPE_CHECKING:
    from dogbreed_ml.tracking import Run

logger = logging.getLogger(__name__)


def train(config: ExperimentConfig, *, context: Context) -> TrainSummary:
    """One tracked run: fit, evaluate on valid and test, keep the model with the run (not registered).

    What a rule of profile.stop_on ended is kept like any other training; raises TrainingError, and keeps no model,
    where the weights are not finite.
    """
    spans = SpanTotals()
    with spans.span("start"):
        from dogbreed_ml import pyfunc

    tracker, splits, bench = opened(config, context, spans)
    with (
        closing(bench),
        tracker,
        tracker.start_run(config.name, run_name="train") as run,
        profiled_run(config, run, project_dir=context.project_dir) as profiler,
    ):
        bench.spans = profiler.spans
        log_beginning(run, config, splits, context)
        profiler.note_data(spans.seconds["data"])
        with spans.span("features"):
            feeds = logged_feeds(run, bench, config)
        model = bench.model(config)
        epochs = profiler.epochs(bench, config, model, feeds.train, valid=feeds.valid)
        trained = train_and_evaluate(run, epochs, model, bench=bench, feeds=feeds, spans=spans, profiler=profiler)
        with spans.span("model"):
            network = bench.whole(config, model)
            temperature = trained.temperature
            model_uri = log_model(
                pyfunc, tracker, run, network=network, splits=splits, config=config, temperature=temperature
            )
        run.log_metrics({f"seconds/{stage}": seconds for stage, seconds in spans.seconds.items()})
        url = tracker.run_url(run)
    return TrainSummary(
        run_id=run.run_id,
        model_uri=model_uri,
        num_epochs=trained.num_epochs,
        valid=trained.valid.metrics,
        test=trained.test.metrics,
        test_top1_interval=trained.test.top1_interval,
        seconds=rounded(spans),
        url=url,
    )


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    num_epochs: int
    temperature: float
    valid: Evaluation
    test: Evaluation


def train_and_evaluate(
    run: "Run",
    epochs: Iterable[EpochResult],
    model: nn.Module,
    *,
    bench: Workbench,
    feeds: Feeds,
    spans: SpanTotals,
    profiler: RunProfiler,
) -> Trained:
    """Logs the epochs as they come, then evaluates what they leave `model` with, on valid and once on test.

    Raises TrainingError where they leave NaN or infinity.
    """
    with spans.span("train"):
        results = []
        for result in epochs:
            logger.info("%s", result.render())
            run.log_epoch(result)
            results.append(result)
    _require_finite(model, results, profiler)
    with spans.span("evaluation"):
        evaluated = evaluate(model, feeds.valid, device=bench.device)
        temperature = fit_temperature(evaluated.logits.numpy(), evaluated.labels.numpy())
        valid = evaluate_model(bench, model, feeds.valid, temperature=temperature)
        test = evaluate_model(bench, model, feeds.test, temperature=temperature)
        log_evaluation(run, test, bench.splits, results)
    return Trained(len(results), temperature, valid, test)


def _require_finite(model: nn.Module, results: Sequence[EpochResult], profiler: RunProfiler) -> None:
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    broken = sum(not bool(torch.isfinite(tensor).all()) for tensor in tensors)
    if broken:
        ended = f"the rule {profiler.stopped_by} ended the training" if profiler.stopped_by else "the training ended"
        num_epochs = f"{len(results)} epoch{'' if len(results) == 1 else 's'}"
        raise TrainingError(
            f"A model's weights must be finite, but {broken} of its {len(tensors)} tensors held NaN or infinity when "
            f"{ended} after {num_epochs}: no model is kept. Lower train.lr by a factor of 10, and look for "
            "broken images where that does not help."
        )
