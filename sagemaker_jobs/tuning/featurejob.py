"""The first job of a search with search.features_on=sagemaker: one pass over the photographs, its tables left in S3."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from dogbreed_ml.config import ExperimentConfig, SearchConfig, TrainConfig
from dogbreed_ml.context import Context
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.errors import CloudError
from dogbreed_ml.provenance import render_command
from dogbreed_ml.tracking import Run, Tracker
from sagemaker_jobs.job.environment import record_variables
from sagemaker_jobs.storage import Storage
from sagemaker_jobs.train_entry import FEATURES_DIR
from sagemaker_jobs.training.dryrun import Placement
from sagemaker_jobs.training.importing import import_job, output_uri
from sagemaker_jobs.training.jobcontrol import (
    Job,
    Question,
    describe_job,
    failure_of,
    follow_job,
    longest_s,
    send_job,
    settle_interrupt,
    warned_of_job,
)
from sagemaker_jobs.training.jobinputs import JobInputs, JobPlan, planned_inputs, prepare_inputs
from sagemaker_jobs.training.launch import Launch, LaunchFile, config_key, job_name
from sagemaker_jobs.training.training_request import training_job_request
from sagemaker_jobs.tuning.featurechannel import CHANNEL

logger = logging.getLogger(__name__)

_VERB: Final = "features"


def compute_features(
    config: ExperimentConfig,
    *,
    context: Context,
    tracker: Tracker,
    parent: Run,
    storage: Storage,
    splits: Splits,
    role_arn: str,
    question: Question | None,
) -> str:
    """The URI of the tables; a job that was started before, or has computed them already, is found again.

    Its run is a child of `parent`. Raises CloudError.
    """
    aws, wanted = storage.aws, features_config(config)
    scope = f"{splits.fingerprint} {tracker.tracking_uri} {aws.client('sagemaker').meta.endpoint_url}"
    launch_file = LaunchFile.of(context.project_dir, _VERB, wanted, scope=scope)
    try:
        with warned_of_job(launch_file, command=render_command(context.argv)):
            with launch_file.locked():
                job = _found(launch_file, storage)
                if job is None:
                    job = _start(wanted, context, tracker, parent, storage, splits, launch_file, role_arn=role_arn)
            job = follow_job(aws, job["TrainingJobName"], timeout_s=longest_s(job))
    except KeyboardInterrupt as interrupt:
        ended = settle_interrupt(
            aws,
            launch_file,
            question=None if interrupt.args else question,
            command=render_command(context.argv),
        )
        # One that completed is what the next command looks for; one that was stopped would be in its way.
        if ended is not None and ended["TrainingJobStatus"] != "Completed":
            import_job(tracker, ended, storage=storage, config=wanted, parent=parent.ref)
            launch_file.clear(ended["TrainingJobName"])
        raise
    # The launch file stays: another search over the same features finds them.
    import_job(tracker, job, storage=storage, config=wanted, parent=parent.ref)
    if job["TrainingJobStatus"] != "Completed":
        launch_file.clear(job["TrainingJobName"])
        raise CloudError(f"{failure_of(job)}. It was to compute the features; its log is above.")
    return tables_uri(job)


def features_config(config: ExperimentConfig) -> ExperimentConfig:
    """What the features depend on, so that searches that differ in nothing of it share them; on one instance."""
    train, default = config.train, TrainConfig()
    views = replace(default, augmentation=train.augmentation, num_views=train.num_views, seed=train.seed)
    # A second instance would be paid for to wait.
    return replace(config, train=views, search=SearchConfig(), sagemaker=replace(config.sagemaker, instance_count=1))


def feature_job_request(
    config: ExperimentConfig, *, name: str, inputs: JobInputs, role_arn: str, region: str
) -> dict[str, Any]:
    """CreateTrainingJob for `features_config(...)`."""
    tags = {"dogbreed:verb": _VERB}
    request = training_job_request(config, name=name, inputs=inputs, role_arn=role_arn, region=region, tags=tags)
    # As single files, which are the next jobs' channel as they lie there.
    request["OutputDataConfig"] = {**request["OutputDataConfig"], "CompressionType": "NONE"}
    return request


@contextmanager
def planned_feature_job(
    config: ExperimentConfig, splits: Splits, *, context: Context, placement: Placement
) -> Iterator[tuple[dict[str, Any], JobPlan]]:
    """What `compute_features` would send for a search, and upload for it; for a dry run."""
    wanted = features_config(config)
    environment = record_variables(context.tracking_uri)
    with planned_inputs(
        wanted, splits, uri=placement.uri, kind=_VERB, context=context, environment=environment, download=False
    ) as planned:
        name = job_name(wanted, _VERB, key=config_key(wanted), at=datetime.now(UTC))
        request = feature_job_request(
            wanted, name=name, inputs=planned.inputs, role_arn=placement.role_arn, region=placement.region
        )
        yield request, planned


def tables_uri(job: Job) -> str:
    """Where such a job leaves the features."""
    return f"{output_uri(job)}/model/{FEATURES_DIR}/"


def channel_uri(tuning_job: Job) -> str | None:
    """Where the features lie that the jobs of a tuning job have as their channel; None where they have none."""
    for channel in tuning_job["TrainingJobDefinition"].get("InputDataConfig", []):
        if channel["ChannelName"] == CHANNEL:
            return str(channel["DataSource"]["S3DataSource"]["S3Uri"])
    return None


def _found(launch_file: LaunchFile, storage: Storage) -> Job | None:
    launch = launch_file.load()
    if launch is None:
        return None
    job = describe_job(storage.aws, launch.name)
    if job is None and not launch.is_created:
        # Its request did not arrive, or not yet: it is sent again under its name, of which there is one job at most.
        return None
    if job is None or (job["TrainingJobStatus"] == "Completed" and not _tables_are_there(job, storage)):
        launch_file.clear(launch.name)
        return None
    launch_file.save(Launch(launch.name, launch.region, is_created=True))
    logger.info("the job %s computes the features, or has (%s)", launch.name, job["TrainingJobStatus"])
    return job


def _start(
    config: ExperimentConfig,
    context: Context,
    tracker: Tracker,
    parent: Run,
    storage: Storage,
    splits: Splits,
    launch_file: LaunchFile,
    *,
    role_arn: str,
) -> Job:
    inputs = prepare_inputs(
        config,
        splits,
        storage,
        kind="features",
        context=context,
        environment=record_variables(tracker.tracking_uri, parent),
    )
    unconfirmed, key = launch_file.load(), launch_file.path.stem.rpartition("-")[2]
    name = unconfirmed.name if unconfirmed else job_name(config, _VERB, key=key, at=datetime.now(UTC))
    request = feature_job_request(config, name=name, inputs=inputs, role_arn=role_arn, region=storage.aws.region)
    send_job(storage.aws, request, launch_file)
    logger.info("the job %s is started; it computes the features", name)
    return {"TrainingJobName": name, "StoppingCondition": request["StoppingCondition"]}


def _tables_are_there(job: Job, storage: Storage) -> bool:
    """Whether nobody has cleared the job's output away."""
    return bool(storage.sizes(tables_uri(job).removeprefix(storage.uri("")).rstrip("/")))
