"""`dogbreed evaluate`: a model version or checkpoint on the test split, or on a folder of breeds, as it would serve."""

import logging
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dogbreed_ml.checkpoint import Checkpoint, load_checkpoint
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.data.folder import load_folder, relabelled
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Split, Splits
from dogbreed_ml.errors import DataError
from dogbreed_ml.evaluation import evaluate_logits, evaluate_probabilities
from dogbreed_ml.features import decoded_batches
from dogbreed_ml.options import EvaluateOptions
from dogbreed_ml.pipeline.evaluation_log import (
    EvaluationSummary,
    log_evaluation_run,
    logged_metrics,
    tag_version,
    weakest_breeds,
)
from dogbreed_ml.quantization import MAX_CALIBRATION_IMAGES, QuantizationReport, quantize
from dogbreed_ml.serve import BATCH_SIZE, Predictor

if TYPE_CHECKING:
    from dogbreed_ml.registry import ModelVersion
    from dogbreed_ml.tracking import Run, Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    name: str
    """For people: the version's URI, or the checkpoint's path."""
    checkpoint_path: Path
    version: "ModelVersion | None"
    model_id: str | None
    """The logged model, m-...; None for a checkpoint file."""


def evaluate(config: ExperimentConfig, options: EvaluateOptions, *, context: Context) -> EvaluationSummary:
    """Evaluates through the Predictor and the back end that would serve, and logs it to a run linked to the model."""
    from dogbreed_ml.tracking import Tracker

    tracker = Tracker.open(project_dir=context.project_dir, config=config.tracking, environment=context.environment)
    with tracker, tempfile.TemporaryDirectory(prefix="dogbreed-") as folder:
        subject = find_subject(options.version, config, Path(folder), tracker=tracker, context=context)
        checkpoint = load_checkpoint(subject.checkpoint_path)
        splits, trained_on = _load_data(config, options, checkpoint, context=context)
        if not len(splits.test):
            raise DataError(
                f"{splits.source} must have test images to evaluate on, and has none; name a --folder, or raise "
                "data.test_share."
            )
        tags = {"evaluation.model": subject.name, "evaluation.data": trained_on}
        if subject.version is not None:
            tags |= {"model.name": subject.version.name, "model.version": str(subject.version.version)}
        with tracker.start_run(config.name, run_name="evaluate", tags=tags) as run:
            int8 = None
            if options.int8:
                int8 = _quantize(subject, config, checkpoint, tracker=tracker, context=context)
            predictor = Predictor.load(
                subject.checkpoint_path,
                backend=config.deploy.backend,
                min_probability=config.deploy.min_probability,
                flip=options.flip,
            )
            logits, seconds = recognise_all(predictor, splits.test, context=context)
            labels = splits.test.labels
            evaluation = evaluate_logits(logits / np.float32(checkpoint.temperature), labels, checkpoint.classes)
            report = evaluate_probabilities(logits, labels, checkpoint.classes, temperature=checkpoint.temperature)
            summary = EvaluationSummary(
                run_id=run.run_id,
                model=subject.name,
                data=splits.source,
                split="test" if options.folder is None else "folder",
                trained_on=trained_on,
                metrics=evaluation.metrics | report.metrics,
                top1_interval=evaluation.top1_interval,
                num_images=len(splits.test),
                temperature=checkpoint.temperature,
                backend=predictor.backend_name,
                images_per_s=round(len(splits.test) / seconds, 1),
                latency_ms=predictor.choice.latency_ms if predictor.choice else {},
                flip=options.flip,
                min_probability=config.deploy.min_probability,
                answered=report.coverage.at(config.deploy.min_probability),
                weakest=weakest_breeds(evaluation),
                int8=int8,
                url=tracker.run_url(run),
            )
            log_evaluation_run(
                run, summary, evaluation=evaluation, report=report, splits=splits, config=config, context=context
            )
            _log_metrics(tracker, run, subject, summary, splits)
        if subject.version is not None:
            tag_version(tracker, subject.version, summary)
    return summary


def _log_metrics(tracker: "Tracker", run: "Run", subject: Subject, summary: EvaluationSummary, splits: Splits) -> None:
    """To the run and, where the model is a logged one, to the model too: its page shows them."""
    metrics = logged_metrics(summary)
    if subject.model_id is None:
        run.log_metrics(metrics)
        return
    from dogbreed_ml.pyfunc import link_evaluation
    from dogbreed_ml.runs import data_inputs

    # The data set must be there when a metric of the model names it.
    run.flush()
    dataset = data_inputs(splits, names=("test",))[0].dataset
    uri = tracker.tracking_uri
    link_evaluation(run.run_id, subject.model_id, metrics, dataset=(dataset.name, dataset.digest), tracking_uri=uri)


