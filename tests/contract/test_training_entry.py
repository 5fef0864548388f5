"""What runs in a training job, on the local SageMaker, and its record in the caller's MLflow."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
from local_jobs import fetch_tar, job_request, make_bucket, read_log, wait_ended, wait_for_log
from mlflow_server import MlflowServer

from dogbreed_ml.backend import device_of
from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.config import (
    DataConfig,
    ExperimentConfig,
    FeaturesConfig,
    FloatDimension,
    ModelConfig,
    SearchConfig,
    TrackingConfig,
    TrainConfig,
)
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.debugging.epochs import EpochJudge
from dogbreed_ml.pipeline.stages import run_epochs
from dogbreed_ml.pipeline.tune import TrialObjective
from dogbreed_ml.runs import data_inputs
from dogbreed_ml.search import SearchStudy
from dogbreed_ml.tracking import Tracker
from dogbreed_ml.workbench import Workbench
from sagemaker_jobs.client import Aws
from sagemaker_jobs.job.environment import record_variables
from sagemaker_jobs.job.source import Kind
from sagemaker_jobs.local.service import LocalSageMaker, Settings
from sagemaker_jobs.storage import Storage
from sagemaker_jobs.training.importing import IMPORTED_TAG, import_job
from sagemaker_jobs.training.jobinputs import prepare_inputs

BUCKET = "dogs-bucket"
CONFIG = ExperimentConfig(
    name="entry",
    data=DataConfig(num_breeds=3, num_per_breed=12, image_size=64),
    model=ModelConfig(weights="random"),
    features=FeaturesConfig(backend="torch-fp32"),
    train=TrainConfig(num_epochs=3, batch_size=8, lr=0.01),
    search=SearchConfig(num_trials=1, pruner="none", space={"train.lr": FloatDimension(low=0.01, high=0.02)}),
    sagemaker=SagemakerConfig(environment={"MY_TOKEN": "hush-hush"}),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSageMaker]:
    folder = tmp_path_factory.mktemp("sagemaker")
    settings = Settings(requirements="skip", num_parallel_jobs=2, checkpoint_interval_s=0.2)
    with LocalSageMaker(folder, settings=settings) as server:
        make_bucket(server)
        yield server


@pytest.fixture(scope="module")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    mlflow_server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    mlflow_server.start()
    yield mlflow_server.url
    mlflow_server.stop()


@dataclass
class Caller:
    """The caller's side: a project folder with data and features, a store, and S3."""

    server: LocalSageMaker
    storage: Storage
    project_dir: Path
    splits: Splits

    def tracker(self) -> Tracker:
        return Tracker.open(project_dir=self.project_dir, config=TrackingConfig(system_metrics=False))

    def features_dir(self, config: ExperimentConfig = CONFIG) -> Path:
        """The kept table; computed on the first call."""
        bench = Workbench(self.splits, self.project_dir, device_of())
        table = bench.feeds(config).table
        assert table is not None
        return self.project_dir / config.features.dir / table.key

    def start(self, name: str, config: ExperimentConfig = CONFIG, *, kind: Kind = "trial", **changes: Any) -> None:
        splits = changes.pop("splits", self.splits)
        features_dir = changes.pop("features_dir", None)
        environment = changes.pop("environment", {})
        inputs = prepare_inputs(
            config, splits, self.storage, kind=kind, context=Context(self.project_dir), features_dir=features_dir
        )
        request = job_request(name, inputs.source_uri, InputDataConfig=list(inputs.channels), **changes)
        request["OutputDataConfig"] = {"S3OutputPath": inputs.output_uri}
        request["Environment"] = environment
        self.server.training.create_training_job(request)

    def description(self, name: str) -> dict[str, Any]:
        """As boto3 has it: with times."""
        return dict(self.storage.aws.client("sagemaker").describe_training_job(TrainingJobName=name))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Splits]:
    folder = tmp_path_factory.mktemp("project")
    return folder, load_splits(CONFIG.data, project_dir=folder)


