"""Where a search begins: SageMaker's tuner takes earlier tuning jobs, Optuna takes trials, whoever made them.

SageMaker takes no trials of a study. A search there that begins with one searches closer around its best instead.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Final

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.tracking import Tracker
from dogbreed_ml.warmstart import WARM_START_TAG, Finding, find_trials, fitting, narrowed
from sagemaker_jobs.client import Aws
from sagemaker_jobs.training.jobcontrol import Job
from sagemaker_jobs.training.metrics import objective_definition
from sagemaker_jobs.tuning.tuningstatus import describe_tuning_job, list_training_jobs, tuned_values

logger = logging.getLogger(__name__)

FULL_SPACE_TAG: Final = "search.space_before_warm_start"
"""What search.space was before it was narrowed."""

RUN_ID = re.compile(r"[0-9a-f]{32}")
"""MLflow's; no tuning job that we name looks like one."""


@dataclass(frozen=True)
class Source:
    """What a search starts from: parent runs by id, tuning jobs by name."""

    run_ids: tuple[str, ...] = ()
    job_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Sequence[str]) -> "Source":
        run_ids = tuple(name for name in names if RUN_ID.fullmatch(name))
        return cls(run_ids, tuple(name for name in names if name not in run_ids))

    def narrowed(self, config: ExperimentConfig, tracker: Tracker) -> ExperimentConfig:
        """The config with its space around the best trials under the parent runs."""
        search = config.search
        found = [each for run_id in self.run_ids for each in find_trials(tracker, run_id, config=config)]
        if not found:
            return config
        space = narrowed(search, fitting(found, search))
        logger.info("search.space is narrowed around the best of %d earlier trials", len(found))
        return replace(config, search=replace(search, space=space))

    def tags(self, config: ExperimentConfig, searched: ExperimentConfig) -> dict[str, str]:
        """Of the parent run: what the search begins with, and its space before that was narrowed."""
        names = (*self.run_ids, *self.job_names)
        tags = {WARM_START_TAG: ", ".join(names)} if names else {}
        if searched.search.space != config.search.space:
            before = {name: asdict(dimension) for name, dimension in config.search.space.items()}
            tags[FULL_SPACE_TAG] = json.dumps(before)
        return tags

    def tuning_jobs(self, aws: Aws) -> list[Job]:
        """The descriptions of the tuning jobs; ConfigError where one is not there."""
        return [_described(aws, name) for name in self.job_names]


def fetch_findings(config: ExperimentConfig, names: Sequence[str]) -> list[Finding]:
    """What tuning jobs found, for a search with Optuna. Raises ConfigError and CloudError."""
    if not names:
        return []
    with Aws.open(config.sagemaker) as aws:
        return [each for name in names for each in find_jobs(aws, name, config=config)]


def find_jobs(aws: Aws, name: str, *, config: ExperimentConfig) -> list[Finding]:
    """The completed jobs of an earlier tuning job with their objective values.

    Raises ConfigError where there is none of this name, or where it was for another metric or space.
    """
    description = _described(aws, name)
    metrics = description["TrainingJobDefinition"]["AlgorithmSpecification"].get("MetricDefinitions", [])
    is_same_metric = objective_definition(config.search.metric) in metrics
    objective = description["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
    if not is_same_metric or objective["Type"].lower() != config.search.direction:
        raise ConfigError(
            f"--warm-start {name} must name a search that {config.search.direction}s {config.search.metric}."
        )
    return [
        Finding(tuned_values(config, each), each["FinalHyperParameterTuningJobObjectiveMetric"]["Value"], name)
        for each in list_training_jobs(aws, name).values()
        if each["TrainingJobStatus"] == "Completed" and each.get("ObjectiveStatus") == "Succeeded"
    ]


def _described(aws: Aws, name: str) -> Job:
    description = describe_tuning_job(aws, name)
    if description is None:
        raise ConfigError(f"--warm-start must name a tuning job of {aws.region} or a parent run; there is no {name!r}.")
    return description
