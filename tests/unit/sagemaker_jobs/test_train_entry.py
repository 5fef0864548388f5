"""The program of a training job, in this process: what it trains, writes, and leaves behind."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jobfolders import JobFolders

from dogbreed_ml.backend import device_of
from dogbreed_ml.checkpoint import load_checkpoint
from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.config import (
    DataConfig,
    ExperimentConfig,
    FeaturesConfig,
    ModelConfig,
    SearchConfig,
    TrackingConfig,
    TrainConfig,
)
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.runcopy import StoredRun, read_bundle
from dogbreed_ml.train import EpochResult
from dogbreed_ml.workbench import Workbench
from sagemaker_jobs.job import jobtraining
from sagemaker_jobs.train_entry import main

CONFIG = ExperimentConfig(
    name="entry",
    data=DataConfig(num_breeds=3, num_per_breed=10, image_size=32),
    model=ModelConfig(weights="random"),
    features=FeaturesConfig(backend="torch-fp32"),
    train=TrainConfig(num_epochs=3, batch_size=8, lr=0.01),
    tracking=TrackingConfig(system_metrics=False),
)


@pytest.fixture(scope="module")
def project_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def splits(project_dir: Path) -> Splits:
    return load_splits(CONFIG.data, project_dir=project_dir)


def _losses(run: StoredRun) -> list[float]:
    points = sorted((each.step, each.value) for each in run.metrics if each.key == "train/loss")
    assert [step for step, _ in points] == list(range(len(points)))
    return [value for _, value in points]


def _fits(project_dir: Path, splits: Splits, config: ExperimentConfig) -> list[float]:
    """The losses of the same training without a job."""
    from dogbreed_ml.pipeline.stages import run_epochs

    bench = Workbench(splits, project_dir, device_of())
    feeds = bench.feeds(config)
    try:
        epochs = list(run_epochs(bench, config, bench.model(config), feeds.train, valid=feeds.valid))
    finally:
        bench.close()
    return [each.metrics["train/loss"] for each in epochs]


def test_trial_takes_its_features_from_the_channel(
    tmp_path: Path, project_dir: Path, splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = _fits(project_dir, splits, CONFIG)
    # Of a metric with more digits than a share of 6 photographs has.
    by_loss = replace(CONFIG, search=SearchConfig(metric="valid/loss", direction="minimize"))
    folders = JobFolders(tmp_path, by_loss, splits)
    for table in (project_dir / CONFIG.features.dir).glob("*/table.json"):
        # Flat, as an S3 prefix becomes a channel: the folder's name is lost.
        shutil.copytree(table.parent, folders.channel("features"), dirs_exist_ok=True)
    # What the training toolkit decoded: numbers, and a null as an empty text.
    hyperparameters = {"train.lr": 0.01, "model.resnet_version": 1.5, "train.patience": "", "sagemaker_program": "x"}
    assert main(folders.variables(hyperparameters), code_dir=folders.code_dir) == 0
    run = read_bundle(folders.bundle_dir)
    assert (run.status, run.name) == ("FINISHED", "job-1")
    assert run.tags["features.from"] == "channel"
    assert run.tags["sagemaker.training_job"] == "job-1"
    assert run.params["model.weights"] == "random"
    assert run.params["features.dir"] == CONFIG.features.dir
    assert _losses(run) == pytest.approx(losses, rel=1e-5)
    lines = capsys.readouterr().out.splitlines()
    epoch_lines = [line for line in lines if line.startswith("epoch=")]
    assert [line.split()[0] for line in epoch_lines] == ["epoch=0", "epoch=1", "epoch=2"]
    objective = run.last("objective")
    assert objective is not None
    assert lines[-1] == f"objective={objective.value!r}"
    assert float(f"{objective.value:.6g}") != objective.value
    checkpoint = load_checkpoint(folders.model_dir / "checkpoint.pt")
    assert checkpoint.classes == splits.classes
    assert checkpoint.data_fingerprint == splits.fingerprint


def test_trial_of_another_key_computes_its_own_features_and_says_so(
    tmp_path: Path, project_dir: Path, splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = JobFolders(tmp_path, CONFIG, splits)
    for table in (project_dir / CONFIG.features.dir).glob("*/table.json"):
        shutil.copytree(table.parent, folders.channel("features") / table.parent.name)
    assert main(folders.variables({"data.crop_share": 1.0}), code_dir=folders.code_dir) == 0
    run = read_bundle(folders.bundle_dir)
    assert run.tags["features.from"] == "computed"
    assert run.params["data.crop_share"] == "1.0"
    assert "computed here" in capsys.readouterr().out


def test_train_logs_what_a_train_command_logs(tmp_path: Path, splits: Splits) -> None:
    folders = JobFolders(tmp_path, CONFIG, splits, kind="train")
    assert main(folders.variables(), code_dir=folders.code_dir) == 0
    run = read_bundle(folders.bundle_dir)
    assert run.name == "train"
    assert {"test/accuracy_top1", "temperature", "seconds/train", "features/images_per_s"} <= {
        each.key for each in run.metrics
    }
    assert run.artifacts_dir is not None
    files = {path.relative_to(run.artifacts_dir).as_posix() for path in run.artifacts_dir.rglob("*") if path.is_file()}
    assert {"config.yaml", "evaluation/breeds.csv", "evaluation/confusion.png", "command.txt"} <= files
    temperature = run.last("temperature")
    assert temperature is not None
    assert load_checkpoint(folders.model_dir / "checkpoint.pt").temperature == pytest.approx(temperature.value)


def test_job_splits_a_given_prefix_itself_and_trains_whole_networks(
    tmp_path: Path, project_dir: Path, splits: Splits
) -> None:
    config = replace(
        CONFIG,
        data=replace(CONFIG.data, source="s3", path="s3://dogs/all"),
        model=replace(CONFIG.model, trainable="layer4"),
        train=replace(CONFIG.train, num_epochs=1, augmentation="flip", num_workers=1),
    )
    folders = JobFolders(tmp_path, config, None)
    for sample in [each for name in ("train", "valid", "test") for each in splits.split(name).samples]:
        path = folders.channel("train") / splits.classes[sample.label] / sample.path.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sample.path.read_bytes())
    assert main(folders.variables(), code_dir=folders.code_dir) == 0
    run = read_bundle(folders.bundle_dir)
    assert run.status == "FINISHED"
    assert "features.from" not in run.tags
    assert run.params["data.path"] == "s3://dogs/all"
    assert [each.dataset.name for each in run.inputs] == ["s3://dogs/all [train]", "s3://dogs/all [valid]"]
    assert [each.dataset.digest for each in run.inputs] == [splits.fingerprint] * 2


def test_job_for_features_leaves_tables_that_a_channel_can_hold(
    tmp_path: Path, project_dir: Path, splits: Splits
) -> None:
    first = JobFolders(tmp_path / "first", CONFIG, splits, kind="features", name="features-1")
    assert main(first.variables(), code_dir=first.code_dir) == 0
    second = JobFolders(tmp_path / "second", CONFIG, splits)
    second.channels["features"] = first.model_dir / "features"
    assert main(second.variables(), code_dir=second.code_dir) == 0
    made, used = read_bundle(first.bundle_dir), read_bundle(second.bundle_dir)
    assert made.last("features/images_per_s") is not None
    assert used.last("features/images_per_s") is None
    assert used.tags["features.from"] == "channel"
    assert used.tags["features.key"] == made.tags["features.key"]


def test_profile_lies_where_sagemaker_looks_and_with_the_run(tmp_path: Path, splits: Splits) -> None:
    config = replace(CONFIG, profile=ProfileConfig(enabled=True, interval_ms=50))
    folders = JobFolders(tmp_path, config, splits)
    assert main(folders.variables(), code_dir=folders.code_dir) == 0
    run = read_bundle(folders.bundle_dir)
    assert run.artifacts_dir is not None
    assert (run.artifacts_dir / "profiler" / "profiler-report.html").is_file()
    assert any(name.startswith("profiler.") for name in run.tags)
    profiler_dir = folders.ml_dir / "output" / "profiler"
    assert list(profiler_dir.glob("system/incremental/*/*.json"))
    assert list(profiler_dir.glob("framework/pevents/*/*.json"))


def test_failed_training_tells_its_cause_and_is_recorded(tmp_path: Path, splits: Splits) -> None:
    config = replace(CONFIG, search=SearchConfig(metric="valid/recall"))
    folders = JobFolders(tmp_path, config, splits)
    assert main(folders.variables(), code_dir=folders.code_dir) == 1
    run = read_bundle(folders.bundle_dir)
    assert run.status == "FAILED"
    assert run.tags["trial.state"] == "FAILED"
    assert folders.failure.strip() == run.tags["failure.cause"]
    assert folders.failure.startswith("SearchError: search.metric must be one that an epoch logs")


def test_unknown_hyperparameter_fails_before_anything_is_trained(tmp_path: Path, splits: Splits) -> None:
    folders = JobFolders(tmp_path, CONFIG, splits)
    assert main(folders.variables({"train.learning_rate": 0.1}), code_dir=folders.code_dir) == 1
    assert "did you mean" in folders.failure
    assert not folders.bundle_dir.exists()


def _interrupt_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real SIGTERM, once that epoch's state has been kept."""
    keep = jobtraining.JobTraining._keep

    def keep_and_stop(self: Any, config: ExperimentConfig, state: Any) -> None:
        keep(self, config, state)
        if len(self._results) == epoch + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(jobtraining.JobTraining, "_keep", keep_and_stop)


