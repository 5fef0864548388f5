"""What a job reads of its surroundings, and what the caller tells it."""

import json
from pathlib import Path

import pytest

from dogbreed_ml.errors import ConfigError
from dogbreed_ml.runs import RunRef
from sagemaker_jobs.job.environment import JobEnvironment, record_variables

VARIABLES = {
    "SM_MODEL_DIR": "/opt/ml/model",
    "SM_OUTPUT_DATA_DIR": "/opt/ml/output/data",
    "SM_CHANNELS": '["my-dogs", "train"]',
    "SM_CHANNEL_MY_DOGS": "/opt/ml/input/data/my-dogs",
    "SM_CHANNEL_TRAIN": "/opt/ml/input/data/train",
    "SM_HPS": '{"train.lr": 0.1}',
    "SM_TRAINING_ENV": json.dumps({"job_name": "dogs-1"}),
}
PARENT = RunRef("parent-1", "7")


def test_environment_is_read_from_the_toolkits_variables() -> None:
    found = JobEnvironment.read({**VARIABLES, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})
    assert found.job_name == "dogs-1"
    assert found.channels["my-dogs"] == Path("/opt/ml/input/data/my-dogs")
    assert found.failure_path == Path("/opt/ml/output/failure")
    assert found.checkpoint_dir == Path("/opt/ml/checkpoints")
    assert (found.rank, found.world_size, found.hyperparameters) == (1, 2, {"train.lr": 0.1})
    assert found.tracking_uri is None


def test_outside_a_job_the_missing_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="SM_MODEL_DIR"):
        JobEnvironment.read({})


@pytest.mark.parametrize(
    "uri",
    [
        "https://mlflow.example",
        "http://mlflow.example:5000/mlflow",
        "arn:aws:sagemaker:us-east-1:1:mlflow-tracking-server/a",
    ],
)
def test_record_goes_to_a_store_that_a_job_can_reach(uri: str) -> None:
    variables = record_variables(uri, PARENT)
    assert variables == {
        "DOGBREED_TRACKING_URI": uri,
        "DOGBREED_PARENT_RUN_ID": "parent-1",
        "DOGBREED_EXPERIMENT_ID": "7",
    }
    found = JobEnvironment.read({**VARIABLES, **variables})
    assert (found.tracking_uri, found.parent_run_id, found.experiment_id) == (uri, "parent-1", "7")


def test_database_of_this_machine_is_none_of_a_jobs() -> None:
    assert record_variables("sqlite:////home/me/mlflow.db", PARENT) == {}


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:hush@mlflow.example",
        "https://hush@mlflow.example/mlflow",
        "http://:hush@mlflow.example:5000",
        "https://mlflow.example/?api_key=hush",
    ],
)
def test_login_in_an_address_never_becomes_a_variable_of_a_job(uri: str) -> None:
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI must hold no user, password, token or query") as refused:
        record_variables(uri, PARENT)
    assert "hush" not in str(refused.value)
    assert "mlflow.example" in str(refused.value)
    assert "MLFLOW_TRACKING_TOKEN" in str(refused.value)
