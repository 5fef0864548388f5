"""The program of a training job: SageMaker's environment in; a run, a model and a line an epoch out."""

import logging
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from dogbreed_ml.backend import device_of
from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.debugging.epochs import EpochJudge
from dogbreed_ml.errors import CloudError, ConfigError, DogbreedError
from dogbreed_ml.features import TABLE_FILE
from dogbreed_ml.pipeline.runprofiler import RunProfiler
from dogbreed_ml.pipeline.stages import TEMPERATURE_METRIC, log_beginning, logged_feeds
from dogbreed_ml.pipeline.train import train_and_evaluate
from dogbreed_ml.runs import Run, Terminated, data_inputs, raise_terminated, render_cause
from dogbreed_ml.spans import SpanTotals
from dogbreed_ml.train import EpochResult
from dogbreed_ml.trialrun import OBJECTIVE_METRIC, record_trial
from dogbreed_ml.workbench import Workbench, uses_features
from sagemaker_jobs.job import splitsfile
from sagemaker_jobs.job.environment import JobEnvironment
from sagemaker_jobs.job.hyperparameters import parse_hyperparameters
from sagemaker_jobs.job.jobrecord import JobRecord
from sagemaker_jobs.job.jobtraining import FEATURES_KEY_TAG, JobTraining
from sagemaker_jobs.job.source import JobExperiment, load_experiment, store_file
from sagemaker_jobs.job.team import joined_team

logger = logging.getLogger(__name__)

FEATURES_DIR: Final = "features"
"""Of the model folder, for a job of kind `features`: one folder a table, named by its key."""
_STOPPED = 128 + signal.SIGTERM


def main(variables: Mapping[str, str], *, code_dir: Path | None = None) -> int:
    """Runs the job that `variables` describe and returns the exit status; a failure's cause goes to its file.

    `code_dir` is where the source archive was unpacked, null the folder that this program lies in.
    """
    environment = JobEnvironment.read(variables)
    before = signal.signal(signal.SIGTERM, raise_terminated)
    with _logged_to_stdout():
        try:
            run_job(environment, code_dir=Path(__file__).parents[1] if code_dir is None else code_dir)
        except Terminated:
            logger.info("stopped")
            return _STOPPED
        except DogbreedError as error:
            _write_failure(environment, error)
            logger.error("%s", error)
            return 1
        except BaseException as error:
            _write_failure(environment, error)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)
    return 0


def run_job(environment: JobEnvironment, *, code_dir: Path) -> None:
    """Trains as the archive in `code_dir` says; a failed training is CloudError, with the cause as its text."""
    experiment = load_experiment(code_dir)
    values = parse_hyperparameters(environment.hyperparameters, experiment.config)
    splits = _load_splits(experiment.config, environment, code_dir)
    with joined_team(environment) as team:
        bench = Workbench(splits, environment.work_dir, device_of())
        training = JobTraining(environment, bench, team)
        with closing(bench):
            if not team.is_first:
                if experiment.kind != "features":
                    config = training.localized(with_values(experiment.config, values))
                    for _ in training.epochs(config, RunProfiler(config.profile)):
                        pass
                return
            job = _Job(environment, experiment, values, splits, training)
            record = JobRecord.open(
                environment,
                experiment.config,
                is_trial=experiment.kind != "train",
                empty_store=code_dir / store_file(),
            )
            with record.tracker:
                run = record.start(environment, experiment.config, run_name=job.run_name, tags=job.tags)
                with run:
                    job.run(run)


