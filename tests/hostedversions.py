"""A project whose registered versions may be deployed to a local SageMaker, and calls that tell which one answers."""

import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from endpointmodels import pack, wait_for
from serving import draw_photograph, save_tiny_checkpoint

from dogbreed_ml.cloudconfig import HostingConfig, SagemakerConfig
from dogbreed_ml.config import ExperimentConfig, TrackingConfig
from dogbreed_ml.context import Context
from dogbreed_ml.deployments import DeploymentEvent, list_events
from dogbreed_ml.options import DeployOptions
from dogbreed_ml.pipeline.deploy import VERDICT_TAG
from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.pyfunc import log_model
from dogbreed_ml.registry import load_version, register_challenger, set_version_tags
from dogbreed_ml.serve import Predictor
from dogbreed_ml.tracking import Tracker
from sagemaker_jobs.client import Aws
from sagemaker_jobs.endpoints import deployment, endpoint
from sagemaker_jobs.endpoints.deployed import Deployed
from sagemaker_jobs.endpoints.guard_requests import scaling_resource
from sagemaker_jobs.local.hosting import HostingSettings
from sagemaker_jobs.local.service import LocalSageMaker, Settings

MODEL = "dogs-resnet50"
BUCKET = "dogbreed-endpoints"
REX = draw_photograph(1)
_LIGHT = """
import os
def model_fn(model_dir):
    with open(os.path.join(model_dir, "answer.json")) as file:
        return file.read()
def transform_fn(model, body, content_type, accept):
    return model, "application/json"
"""

SETTINGS = Settings(
    requirements="skip",
    hosting=HostingSettings(
        ping_timeout_s=120, invocation_timeout_s=60, publish_interval_s=0.1, alarm_interval_s=0.1,
        idle_alarm_interval_s=0.2,
    ),
)  # fmt: skip
CONFIG = ExperimentConfig(
    name="dogs",
    tracking=TrackingConfig(system_metrics=False),
    # Loads at once: the fastest back end is looked for elsewhere.
    deploy=DeployConfig(backend="torch-fp32"),
    sagemaker=SagemakerConfig(bucket=BUCKET),
    # Nobody else's work on this machine may make an update roll back.
    hosting=HostingConfig(bake_s=1, max_latency_ms=60_000, timeout_s=200),
)


@dataclass(frozen=True)
class Project:
    """Registered versions of random networks."""

    context: Context
    breeds: Mapping[int, float]
    """The probability of REX's first breed by version: what tells the versions apart."""

    def deploy(self, version: int, *, config: ExperimentConfig = CONFIG, **options: Any) -> Deployed:
        told = DeployOptions(target="sagemaker", version=str(version), **{"endpoint": "dogs", **options})
        deployed = deployment.deploy(config, told, context=self.context)
        assert isinstance(deployed, Deployed)
        return deployed

    def pass_gate(self, *versions: int) -> None:
        with self.tracker() as tracker:
            for version in versions:
                set_version_tags(tracker, load_version(tracker, MODEL, version), {VERDICT_TAG: "passed"})

    def tracker(self) -> Tracker:
        return Tracker.open(project_dir=self.context.project_dir, config=CONFIG.tracking)

    def events(self) -> list[DeploymentEvent]:
        with self.tracker() as tracker:
            return list_events(tracker, MODEL)

    def told(self) -> list[tuple[str, int, str]]:
        """Action, version and outcome of each event."""
        return [(each.action, each.version, each.outcome) for each in self.events()]

    def version_of(self, answer: bytes) -> int:
        """Which version gave the answer to REX."""
        (row,) = json.loads(answer)["predictions"]
        return min(self.breeds, key=lambda version: abs(self.breeds[version] - row["probability"]))


def make_project(folder: Path) -> Project:
    """Two registered versions of random networks, without a verdict; what they answer to REX tells them apart."""
    probabilities = {}
    with Tracker.open(project_dir=folder, config=CONFIG.tracking) as tracker:
        for number in (1, 2):
            path = save_tiny_checkpoint(folder / f"checkpoint-{number}" / "checkpoint.pt", seed=number)
            with tracker.start_run("dogs", run_name="planted", tags=planted_tags(number)) as run:
                run.flush()
                uri = log_model(run.run_id, path, tracking_uri=tracker.tracking_uri)
            register_challenger(tracker, MODEL, model_uri=uri, run_id=run.run_id)
            predictor = Predictor.load(path, backend="torch-fp32")
            probabilities[number] = predictor.predict([REX])[0].probability
    return Project(Context(project_dir=folder), probabilities)


def make_light_project(folder: Path, *, num_versions: int = 4) -> Project:
    """Versions without models, for `use_light_archives`. All but the last are measured."""
    with Tracker.open(project_dir=folder, config=CONFIG.tracking) as tracker:
        for number in range(1, num_versions + 1):
            with tracker.start_run("dogs", run_name="planted", tags=planted_tags(number)) as run:
                run.flush()
                logged = tracker.client.create_logged_model(run.experiment_id, name="model", source_run_id=run.run_id)
            uri = f"models:/{logged.model_id}"
            register_challenger(tracker, MODEL, model_uri=uri, run_id=run.run_id)
    project = Project(
        Context(project_dir=folder), {number: light_probability(number) for number in range(1, num_versions + 1)}
    )
    project.pass_gate(*range(1, num_versions))
    return project


def planted_tags(number: int) -> dict[str, str]:
    return {"mlflow.source.git.commit": f"{number}" * 40}


