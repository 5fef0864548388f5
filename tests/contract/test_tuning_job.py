"""`dogbreed tune --search.engine sagemaker` on the local SageMaker: one pass, the same record, nothing twice."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from iamrights import allowed_by_the_policy
from local_jobs import BUCKET, make_bucket, write_source
from mlflow_server import MlflowServer
from plantedsecrets import API_TOKEN, assert_absent, plant

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.config import (
    CategoricalDimension,
    DataConfig,
    ExperimentConfig,
    FeaturesConfig,
    FloatDimension,
    ModelConfig,
    SearchConfig,
    TrackingConfig,
    TrainConfig,
    with_values,
)
from dogbreed_ml.context import Context
from dogbreed_ml.data.breeds import clean_breed_name
from dogbreed_ml.errors import CloudError, ConfigError, SearchError, TrackingError
from dogbreed_ml.pipeline import tune as optuna_search
from dogbreed_ml.progress import Advance, Progress
from dogbreed_ml.summaries import TuneSummary
from dogbreed_ml.tracking import PARENT_TAG, ChildRun, Tracker
from sagemaker_jobs.client import Aws, Clock
from sagemaker_jobs.local.service import LocalSageMaker, Settings
from sagemaker_jobs.shapes import request_errors
from sagemaker_jobs.training import importing, jobinputs
from sagemaker_jobs.training.jobcontrol import JobGoneError
from sagemaker_jobs.tuning import searchfollower, searchplan, tuning_job, warmstart

WAITS = "import time\nprint('waiting', flush=True)\ntime.sleep(120)\n"
FAILS = (
    "import os, pathlib, sys\nprint('opening photographs', flush=True)\n"
    "pathlib.Path(os.environ['SM_OUTPUT_DIR'], 'failure').write_text('ValueError: no dog in sight')\nsys.exit(1)\n"
)

CONFIG = ExperimentConfig(
    name="dogs",
    data=DataConfig(num_breeds=3, num_per_breed=12, image_size=64),
    model=ModelConfig(weights="random"),
    features=FeaturesConfig(backend="torch-fp32"),
    train=TrainConfig(num_epochs=2, batch_size=8),
    search=SearchConfig(
        engine="sagemaker",
        num_trials=2,
        num_parallel=2,
        pruner="none",
        space={
            "train.lr": FloatDimension(low=0.001, high=0.1, log=True),
            "train.optimizer": CategoricalDimension(choices=["adamw", "sgd"]),
        },
    ),
    sagemaker=SagemakerConfig(bucket=BUCKET, instance_type="ml.m5.xlarge"),
    tracking=TrackingConfig(system_metrics=False),
)

SECRETIVE = replace(CONFIG, sagemaker=replace(CONFIG.sagemaker, environment={"KENNEL_API_TOKEN": API_TOKEN}))
"""With a secret where SageMaker's own description of a job may hold one, and nothing else."""

SAGEMAKERS_OWN = ("sagemaker.", "sagemaker/", "features.from", "features.key", "dogbreed.event")
"""Keys that only one of two searches may have: what SageMaker adds, and where a job's features are from."""


