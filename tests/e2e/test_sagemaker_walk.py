"""The whole way as a user types it: photographs to S3, a tuning job, the gate, an endpoint, its updates, its end.

On real photographs, with one local SageMaker that the commands themselves start and stop.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
import yaml
from endpointmodels import wait_for
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from dogbreed_ml.checkpoint import load_checkpoint, save_checkpoint
from dogbreed_ml.config import TrackingConfig
from dogbreed_ml.pyfunc import fetch_checkpoint, log_model
from dogbreed_ml.registry import load_version, register_challenger
from dogbreed_ml.tracking import Tracker
from dogbreed_ml.transforms import Preprocessing

ROOT = Path(__file__).parents[2]
MODEL, ENDPOINT, BUCKET = "walk-resnet50", "dogs", "dogbreed-walk"
BREEDS = {
    "n02085620-Chihuahua": "Chihuahua",
    "n02097047-miniature_schnauzer": "Miniature schnauzer",
    "n02100583-vizsla": "Vizsla",
    "n02111500-Great_Pyrenees": "Great Pyrenees",
}
CONFIG = {
    "name": "walk",
    "data": {"source": "folder", "path": "photographs", "image_size": 96, "crop_share": 1.0},
    "train": {"num_epochs": 3, "batch_size": 16},
    "search": {
        "engine": "sagemaker", "num_trials": 3, "num_parallel": 2, "pruner": "none",
        "space": {"train.lr": {"type": "float", "low": 0.001, "high": 0.03, "log": True}},
    },
    "promotion": {"num_requests": 20},
    "sagemaker": {"bucket": BUCKET},
    # Loads at once: the fastest back end is looked for elsewhere.
    "deploy": {"backend": "torch-fp32"},
    # A photograph of 96 pixels takes some 15 ms, one of 1,536 two seconds: either side has room.
    "hosting": {"bake_s": 5, "max_latency_ms": 600, "capture_percent": 100, "max_instance_count": 2},
    "tracking": {"system_metrics": False},
}  # fmt: skip


@dataclass(frozen=True)
class Project:
    """A user's folder, and the shell that `eval "$(dogbreed sagemaker-local start)"` made."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *argv: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "dogbreed_ml", *argv], cwd=self.folder, env=dict(self.environment),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == status, done.stderr[-3000:]
        return done

    def ask(self, verb: str, *argv: str) -> Any:
        return json.loads(self.run(verb, *argv, "--config", "dogs.yaml", "--json").stdout)

    def client(self, service: str) -> Any:
        told = self.environment
        return boto3.client(
            service, endpoint_url=told["AWS_ENDPOINT_URL"], region_name=told["AWS_DEFAULT_REGION"],
            aws_access_key_id=told["AWS_ACCESS_KEY_ID"], aws_secret_access_key=told["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip

    def tracker(self) -> Tracker:
        return Tracker.open(project_dir=self.folder, config=TrackingConfig(system_metrics=False))

    def photograph(self, breed: str) -> Path:
        return min((self.folder / "photographs" / breed).iterdir())

    def invoke(self, breed: str) -> dict[str, Any]:
        """What the endpoint says of a photograph of this breed."""
        body = self.photograph(breed).read_bytes()
        runtime = self.client("sagemaker-runtime")
        answer = runtime.invoke_endpoint(EndpointName=ENDPOINT, Body=body, ContentType="image/jpeg")
        (row,) = json.loads(answer["Body"].read())["predictions"]
        runtime.close()
        told: dict[str, Any] = row
        return told

    def is_recognised(self) -> bool:
        return all(self.invoke(folder)["breed"] == breed for folder, breed in BREEDS.items())

    def tags(self) -> dict[str, str]:
        sagemaker = self.client("sagemaker")
        arn = sagemaker.describe_endpoint(EndpointName=ENDPOINT)["EndpointArn"]
        tags = {each["Key"]: each["Value"] for each in sagemaker.list_tags(ResourceArn=arn)["Tags"]}
        sagemaker.close()
        return tags

    def serving(self) -> list[list[str]]:
        """The command lines of all serving processes of the local SageMaker."""
        pid = json.loads((self.folder / ".dogbreed" / "sagemaker-local" / "server.json").read_text())["pid"]
        lines = [child.cmdline() for child in psutil.Process(pid).children(recursive=True)]
        return [line for line in lines if any("handlers.py" in part for part in line)]

    @contextmanager
    def load(self, breed: str, *, clients: int, rate: float) -> Iterator[dict[str, Any]]:
        """Requests all the time; afterwards what came of them."""
        command = [sys.executable, "-m", "benchmarks.endpoint_load", ENDPOINT, str(self.photograph(breed))]
        command += ["--clients", str(clients), "--rate", str(rate), "--seconds", "600"]
        told: dict[str, Any] = {}
        process = subprocess.Popen(
            command, cwd=ROOT, env=dict(self.environment), stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            yield told
            process.send_signal(signal.SIGTERM)
            told |= json.loads(process.communicate(timeout=90)[0])
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.fixture
def project(tmp_path: Path, photographs_dir: Path, weights_path: Path) -> Iterator[Project]:
    for breed in BREEDS:
        (tmp_path / "photographs" / breed).mkdir(parents=True)
        for path in sorted((photographs_dir / "dogs" / breed).iterdir())[:24]:
            shutil.copy(path, tmp_path / "photographs" / breed / path.name)
    model = {"weights": str(weights_path), "resnet_version": "1"}
    (tmp_path / "dogs.yaml").write_text(yaml.safe_dump({**CONFIG, "model": model}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shell = Project(tmp_path, environment)
    start = shell.run("sagemaker-local", "start", "--port", "0", "--skip-requirements").stdout
    exported = dict(word.split("=", 1) for word in shlex.split(start) if "=" in word)
    try:
        yield replace(shell, environment={**environment, **exported})
    finally:
        shell.run("sagemaker-local", "stop")


def plant_slow_version(project: Project) -> int:
    """Somebody stored the wrong image size: right answers, a hundred times the work."""
    with project.tracker() as tracker:
        good = load_version(tracker, MODEL, 2)
        fetched = fetch_checkpoint(good.uri, project.folder / "good", tracking_uri=tracker.tracking_uri)
        checkpoint = load_checkpoint(fetched)
        slow = replace(checkpoint, preprocessing=Preprocessing(image_size=1536, crop_share=1.0))
        path = save_checkpoint(slow, project.folder / "planted" / "checkpoint.pt")
        with tracker.start_run("walk", run_name="planted") as run:
            run.flush()
            uri = log_model(run.run_id, path, tracking_uri=tracker.tracking_uri)
        return register_challenger(tracker, MODEL, model_uri=uri, run_id=run.run_id).version


def made(project: Project) -> dict[str, list[str]]:
    """Everything of a deployment that is there now."""
    sagemaker, cloudwatch, scaling, s3 = map(
        project.client, ("sagemaker", "cloudwatch", "application-autoscaling", "s3")
    )
    keys = [
        each["Key"]
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        for each in page.get("Contents", ())
    ]
    found = {
        "endpoints": [each["EndpointName"] for each in sagemaker.list_endpoints()["Endpoints"]],
        "configs": [each["EndpointConfigName"] for each in sagemaker.list_endpoint_configs()["EndpointConfigs"]],
        "models": [each["ModelName"] for each in sagemaker.list_models()["Models"]],
        "alarms": [each["AlarmName"] for each in cloudwatch.describe_alarms()["MetricAlarms"]],
        "targets": [
            each["ResourceId"]
            for each in scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
        ],
        "archives": [key for key in keys if "/models/" in key],
        "captured": [key for key in keys if f"/capture/{ENDPOINT}/" in key],
    }
    for client in (sagemaker, cloudwatch, scaling, s3):
        client.close()
    return found


def captured_breeds(project: Project) -> set[str]:
    """What captured answers say."""
    keys = wait_for(lambda: made(project)["captured"], bool)
    s3 = project.client("s3")
    lines = s3.get_object(Bucket=BUCKET, Key=keys[0])["Body"].read().splitlines()
    s3.close()
    exchanges = [json.loads(line)["captureData"] for line in lines]
    assert {each["endpointInput"]["observedContentType"] for each in exchanges} == {"image/jpeg"}
    return {json.loads(each["endpointOutput"]["data"])["predictions"][0]["breed"] for each in exchanges}


def assert_one_pass(project: Project, client: MlflowClient, first: Mapping[str, Any], again: Mapping[str, Any]) -> None:
    """One forward pass for the jobs of both tuning jobs: the tables of the first serve the second."""
    for told, is_cached in ((first, "false"), (again, "true")):
        parent = client.get_run(told["parent_run_id"])
        assert parent.data.tags["sagemaker.tuning_job"] == told["study_name"]
        assert parent.data.tags["features.cached"] == is_cached
        children = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{told['parent_run_id']}'"
        )
        assert len(children) == told["num_trials"] == 3
        assert {child.data.tags["features.from"] for child in children} == {"channel"}
        assert len({child.data.tags["features.key"] for child in children}) == 1
    assert len(list((project.folder / ".dogbreed" / "features").glob("*/table.json"))) == 1


def all_runs(client: MlflowClient) -> list[Run]:
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(experiments, max_results=1000, order_by=["attributes.start_time ASC"]))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_photographs_become_an_endpoint_that_is_updated_rolled_back_and_deleted(project: Project) -> None:
    """Small siblings, all in tests/contract: test_tuning_job.py, test_promote.py and test_endpoint_deployment.py."""
    deploy = ("--target", "sagemaker", "--endpoint", ENDPOINT)
    first = project.ask("tune")
    assert project.ask("evaluate")["metrics"]["accuracy_top1"] > 0.5
    project.run("promote", "--config", "dogs.yaml")
    told = project.ask("deploy", *deploy, "--expires", "4h")
    assert (told["action"], told["version"]) == ("deploy", 1)
    assert told["smoke"].startswith("passed: 8 example images as expected")
    assert project.is_recognised()
    vizsla = "n02100583-vizsla"
    by_first = project.invoke(vizsla)["probability"]

    again = project.ask("tune", "--search.seed", "1", "--train.seed", "1")
    assert_one_pass(project, MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}"), first, again)
    # Two versions this near each other may be told apart by chance, or by what else this machine does.
    project.run("promote", "--config", "dogs.yaml", "--force", "--reason", "a walk")
    with project.load(vizsla, clients=2, rate=20) as seen:
        told = project.ask("deploy", *deploy)
    assert (told["action"], told["version"]) == ("update", 2)
    assert (seen["failed"], seen["errors"]) == (0, {})
    assert seen["answered"] > 40
    by_second = project.invoke(vizsla)["probability"]
    assert abs(by_second - by_first) > 1e-5
    assert set(seen["answers"]) == {f"Vizsla {each:.4f}" for each in (by_first, by_second)}
    assert project.is_recognised()

    slow = plant_slow_version(project)
    bad = ("--version", str(slow), "--unmeasured", "--reason", "a hurry", "--hosting.bake_s", "150")
    with project.load(vizsla, clients=1, rate=2) as seen:
        refused = project.run("deploy", *deploy, *bad, "--config", "dogs.yaml", status=1)
    assert "dogs was rolled back and serves dogs-v2-" in refused.stderr
    assert "dogs-latency" in refused.stderr
    assert seen["failed"] == 0
    assert project.invoke(vizsla)["probability"] == pytest.approx(by_second, abs=1e-5)
    assert project.tags()["dogbreed:version"] == "2"

    back = project.ask("rollback", "--endpoint", ENDPOINT, "--reason", "by hand")
    assert (back["version"], project.tags()["dogbreed:version"]) == (1, "1")
    assert project.invoke(vizsla)["probability"] == pytest.approx(by_first, abs=1e-5)
    assert "Vizsla" in captured_breeds(project)
    history = project.run("history", "--config", "dogs.yaml").stdout
    told = project.ask("history")
    assert [(each["action"], each["version"], each["outcome"]) for each in told["deployments"]] == [
        ("deploy", 1, "done"), ("update", 2, "done"), ("update", slow, "rolled back"), ("rollback", 1, "done"),
    ]  # fmt: skip
    assert [each["version"] for each in told["reigns"]] == [1, 2]
    assert "by hand" in history

    project.run("delete", ENDPOINT, "--target", "sagemaker", "--yes", "--config", "dogs.yaml")
    assert {kind for kind, names in made(project).items() if names} == {"captured"}
    assert wait_for(project.serving, lambda lines: not lines) == []
    client = MlflowClient(f"sqlite:///{project.folder / 'mlflow.db'}")
    runs = all_runs(client)
    ended = {run.info.run_name: run.info.status for run in runs if run.info.status != "FINISHED"}
    assert ended == {f"update {ENDPOINT}": "FAILED"}
    events = [run.data.tags["deployment.action"] for run in runs if "deployment.action" in run.data.tags]
    assert events == ["deploy", "update", "update", "rollback", "delete"]
