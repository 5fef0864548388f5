"""Tuning requests against botocore's model and the documented limits, and the objective's regex on the real lines."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dogbreed_ml.config import (
    CategoricalDimension,
    Dimension,
    ExperimentConfig,
    FloatDimension,
    IntDimension,
    SearchConfig,
    TrainConfig,
)
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.runs import RunRef
from dogbreed_ml.train import EpochResult
from dogbreed_ml.warmstart import parse_value
from sagemaker_jobs.job.environment import JobEnvironment, record_variables
from sagemaker_jobs.job.jobtraining import checkpoint_paths
from sagemaker_jobs.local.shapes import check_request
from sagemaker_jobs.local.tuningplan import parse_plan
from sagemaker_jobs.train_entry import render_objective
from sagemaker_jobs.training.metrics import OBJECTIVE_METRIC, objective_definition
from sagemaker_jobs.tuning.tuning_request import build_ranges, tuning_job_request

SPACE: dict[str, Dimension] = {
    "train.lr": FloatDimension(low=1e-5, high=0.1, log=True),
    "train.weight_decay": FloatDimension(low=0.0, high=0.01),
    "train.num_epochs": IntDimension(low=2, high=7),
    "train.batch_size": IntDimension(low=16, high=64, step=16),
    "train.label_smoothing": FloatDimension(low=0.0, high=0.3, step=0.1),
    "train.optimizer": CategoricalDimension(choices=["adamw", "sgd"]),
    "train.patience": CategoricalDimension(choices=[None, 2]),
    "model.resnet_version": CategoricalDimension(choices=["1", "1.5"]),
    "model.dropout": FloatDimension(low=0.25, high=0.25),
}


def training(**changes: Any) -> dict[str, Any]:
    """CreateTrainingJob's request with what a tuning job takes over, and what it has no place for."""
    channel = {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/dogs", "S3DataDistributionType": "FullyReplicated"}
    return {
        "TrainingJobName": "one",
        "RoleArn": "arn:aws:iam::123456789012:role/sagemaker",
        "AlgorithmSpecification": {
            "TrainingImage": "123456789012.dkr.ecr.us-west-2.amazonaws.com/image:1",
            "TrainingInputMode": "File",
            "MetricDefinitions": [{"Name": "valid/accuracy_top1", "Regex": "valid/accuracy_top1=([0-9.]+)"}],
        },
        "HyperParameters": {
            "sagemaker_program": "train.py",
            "sagemaker_submit_directory": "s3://bucket/code.tar.gz",
            "train.lr": "0.001",
            "train.batch_size": "32",
            "train.schedule": "cosine",
        },
        "InputDataConfig": [{"ChannelName": "train", "DataSource": {"S3DataSource": channel}}],
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/output"},
        "ResourceConfig": {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        "Environment": {"DOGBREED_PARENT_RUN_ID": "1234", "MY_OWN": "1"},
        "Tags": [{"Key": "dogbreed:experiment", "Value": "dogs"}],
        "ProfilerConfig": {"S3OutputPath": "s3://bucket/profiler"},
        "EnableManagedSpotTraining": False,
        **changes,
    }


def config(space: dict[str, Dimension] | None = None, *, epochs: int = 5, **search: Any) -> ExperimentConfig:
    section = SearchConfig(engine="sagemaker", space=space or SearchConfig().space, **search)
    return ExperimentConfig(name="dogs", search=section, train=TrainConfig(num_epochs=epochs))


def request(wanted: ExperimentConfig, **changes: Any) -> dict[str, Any]:
    return tuning_job_request(wanted, name="dogs-tune-1", training=training(**changes))


VARIANTS = [
    {"sampler": sampler, "pruner": pruner, "direction": direction, "timeout_s": timeout_s}
    for sampler, pruner, direction, timeout_s in itertools.product(
        ("tpe", "gp", "random"), ("median", "hyperband", "none"), ("maximize", "minimize"), (None, 600.5)
    )
]


@pytest.mark.parametrize("search", VARIANTS, ids=lambda search: "-".join(map(str, search.values())))
def test_request_fits_botocores_model_and_the_local_tuner(search: dict[str, Any]) -> None:
    built = request(config(SPACE, **search))

    check_request("sagemaker", "CreateHyperParameterTuningJob", built)
    plan = parse_plan(built)
    assert plan.search.maximize == (search["direction"] == "maximize")
    assert plan.search.num_jobs == 20
    assert plan.max_runtime_s == (None if search["timeout_s"] is None else 601)
    assert plan.search.stops_early == (search["pruner"] == "median")
    expected = {"tpe": "Bayesian", "gp": "Bayesian", "random": "Random"}[search["sampler"]]
    assert plan.search.strategy == ("Hyperband" if search["pruner"] == "hyperband" else expected)


def test_jobs_of_a_spot_search_keep_checkpoints_apart_by_their_names(tmp_path: Path) -> None:
    kept = {"S3Uri": "s3://bucket/jobs/dogs-tune-1/checkpoints"}
    spot = {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    built = request(config(SPACE), EnableManagedSpotTraining=True, CheckpointConfig=kept, StoppingCondition=spot)

    check_request("sagemaker", "CreateHyperParameterTuningJob", built)
    # One prefix for all: SageMaker has no other for the jobs of a search.
    assert built["TrainingJobDefinition"]["CheckpointConfig"] == kept
    names = {path.name for job in ("dogs-001-a", "dogs-002-b") for path in checkpoint_paths(tmp_path, job)}
    assert len(names) == 4


def test_request_hands_a_job_what_it_needs_and_searched_values_once() -> None:
    built = request(config(seed=7, num_trials=9, num_parallel=3))
    definition = built["TrainingJobDefinition"]

    static = definition["StaticHyperParameters"]
    assert {name for name in static if not name.startswith("_")} == training()["HyperParameters"].keys() - {
        "train.lr",
        "train.batch_size",
    }
    assert {"TrainingJobName", "Tags", "ProfilerConfig"}.isdisjoint(definition)
    assert built["Tags"] == training()["Tags"]
    assert definition["Environment"] == {"MY_OWN": "1"}
    assert static["_dogbreed_parent_run_id"] == "1234"
    assert static["_dogbreed_tracking_uri"] == static["_dogbreed_experiment_id"] == ""
    given = built["HyperParameterTuningJobConfig"]
    assert given["RandomSeed"] == 7
    assert given["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 9, "MaxParallelTrainingJobs": 3}
    names = [each["Name"] for each in definition["AlgorithmSpecification"]["MetricDefinitions"]]
    assert names == ["valid/accuracy_top1", OBJECTIVE_METRIC]


def test_ranges_keep_scale_ends_and_type() -> None:
    ranges = build_ranges(config(SPACE).search)

    assert ranges["ContinuousParameterRanges"] == [
        {"Name": "train.lr", "MinValue": "1e-05", "MaxValue": "0.1", "ScalingType": "Logarithmic"},
        {"Name": "train.weight_decay", "MinValue": "0.0", "MaxValue": "0.01", "ScalingType": "Linear"},
    ]
    assert ranges["IntegerParameterRanges"] == [
        {"Name": "train.num_epochs", "MinValue": "2", "MaxValue": "7", "ScalingType": "Linear"}
    ]
    assert {each["Name"]: each["Values"] for each in ranges["CategoricalParameterRanges"]} == {
        "train.batch_size": ["16", "32", "48", "64"],
        "train.label_smoothing": ["0.0", "0.1", "0.2", "0.3"],
        "train.optimizer": ["adamw", "sgd"],
        "train.patience": ["null", "2"],
        "model.resnet_version": ["1", "1.5"],
        "model.dropout": ["0.25"],
    }


def test_values_survive_the_way_to_a_job_and_back() -> None:
    ranges = build_ranges(config(SPACE).search)
    for given in ranges["CategoricalParameterRanges"]:
        dimension = SPACE[given["Name"]]
        decoded = [parse_value(dimension, text) for text in given["Values"]]
        if isinstance(dimension, CategoricalDimension):
            assert decoded == dimension.choices
        assert len({(type(value), value) for value in decoded}) == len(given["Values"])
    assert parse_value(SPACE["train.num_epochs"], "3") == 3
    assert parse_value(SPACE["train.lr"], "0.00012345678901234567") == 0.00012345678901234567
    # What an MLflow param says of None.
    assert parse_value(SPACE["train.patience"], "None") is None
    with pytest.raises(ConfigError, match="must be one of"):
        parse_value(SPACE["train.optimizer"], "adam")
    with pytest.raises(ConfigError, match="must be a number"):
        parse_value(SPACE["train.lr"], "fast")


def test_grid_lists_every_value_and_asks_for_every_combination() -> None:
    space: dict[str, Dimension] = {
        "train.num_epochs": IntDimension(low=2, high=4),
        "train.lr": FloatDimension(low=0.1, high=0.3, step=0.1),
        "train.optimizer": CategoricalDimension(choices=["adamw", "sgd"]),
    }
    built = request(config(space, sampler="grid", pruner="none", num_trials=30))

    assert built["HyperParameterTuningJobConfig"]["Strategy"] == "Grid"
    assert built["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"] == 18
    assert list(built["HyperParameterTuningJobConfig"]["ParameterRanges"]) == ["CategoricalParameterRanges"]
    assert parse_plan(built).search.num_jobs == 18


def test_hyperband_counts_the_last_line_as_a_resource() -> None:
    fixed = request(config(epochs=9, pruner="hyperband"))["HyperParameterTuningJobConfig"]
    assert fixed["StrategyConfig"]["HyperbandStrategyConfig"] == {"MinResource": 1, "MaxResource": 10}
    assert fixed["TrainingJobEarlyStoppingType"] == "Off"
    searched = request(config(SPACE, pruner="hyperband"))["HyperParameterTuningJobConfig"]
    assert searched["StrategyConfig"]["HyperbandStrategyConfig"]["MaxResource"] == 8


FLOAT = FloatDimension(low=0.1, high=0.2)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (config({"train.lr": FloatDimension(low=0.0, high=1.0, step=0.01)}), "at most 30"),
        (config({"train.batch_size": IntDimension(low=1, high=100, step=3)}), "at most 30"),
        (config(num_trials=751), "at most 750"),
        (config(num_trials=200, num_parallel=101), "at most 100"),
        (config(timeout_s=60), "at least 120"),
        (
            config({"train.num_epochs": IntDimension(low=1, high=3)}, sampler="grid", num_trials=2),
            "all 3 combinations",
        ),
        (
            config({"train.num_epochs": IntDimension(low=1, high=3)}, sampler="grid", pruner="hyperband"),
            "draws its values itself",
        ),
    ],
)
def test_request_refuses_what_sagemaker_cannot_do(wanted: ExperimentConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        request(wanted)


def test_request_refuses_a_31st_range() -> None:
    space: dict[str, Dimension] = {f"train.field_{number}": FLOAT for number in range(31)}
    with pytest.raises(ConfigError, match="at most 30 hyperparameters"):
        build_ranges(SearchConfig(engine="sagemaker", space=space))


def test_request_refuses_a_name_that_is_too_long() -> None:
    with pytest.raises(ConfigError, match="hyperParameterTuningJobName"):
        tuning_job_request(config(), name="n" * 33, training=training())


def values(metric: str, lines: list[str]) -> list[float]:
    """What SageMaker reads: group 1 of each match, line by line."""
    pattern = re.compile(objective_definition(metric)["Regex"])
    return [float(match[1]) for line in lines for match in pattern.finditer(line)]


def epoch_line(epoch: int, accuracy: float, loss: float = 1.5e-7) -> str:
    metrics = {"train/loss": 0.5, "train/lr": 1e-5, "valid/loss": loss, "valid/accuracy_top1": accuracy}
    return EpochResult(epoch, 10, {**metrics, "valid/accuracy_top5": 0.99}, 0.1, True).render()


def test_objective_is_an_epochs_metric_and_at_last_the_kept_epochs() -> None:
    lines = [
        epoch_line(0, 0.5),
        "objective is not a line of ours, valid/accuracy_top1=0.1 neither, nor xobjective=3",
        epoch_line(1, 0.75),
        epoch_line(2, 1.0),
        render_objective(0.7512345678901234),
    ]
    assert values("valid/accuracy_top1", lines) == [0.5, 0.75, 1.0, 0.7512345678901234]
    assert values("train/loss", lines[:1]) == [0.5]
    assert values("valid/loss", [epoch_line(0, 0.5, loss=1.5e-7), render_objective(-1e-9)]) == [1.5e-7, -1e-9]


def test_objective_of_an_epoch_without_a_number_is_none() -> None:
    assert values("valid/loss", [epoch_line(0, 0.5, loss=float("nan")), render_objective(float("inf"))]) == []


def description(wanted: ExperimentConfig, *, name: str = "parent", status: str = "Completed", **changes: Any) -> Any:
    built = tuning_job_request(wanted, name=name, training=training(**changes))
    return {**built, "HyperParameterTuningJobStatus": status}


def test_warm_start_is_identical_for_the_same_task_and_transfer_for_another() -> None:
    wider: dict[str, Dimension] = {
        "train.lr": FloatDimension(low=1e-6, high=1.0, log=True),
        "train.batch_size": CategoricalDimension(choices=[8, 16]),
    }
    others = {**training()["HyperParameters"], "train.schedule": "none"}
    code = {**training()["HyperParameters"], "sagemaker_submit_directory": "s3://bucket/other.tar.gz"}

    def kind(*parents: Any) -> str:
        built = tuning_job_request(config(), name="dogs-tune-1", training=training(), parents=parents)
        check_request("sagemaker", "CreateHyperParameterTuningJob", built)
        assert len(built["WarmStartConfig"]["ParentHyperParameterTuningJobs"]) == len(parents)
        return str(built["WarmStartConfig"]["WarmStartType"])

    same = description(config(wider, num_trials=3), HyperParameters=code)
    fewer = description(config({"train.lr": wider["train.lr"]}), status="Stopped")
    assert kind(same) == kind(same, fewer) == "IdenticalDataAndAlgorithm"
    assert kind(same, description(config(), HyperParameters=others)) == "TransferLearning"
    elsewhere = training()["InputDataConfig"][0]["DataSource"]["S3DataSource"] | {"S3Uri": "s3://bucket/cats"}
    channel = {"ChannelName": "train", "DataSource": {"S3DataSource": elsewhere}}
    assert kind(description(config(), InputDataConfig=[channel])) == "TransferLearning"


@pytest.mark.parametrize(
    ("wanted", "parents", "message"),
    [
        (config(), [description(config(), status="InProgress")], "has ended, this one is InProgress"),
        (config(), [description(config(metric="valid/loss", direction="minimize"))], "same metric"),
        (config(), [description(config(SPACE))], "only one of the two has .*train.optimizer"),
        (config(), [description(config())] * 6, "at most 5"),
        (config(), [description(config(), Environment={"MY_OWN": "2"})], "same sagemaker.environment"),
        (config(), [description(config(), EnableInterContainerTrafficEncryption=True)], "sagemaker.encrypt_traffic"),
        (config(pruner="hyperband"), [description(config())], "Bayesian and the Random"),
    ],
)
def test_warm_start_refuses_parents_that_sagemaker_would(
    wanted: ExperimentConfig, parents: list[Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tuning_job_request(wanted, name="dogs-tune-1", training=training(), parents=parents)


def test_job_finds_where_its_record_goes_among_the_hyperparameters(tmp_path: Path) -> None:
    built = request(config(), Environment=record_variables("http://127.0.0.1:1", RunRef("1" * 32, "7")))
    # As the training toolkit hands them on: what is JSON is decoded.
    static = built["TrainingJobDefinition"]["StaticHyperParameters"] | {"_dogbreed_experiment_id": 7}
    environment = JobEnvironment.read(
        {
            "TRAINING_JOB_NAME": "one",
            "SM_MODEL_DIR": str(tmp_path),
            "SM_OUTPUT_DATA_DIR": str(tmp_path),
            "SM_CHANNELS": "[]",
            "SM_HPS": json.dumps(static),
        }
    )
    assert environment.tracking_uri == "http://127.0.0.1:1"
    assert (environment.parent_run_id, environment.experiment_id) == ("1" * 32, "7")
    assert "Environment" not in built["TrainingJobDefinition"]


def test_request_of_one_config_is_the_same_twice() -> None:
    assert request(config(SPACE)) == request(replace(config(SPACE)))