def test_interrupted_spot_job_goes_on_where_it_was(
    tmp_path: Path, project_dir: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        CONFIG,
        sagemaker=SagemakerConfig(spot=True),
        model=replace(CONFIG.model, dropout=0.3),
        train=replace(CONFIG.train, patience=5),
    )
    losses = _fits(project_dir, splits, config)
    folders = JobFolders(tmp_path / "first", config, splits)
    _interrupt_after(1, monkeypatch)
    assert main(folders.variables(), code_dir=folders.code_dir) == 128 + signal.SIGTERM
    stopped = read_bundle(folders.bundle_dir)
    assert (stopped.status, stopped.tags["trial.state"]) == ("KILLED", "INTERRUPTED")
    assert (folders.model_dir / "checkpoint.pt").is_file()
    monkeypatch.undo()
    # The new instance has the checkpoints from S3, and nothing else.
    second = JobFolders(tmp_path / "second", config, splits)
    shutil.copytree(folders.ml_dir / "checkpoints", second.ml_dir / "checkpoints")
    # The one that was being written arrived by half; the one before is whole.
    written_last = max((second.ml_dir / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    written_last.write_bytes(written_last.read_bytes()[:1000])
    assert main(second.variables(), code_dir=second.code_dir) == 0
    run = read_bundle(second.bundle_dir)
    assert run.status == "FINISHED"
    # The features come from another back end here and there.
    assert _losses(run) == pytest.approx(losses, rel=1e-3)
    first, again = ([each for each in one.metrics if each.key == "train/loss"] for one in (stopped, run))
    assert {(each.step, each.timestamp, each.value) for each in first if each.step == 0} <= {
        (each.step, each.timestamp, each.value) for each in again
    }


def test_unreadable_checkpoint_of_a_spot_job_begins_anew(
    tmp_path: Path, splits: Splits, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, sagemaker=SagemakerConfig(spot=True))
    folders = JobFolders(tmp_path, config, splits)
    checkpoint_dir = folders.ml_dir / "checkpoints"
    checkpoint_dir.mkdir()
    (checkpoint_dir / "job-1-a.pt").write_bytes(b"PK\x03\x04 cut short")
    assert main(folders.variables(), code_dir=folders.code_dir) == 0
    assert "cannot be read" in capsys.readouterr().out
    assert len(_losses(read_bundle(folders.bundle_dir))) == 3


def test_nothing_of_the_callers_environment_is_in_archive_bundle_or_log(
    tmp_path: Path, splits: Splits, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "planted-hush-4711"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret)
    config = replace(CONFIG, sagemaker=SagemakerConfig(environment={"MLFLOW_TRACKING_PASSWORD": secret}))
    folders = JobFolders(tmp_path, config, splits, kind="train")
    assert main(folders.variables(MLFLOW_TRACKING_PASSWORD=secret), code_dir=folders.code_dir) == 0
    assert secret not in capsys.readouterr().out
    found = [
        path.relative_to(tmp_path).as_posix()
        for path in tmp_path.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]
    assert found == []
    # The name may be read: it says what the job was given.
    assert "MLFLOW_TRACKING_PASSWORD" in (folders.code_dir / "experiment.json").read_text()


def test_epochs_of_a_training_are_kept_as_plain_values(tmp_path: Path) -> None:
    result = EpochResult(0, 3, {"train/loss": 0.5}, 0.1, True, 1_700_000_000_000)
    path = tmp_path / "state.pt"
    torch.save([vars(result)], path)
    assert EpochResult(**torch.load(path, weights_only=True)[0]) == result
    assert json.loads(json.dumps(vars(result))) == vars(result)
