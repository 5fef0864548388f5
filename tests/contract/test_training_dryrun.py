"""`dogbreed train --on sagemaker --dry-run`: what would be sent, with neither credentials nor a region."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dogbreed_ml.cli import BAD_ARGUMENTS, DONE, main
from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from sagemaker_jobs.pricing import Price
from sagemaker_jobs.shapes import request_errors, unknown_members
from sagemaker_jobs.training import training_job
from sagemaker_jobs.training.dryrun import DryRun
from sagemaker_jobs.training.estimate import Estimate, Speed

TINY = {
    "name": "dogs",
    "data.num_breeds": 2,
    "data.num_per_breed": 8,
    "data.image_size": 64,
    "model.weights": "random",
}
FLAGS = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def plan(folder: Path, **values: Any) -> DryRun:
    config = with_values(ExperimentConfig(), TINY | {key.replace("__", "."): value for key, value in values.items()})
    return training_job.plan(config, context=Context(folder, argv=("dogbreed", "train")))


def test_dry_run_prints_the_request_with_placeholders_and_an_estimate(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prices.json").write_text('{"ml.g4dn.xlarge": 3600}')
    status = main(
        ["train", "--on", "sagemaker", "--dry-run", "--json", *FLAGS, "--sagemaker.prices_path", "prices.json"]
    )

    answer = json.loads(capfd.readouterr().out)
    request = answer["requests"]["CreateTrainingJob"]
    assert status == DONE
    assert request_errors("sagemaker", "CreateTrainingJob", request) == []
    assert unknown_members("sagemaker", "CreateTrainingJob", request) == []
    assert set(answer["placeholders"]) == {"role_arn", "region", "bucket"}
    assert request["RoleArn"] == answer["placeholders"]["role_arn"]
    assert answer["placeholders"]["bucket"] in request["OutputDataConfig"]["S3OutputPath"]
    assert [each["ChannelName"] for each in request["InputDataConfig"]] == ["train", "valid", "test"]
    # 16 drawn dogs, their 3 manifests, and the source archive; two drawings may be alike.
    assert answer["uploads"]["num_files"] == 20
    estimate = answer["estimate"]
    assert estimate["total_s"] > 0
    assert estimate["usd"] == pytest.approx(estimate["total_s"])
    assert estimate["max_usd"] == 4 * 3600 * 1.0 * 1
    assert not (tmp_path / "mlflow.db").exists()
    # The empty store of a job's record may lie there; a launch must not.
    assert not list((tmp_path / ".dogbreed" / "sagemaker").glob("*.json"))


def test_dry_run_names_the_objects_by_their_content(tmp_path: Path) -> None:
    first, second = plan(tmp_path), plan(tmp_path)
    config = with_values(ExperimentConfig(), TINY)
    splits = load_splits(config.data, project_dir=tmp_path)

    def uris(answer: DryRun) -> list[str]:
        request = answer.requests["CreateTrainingJob"]
        channels = [each["DataSource"]["S3DataSource"]["S3Uri"] for each in request["InputDataConfig"]]
        return [request["HyperParameters"]["sagemaker_submit_directory"], *channels]

    assert uris(first) == uris(second)
    assert len(set(uris(first))) == 4
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 16
    assert "cost    unknown" in first.render()
    assert "measured on this machine" in first.render()
    assert first.render().endswith("nothing was sent")


def test_dry_run_hands_data_in_s3_to_the_job_as_they_are(tmp_path: Path) -> None:
    answer = plan(tmp_path, data__source="s3", data__path="s3://somebody/dogs/")

    (channel,) = answer.requests["CreateTrainingJob"]["InputDataConfig"]
    assert channel["DataSource"]["S3DataSource"]["S3DataType"] == "S3Prefix"
    assert channel["DataSource"]["S3DataSource"]["S3Uri"] == "s3://somebody/dogs/"
    assert answer.estimate.total_s is None
    assert "time    unknown" in answer.render()


def test_dry_run_names_weights_that_are_not_here_without_fetching_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    answer = plan(tmp_path, model__weights="IMAGENET1K_V1", data__source="s3", data__path="s3://somebody/dogs/")

    channels = {each["ChannelName"]: each for each in answer.requests["CreateTrainingJob"]["InputDataConfig"]}
    uri = channels["weights"]["DataSource"]["S3DataSource"]["S3Uri"]
    assert "DIGEST-KNOWN-ONCE-DOWNLOADED/resnet50" in uri
    assert not (tmp_path / "torch").exists()


def test_dry_run_shows_no_value_of_the_users_environment(tmp_path: Path) -> None:
    secret = {"KENNEL_TOKEN": "woof-1234"}
    answer = plan(tmp_path, sagemaker__environment=secret, data__source="s3", data__path="s3://somebody/dogs/")

    assert answer.requests["CreateTrainingJob"]["Environment"] == {"KENNEL_TOKEN": "(not shown)"}
    assert "woof" not in answer.render() + json.dumps(answer.to_dict())


def test_dry_run_of_a_training_here_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--dry-run"]) == BAD_ARGUMENTS
    assert "--on sagemaker" in capfd.readouterr().err


def test_estimate_counts_images_views_epochs_and_trainings(tmp_path: Path) -> None:
    config = with_values(
        ExperimentConfig(), TINY | {"train.num_epochs": 3, "train.num_views": 3, "train.augmentation": "flip_crop"}
    )
    splits = load_splits(config.data, project_dir=tmp_path)
    num_train, num_valid, num_test = len(splits.train), len(splits.valid), len(splits.test)
    speed = Speed(feature_s=1.0, train_s=0.1, evaluation_s=0.01)

    assert speed.features_s(config, splits) == 3 * (num_train + num_valid) + num_test
    assert speed.training_s(config, splits) == pytest.approx(3 * (0.1 * num_train + 0.01 * num_valid))
    estimate = Estimate(
        features_s=600,
        training_s=3000,
        num_trainings=10,
        num_instances=2,
        max_runtime_s=1800,
        is_spot=True,
        price=Price(2.0, "AWS Price List", "2026-11-21"),
    )
    assert estimate.usd == 2.0
    assert estimate.max_usd == 2.0 * 10 * 2 * 0.5
    assert "spot capacity costs less" in estimate.render()
    assert "at most $20.00" in estimate.render()
    # A job for the features is one more; instances that stay are paid for, after the last job at least.
    more = replace(estimate, num_feature_jobs=1, num_parallel=3, keep_alive_s=600)
    assert more.usd == pytest.approx(2.0 * (3600 + 2 * 3 * 600) / 3600)
    assert more.max_usd == pytest.approx(2.0 * 11 * 2 * (1800 + 600) / 3600)
    assert "features 600 s in a job of their own" in more.render()
    # What this machine computes takes time, and is not paid for.
    local = replace(estimate, are_features_local=True)
    assert local.total_s == 3600
    assert local.usd == pytest.approx(2.0 * 3000 / 3600)
    assert "features 600 s here, not paid for" in local.render()
    assert "(11 jobs, sagemaker.max_runtime_s=1800, sagemaker.keep_alive_s=600)" in more.render()


@pytest.mark.parametrize("trainable", ["layer4", "all"])
@pytest.mark.slow
def test_speed_of_networks_with_convolutions_to_train_is_measured(trainable: str, tmp_path: Path) -> None:
    answer = plan(tmp_path, model__trainable=trainable)

    assert answer.estimate.training_s is not None
    assert answer.estimate.training_s > 0
    assert (answer.estimate.features_s == 0) == (trainable == "all")
