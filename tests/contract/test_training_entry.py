"""What runs in a training job, on the local SageMaker, and its record in the caller's MLflow."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from local_jobs import job_request, make_bucket, read_log, wait_ended

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
from dogbreed_ml.pipeline.tune import TrialObjective
from dogbreed_ml.runs import data_inputs
from dogbreed_ml.search import SearchStudy
from dogbreed_ml.tracking import Tracker
from dogbreed_ml.workbench import Workbench
from sagemaker_jobs.client import Aws
from sagemaker_jobs.importing import IMPORTED_TAG, import_job
from sagemaker_jobs.jobinputs import prepare_inputs
from sagemaker_jobs.local.service import LocalSageMaker, Settings
from sagemaker_jobs.source import Kind
from sagemaker_jobs.storage import Storage

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


def test_a_jobs_run_equals_a_trials_of_the_search_here(caller: Caller) -> None:
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