@pytest.fixture(autouse=True)
def _policy_allows_it(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    with allowed_by_the_policy(monkeypatch, CONFIG, replace(CONFIG, name=feature_name(request))):
        yield


def feature_name(request: pytest.FixtureRequest) -> str:
    """Of a test's experiment with feature jobs, which all tests' jobs stand beside."""
    return f"dogs-{request.function.__name__.rpartition('_')[2]}"


@dataclass
class Caller:
    """The caller's side: a project folder and its store."""

    server: LocalSageMaker
    project_dir: Path
    tracking_uri: str | None = None
    progress: Progress | None = None

    @property
    def context(self) -> Context:
        environment = {"MLFLOW_TRACKING_URI": self.tracking_uri} if self.tracking_uri else {}
        context = Context(self.project_dir, environment=environment, argv=("dogbreed", "tune"))
        return context if self.progress is None else replace(context, progress=self.progress)

    def tune(self, config: ExperimentConfig = CONFIG, **options: Any) -> TuneSummary:
        return tuning_job.tune(config, context=self.context, **options)

    def tune_with_optuna(self, config: ExperimentConfig = CONFIG, **options: Any) -> TuneSummary:
        return optuna_search.tune(with_values(config, {"search.engine": "optuna"}), context=self.context, **options)

    def tracker(self) -> Tracker:
        environment = self.context.environment
        return Tracker.open(project_dir=self.project_dir, config=CONFIG.tracking, environment=environment)

    def family(self, parent_run_id: str) -> tuple[Any, list[ChildRun]]:
        """The parent run, and its children by name."""
        with self.tracker() as tracker:
            children = tracker.child_runs(parent_run_id)
            return tracker.client.get_run(parent_run_id), sorted(children, key=lambda each: each.tags["mlflow.runName"])

    def tuning_jobs(self) -> list[str]:
        found = self.server.tuning.list_hyper_parameter_tuning_jobs({"MaxResults": 100})
        return [each["HyperParameterTuningJobName"] for each in found["HyperParameterTuningJobSummaries"]]

    def objects(self) -> list[bytes]:
        """Whatever the searches left in S3, but for models and images, which are large and drawn."""
        keys = self.server.cloud.keys(f"s3://{BUCKET}")
        kept = [key for key in keys if "/images/" not in key and not key.endswith("model.tar.gz")]
        assert any("/code/" in key for key in kept)
        return [self.server.cloud.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in kept]

    def names(self, part: str) -> list[str]:
        """Of the training jobs whose name has this part."""
        jobs = self.server.training.list_training_jobs({"MaxResults": 100})["TrainingJobSummaries"]
        return [each["TrainingJobName"] for each in jobs if part in each["TrainingJobName"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSageMaker]:
    settings = Settings(requirements="skip", num_parallel_jobs=2, checkpoint_interval_s=0.5, stop_grace_s=5)
    with LocalSageMaker(tmp_path_factory.mktemp("sagemaker"), settings=settings) as server:
        make_bucket(server)
        yield server


@pytest.fixture
def caller(server: LocalSageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Caller:
    for name, value in server.client_environment().items():
        monkeypatch.setenv(name, value)
    return Caller(server, tmp_path)


def interrupting(after: int) -> Clock:
    """Ctrl-C in the pause after so many looks."""
    num_looks = 0

    def sleep(_: float) -> None:
        nonlocal num_looks
        num_looks += 1
        if num_looks >= after:
            raise KeyboardInterrupt

    return Clock(sleep=sleep)


def keys(parent: Any, children: list[ChildRun]) -> dict[str, set[str]]:
    """Whatever a search leaves in MLflow, by where it is, without what is SageMaker's own."""
    found = {
        "parent's params": set(parent.data.params),
        "parent's metrics": set(parent.data.metrics),
        "parent's tags": set(parent.data.tags),
    }
    for child in children:
        found.setdefault("trials' params", set()).update(child.params)
        found.setdefault("trials' metrics", set()).update(child.metrics)
        found.setdefault("trials' tags", set()).update(child.tags)
    return {where: {key for key in names if not key.startswith(SAGEMAKERS_OWN)} for where, names in found.items()}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_search_cut_off_goes_on_with_its_job_and_looks_like_one_with_optuna(
    caller: Caller, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small siblings: the tests below, and tests/contract/test_tuning_faults.py with jobs of a few lines."""
    caplog.set_level(logging.INFO)
    plant(monkeypatch)
    asked: list[str] = []

    def no(question: str) -> bool:
        asked.append(question)
        return False

    with pytest.raises(KeyboardInterrupt):
        caller.tune(SECRETIVE, clock=interrupting(after=1), question=no)
    (question,) = asked
    assert "Stop the tuning job dogs-tune-" in question
    assert "goes on and is paid for. To come back to it, and to stop it:\ndogbreed tune" in caplog.text

    summary = caller.tune(SECRETIVE)
    assert summary.resumed
    assert len(caller.names("-tune-")) == summary.num_trials == 2
    parent, children = caller.family(summary.parent_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["sagemaker.tuning_job"] == summary.study_name
    assert [child.tags["mlflow.runName"] for child in children] == ["trial-0000", "trial-0001"]
    assert {child.tags["features.from"] for child in children} == {"channel"}
    assert len(list((caller.project_dir / CONFIG.features.dir).glob("*/table.json"))) == 1
    # A trial is told of once, in the search's own line.
    assert "is recorded as run" not in caplog.text
    assert_absent(caller.project_dir / "mlflow.db", caplog.text, summary.render(), *caller.objects())
    assert {child.status for child in children} == {"FINISHED"}
    objectives = [child.metrics["objective"] for child in children]
    assert summary.best_value == max(objectives)
    with pytest.raises(ConfigError, match=f"brought home already, as run {summary.parent_run_id}"):
        caller.tune(SECRETIVE, attach=summary.study_name)

    findings = warmstart.fetch_findings(CONFIG, [summary.study_name])
    assert sorted(each.value for each in findings) == pytest.approx(sorted(objectives), rel=1e-5)
    there = caller.tune_with_optuna(earlier_run_ids=[summary.parent_run_id], findings=findings)
    assert there.cache_hits == 1
    assert there.num_trials == 2
    other = caller.family(there.parent_run_id)
    assert other[0].data.tags["search.warm_start"] == f"{summary.study_name}, {summary.parent_run_id}"
    # Two trials from the tuning job itself and the same two from MLflow come before the first of its own.
    assert [child.tags["optuna.trial_number"] for child in other[1]] == ["4", "5"]
    del other[0].data.tags["search.warm_start"]
    assert keys(parent, children) == keys(*other)


def test_refused_search_pays_for_no_features_and_makes_no_bucket_no_run_and_no_job(caller: Caller) -> None:
    refused: list[tuple[str, dict[str, Any], list[str]]] = [
        ("search.timeout_s must be at least 120", {"search.timeout_s": 60}, []),
        ("SageMaker's Grid tries all 4", {"search.sampler": "grid"}, []),
        ("--warm-start must name a tuning job", {}, ["dogs-tune-typo"]),
    ]
    space = {
        "train.optimizer": CategoricalDimension(choices=["adamw", "sgd"]),
        "train.label_smoothing": CategoricalDimension(choices=[0.0, 0.1]),
    }
    mistaken = {"search.features_on": "sagemaker", "sagemaker.bucket": "kennel-of-a-typo", "search.space": space}
    before = (caller.tuning_jobs(), caller.names(""))
    for named, values, warm_start in refused:
        with pytest.raises(ConfigError, match=named):
            caller.tune(with_values(CONFIG, mistaken | values), warm_start=warm_start)
    assert "kennel-of-a-typo" not in [each["Name"] for each in caller.server.cloud.s3.list_buckets()["Buckets"]]
    assert (caller.tuning_jobs(), caller.names("")) == before
    with caller.tracker() as tracker:
        assert tracker.search_runs("dogs", "") == []


class _CutOff:
    """Ctrl-C once a stage begins."""

    def __init__(self, stage: str):
        self.stage = stage

    def track(self, description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        if self.stage in description:
            raise KeyboardInterrupt
        return _silent()(description, total, unit)


def _silent() -> Callable[[str, int, str], AbstractContextManager[Advance]]:
    from dogbreed_ml.progress import NO_PROGRESS

    return NO_PROGRESS.track


def test_search_cut_off_while_it_uploads_has_started_nothing(caller: Caller) -> None:
    caller.progress = _CutOff("uploading what the job needs")
    before = caller.tuning_jobs()
    with pytest.raises(KeyboardInterrupt):
        caller.tune(question=lambda _: pytest.fail("there is nothing to stop"))
    with caller.tracker() as tracker:
        runs = tracker.search_runs("dogs", "")
    assert [run.info.status for run in runs] == ["KILLED"]
    assert caller.tuning_jobs() == before


@pytest.mark.timeout(300)
def test_search_cut_off_while_it_is_sent_and_while_it_comes_home_is_one_record_each(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The jobs are small scripts without a record: what is tested is the command around them."""
    script = WAITS
    asked: list[str] = []

    def build(config: object, splits: object, target: Path, **_: object) -> Path:
        return write_source(target, script)

    def yes(question: str) -> bool:
        asked.append(question)
        return True

    def cut_off(call: Callable[..., Any]) -> Callable[..., Any]:
        """Interrupted once, after it has done its work."""
        left = [KeyboardInterrupt]

        def interrupted(*arguments: Any, **named: Any) -> Any:
            answer = call(*arguments, **named)
            if left:
                raise left.pop()
            return answer

        return interrupted

    monkeypatch.setattr(jobinputs, "build_source", build)
    before = set(caller.tuning_jobs())
    with monkeypatch.context() as patched:
        patched.setattr(Aws, "create", cut_off(Aws.create))
        with pytest.raises(KeyboardInterrupt):
            caller.tune(question=yes)
    (first,) = set(caller.tuning_jobs()) - before
    assert [first in question for question in asked] == [True]
    named = {"HyperParameterTuningJobName": first}
    assert caller.server.tuning.describe_hyper_parameter_tuning_job(named)["HyperParameterTuningJobStatus"] == "Stopped"
    # The same command goes on with what was stopped, finds nothing to refit, and says so.
    with pytest.raises(SearchError):
        caller.tune()
    assert set(caller.tuning_jobs()) - before == {first}

    script = "print('epoch=0 valid/accuracy_top1=0.5', flush=True)\n"
    with monkeypatch.context() as patched:
        patched.setattr(searchfollower, "import_job", cut_off(importing.import_job))
        with pytest.raises(KeyboardInterrupt):
            caller.tune(question=yes)
    (second,) = set(caller.tuning_jobs()) - before - {first}
    with caller.tracker() as tracker:
        runs = tracker.search_runs("dogs", "")
    parents = {run.data.tags["sagemaker.tuning_job"]: run for run in runs if PARENT_TAG not in run.data.tags}
    assert {name: parent.info.status for name, parent in parents.items()} == {first: "FAILED", second: "KILLED"}
    jobs = [run.data.tags["sagemaker.training_job"] for run in runs if PARENT_TAG in run.data.tags]
    assert sorted(jobs) == sorted([*caller.names(first), *caller.names(second)])
    assert "RUNNING" not in {run.info.status for run in runs}


@dataclass
class FeatureJobs:
    """A search whose features a first job computes, that job being a small script."""

    caller: Caller
    config: ExperimentConfig
    script: str = WAITS

    def tune(self, **options: Any) -> None:
        self.caller.tune(self.config, **options)

    def names(self) -> list[str]:
        return self.caller.names(f"{self.config.name}-features-")

    def runs(self) -> dict[str, Any]:
        """Of the newest search, by whether they are of its feature job."""
        with self.caller.tracker() as tracker:
            runs = tracker.search_runs(self.config.name, "")
        return {"features" if PARENT_TAG in run.data.tags else "search": run for run in reversed(runs)}


@pytest.fixture
def feature_jobs(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[FeatureJobs]:
    jobs = FeatureJobs(caller, with_values(CONFIG, {"name": feature_name(request), "search.features_on": "sagemaker"}))
    monkeypatch.setattr(jobinputs, "build_source", lambda _, __, target, **___: write_source(target, jobs.script))
    before = caller.tuning_jobs()
    yield jobs
    # No search begins without its features.
    assert caller.tuning_jobs() == before


def test_feature_job_that_fails_ends_the_search_and_is_tried_again(feature_jobs: FeatureJobs) -> None:
    feature_jobs.script = FAILS
    for num_tries in (1, 2):
        with pytest.raises(CloudError, match=r"no dog in sight.* It was to compute the features"):
            feature_jobs.tune()
        assert len(feature_jobs.names()) == num_tries
    runs = feature_jobs.runs()
    assert {run.info.status for run in runs.values()} == {"FAILED"}
    assert {"no dog in sight" in run.data.tags["failure.cause"] for run in runs.values()} == {True}


def test_feature_job_after_ctrl_c_goes_on_or_is_stopped(
    feature_jobs: FeatureJobs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(KeyboardInterrupt):
        feature_jobs.tune(clock=interrupting(after=1))
    (name,) = feature_jobs.names()
    assert (
        f"The training job {name} goes on and is paid for. To come back to it, and to stop it:\ndogbreed tune"
        in caplog.text
    )
    asked: list[str] = []

    def yes(question: str) -> bool:
        asked.append(question)
        return True

    interruptions = iter([KeyboardInterrupt])

    def sleep(_: float) -> None:
        for interruption in interruptions:
            raise interruption

    with pytest.raises(KeyboardInterrupt):
        feature_jobs.tune(clock=Clock(sleep=sleep), question=yes)
    assert feature_jobs.names() == [name]
    assert asked == [f"Stop the training job {name}? It is paid for while it runs."]
    assert {where: run.info.status for where, run in feature_jobs.runs().items()} == {
        "search": "KILLED",
        "features": "KILLED",
    }
    # What was stopped is not in the way of the next.
    feature_jobs.script = FAILS
    with pytest.raises(CloudError, match="no dog in sight"):
        feature_jobs.tune()
    assert len(feature_jobs.names()) == 2


def test_feature_job_that_was_on_its_way_is_sent_again_under_its_name(
    feature_jobs: FeatureJobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise CloudError("no answer")

    feature_jobs.script = FAILS
    with monkeypatch.context() as patched:
        patched.setattr(Aws, "create", away)
        with pytest.raises(CloudError, match="no answer"):
            feature_jobs.tune()
    assert feature_jobs.names() == []
    (name,) = re.findall(r"The training job (\S+) may go on, and is paid for then", caplog.text)
    with pytest.raises(CloudError, match="no dog in sight"):
        feature_jobs.tune()
    assert feature_jobs.names() == [name]


def test_search_whose_store_is_away_says_that_its_job_goes_on_and_another_search_takes_no_part_in_it(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise TrackingError("no store")

    monkeypatch.setattr(jobinputs, "build_source", lambda _, __, target, **___: write_source(target, WAITS))
    monkeypatch.setattr(searchfollower.SearchFollower, "bring_home", away)
    before = set(caller.tuning_jobs())
    with pytest.raises(TrackingError):
        caller.tune()
    (name,) = set(caller.tuning_jobs()) - before
    assert (
        f"The tuning job {name} goes on and is paid for. To come back to it, and to stop it:\ndogbreed tune\n"
        in caplog.text
    )

    other = {"photographs": {"data.num_per_breed": 11}, "config": {"train.num_epochs": 7}}
    with caller.tracker() as tracker:
        runs = [run.info.run_id for run in tracker.search_runs("dogs", "")]
        for named, values in other.items():
            with pytest.raises(ConfigError, match=f"--attach {name} needs that search's own {named}"):
                caller.tune(with_values(CONFIG, values), attach=name)
        assert [run.info.run_id for run in tracker.search_runs("dogs", "")] == runs
    caller.server.tuning.stop_hyper_parameter_tuning_job({"HyperParameterTuningJobName": name})


def test_feature_job_deleted_behind_our_back_is_told_of_and_made_anew(feature_jobs: FeatureJobs) -> None:
    feature_jobs.script = FAILS
    training = feature_jobs.caller.server.training

    def has_failed(name: str) -> bool:
        job = training.describe_training_job({"TrainingJobName": name})
        return bool(job["TrainingJobStatus"] == "Failed")

    def delete(_: float) -> None:
        for name in feature_jobs.names():
            assert feature_jobs.caller.server.records.wait_for(partial(has_failed, name), 60)
            training.delete_training_job({"TrainingJobName": name})

    with pytest.raises(JobGoneError, match="was deleted"):
        feature_jobs.tune(clock=Clock(sleep=delete))
    assert feature_jobs.names() == []
    assert feature_jobs.runs()["search"].info.status == "FAILED"
    assert "was deleted" in feature_jobs.runs()["search"].data.tags["failure.cause"]
    with pytest.raises(CloudError, match="no dog in sight"):
        feature_jobs.tune()
    assert len(feature_jobs.names()) == 1


def test_dry_run_sends_nothing_and_computes_no_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    environment = {"KENNEL_API_TOKEN": API_TOKEN}
    config = replace(CONFIG, sagemaker=SagemakerConfig(instance_type="ml.m5.xlarge", environment=environment))
    answer = searchplan.plan(config, context=Context(tmp_path, argv=("dogbreed", "tune")))
    told = answer.to_dict()
    request = told["requests"]["CreateHyperParameterTuningJob"]
    channels = [each["ChannelName"] for each in request["TrainingJobDefinition"]["InputDataConfig"]]
    assert channels == ["train", "valid", "test", "features"]
    assert set(told["placeholders"]) == {"region", "role_arn", "bucket"}
    assert told["estimate"]["num_trainings"] == 2
    assert "nothing was sent" in answer.render()
    assert request["TrainingJobDefinition"]["Environment"] == {"KENNEL_API_TOKEN": "(not shown)"}
    assert_absent(told, answer.render())
    assert not list((tmp_path / ".dogbreed").glob("features/*"))


def test_dry_run_shows_the_job_that_computes_the_features_first(tmp_path: Path) -> None:
    config = with_values(CONFIG, {"search.features_on": "sagemaker", "sagemaker.keep_alive_s": 60})
    context = Context(tmp_path, argv=("dogbreed", "tune"))
    told, local = searchplan.plan(config, context=context), searchplan.plan(CONFIG, context=context)
    assert list(told.requests) == ["CreateTrainingJob", "CreateHyperParameterTuningJob"]
    assert list(local.requests) == ["CreateHyperParameterTuningJob"]
    job = told.requests["CreateTrainingJob"]
    assert request_errors("sagemaker", "CreateTrainingJob", job) == []
    assert job["TrainingJobName"].startswith("dogs-features-")
    channels = told.requests["CreateHyperParameterTuningJob"]["TrainingJobDefinition"]["InputDataConfig"]
    (features,) = (each for each in channels if each["ChannelName"] == "features")
    assert f"/{job['TrainingJobName']}/output/" in features["DataSource"]["S3DataSource"]["S3Uri"]
    # The photographs are the same, the source archive is one more.
    assert told.num_files == local.num_files + 1
    estimate = told.to_dict()["estimate"]
    assert (estimate["num_feature_jobs"], estimate["keep_alive_s"]) == (1, 60)
    assert not estimate["are_features_local"]
    estimate = local.to_dict()["estimate"]
    assert (estimate["num_feature_jobs"], estimate["are_features_local"]) == (0, True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_jobs_make_one_pass_and_find_what_optuna_finds(
    caller: Caller, photographs_dir: Path, weights_path: Path
) -> None:
    """On photographs; the same budget for both."""
    dogs_dir = photographs_dir / "dogs"
    breeds = [clean_breed_name(path.name) for path in sorted(dogs_dir.iterdir())[:6]]
    config = replace(
        CONFIG,
        data=DataConfig(source="folder", path=str(dogs_dir), classes=breeds, max_per_class=30, image_size=96),
        model=ModelConfig(weights=str(weights_path), resnet_version="1"),
        train=TrainConfig(num_epochs=4, batch_size=16),
        search=replace(CONFIG.search, num_trials=10),
    )
    here = caller.tune(config)
    parent, children = caller.family(here.parent_run_id)
    assert len(children) == len(caller.names(here.study_name)) == 10
    assert {child.tags["features.from"] for child in children} == {"channel"}
    assert parent.data.tags["features.cached"] == "false"
    features_dir = caller.project_dir / config.features.dir
    assert len(list(features_dir.glob("*/table.json"))) == 1

    there = caller.tune_with_optuna(config)
    assert there.cache_hits == 1
    other = caller.family(there.parent_run_id)
    assert keys(parent, children) == keys(*other)

    # From another folder, with a store of its own.
    elsewhere = replace(caller, project_dir=caller.project_dir / "elsewhere")
    elsewhere.project_dir.mkdir()
    attached = elsewhere.tune(config, attach=here.study_name)
    assert attached.resumed
    assert attached.best_params == here.best_params
    assert attached.best_value == here.best_value
    assert len(elsewhere.family(attached.parent_run_id)[1]) == len(caller.names(here.study_name)) == 10
    # Each sees ten points of the same two-dimensional space; two images of the valid split are chance.
    sizes = [json.loads(each.dataset.profile)["num_images"] for each in parent.inputs.dataset_inputs]
    assert here.best_value == pytest.approx(there.best_value, abs=2 / min(sizes))


@contextmanager
def live(store: MlflowServer) -> Iterator[None]:
    store.start()
    try:
        yield
    finally:
        store.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_features_of_a_first_job_with_views_live_and_narrowed(caller: Caller, tmp_path: Path) -> None:
    """The pass in a first job, augmented views too, runs written live, and then a search closer around the best."""
    config = with_values(
        CONFIG, {"search.features_on": "sagemaker", "train.augmentation": "flip", "train.num_views": 2}
    )
    config = with_values(config, {"search.num_trials": 3})
    (tmp_path / "mlflow").mkdir()
    store = MlflowServer(tmp_path / "mlflow")
    with live(store):
        caller.tracking_uri = store.url
        summary = caller.tune(config)
        parent, children = caller.family(summary.parent_run_id)
        trials = [child for child in children if "optuna.trial_number" in child.tags]
        assert len(caller.names("dogs-features-")) == 1
        assert {child.tags["features.from"] for child in trials} == {"channel"}
        assert {child.tags["sagemaker.record"] for child in trials} == {"live"}
        assert [child.tags["mlflow.runName"] for child in children] == [
            "features",
            *map("trial-{:04d}".format, range(3)),
        ]
        assert parent.info.status == "FINISHED"

        closer = caller.tune(config, warm_start=[summary.parent_run_id])
        tags = caller.family(closer.parent_run_id)[0].data.tags
        assert tags["search.warm_start"] == summary.parent_run_id
        assert '"high": 0.1' in tags["search.space_before_warm_start"]
        # The tables of the first search serve the second.
        assert len(caller.names("dogs-features-")) == 1

        child = caller.tune(with_values(config, {"search.seed": 1}), warm_start=[summary.study_name])
        job = caller.server.tuning.describe_hyper_parameter_tuning_job(
            {"HyperParameterTuningJobName": child.study_name}
        )
        assert job["WarmStartConfig"]["WarmStartType"] == "IdenticalDataAndAlgorithm"
