"""`dogbreed train --on sagemaker`: the same training in a SageMaker job; its record, model and summary come home.

A command that was cut off is repeated: it finds its job again, and goes on where it ended.
"""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.errors import CloudError, DogbreedError
from dogbreed_ml.provenance import git_tags, render_command
from dogbreed_ml.spans import SpanTotals
from dogbreed_ml.summaries import TrainSummary
from dogbreed_ml.tracking import RunRef, Tracker
from sagemaker_jobs.client import Aws
from sagemaker_jobs.job.environment import record_variables
from sagemaker_jobs.pricing import Price, look_up_price
from sagemaker_jobs.storage import Storage
from sagemaker_jobs.training.dryrun import DryRun, Placement
from sagemaker_jobs.training.estimate import estimate_jobs
from sagemaker_jobs.training.importing import import_job
from sagemaker_jobs.training.jobcontrol import (
    Job,
    JobFailedError,
    JobGoneError,
    Question,
    describe_job,
    failure_of,
    follow_job,
    longest_s,
    send_job,
    settle_interrupt,
    warned_of_job,
)
from sagemaker_jobs.training.jobinputs import OUTPUT_KEY, planned_inputs
from sagemaker_jobs.training.joboutputs import IncompleteJobError, fetch_checkpoint, log_rule_output
from sagemaker_jobs.training.launch import Launch, LaunchFile, config_key, job_name
from sagemaker_jobs.training.training_request import training_job_request, warn_of_instances

logger = logging.getLogger(__name__)

_VERB: Final = "train"


def train(
    config: ExperimentConfig, *, context: Context, question: Question | None = None, aws: Aws | None = None
) -> TrainSummary:
    """One training as a SageMaker job, followed to its end, with the run that a training here would leave.

    `question` is asked after Ctrl-C whether to stop the job; without it the job goes on. `aws` is closed at the end;
    by default it is the config's. Raises CloudError.
    """
    spans = SpanTotals()
    with spans.span("start"):
        tracker = Tracker.open(project_dir=context.project_dir, config=config.tracking, environment=context.environment)
    with tracker, aws or Aws.open(config.sagemaker) as aws:
        with spans.span("data"):
            splits = _splits(config, context)
        scope = f"{splits.fingerprint if splits else ''} {tracker.tracking_uri} {_endpoint(aws)}"
        launch_file = LaunchFile.of(context.project_dir, _VERB, config, scope=scope)
        task = _Task(config, context, tracker, aws, splits, launch_file, spans)
        try:
            return task.run()
        except KeyboardInterrupt as interrupt:
            # SIGTERM arrives as an interrupt that says so; nobody sits there to answer.
            ended = settle_interrupt(
                aws,
                launch_file,
                question=None if interrupt.args else question,
                command=render_command(context.argv),
            )
            if ended is not None:
                task.bring_home_quietly(ended)
            raise


def plan(config: ExperimentConfig, *, context: Context, today: date | None = None) -> DryRun:
    """What `train` would send, and an estimate of its time and cost. Needs neither credentials nor a region."""
    splits = _splits(config, context)
    placement = Placement.of(config.sagemaker)
    environment = record_variables(context.tracking_uri)
    warn_of_instances(config, region=placement.region)
    with planned_inputs(
        config, splits, uri=placement.uri, kind="train", context=context, environment=environment, download=False
    ) as inputs:
        request = training_job_request(
            config,
            name=_name(config, ""),
            inputs=inputs.inputs,
            role_arn=placement.role_arn,
            region=placement.region,
            tags=_tags(config, context),
        )
        price = price_of(config, context, region=placement.region, today=today)
        estimate = estimate_jobs(config, splits, price=price, progress=context.progress)
        requests = {"CreateTrainingJob": request}
        return DryRun.of(requests, config=config, plan=inputs, estimate=estimate, placement=placement)


