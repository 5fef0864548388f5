"""`dogbreed tune --search.engine sagemaker`: a tuning job, each of its training jobs brought home as a trial's run.

The features are computed once and handed to every job. What comes after the search is the same as after Optuna's. A
command that was cut off is repeated, or another attaches: it finds the tuning job again, and goes on where it ended.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from filelock import FileLock, Timeout

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.errors import ConfigError, SearchError
from dogbreed_ml.pipeline.runprofiler import profiled_run
from dogbreed_ml.pipeline.stages import log_beginning, logged_feeds, opened
from dogbreed_ml.pipeline.tune import check_search, finish_search
from dogbreed_ml.progress import TerminalProgress
from dogbreed_ml.provenance import render_command
from dogbreed_ml.samplers import num_possible_trials
from dogbreed_ml.search import SearchResult
from dogbreed_ml.searchdisplay import SearchDisplay
from dogbreed_ml.spans import SpanTotals
from dogbreed_ml.summaries import TuneSummary
from dogbreed_ml.tracking import PARENT_TAG, Run, Tracker
from dogbreed_ml.workbench import Workbench, uses_features
from sagemaker_jobs.client import Aws, Clock
from sagemaker_jobs.job.environment import record_variables
from sagemaker_jobs.storage import Storage
from sagemaker_jobs.training.jobcontrol import Job, Question
from sagemaker_jobs.training.jobinputs import JobInputs, prepare_inputs, unknown_inputs
from sagemaker_jobs.training.launch import Launch, LaunchFile
from sagemaker_jobs.training.training_request import warn_of_instances
from sagemaker_jobs.tuning.featurechannel import (
    FeatureChannel,
    fetch_features,
    render_channel,
)
from sagemaker_jobs.tuning.featurejob import channel_uri, compute_features
from sagemaker_jobs.tuning.searchfollower import SearchFollower, TuningJobGoneError
from sagemaker_jobs.tuning.searchplan import VERB, search_name, search_request, search_tags
from sagemaker_jobs.tuning.tuningstatus import (
    check_attached,
    describe_tuning_job,
    send_tuning_job,
    settle_tuning_job,
    warn_of_search,
)
from sagemaker_jobs.tuning.warmstart import Source

logger = logging.getLogger(__name__)

TUNING_JOB_TAG, ARN_TAG, URL_TAG = "sagemaker.tuning_job", "sagemaker.tuning_job_arn", "sagemaker.tuning_job_url"


def tune(
    config: ExperimentConfig,
    *,
    context: Context,
    attach: str | None = None,
    warm_start: Sequence[str] = (),
    question: Question | None = None,
    clock: Clock | None = None,
) -> TuneSummary:
    """A search as a SageMaker tuning job, followed to its end, with the runs that a search here would leave.

    `attach` names a tuning job to take up, running or ended; `warm_start` parent runs and tuning jobs to start from.
    `question` is asked after Ctrl-C whether to stop the job; without it the job goes on. Raises CloudError.
    """
    check_search(config)
    spans = SpanTotals()
    source = Source.of(warm_start)
    tracker, splits, bench = opened(config, context, spans)
    with closing(bench), tracker, Aws.open(config.sagemaker, clock=clock) as aws:
        scope = f"{splits.fingerprint} {tracker.tracking_uri} {aws.client('sagemaker').meta.endpoint_url}"
        launch_file = LaunchFile.of(context.project_dir, VERB, config, scope=scope)
        with _alone(launch_file, config):
            return _Search(config, context, tracker, aws, bench, launch_file, spans, source, question).run(attach)


@dataclass(frozen=True)
class _Search:
    """One command's work on its tuning job."""

    config: ExperimentConfig
    context: Context
    tracker: Tracker
    aws: Aws
    bench: Workbench
    launch_file: LaunchFile
    spans: SpanTotals
    source: Source
    question: Question | None

    def run(self, attach: str | None) -> TuneSummary:
        name, found = self._found(attach)
        parent_run_id = self._parent_run_id(name, is_attached=attach is not None)
        config = self.source.narrowed(self.config, self.tracker)
        role_arn = self.aws.execution_role(config.sagemaker)
        storage = Storage.named(self.aws, config.sagemaker)
        parents = self._checked_parents(name, config, storage, role_arn) if found is None else []
        with (
            self.tracker.start_run(config.name, run_name=name, run_id=parent_run_id) as parent,
            profiled_run(config, parent, project_dir=self.context.project_dir) as profiler,
        ):
            self.bench.spans = profiler.spans
            parent.set_tags({TUNING_JOB_TAG: name} | self.source.tags(self.config, config))
            log_beginning(parent, config, self.bench.splits, self.context)
            self._refuse_deleted(name, found)
            storage.ensure_bucket()
            follower = SearchFollower(self.aws, name, config, self.tracker, parent, storage)
            with self._told_of_what_goes_on(follower, found):
                with self.spans.span("features"):
                    config, channels, is_cached = self._features(config, parent, storage, found, role_arn)
                with self.spans.span("search"):
                    if found is None:
                        self._start(
                            name, config, parent, storage, channels=channels, role_arn=role_arn, parents=parents
                        )
                    result = self._follow(follower)
            summary = finish_search(
                config, result, bench=self.bench, tracker=self.tracker, parent=parent, spans=self.spans
            )
            self.launch_file.clear(name)
        return replace(summary, cache_hits=int(is_cached), resumed=found is not None)

    # Which tuning job ------------------------------------------------------------------------------------------------

    def _found(self, attach: str | None) -> tuple[str, Job | None]:
        """The name of the tuning job, and its description where it is there already."""
        if attach is not None:
            description = describe_tuning_job(self.aws, attach)
            if description is None:
                raise ConfigError(f"--attach must name a tuning job of {self.aws.region}; there is no {attach!r}.")
            check_attached(self.aws, description, self._tags())
            return attach, description
        launch = self.launch_file.load()
        if launch is None:
            return search_name(self.config), None
        description = describe_tuning_job(self.aws, launch.name)
        if description is not None:
            status = description["HyperParameterTuningJobStatus"]
            logger.info("the tuning job %s was started before (%s): going on with it", launch.name, status)
            self.launch_file.save(Launch(launch.name, launch.region, is_created=True))
        return launch.name, description

    def _refuse_deleted(self, name: str, found: Job | None) -> None:
        launch = self.launch_file.load()
        if found is None and launch is not None and launch.is_created:
            self.launch_file.clear(name)
            raise TuningJobGoneError(name)

    def _parent_run_id(self, name: str, *, is_attached: bool) -> str | None:
        """The run that an earlier command made for this tuning job."""
        found = self.tracker.find_tagged(self.tracker.experiment_id(self.config.name), TUNING_JOB_TAG, name)
        parents = [run for run in found if PARENT_TAG not in run.data.tags]
        if not parents:
            return None
        if is_attached and parents[-1].info.status == "FINISHED":
            raise ConfigError(f"--attach {name}: it is brought home already, as run {parents[-1].info.run_id}.")
        return str(parents[-1].info.run_id)

    # Features --------------------------------------------------------------------------------------------------------

    def _features(
        self, config: ExperimentConfig, parent: Run, storage: Storage, found: Job | None, role_arn: str
    ) -> tuple[ExperimentConfig, list[dict[str, Any]], bool]:
        """The config by which the features are found here, the channel for the jobs, and whether a pass was spared."""
        project_dir = self.context.project_dir
        if config.search.features_on == "sagemaker" and uses_features(config):
            uri = channel_uri(found) if found is not None else None
            if uri is None:
                uri = compute_features(
                    config,
                    context=self.context,
                    tracker=self.tracker,
                    parent=parent,
                    storage=storage,
                    splits=self.bench.splits,
                    role_arn=role_arn,
                    question=self.question,
                )
            localized = fetch_features(config, uri, storage=storage, project_dir=project_dir)
            logged_feeds(parent, self.bench, localized)
            return localized, [render_channel(uri)], False
        feeds = logged_feeds(parent, self.bench, config)
        is_cached = feeds.table is not None and feeds.table.cached
        channel = FeatureChannel.of(feeds, project_dir / config.features.dir, uri=storage.uri)
        if channel is None or found is not None:
            return config, [], is_cached
        return config, [channel.upload(storage, progress=self.context.progress)], is_cached

    # The tuning job --------------------------------------------------------------------------------------------------

    def _checked_parents(self, name: str, config: ExperimentConfig, storage: Storage, role_arn: str) -> list[Job]:
        """The tuning jobs to start from; ConfigError for what SageMaker would refuse.

        First of all: afterwards a bucket is made, photographs are sent, and a job for features may be paid for.
        """
        parents = self.source.tuning_jobs(self.aws)
        inputs = unknown_inputs(storage.uri, record_variables(self.tracker.tracking_uri))
        self._request(name, config, inputs, role_arn, parents)
        warn_of_instances(config, region=self.aws.region)
        return parents

    def _request(
        self, name: str, config: ExperimentConfig, inputs: JobInputs, role_arn: str, parents: Sequence[Job]
    ) -> dict[str, Any]:
        return search_request(
            config,
            name=name,
            inputs=inputs,
            role_arn=role_arn,
            region=self.aws.region,
            tags=self._tags(),
            parents=parents,
        )

    def _tags(self) -> dict[str, str]:
        # Of the config as it was given: neither narrowed by a warm start nor with what this machine made of `auto`.
        return search_tags(self.config, self.bench.splits.fingerprint, context=self.context)

    def _start(
        self,
        name: str,
        config: ExperimentConfig,
        parent: Run,
        storage: Storage,
        *,
        channels: Sequence[dict[str, Any]],
        role_arn: str,
        parents: Sequence[Job],
    ) -> None:
        inputs = prepare_inputs(
            config,
            self.bench.splits,
            storage,
            kind="trial",
            context=self.context,
            environment=record_variables(self.tracker.tracking_uri, parent),
        )
        inputs = replace(inputs, channels=(*inputs.channels, *channels))
        request = self._request(name, config, inputs, role_arn, parents)
        send_tuning_job(self.aws, request, self.launch_file)
        link = self.aws.console_url(f"hyper-tuning-jobs/{name}")
        logger.info("the tuning job %s is started%s", name, f": {link}" if link else "")

    def _follow(self, follower: SearchFollower) -> SearchResult:
        try:
            with self._display(follower.config) as display:
                job = follower.follow(display)
            follower.parent.set_tags(_links(self.aws, job))
            return follower.result(job)
        # There is nothing more to come from this one.
        except (TuningJobGoneError, SearchError):
            self.launch_file.clear(follower.name)
            raise

    def _display(self, config: ExperimentConfig) -> AbstractContextManager[SearchDisplay]:
        progress = self.context.progress
        return SearchDisplay.open(
            config.search.metric,
            maximize=config.search.direction == "maximize",
            num_trials=num_possible_trials(config.search),
            num_done=0,
            best=None,
            console=progress.console if isinstance(progress, TerminalProgress) else None,
        )

    @contextmanager
    def _told_of_what_goes_on(self, follower: SearchFollower, found: Job | None) -> Iterator[None]:
        """What becomes of a tuning job that runs when the command is cut off: asked, done or told, and never silent."""
        command = render_command(self.context.argv)
        try:
            yield
        except KeyboardInterrupt as interrupt:
            # SIGTERM arrives as an interrupt that says so; nobody sits there to answer.
            question = None if interrupt.args else self.question
            if found is None and self.launch_file.load() is None:
                logger.warning("No tuning job was started.")
            elif settle_tuning_job(self.aws, follower.name, question=question, command=command):
                with self._display(follower.config) as display:
                    follower.follow(display)
            raise
        except BaseException:
            launch = self.launch_file.load()
            if not follower.has_ended and (found is not None or launch is not None):
                is_sure = found is not None or (launch is not None and launch.is_created)
                warn_of_search(self.aws, follower.name, command=command, is_sure=is_sure)
            raise


def _links(aws: Aws, job: Job) -> dict[str, str]:
    name = job["HyperParameterTuningJobName"]
    url = aws.console_url(f"hyper-tuning-jobs/{name}")
    return {ARN_TAG: job["HyperParameterTuningJobArn"]} | ({URL_TAG: url} if url else {})


@contextmanager
def _alone(launch_file: LaunchFile, config: ExperimentConfig) -> Iterator[None]:
    """One command at a time follows a search: two would bring it home twice."""
    launch_file.path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(launch_file.path.with_suffix(".running"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise SearchError(
            f"Another process follows this search of {config.name!r}; wait for it, or choose another --name."
        ) from error
    try:
        yield
    finally:
        lock.release()
