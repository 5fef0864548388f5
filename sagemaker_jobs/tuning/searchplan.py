"""What a search sends to SageMaker, and with --dry-run all that is done: the requests, and what they would cost."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, date, datetime
from statistics import mean
from typing import Any, Final

from dogbreed_ml.config import ExperimentConfig, to_dict, with_values
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.pipeline.tune import check_search
from dogbreed_ml.provenance import git_tags
from dogbreed_ml.samplers import grid_values, num_possible_trials
from dogbreed_ml.workbench import uses_features
from sagemaker_jobs.job.environment import record_variables
from sagemaker_jobs.training.dryrun import DryRun, Placement
from sagemaker_jobs.training.estimate import estimate_jobs
from sagemaker_jobs.training.jobcontrol import Job
from sagemaker_jobs.training.jobinputs import JobInputs, planned_inputs
from sagemaker_jobs.training.launch import config_key, job_name
from sagemaker_jobs.training.training_job import price_of
from sagemaker_jobs.training.training_request import training_job_request, warn_of_instances
from sagemaker_jobs.tuning.featurechannel import FEATURES_KEY, UNKNOWN_KEY, render_channel
from sagemaker_jobs.tuning.featurejob import planned_feature_job, tables_uri
from sagemaker_jobs.tuning.tuning_request import tuning_job_request
from sagemaker_jobs.tuning.tuningstatus import DATA_TAG, SEARCH_TAG
from sagemaker_jobs.tuning.warmstart import Source

logger = logging.getLogger(__name__)

VERB: Final = "tune"


def plan(
    config: ExperimentConfig, *, context: Context, warm_start: Sequence[str] = (), today: date | None = None
) -> DryRun:
    """What `tune` would send, and an estimate of its time and cost. Needs neither credentials nor a region.

    The features are not computed for it, and what an earlier search would change is not looked up.
    """
    check_search(config)
    source = Source.of(warm_start)
    splits = load_splits(config.data, project_dir=context.project_dir, progress=context.progress)
    placement = Placement.of(config.sagemaker)
    environment = record_variables(context.tracking_uri)
    requests: dict[str, Any] = {}
    warn_of_instances(config, region=placement.region)
    with ExitStack() as stack:
        planned = stack.enter_context(
            planned_inputs(
                config,
                splits,
                uri=placement.uri,
                kind="trial",
                context=context,
                environment=environment,
                download=False,
            )
        )
        inputs = planned.inputs
        if uses_features(config):
            uri = f"{placement.uri(FEATURES_KEY)}/{UNKNOWN_KEY}/"
            if config.search.features_on == "sagemaker":
                job, files = stack.enter_context(
                    planned_feature_job(config, splits, context=context, placement=placement)
                )
                requests["CreateTrainingJob"], uri, planned = job, tables_uri(job), planned.beside(files)
            inputs = replace(inputs, channels=(*inputs.channels, render_channel(uri)))
        name = search_name(config)
        requests["CreateHyperParameterTuningJob"] = search_request(
            config,
            name=name,
            inputs=inputs,
            role_arn=placement.role_arn,
            region=placement.region,
            tags=search_tags(config, splits.fingerprint, context=context),
        )
        if source.job_names:
            logger.warning("the request says nothing of --warm-start: the earlier tuning jobs are not looked at here")
        estimate = estimate_jobs(
            typical_trial(config),
            splits,
            price=price_of(config, context, region=placement.region, today=today),
            num_trainings=num_possible_trials(config.search),
            num_parallel=config.search.num_parallel,
            num_feature_jobs=int("CreateTrainingJob" in requests),
            are_features_local=uses_features(config) and "CreateTrainingJob" not in requests,
            progress=context.progress,
        )
        return DryRun.of(requests, config=config, plan=planned, estimate=estimate, placement=placement)


def typical_trial(config: ExperimentConfig) -> ExperimentConfig:
    """What an estimate counts for each trial: the mean of searched epochs, all else as the config has it."""
    num_epochs = config.search.space.get("train.num_epochs")
    if num_epochs is None:
        return config
    return with_values(config, {"train.num_epochs": round(mean(grid_values(num_epochs)))})


def search_request(
    config: ExperimentConfig,
    *,
    name: str,
    inputs: JobInputs,
    role_arn: str,
    region: str,
    tags: Mapping[str, str],
    parents: Sequence[Job] = (),
) -> dict[str, Any]:
    """CreateHyperParameterTuningJob; `parents` are the descriptions of the tuning jobs to start from."""
    batch_size = config.search.space.get("train.batch_size")
    training = training_job_request(
        config,
        name=name,
        inputs=inputs,
        role_arn=role_arn,
        region=region,
        tags=tags,
        batch_sizes=[] if batch_size is None else grid_values(batch_size),
    )
    return tuning_job_request(config, name=name, training=training, parents=parents)


def search_tags(config: ExperimentConfig, fingerprint: str, *, context: Context) -> dict[str, str]:
    """Of a tuning job: among them what --attach knows the same search by, wherever its photographs lie."""
    values = to_dict(config)
    decisive = {section: values[section] for section in ("model", "train", "search")}
    # The fingerprint is of files and splits, before they are cut.
    decisive["data"] = {leaf: values["data"][leaf] for leaf in ("image_size", "crop_share")}
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    commit = git_tags(context.project_dir).get("mlflow.source.git.commit")
    tags = {"dogbreed:verb": VERB, "dogbreed:config": config_key(config)}
    tags |= {SEARCH_TAG: digest[:12], DATA_TAG: fingerprint}
    return tags | ({"dogbreed:commit": commit} if commit else {})


def search_name(config: ExperimentConfig) -> str:
    return job_name(config, VERB, key=config_key(config), at=datetime.now(UTC))
