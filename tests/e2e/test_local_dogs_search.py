"""A real search on photographs through CreateHyperParameterTuningJob, and its best model behind an endpoint."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endpointmodels import PYTORCH, ROLE, Client, pack, serving
from tuningrequest import request

import dogbreed_ml
from dogbreed_ml.data.breeds import clean_breed_name
from sagemaker_jobs.local.hosting import HostingSettings
from sagemaker_jobs.local.tuner import ENDED

BUCKET = "dogs-search"
NAME = "dogs-search"
IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:2.6-cpu-py312"
NUM_BREEDS, NUM_TRAINED, NUM_ASKED = 4, 24, 5
DEADLINE_S = 600.0
ENVIRONMENT = {"PYTHONPATH": str(Path(dogbreed_ml.__file__).parents[1])}
"""The checkout that is tested, whether or not it is the one that is installed."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_best_of_a_search_recognises_dogs(tmp_path: Path, photographs_dir: Path, weights_path: Path) -> None:
    breeds = sorted((photographs_dir / "dogs").iterdir())[:NUM_BREEDS]
    with serving(tmp_path / "sagemaker", hosting=HostingSettings(), path=os.environ["PATH"]) as client:
        _upload(client, breeds, weights_path)
        client.sagemaker.create_hyper_parameter_tuning_job(**_search())
        description = _until(
            lambda: client.sagemaker.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=NAME),
            lambda seen: seen["HyperParameterTuningJobStatus"] in ENDED,
        )
        assert description["HyperParameterTuningJobStatus"] == "Completed", description
        assert description["TrainingJobStatusCounters"]["Completed"] == 2
        best = description["BestTrainingJob"]
        assert best["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] > 0.7
        trained = client.sagemaker.describe_training_job(TrainingJobName=best["TrainingJobName"])
        _deploy(client, trained["ModelArtifacts"]["S3ModelArtifacts"])
        answers = {
            path: json.loads(client.invoke("dogs", path.read_bytes(), ContentType="image/jpeg"))
            for breed in breeds
            for path in sorted(breed.iterdir())[NUM_TRAINED : NUM_TRAINED + NUM_ASKED]
        }

    right = [clean_breed_name(path.parent.name) == answer["breed"] for path, answer in answers.items()]
    assert len(right) == NUM_BREEDS * NUM_ASKED
    assert sum(right) / len(right) >= 0.8, answers


def _upload(client: Client, breeds: list[Path], weights_path: Path) -> None:
    client.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    for breed in breeds:
        for path in sorted(breed.iterdir())[:NUM_TRAINED]:
            client.s3.upload_file(str(path), BUCKET, f"dogs/{breed.name}/{path.name}")
    client.s3.upload_file(str(weights_path), BUCKET, f"weights/{weights_path.name}")
    scripts = {name: Path(__file__).with_name(name).read_text() for name in ("dogs_train.py", "dogs_inference.py")}
    client.s3.put_object(Bucket=BUCKET, Key="sourcedir.tar.gz", Body=pack(scripts))


def _search() -> Any:
    """Two training jobs, one after the other, over the learning rate and the batch size."""
    ranges = {
        "ContinuousParameterRanges": [{"Name": "train.lr", "MinValue": "0.0003", "MaxValue": "0.01"}],
        "CategoricalParameterRanges": [{"Name": "train.batch_size", "Values": ["8", "16"]}],
    }
    config = {
        "Strategy": "Bayesian",
        "HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "valid/accuracy_top1"},
        "ResourceLimits": {"MaxNumberOfTrainingJobs": 2, "MaxParallelTrainingJobs": 1},
        "ParameterRanges": ranges,
        "RandomSeed": 0,
    }
    metric = {"Name": "valid/accuracy_top1", "Regex": r"valid/accuracy_top1=([0-9.]+)"}
    definition = {
        "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File", "MetricDefinitions": [metric]},
        "StaticHyperParameters": {
            "sagemaker_program": "dogs_train.py",
            "sagemaker_submit_directory": f"s3://{BUCKET}/sourcedir.tar.gz",
            "train.num_epochs": "3",
        },
        "InputDataConfig": [_channel("train", f"s3://{BUCKET}/dogs"), _channel("weights", f"s3://{BUCKET}/weights")],
        "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/output"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 600},
        "Environment": ENVIRONMENT,
    }
    return request(config, definition, HyperParameterTuningJobName=NAME)


def _channel(name: str, uri: str) -> dict[str, Any]:
    return {"ChannelName": name, "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}}


def _until(look: Callable[[], Any], is_done: Callable[[Any], bool]) -> Any:
    """Looks until it is done; what the last look saw."""
    deadline = time.monotonic() + DEADLINE_S
    while not is_done(seen := look()):
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)
    return seen


def _deploy(client: Client, model_uri: str) -> None:
    container = {"Image": PYTORCH, "ModelDataUrl": model_uri, "Environment": ENVIRONMENT}
    client.sagemaker.create_model(ModelName=NAME, PrimaryContainer=container, ExecutionRoleArn=ROLE)
    client.create_config(NAME, NAME)
    client.sagemaker.create_endpoint(EndpointName="dogs", EndpointConfigName=NAME)
    description = _until(
        lambda: client.sagemaker.describe_endpoint(EndpointName="dogs"),
        lambda seen: seen["EndpointStatus"] != "Creating",
    )
    assert description["EndpointStatus"] == "InService", description