@pytest.fixture
def caller(server: LocalSageMaker, project: tuple[Path, Splits], monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    for name, value in server.client_environment().items():
        monkeypatch.setenv(name, value)
    with Aws.open(SagemakerConfig()) as aws:
        storage = Storage.open(aws, SagemakerConfig(bucket=BUCKET))
        yield Caller(server, storage, *project)


def _optuna_trial(caller: Caller) -> Any:
    """The run of one trial of the same config, searched here."""
    with caller.tracker() as tracker, tracker.start_run(CONFIG.name, run_name="search") as parent:
        study = SearchStudy.open(
            CONFIG,
            fingerprint=caller.splits.fingerprint,
            tracking_uri=tracker.tracking_uri,
            project_dir=caller.project_dir,
        )
        with study:
            bench = Workbench(caller.splits, caller.project_dir, device_of())
            judge = EpochJudge.build(caller.splits.train.labels, caller.splits.classes, parameters={})
            inputs = data_inputs(caller.splits, names=("train", "valid"))
            result = study.run(TrialObjective(bench), tracker=tracker, parent=parent, inputs=inputs, judge=judge)
        return tracker.client.get_run(str(result.best.run_id))


@pytest.mark.slow
def test_a_jobs_run_equals_a_trials_of_the_search_here(caller: Caller) -> None:
    """Small sibling: test_trial_takes_its_features_from_the_channel, in this process."""
    features_dir = caller.features_dir()
    trial = _optuna_trial(caller)
    lr = trial.data.params["train.lr"]
    caller.start("equal-1", features_dir=features_dir, hyperparameters={"train.lr": lr, "train.seed": "0"})
    job = wait_ended(caller.server, "equal-1")
    assert job["TrainingJobStatus"] == "Completed", read_log(caller.server, "equal-1")

    with caller.tracker() as tracker, tracker.start_run(CONFIG.name, run_name="search") as parent:
        described = caller.description("equal-1")
        run_ids = {
            import_job(tracker, described, storage=caller.storage, config=CONFIG, parent=parent.ref, number=3)
            for _ in range(2)
        }
        assert len(run_ids) == 1
        run_id = run_ids.pop()
        assert run_id is not None
        run = tracker.client.get_run(run_id)
        points = {name: tracker.client.get_metric_history(run_id, name) for name in run.data.metrics}
        trial_points = {name: tracker.client.get_metric_history(trial.info.run_id, name) for name in trial.data.metrics}
        children = tracker.child_runs(parent.run_id)

    assert [each.run_id for each in children] == [run_id]
    assert run.info.run_name == "trial-0003"
    assert run.info.status == "FINISHED"
    assert run.data.params == trial.data.params
    own = {name for name in run.data.metrics if name.startswith("sagemaker/")}
    assert own == {"sagemaker/billable_s", "sagemaker/training_s"}
    assert set(run.data.metrics) - own == set(trial.data.metrics)
    for name, expected in trial_points.items():
        assert [each.step for each in points[name]] == [each.step for each in expected]
        assert [each.value for each in points[name]] == pytest.approx([each.value for each in expected], rel=1e-5)
    ours = {name for name in run.data.tags if not name.startswith(("sagemaker.", "features."))}
    assert ours ^ set(trial.data.tags) <= {"dogbreed.event"}
    assert run.data.tags["features.from"] == "channel"
    assert run.data.tags["sagemaker.record"] == "bundle"
    assert len(run.data.tags[IMPORTED_TAG]) == 64
    assert run.inputs is not None
    assert [each.dataset.digest for each in run.inputs.dataset_inputs] == [caller.splits.fingerprint] * 2
    start_ms, end_ms = run.info.start_time, run.info.end_time
    times = [each.timestamp for each in points["train/loss"]]
    assert times == sorted(times)
    assert start_ms <= times[0] <= times[-1] <= end_ms
    assert "hush-hush" not in json.dumps([run.data.params, run.data.tags])


def _train_losses(tracker: Tracker, run_id: str) -> list[float]:
    return [each.metrics["train/loss"] for each in tracker.epochs(run_id)]


@pytest.mark.slow
def test_job_writes_its_run_live_and_goes_on_after_a_spot_interruption(caller: Caller, mlflow_url: str) -> None:
    config = replace(
        CONFIG,
        sagemaker=SagemakerConfig(spot=True),
        # Long enough to be interrupted in the middle.
        train=replace(CONFIG.train, num_epochs=200),
    )
    with Tracker.attach(mlflow_url, config=TrackingConfig(system_metrics=False)) as tracker:
        with tracker.start_run(CONFIG.name, run_name="search") as parent:
            checkpoints = {"S3Uri": f"s3://{BUCKET}/checkpoints/spot-1"}
            caller.start(
                "spot-1",
                config,
                features_dir=caller.features_dir(),
                environment=record_variables(mlflow_url, parent.ref),
                EnableManagedSpotTraining=True,
                CheckpointConfig=checkpoints,
                StoppingCondition={"MaxRuntimeInSeconds": 300, "MaxWaitTimeInSeconds": 600},
            )
            wait_for_log(caller.server, "spot-1", "epoch=5 ", timeout_s=120)
            requests.post(f"{caller.server.url}/local/training-jobs/spot-1/interrupt", timeout=30).raise_for_status()
            job = wait_ended(caller.server, "spot-1", timeout_s=200)
            log = read_log(caller.server, "spot-1")
            assert job["TrainingJobStatus"] == "Completed", log
            assert "going on after epoch" in log
            children = tracker.child_runs(parent.run_id)
            assert [each.tags["sagemaker.record"] for each in children] == ["live"]
            assert children[0].status == "FINISHED"
            run_id = import_job(
                tracker,
                caller.description("spot-1"),
                storage=caller.storage,
                config=config,
                parent=parent.ref,
                number=0,
            )
        assert run_id == children[0].run_id
        run = tracker.client.get_run(str(run_id))
        history = tracker.client.get_metric_history(str(run_id), "train/loss")
        losses = _train_losses(tracker, str(run_id))
    assert (run.info.run_name, run.data.tags[IMPORTED_TAG]) == ("trial-0000", "live")
    # Each epoch once, though two lives of the job logged the first ones.
    assert sorted(each.step for each in history) == list(range(200))
    assert "sagemaker/billable_s" in run.data.metrics
    bench = Workbench(caller.splits, caller.project_dir, device_of())
    feeds = bench.feeds(config)
    alone = run_epochs(bench, config, bench.model(config), feeds.train, valid=feeds.valid)
    assert losses == pytest.approx([each.metrics["train/loss"] for each in alone], rel=1e-4)


@pytest.mark.slow
def test_two_hosts_learn_what_one_does(caller: Caller) -> None:
    # 24 train images in batches of 8: every batch can be shared.
    resources = {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10}
    features_dir = caller.features_dir()
    caller.start("hosts-1", features_dir=features_dir)
    caller.start(
        "hosts-2",
        features_dir=features_dir,
        ResourceConfig=resources,
        hyperparameters={"sagemaker_torch_distributed_enabled": "true"},
    )
    losses, accuracies = [], []
    with caller.tracker() as tracker:
        for name in ("hosts-1", "hosts-2"):
            job = wait_ended(caller.server, name, timeout_s=240)
            assert job["TrainingJobStatus"] == "Completed", read_log(caller.server, name)
            run_id = import_job(tracker, caller.description(name), storage=caller.storage, config=CONFIG)
            losses.append(_train_losses(tracker, str(run_id)))
            accuracies.append(tracker.client.get_run(str(run_id)).data.metrics["valid/accuracy_top1"])
    # One epoch line an epoch: the second host prints none.
    assert read_log(caller.server, "hosts-2").count("epoch=0 ") == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert accuracies[1] == accuracies[0]


@pytest.mark.slow
def test_stopped_job_comes_home_as_a_pruned_trial_with_its_model(caller: Caller) -> None:
    config = replace(CONFIG, train=replace(CONFIG.train, num_epochs=100_000))
    caller.start("stopped-1", config, features_dir=caller.features_dir())
    wait_for_log(caller.server, "stopped-1", "epoch=3 ", timeout_s=120)
    caller.storage.aws.client("sagemaker").stop_training_job(TrainingJobName="stopped-1")
    job = wait_ended(caller.server, "stopped-1", timeout_s=120)
    assert job["TrainingJobStatus"] == "Stopped"
    with caller.tracker() as tracker, tracker.start_run(CONFIG.name, run_name="search") as parent:
        run_id = import_job(
            tracker, caller.description("stopped-1"), storage=caller.storage, config=config, parent=parent.ref, number=1
        )
        run = tracker.client.get_run(str(run_id))
        last = tracker.epochs(str(run_id))[-1]
    assert (run.info.status, run.data.tags["trial.state"]) == ("KILLED", "PRUNED")
    assert last.epoch >= 3
    assert run.data.metrics["objective"] == last.metrics["valid/accuracy_top1"]
    assert "checkpoint.pt" in fetch_tar(caller.server, job["ModelArtifacts"]["S3ModelArtifacts"])


@pytest.mark.slow
def test_photographs_are_learned_in_a_job_that_trains_layer4(
    caller: Caller, photographs_dir: Path, weights_path: Path
) -> None:
    config = replace(
        CONFIG,
        data=DataConfig(source="folder", path=str(photographs_dir / "dogs"), image_size=64, max_per_class=8),
        model=ModelConfig(weights=str(weights_path), resnet_version="1", trainable="layer4"),
        train=TrainConfig(num_epochs=2, batch_size=16, lr=1e-3, augmentation="flip", num_workers=1),
    )
    splits = load_splits(config.data, project_dir=caller.project_dir)
    longer = {"MaxRuntimeInSeconds": 280}
    caller.start("photographs-1", config, kind="train", splits=splits, StoppingCondition=longer)
    job = wait_ended(caller.server, "photographs-1", timeout_s=280)
    assert job["TrainingJobStatus"] == "Completed", read_log(caller.server, "photographs-1")
    with caller.tracker() as tracker:
        run_id = str(import_job(tracker, caller.description("photographs-1"), storage=caller.storage, config=config))
        run = tracker.client.get_run(run_id)
        losses = _train_losses(tracker, run_id)
    assert run.data.tags["model.weights"] == weights_path.name
    assert losses[1] < losses[0]
    assert run.data.metrics["test/accuracy_top1"] > 2 / len(splits.classes)
