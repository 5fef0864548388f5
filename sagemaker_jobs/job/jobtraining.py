"""One training inside a job: features from a channel, several hosts, a profile, and a state to go on from."""

import logging
import pickle
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from dogbreed_ml.checkpoint import Checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig, FeaturesConfig, without_secrets
from dogbreed_ml.features import TABLE_FILE, adopt_table
from dogbreed_ml.pipeline.runprofiler import ARTIFACT_DIR, PROFILES_DIR, TENSORS_DIR, RunProfiler, profiled_run
from dogbreed_ml.profiling.session import RAW_DIR
from dogbreed_ml.train import EpochResult, FitState
from dogbreed_ml.workbench import Workbench, preprocessing_of, uses_features
from sagemaker_jobs.job.environment import JobEnvironment
from sagemaker_jobs.job.source import with_weights
from sagemaker_jobs.job.team import Team

if TYPE_CHECKING:
    from dogbreed_ml.tracking import Run

logger = logging.getLogger(__name__)

CHECKPOINT_FILE: Final = "checkpoint.pt"
FEATURES_FROM_TAG: Final = "features.from"
"""channel, or computed in the job."""
FEATURES_KEY_TAG: Final = "features.key"
PROFILER_DIR: Final = "profiler"
"""Of the job's output: SageMaker's profiler takes along what lies there."""


@dataclass
class JobTraining:
    """Trains one config; its epochs come as from `fit`, whatever they were trained by: one host, several, two lives."""

    environment: JobEnvironment
    bench: Workbench
    team: Team
    model: nn.Module | None = None
    """What was trained, or is being trained."""
    num_epochs: int = 0
    _results: list[EpochResult] = field(default_factory=list)

    def localized(self, config: ExperimentConfig, run: "Run | None" = None) -> ExperimentConfig:
        """The config with what lies elsewhere in a job; tells the run where its features are from."""
        weights = self.environment.channels.get("weights")
        found = [path for path in sorted(weights.rglob("*")) if path.is_file()] if weights else []
        config = with_weights(config, found[0] if found else None)
        own = replace(config, features=replace(config.features, dir=FeaturesConfig().dir, backend="auto"))
        if not uses_features(own):
            return own
        given = self._with_channel(own)
        source = "computed" if given is None else "channel"
        if given is None and "features" in self.environment.channels:
            logger.warning("The channel features holds no table for this config: its features are computed here.")
        logger.info("features from %s", source)
        if run is not None:
            run.set_tags({FEATURES_FROM_TAG: source})
        return given or own

    def _with_channel(self, config: ExperimentConfig) -> ExperimentConfig | None:
        """The config with the channel's back end, where the channel holds its table."""
        channel = self.environment.channels.get("features")
        features_dir = self.environment.work_dir / config.features.dir
        for path in sorted(channel.rglob(TABLE_FILE)) if channel else ():
            backend = adopt_table(path.parent, features_dir)
            if backend is not None:
                given = replace(config, features=replace(config.features, backend=backend))
                if self.bench.has_features(given):
                    return given
        return None

    def epochs(self, config: ExperimentConfig, profiler: RunProfiler) -> Iterator[EpochResult]:
        """Trains `model` on the localized config; of a spot job's earlier life, the epochs come again first."""
        feeds = self.bench.feeds(config)
        self.model = model = self.model or self.bench.model(config)
        state = self._restored(config)
        for result in self._results:
            self.num_epochs += 1
            yield result
        results = profiler.epochs(
            self.bench,
            config,
            self.team.wrap(model, self.bench.device),
            self.team.share(feeds.train),
            valid=feeds.valid,
            metrics=self.team.metrics,
            state=state,
        )
        for result in results:
            ended = replace(self.team.joined(result), ended_ms=int(time.time() * 1000))
            self._results.append(ended)
            self.num_epochs += 1
            self._keep(config, state)
            yield ended

    def save(self, config: ExperimentConfig, *, logged: ExperimentConfig, temperature: float = 1.0) -> Path | None:
        """checkpoint.pt in the model folder; None before a first epoch. `logged` is the config as the caller has it."""
        if self.model is None or not self.num_epochs or not self.team.is_first:
            return None
        network = self.bench.whole(config, self.model)
        checkpoint = Checkpoint(
            state_dict=dict(network.resnet.state_dict()),
            classes=self.bench.splits.classes,
            preprocessing=preprocessing_of(config),
            resnet_version=config.model.resnet_version,
            config=without_secrets(logged),
            temperature=temperature,
            data_fingerprint=self.bench.splits.fingerprint,
        )
        return save_checkpoint(checkpoint, self.environment.model_dir / CHECKPOINT_FILE)

    @contextmanager
    def profiled(self, config: ExperimentConfig, run: "Run") -> Iterator[RunProfiler]:
        """Our own profiler where profile.enabled is true: into the run, and to where SageMaker and its rules look."""
        recorded = self.environment.work_dir / PROFILES_DIR / run.run_id / ARTIFACT_DIR / RAW_DIR
        try:
            with profiled_run(config, run, project_dir=self.environment.work_dir) as profiler:
                self.bench.spans = profiler.spans
                yield profiler
        finally:
            if recorded.is_dir():
                shutil.copytree(recorded, self.environment.output_dir / PROFILER_DIR, dirs_exist_ok=True)
            tensors_dir = self.environment.work_dir / PROFILES_DIR / run.run_id / TENSORS_DIR
            if config.profile.sagemaker_rules and tensors_dir.is_dir():
                shutil.copytree(tensors_dir, self.environment.output_dir / TENSORS_DIR, dirs_exist_ok=True)

    @property
    def _state_paths(self) -> tuple[Path, Path]:
        """Written in turn: SageMaker copies them to S3 at any moment, so that of one it may have a half."""
        return checkpoint_paths(self.environment.checkpoint_dir, self.environment.job_name)

    def _restored(self, config: ExperimentConfig) -> FitState | None:
        """The state of a spot job's earlier life, or an empty one to be kept; None where there is none to keep."""
        if not config.sagemaker.spot:
            return None
        kept = [each for each in map(_load_state, self._state_paths) if each is not None]
        if not kept:
            return FitState()
        latest = max(kept, key=lambda each: len(each["results"]))
        self._results = [EpochResult(**each) for each in latest["results"]]
        logger.info("going on after epoch %d of the interrupted job", len(self._results) - 1)
        return FitState(latest["state"])

    def _keep(self, config: ExperimentConfig, state: FitState | None) -> None:
        if state is None or not self.team.is_first:
            return
        path = self._state_paths[len(self._results) % 2]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state": state.values, "results": [vars(each) for each in self._results]}, path)


def checkpoint_paths(checkpoint_dir: Path, job_name: str) -> tuple[Path, Path]:
    """Of one job alone: the jobs of a search share their folder in S3."""
    return checkpoint_dir / f"{job_name}-a.pt", checkpoint_dir / f"{job_name}-b.pt"


def _load_state(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return kept
    # What torch.load raises for a file that was cut short.
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        logger.warning("A checkpoint of the interrupted job cannot be read: %s", error)
        return None