def light_probability(version: int) -> float:
    return round(0.4 + version / 10, 2)


def use_light_archives(monkeypatch: pytest.MonkeyPatch, **code_by_version: str) -> None:
    """Archives without a network: each version answers every image alike. `v2="CODE"` appends to its inference.py."""

    def build(tracker: Tracker, version: Any, target: Path, **_: Any) -> Path:
        answer = {
            "breed": "Beagle",
            "probability": light_probability(version.version),
            "top5": [{"breed": "Beagle", "probability": light_probability(version.version)}],
        }
        code = _LIGHT + code_by_version.get(f"v{version.version}", "")
        files: dict[str, str | bytes] = {
            "examples/expected.json": json.dumps({"examples/0.jpg": answer, "examples/1.jpg": answer}),
            "examples/0.jpg": b"first",
            "examples/1.jpg": b"second",
            "answer.json": json.dumps({"predictions": [answer]}),
            "code/inference.py": code,
        }
        # The time that gzip writes into its header would make another archive of it.
        target.write_bytes(gzip.compress(gzip.decompress(pack(files)), mtime=0))
        return target

    monkeypatch.setattr(deployment, "build_archive", build)


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Ctrl-C as soon as the endpoint is waited for."""
    wait = endpoint.wait_settled

    def interrupted(aws: Aws, waited_for: str, **options: Any) -> Any:
        if waited_for == name:
            raise KeyboardInterrupt
        return wait(aws, waited_for, **options)

    monkeypatch.setattr(endpoint, "wait_settled", interrupted)


class Account:
    """What the local SageMaker has, and calls of its endpoints."""

    def __init__(self, server: LocalSageMaker):
        self.server = server
        session = boto3.session.Session(
            region_name="us-west-2", aws_access_key_id="testing", aws_secret_access_key="testing"
        )
        self.sagemaker, self.runtime, self.s3, self.cloudwatch, self.scaling = (
            session.client(name, endpoint_url=server.url)
            for name in ("sagemaker", "sagemaker-runtime", "s3", "cloudwatch", "application-autoscaling")
        )

    def close(self) -> None:
        for client in (self.sagemaker, self.runtime, self.s3, self.cloudwatch, self.scaling):
            client.close()

    def invoke(self, name: str = "dogs", *, body: bytes = REX, content_type: str = "image/jpeg") -> bytes:
        answer = self.runtime.invoke_endpoint(EndpointName=name, Body=body, ContentType=content_type)
        content: bytes = answer["Body"].read()
        return content

    def names(self) -> dict[str, list[str]]:
        """Everything that a deployment makes, but for objects."""
        sagemaker = self.sagemaker
        return {
            "endpoints": [each["EndpointName"] for each in sagemaker.list_endpoints()["Endpoints"]],
            "configs": [each["EndpointConfigName"] for each in sagemaker.list_endpoint_configs()["EndpointConfigs"]],
            "models": [each["ModelName"] for each in sagemaker.list_models()["Models"]],
            "alarms": [each["AlarmName"] for each in self.cloudwatch.describe_alarms()["MetricAlarms"]],
            "targets": [
                each["ResourceId"]
                for each in self.scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
            ],
        }

    def clear(self) -> None:
        """Deletes all that a test left."""
        made = self.names()
        for name in made["endpoints"]:
            self.sagemaker.delete_endpoint(EndpointName=name)
        wait_for(self.names, lambda names: not names["endpoints"])
        for name in made["configs"]:
            self.sagemaker.delete_endpoint_config(EndpointConfigName=name)
        for name in made["models"]:
            self.sagemaker.delete_model(ModelName=name)
        if made["alarms"]:
            self.cloudwatch.delete_alarms(AlarmNames=made["alarms"])
        for name in made["targets"]:
            self.scaling.deregister_scalable_target(**scaling_resource(name.split("/")[1]))
        for key in self.object_keys():
            self.s3.delete_object(Bucket=BUCKET, Key=key)

    def object_keys(self) -> list[str]:
        if not any(each["Name"] == BUCKET for each in self.s3.list_buckets()["Buckets"]):
            return []
        return [each["Key"] for each in self.s3.list_objects_v2(Bucket=BUCKET).get("Contents", ())]

    def tags(self, name: str = "dogs") -> dict[str, str]:
        arn = self.sagemaker.describe_endpoint(EndpointName=name)["EndpointArn"]
        return {each["Key"]: each["Value"] for each in self.sagemaker.list_tags(ResourceArn=arn)["Tags"]}

    @contextmanager
    def callers(
        self, answered: Callable[[bytes], object], count: int = 1, pause_s: float = 0.02, **call: Any
    ) -> "Iterator[Counter[str]]":
        """Threads that call the endpoint all the time; what `answered` makes of the answers, and codes of errors."""
        seen: Counter[str] = Counter()
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(pause_s):
                try:
                    seen[str(answered(self.invoke(**call)))] += 1
                except ClientError as error:
                    seen[error.response["Error"]["Code"]] += 1
                except BotoCoreError as error:
                    seen[type(error).__name__] += 1

        threads = [threading.Thread(target=run) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            ended.set()
            for thread in threads:
                thread.join()


@contextmanager
def account(folder: Path) -> Iterator[Account]:
    with LocalSageMaker(folder, settings=SETTINGS) as server:
        made = Account(server)
        try:
            yield made
        finally:
            made.close()