def price_of(config: ExperimentConfig, context: Context, *, region: str, today: date | None = None) -> Price | None:
    """Of a training instance."""
    return look_up_price(
        config.sagemaker,
        instance_type=config.sagemaker.instance_type,
        component="Training",
        region=region,
        project_dir=context.project_dir,
        today=today,
    )


@dataclass(frozen=True)
class _Task:
    """One command's work on its job."""

    config: ExperimentConfig
    context: Context
    tracker: Tracker
    aws: Aws
    splits: Splits | None
    launch_file: LaunchFile
    spans: SpanTotals

    def run(self) -> TrainSummary:
        role_arn = self.aws.execution_role(self.config.sagemaker)
        try:
            with warned_of_job(self.launch_file, command=render_command(self.context.argv)):
                with self.launch_file.locked():
                    job = self._found() or self._started(role_arn)
                with self.spans.span("job"):
                    job = follow_job(self.aws, job["TrainingJobName"], timeout_s=longest_s(job))
        except JobGoneError as gone:
            with self.launch_file.locked():
                self._bury(gone)
            raise
        return self.bring_home(job)

    def bring_home(self, job: Job) -> TrainSummary:
        """The ended job's run, model and summary; raises CloudError where it did not complete. May be repeated.

        One command at a time: another that followed the same job finds its run and its model made.
        """
        with self.launch_file.locked():
            try:
                summary = self._brought_home(job)
            except (JobFailedError, IncompleteJobError):
                self.launch_file.clear(job["TrainingJobName"])
                raise
            self.launch_file.clear(job["TrainingJobName"])
        return summary

    def _brought_home(self, job: Job) -> TrainSummary:
        with self.spans.span("import"):
            storage = self._storage()
            run_id = self._imported(job, storage)
            self.tracker.hand_over_to(run_id)
            if self.config.profile.sagemaker_rules:
                log_rule_output(self.tracker, run_id, job, storage=storage)
        if job["TrainingJobStatus"] != "Completed":
            raise JobFailedError(f"{failure_of(job)}. Its run is {run_id}; its log is above.")
        with self.spans.span("model"):
            model_uri = self._model_uri(run_id, job, storage)
        return self._summary(run_id, model_uri)

    def bring_home_quietly(self, job: Job) -> None:
        """After Ctrl-C: the record is made, and what went wrong is told beside."""
        try:
            summary = self.bring_home(job)
            logger.info("the training job %s had completed: run %s", job["TrainingJobName"], summary.run_id)
        except DogbreedError as error:
            logger.warning("%s", error)

    def _found(self) -> Job | None:
        """The job of an earlier command that was not brought home; raises CloudError where it was deleted."""
        launch = self.launch_file.load()
        if launch is None:
            return None
        job = describe_job(self.aws, launch.name)
        if job is not None:
            logger.info("the training job %s was started before (%s): going on with it", launch.name, _status(job))
            self.launch_file.save(Launch(launch.name, launch.region, is_created=True))
            return job
        if launch.is_created:
            raise JobGoneError(launch.name)
        # Its request did not arrive, or not yet: it is sent again under its name, of which there is one job at most.
        return None

    def _started(self, role_arn: str) -> Job:
        unconfirmed = self.launch_file.load()
        name = unconfirmed.name if unconfirmed else _name(self.config, self.launch_file.path.stem.rpartition("-")[2])
        storage = Storage.named(self.aws, self.config.sagemaker)
        with (
            self.spans.span("upload"),
            planned_inputs(
                self.config,
                self.splits,
                uri=storage.uri,
                kind="train",
                context=self.context,
                environment=record_variables(self.tracker.tracking_uri),
            ) as plan,
        ):
            # Before the bucket is made and the photographs are sent.
            request = training_job_request(
                self.config,
                name=name,
                inputs=plan.inputs,
                role_arn=role_arn,
                region=self.aws.region,
                tags=_tags(self.config, self.context),
            )
            warn_of_instances(self.config, region=self.aws.region)
            storage.ensure_bucket()
            plan.upload(storage, progress=self.context.progress)
        send_job(self.aws, request, self.launch_file)
        link = self.aws.console_url(f"jobs/{name}")
        logger.info("the training job %s is started%s", name, f": {link}" if link else "")
        return {"TrainingJobName": name, "StoppingCondition": request["StoppingCondition"]}

    def _imported(self, job: Job, storage: Storage) -> str:
        run_id = import_job(self.tracker, job, storage=storage, config=self.config)
        if run_id is None:
            raise CloudError(f"The training job {job['TrainingJobName']} has not ended yet: {_status(job)}.")
        return run_id

    def _bury(self, gone: JobGoneError) -> None:
        """A job that was deleted still becomes a run, FAILED and with the cause."""
        storage, now, aws = self._storage(), datetime.now(UTC), self.aws
        known: Mapping[str, Any] = gone.job or {
            "TrainingJobName": gone.name,
            "TrainingJobArn": f"arn:{aws.partition}:sagemaker:{aws.region}:{aws.account_id}:training-job/{gone.name}",
            "OutputDataConfig": {"S3OutputPath": storage.uri(OUTPUT_KEY)},
            "CreationTime": now,
            "LastModifiedTime": now,
        }
        ended = {"TrainingJobStatus": "Failed", "SecondaryStatus": "Failed", "FailureReason": "The job was deleted."}
        self._imported({**known, **ended}, storage)
        self.launch_file.clear(gone.name)

    def _storage(self) -> Storage:
        return Storage.open(self.aws, self.config.sagemaker)

    def _model_uri(self, run_id: str, job: Job, storage: Storage) -> str:
        """The run's MLflow model, made from the job's checkpoint unless an earlier command made it."""
        from dogbreed_ml import pyfunc

        logged = self.tracker.stored(run_id).outputs
        if logged is not None and logged.model_outputs:
            return f"models:/{logged.model_outputs[0].model_id}"
        with tempfile.TemporaryDirectory() as folder:
            path = fetch_checkpoint(job, storage, Path(folder))
            return pyfunc.log_model(run_id, path, tracking_uri=self.tracker.tracking_uri)

    def _summary(self, run_id: str, model_uri: str) -> TrainSummary:
        stored = self.tracker.stored(run_id)
        metrics = stored.data.metrics

        def of(prefix: str) -> dict[str, float]:
            return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}

        test = of("test/")
        if "accuracy_top1_low" not in test:
            raise IncompleteJobError(
                f"The job of run {run_id} completed and left no evaluation in its record; its log says what it did."
            )
        interval = (test.pop("accuracy_top1_low"), test.pop("accuracy_top1_high"))
        return TrainSummary(
            run_id=run_id,
            model_uri=model_uri,
            num_epochs=len(self.tracker.epochs(run_id)),
            valid=of("valid/"),
            test=test,
            test_top1_interval=interval,
            seconds={stage: round(seconds, 3) for stage, seconds in self.spans.seconds.items()},
            url=self.tracker.run_url(RunRef(run_id, stored.info.experiment_id)),
        )


def _splits(config: ExperimentConfig, context: Context) -> Splits | None:
    """None for data that lie in S3 already: the job reads them there."""
    if config.data.source == "s3":
        return None
    return load_splits(config.data, project_dir=context.project_dir, progress=context.progress)


def _name(config: ExperimentConfig, key: str) -> str:
    return job_name(config, _VERB, key=key or config_key(config), at=datetime.now(UTC))


def _tags(config: ExperimentConfig, context: Context) -> dict[str, str]:
    commit = git_tags(context.project_dir).get("mlflow.source.git.commit")
    return {"dogbreed:verb": _VERB, "dogbreed:config": config_key(config)} | (
        {"dogbreed:commit": commit} if commit else {}
    )


def _endpoint(aws: Aws) -> str:
    return str(aws.client("sagemaker").meta.endpoint_url)


def _status(job: Job) -> str:
    return f"{job['TrainingJobStatus']}, {job.get('SecondaryStatus', 'unknown')}"