def find_subject(
    reference: str, config: ExperimentConfig, folder: Path, *, tracker: "Tracker", context: Context
) -> Subject:
    """What `--version` names: a checkpoint file, a logged model's URI, or a registered version by alias or number.

    A model of the store is copied into the folder.
    """
    path = context.project_dir / Path(reference).expanduser()
    if ":/" not in reference and (path.is_file() or "/" in reference or path.suffix in (".pt", ".pth")):
        return Subject(reference, path, None, None)
    from dogbreed_ml.pyfunc import fetch_checkpoint
    from dogbreed_ml.registry import resolve_version

    if reference.startswith(("models:/m-", "runs:/")):
        checkpoint_path = fetch_checkpoint(reference, folder, tracking_uri=tracker.tracking_uri)
        model_id = reference.removeprefix("models:/") if reference.startswith("models:/") else None
        return Subject(reference, checkpoint_path, None, model_id)
    version = resolve_version(tracker, config.registered_model_name, reference)
    checkpoint_path = fetch_checkpoint(version.uri, folder, tracking_uri=tracker.tracking_uri)
    return Subject(version.uri, checkpoint_path, version, version.model_id)


def _load_data(
    config: ExperimentConfig, options: EvaluateOptions, checkpoint: Checkpoint, *, context: Context
) -> tuple[Splits, str]:
    """The images with the model's labels, and whether it may have been trained on them: `evaluation.data`'s value."""
    where, progress = context.project_dir, context.progress
    if options.folder is not None:
        folder = where / options.folder.expanduser()
        return load_folder(folder, checkpoint.classes, project_dir=where, progress=progress), "a folder"
    splits = relabelled(load_splits(config.data, project_dir=where, progress=progress), checkpoint.classes)
    if checkpoint.data_fingerprint is None:
        return splits, "unknown: the checkpoint does not say what it was trained on"
    if checkpoint.data_fingerprint != splits.fingerprint:
        logger.warning(
            "The model was trained on other data (fingerprint %s) than this config's (%s): it may have been trained on "
            "some of these test images, and then the figures are too good.",
            checkpoint.data_fingerprint,
            splits.fingerprint,
        )
        return splits, "other data than the model was trained on: test images may have been trained on"
    return splits, "the test split that training left out"


def recognise_all(predictor: Predictor, split: Split, *, context: Context) -> tuple[NDArray[np.float32], float]:
    """Logits (n, K) of a split's images, and the seconds that decoding and recognising them took."""
    logits: list[NDArray[np.float32]] = []
    start = perf_counter()
    try:
        with context.progress.track(f"evaluate {predictor.backend_name}", len(split), "images") as advance:
            for squares in decoded_batches(split.samples, predictor.preprocessing, batch_size=BATCH_SIZE):
                logits.append(predictor.logits(squares))
                advance(len(squares))
    except OSError as error:
        raise DataError(f"An image could be read when it was scanned and cannot now: {error}.") from error
    return np.concatenate(logits), perf_counter() - start


def _quantize(
    subject: Subject, config: ExperimentConfig, checkpoint: Checkpoint, *, tracker: "Tracker", context: Context
) -> QuantizationReport:
    """Makes int8/ beside the checkpoint, from the config's train and valid splits, and adds it to the logged model."""
    loaded = load_splits(config.data, project_dir=context.project_dir, progress=context.progress)
    splits = relabelled(loaded, checkpoint.classes)
    chosen = list(splits.train.samples)
    random.Random(config.data.seed).shuffle(chosen)
    preprocessing = checkpoint.preprocessing
    calibration = list(decoded_batches(chosen[:MAX_CALIBRATION_IMAGES], preprocessing, batch_size=BATCH_SIZE))
    report = quantize(
        subject.checkpoint_path,
        calibration=np.concatenate(calibration),
        valid=decoded_batches(splits.valid.samples, preprocessing, batch_size=BATCH_SIZE),
        labels=splits.valid.labels,
    )
    told = "accepted" if report.accepted else "refused"
    logger.info(
        "INT8 %s: top-1 on valid %.2f %% in fp32, %.2f %% in INT8 (%d images)",
        *(told, 100 * report.accuracy_fp32, 100 * report.accuracy_int8, report.num_valid),
    )
    if subject.model_id is not None:
        from dogbreed_ml.pyfunc import add_int8

        add_int8(subject.model_id, subject.checkpoint_path, tracking_uri=tracker.tracking_uri)
    return report
