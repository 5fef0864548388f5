"""HyperparameterTuner of the SageMaker SDK v3, unchanged, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
import pytest
from tuningscript import SCRIPT

from sagemaker_jobs.local.service import LocalSageMaker, Settings
from sagemaker_jobs.local.tuner import ENDED

_DEADLINE_S = 120.0


@pytest.mark.slow
def test_sdk_tuner_finds_the_best_training_job(tmp_path: Path) -> None:
    """Small sibling: test_sdk_trainer_runs_a_source_folder."""
    source_dir = tmp_path / "source"
    source_dir.mkdir()
    (source_dir / "train.py").write_text(SCRIPT)
    settings = Settings(num_parallel_jobs=2, environment={"PATH": os.environ["PATH"]})
    with LocalSageMaker(tmp_path / "sagemaker", settings=settings) as server:
        finished = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("sdk_tuner.py")), str(source_dir)],
            env={**os.environ, **server.client_environment(), "SAGEMAKER_VALIDATE_ROLE": "false"},
            cwd=tmp_path, capture_output=True, text=True, timeout=_DEADLINE_S, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr[-4000:]
        found = json.loads(finished.stdout.splitlines()[-1])
        session = boto3.session.Session(
            aws_access_key_id="local", aws_secret_access_key="local", region_name="us-west-2"
        )
        client = session.client("sagemaker", endpoint_url=server.url)
        name = {"HyperParameterTuningJobName": "sdk-warm"}
        assert server.records.wait_for(
            # Not over HTTP: the server's own threads wait while this looks.
            lambda: server.tuning.describe_hyper_parameter_tuning_job(name)["HyperParameterTuningJobStatus"] in ENDED,
            _DEADLINE_S,
        )
        overall = client.describe_hyper_parameter_tuning_job(**name)["OverallBestTrainingJob"]
        (later,) = client.list_training_jobs_for_hyper_parameter_tuning_job(**name)["TrainingJobSummaries"]
        trained = client.describe_training_job(TrainingJobName=found["best"])
        client.close()

    assert (found["status"], found["completed"]) == ("Completed", 4)
    values = {row["TrainingJobName"]: row["FinalObjectiveValue"] for row in found["rows"]}
    assert values[found["best"]] == max(values.values())
    # One more job, warm from those: the best of all five is of one or the other.
    beaten = later["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] > max(values.values())
    expected = ("sdk-warm", later["TrainingJobName"]) if beaten else ("sdk-search", found["best"])
    assert (overall["TuningJobName"], overall["TrainingJobName"]) == expected
    # What the SDK sets beside the ranges reached the script, and it reached the epoch that was asked for.
    assert trained["HyperParameters"]["epochs"] == "2"
    assert trained["ModelArtifacts"]["S3ModelArtifacts"].endswith("model.tar.gz")
