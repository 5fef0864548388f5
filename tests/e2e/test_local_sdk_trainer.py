"""ModelTrainer of the SageMaker SDK v3, unchanged, in a process of its own; torchrun over two hosts."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_jobs import describe, fetch_tar, make_bucket, make_wheel, read_log, run_script

from sagemaker_jobs.local.service import LocalSageMaker, Settings

SCRIPT = """
import argparse, json, os, pathlib
import rarebreeds
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int)
parser.add_argument("--name")
arguments = parser.parse_args()
files = sorted(os.listdir(os.environ["SM_CHANNEL_TRAIN"]))
model_dir = os.environ["SM_MODEL_DIR"]
result = {"epochs": arguments.epochs, "name": arguments.name, "files": files, "breed": rarebreeds.NAME}
pathlib.Path(model_dir, "model.json").write_text(json.dumps(result))
print("trained with", result)
"""
TORCHRUN = """
import os, pathlib, torch
import torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1) * (dist.get_rank() + 1)
dist.all_reduce(total)
name = f"{os.environ['SM_CURRENT_HOST']}-{dist.get_rank()}-of-{dist.get_world_size()}"
pathlib.Path(os.environ["SM_MODEL_DIR"], name).write_text(str(int(total)))
dist.destroy_process_group()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalSageMaker]:
    settings = Settings(num_parallel_jobs=2, environment={"PATH": os.environ["PATH"]})
    with LocalSageMaker(tmp_path / "sagemaker", settings=settings) as server:
        yield server


def test_sdk_trainer_runs_a_source_folder(tmp_path: Path, server: LocalSageMaker) -> None:
    source_dir, data_dir = tmp_path / "source", tmp_path / "data"
    (source_dir / "needs").mkdir(parents=True)
    data_dir.mkdir()
    (source_dir / "train.py").write_text(SCRIPT)
    (source_dir / "needs" / "requirements.txt").write_text("./rarebreeds-1.0-py3-none-any.whl\n")
    (source_dir / "needs" / "rarebreeds-1.0-py3-none-any.whl").write_bytes(make_wheel("rarebreeds"))
    (data_dir / "rex.jpg").write_bytes(b"a dog")
    finished = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("sdk_trainer.py")), str(source_dir), str(data_dir)],
        env={**os.environ, **server.client_environment(), "SAGEMAKER_VALIDATE_ROLE": "false"},
        cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    job = describe(server, finished.stdout.split()[-1])
    assert job["TrainingJobStatus"] == "Completed"
    model = json.loads(fetch_tar(server, job["ModelArtifacts"]["S3ModelArtifacts"])["model.json"])
    assert model == {"epochs": 2, "name": "shaggy dogs", "files": ["rex.jpg"], "breed": "Xolo"}
    assert not Path("/opt/ml/model/model.json").exists()
    with pytest.raises(ImportError):
        __import__("rarebreeds")


@pytest.mark.slow
def test_torchrun_joins_the_hosts_of_a_job(server: LocalSageMaker) -> None:
    make_bucket(server)
    job = run_script(
        server, "gloo", TORCHRUN, hyperparameters={"sagemaker_torch_distributed_enabled": "true"},
        ResourceConfig={"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1},
    )  # fmt: skip
    assert job["TrainingJobStatus"] == "Completed", read_log(server, "gloo")
    files = fetch_tar(server, job["ModelArtifacts"]["S3ModelArtifacts"])
    assert files == {"algo-1-0-of-2": b"3", "algo-2-1-of-2": b"3"}
