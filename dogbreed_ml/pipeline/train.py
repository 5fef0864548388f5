"""`dogbreed train`: one tracked run."""

import logging
from contextlib import closing

from dogbreed_ml.calibration import fit_temperature
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.pipeline.profiled import profiled_run
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
from dogbreed_ml.train import evaluate

logger = logging.getLogger(__name__)


def train(config: ExperimentConfig, *, context: Context) -> TrainSummary:
    """One tracked run: fit, evaluate on valid and test, keep the model with the run (not registered)."""
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
        with spans.span("features"):
            feeds = logged_feeds(run, bench, config)
        with spans.span("train"):
            model, epochs = bench.model(config), []
            for result in profiler.epochs(bench, config, model, feeds.train, valid=feeds.valid):
                logger.info("%s", result.render())
                run.log_epoch(result)
                epochs.append(result)
        with spans.span("evaluation"):
            evaluated = evaluate(model, feeds.valid, device=bench.device)
            temperature = fit_temperature(evaluated.logits.numpy(), evaluated.labels.numpy())
            valid = evaluate_model(bench, model, feeds.valid, temperature=temperature)
            test = evaluate_model(bench, model, feeds.test, temperature=temperature)
            log_evaluation(run, test, splits, epochs)
        with spans.span("model"):
            network = bench.whole(config, model)
            model_uri = log_model(
                pyfunc, tracker, run, network=network, splits=splits, config=config, temperature=temperature
            )
        run.log_metrics({f"seconds/{stage}": seconds for stage, seconds in spans.seconds.items()})
        url = tracker.run_url(run)
    return TrainSummary(
        run_id=run.run_id,
        model_uri=model_uri,
        num_epochs=len(epochs),
        valid=valid.metrics,
        test=test.metrics,
        test_top1_interval=test.top1_interval,
        seconds=rounded(spans),
        url=url,
    )
