"""Where a training job writes its run: live on the tracking server, or into a bundle in its output."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import TrackingError
from dogbreed_ml.runcopy import DATABASE_FILE
from dogbreed_ml.tracking import Run, RunRef, Tracker
from sagemaker_jobs.job.environment import JobEnvironment

logger = logging.getLogger(__name__)

JOB_TAG: Final = "sagemaker.training_job"
RECORD_TAG: Final = "sagemaker.record"
"""live or bundle."""
BUNDLE_DIR: Final = "bundle"

_ANSWER_S = 5
"""How long each question to the tracking server may take before a bundle is written instead."""


@dataclass(frozen=True)
class JobRecord:
    """The open store of a job's run."""

    tracker: Tracker
    kind: Literal["live", "bundle"]

    @classmethod
    def open(
        cls, environment: JobEnvironment, config: ExperimentConfig, *, is_trial: bool, empty_store: Path | None = None
    ) -> "JobRecord":
        """The caller's tracking server where it answers within seconds, else a bundle, begun with `empty_store`.

        As a search's child run on this machine, a trial has no system metrics of its own.
        """
        tracking = replace(config.tracking, system_metrics=config.tracking.system_metrics and not is_trial)
        if environment.tracking_uri is not None:
            try:
                return cls(Tracker.reach(environment.tracking_uri, config=tracking, timeout_s=_ANSWER_S), "live")
            except TrackingError as error:
                logger.warning("The run is written to the job's output, and imported from there: %s", error)
        bundle_dir = environment.output_data_dir / BUNDLE_DIR
        # A spot instance's second life begins with an empty output; what is here is not a whole bundle.
        shutil.rmtree(bundle_dir, ignore_errors=True)
        bundle_dir.mkdir(parents=True)
        if empty_store is not None and empty_store.is_file():
            shutil.copy(empty_store, bundle_dir / DATABASE_FILE)
        return cls(Tracker.open(project_dir=bundle_dir, config=tracking), "bundle")

    def start(
        self, environment: JobEnvironment, config: ExperimentConfig, *, run_name: str, tags: Mapping[str, str]
    ) -> Run:
        """The job's run; a job that was interrupted takes its own up again."""
        all_tags = {JOB_TAG: environment.job_name, RECORD_TAG: self.kind, **tags}
        if self.kind == "bundle":
            return self.tracker.start_run(config.name, run_name=run_name, tags=all_tags)
        experiment_id = environment.experiment_id or self.tracker.experiment_id(config.name)
        earlier = self.tracker.find_tagged(experiment_id, JOB_TAG, environment.job_name)
        if earlier:
            return self.tracker.take_up(earlier[0].info.run_id, tags=all_tags)
        parent = None
        if environment.parent_run_id is not None:
            parent = RunRef(environment.parent_run_id, experiment_id)
        return self.tracker.start_run(config.name, run_name=run_name, parent=parent, tags=all_tags)


def bundle_dir_of(output_dir: Path) -> Path | None:
    """The bundle in a job's unpacked output; None where there is none."""
    folder = output_dir / BUNDLE_DIR
    return folder if folder.is_dir() else None