@dataclass(frozen=True)
class _Job:
    """What the first process does, by the job's kind."""

    environment: JobEnvironment
    experiment: JobExperiment
    values: Mapping[str, object]
    splits: Splits
    training: JobTraining

    @property
    def run_name(self) -> str:
        return self.environment.job_name if self.experiment.kind == "trial" else self.experiment.kind

    @property
    def tags(self) -> dict[str, str]:
        instance = {"sagemaker.instance_type": self.environment.instance_type}
        return {name: value for name, value in instance.items() if value}

    def run(self, run: Run) -> None:
        {"trial": self.try_values, "train": self.train, "features": self.compute_features}[self.experiment.kind](run)

    def try_values(self, run: Run) -> None:
        """One trial of a search: the run that a trial on the caller's machine has."""
        config, training = self.experiment.config, self.training
        judge = EpochJudge.build(self.splits.train.labels, self.splits.classes, parameters=config.profile.tensor_rules)
        localized: list[ExperimentConfig] = []

        def objective(trial_config: ExperimentConfig) -> Iterator[EpochResult]:
            localized[:] = [training.localized(trial_config, run), trial_config]
            with training.profiled(localized[0], run) as profiler:
                with profiler.spans.span("features"):
                    feeds = training.bench.feeds(localized[0])
                if feeds.table is not None:
                    run.set_tags({FEATURES_KEY_TAG: feeds.table.key})
                for result in training.epochs(localized[0], profiler):
                    logger.info("%s", result.render())
                    yield result

        try:
            progress = record_trial(
                run,
                config=config,
                values=self.values,
                objective=objective,
                inputs=data_inputs(self.splits, names=("train", "valid")),
                judge=judge,
            )
        except Terminated:
            # A model of the epochs that there were time for.
            if localized:
                training.save(localized[0], logged=localized[1])
            raise
        if progress.cause is not None:
            raise CloudError(progress.cause)
        training.save(localized[0], logged=localized[1])
        # SageMaker's tuner takes the value that a job printed last; ours is that of the epoch whose weights are kept.
        if progress.value is not None:
            logger.info("%s", render_objective(progress.value))

    def train(self, run: Run) -> None:
        """What `dogbreed train` does, but for the model, which the caller takes from the checkpoint."""
        config, training, spans = with_values(self.experiment.config, self.values), self.training, SpanTotals()
        self._log_beginning(run, config)
        localized = training.localized(config, run)
        try:
            with training.profiled(localized, run) as profiler:
                with spans.span("features"):
                    feeds = logged_feeds(run, training.bench, localized)
                model = training.model = training.bench.model(localized)
                epochs = training.epochs(localized, profiler)
                trained = train_and_evaluate(
                    run, epochs, model, bench=training.bench, feeds=feeds, spans=spans, profiler=profiler
                )
        except Terminated:
            training.save(localized, logged=config)
            raise
        run.log_metrics({TEMPERATURE_METRIC: trained.temperature})
        with spans.span("model"):
            training.save(localized, logged=config, temperature=trained.temperature)
        run.log_metrics({f"seconds/{stage}": seconds for stage, seconds in spans.seconds.items()})

    def compute_features(self, run: Run) -> None:
        """The features for other jobs' channel: tables in the model folder, each in a folder named by its key."""
        config = with_values(self.experiment.config, self.values)
        self._log_beginning(run, config)
        localized = self.training.localized(config, run)
        if not uses_features(localized):
            raise ConfigError(
                "A job for features needs a config that keeps features: model.trainable other than all, and "
                "train.augmentation none or train.num_views above 1."
            )
        with self.training.profiled(localized, run):
            feeds = logged_feeds(run, self.training.bench, localized)
        if feeds.table is not None:
            logger.info("features %s, %g images/s", feeds.table.key, feeds.table.images_per_s)
        features_dir = self.environment.work_dir / localized.features.dir
        for path in features_dir.glob(f"*/{TABLE_FILE}"):
            shutil.copytree(path.parent, self.environment.model_dir / FEATURES_DIR / path.parent.name)

    def _log_beginning(self, run: Run, config: ExperimentConfig) -> None:
        context = Context(self.environment.work_dir, argv=tuple(shlex.split(self.experiment.command)))
        log_beginning(run, config, self.splits, context)
        # The job's folder is no checkout; the commit is that of the archive's code.
        run.set_tags(self.experiment.source_tags)


def render_objective(value: float) -> str:
    """A trial's last line, once its training has come to its end by itself: every digit, as its run has them."""
    return f"{OBJECTIVE_METRIC}={float(value)!r}"


def _load_splits(config: ExperimentConfig, environment: JobEnvironment, code_dir: Path) -> Splits:
    """The caller's, or where the archive has none, those of the channel `train`."""
    path = code_dir / splitsfile.FILE_NAME
    if path.is_file():
        return splitsfile.parse_splits(path.read_text(encoding="utf-8"), environment.channels)
    if "train" not in environment.channels:
        raise ConfigError(f"A job without {splitsfile.FILE_NAME} needs the channel train, with a folder per breed.")
    data = replace(config.data, source="folder", path=str(environment.channels["train"]), checksum=None)
    splits = load_splits(data, project_dir=environment.work_dir)
    return replace(splits, source=config.data.path or splits.source)


def _write_failure(environment: JobEnvironment, error: BaseException) -> None:
    """SageMaker's FailureReason begins with the first 1024 characters of this file."""
    # The training's own words, already on one line, where it is that which failed.
    cause = str(error) if isinstance(error, CloudError) else render_cause(error)
    environment.failure_path.parent.mkdir(parents=True, exist_ok=True)
    environment.failure_path.write_text(f"{cause}\n", encoding="utf-8")


@contextmanager
def _logged_to_stdout() -> Iterator[None]:
    """The epoch line and all the rest to where SageMaker reads metrics: the job's output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in ("dogbreed_ml", "sagemaker_jobs")]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.INFO)
    try:
        yield
    finally:
        for each in loggers:
            each.removeHandler(handler)
