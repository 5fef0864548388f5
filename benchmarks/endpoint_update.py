"""What an endpoint's callers notice of a blue/green update: the rate held, latencies, and what failed."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.local_invoke import pack
from benchmarks.results import BenchmarkError, Figure, Goal, Result, each
from benchmarks.settings import CHECKOUT, Settings
from dogbreed_ml.cloudconfig import HostingConfig
from sagemaker_jobs.endpoints.guard_requests import update_members
from sagemaker_jobs.local.fixture import RunningServer, start_server, stop_server

_AT_ONCE = """
def model_fn(model_dir):
    return None
def transform_fn(model, body, content_type, accept):
    return b"VERSION", "text/plain"
"""
_BUCKET = "benchmark-update"
_IMAGE = "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"
_RATE = 200.0
_NUM_CLIENTS = 4
_SIZES = (64, 224)
"""Sides of the networks' images, pixels."""
_DEADLINE_S = 300.0


def measure(settings: Settings) -> Result:
    """Two versions each of a model that answers at once and of ResNet50; the second takes over under load."""
    folder = settings.folder("endpoint-update")
    photograph_path = _draw(folder)
    sizes = _SIZES[:1] if settings.is_quick else _SIZES
    archives = {"answers at once": [pack(_AT_ONCE.replace("VERSION", f"version {each}")) for each in (1, 2)]}
    archives |= {f"ResNet50, {size} x {size}": _networks(folder, size) for size in sizes}
    figures: list[Figure] = []
    server = start_server(folder, "--skip-requirements")
    try:
        with closing(server.client("s3")) as s3, closing(server.client("sagemaker")) as sagemaker:
            s3.create_bucket(Bucket=_BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
            for number, (label, versions) in enumerate(archives.items()):
                name = f"update-{number}"
                for version, archive in enumerate(versions):
                    _make(s3, sagemaker, f"{name}-{version}", archive)
                told = _update_under_load(sagemaker, server, name, photograph_path, settings=settings)
                figures += _figures(label, told)
    finally:
        stop_server(server)
    notes = (
        f"{_NUM_CLIENTS} clients of boto3 in one process send at most {_RATE:g} requests a second, one at a time each.",
        "One instance is replaced by another; clients, server and both instances share this machine's cores.",
        "A drawn dog as JPEG of 10 kB; random weights, which compute as long as trained ones.",
    )
    return Result("endpoint_update", "an endpoint's callers during its update", tuple(figures), notes)


def _draw(folder: Path) -> Path:
    from dogbreed_ml.examples import example_images

    path = folder / "dog.jpg"
    path.write_bytes(example_images()[0])
    return path


def _networks(folder: Path, size: int) -> list[bytes]:
    """Model archives as `dogbreed deploy` makes them."""
    import torch

    from dogbreed_ml.checkpoint import Checkpoint, save_checkpoint
    from dogbreed_ml.config import ExperimentConfig
    from dogbreed_ml.model import build_resnet50
    from dogbreed_ml.transforms import Preprocessing
    from sagemaker_jobs.endpoints.model_archive import Origin, build_model_archive

    breeds = ("Beagle", "Boxer", "Chow", "Dingo")
    archives = []
    for version in (1, 2):
        torch.manual_seed(version)
        weights = dict(build_resnet50(len(breeds), resnet_version="1.5").state_dict())
        checkpoint = Checkpoint(weights, breeds, Preprocessing(image_size=size), "1.5", ExperimentConfig())
        path = save_checkpoint(checkpoint, folder / f"{size}-{version}" / "checkpoint.pt")
        origin = Origin(model_name="benchmark", version=version, run_id=None, commit=None)
        archives.append(build_model_archive(path, path.with_name("model.tar.gz"), origin=origin).read_bytes())
    return archives


def _make(s3: Any, sagemaker: Any, name: str, archive: bytes) -> None:
    s3.put_object(Bucket=_BUCKET, Key=f"{name}/model.tar.gz", Body=archive)
    sagemaker.create_model(
        ModelName=name,
        PrimaryContainer={"Image": _IMAGE, "ModelDataUrl": f"s3://{_BUCKET}/{name}/model.tar.gz"},
        ExecutionRoleArn="arn:aws:iam::123456789012:role/sagemaker",
    )
    variant = {"VariantName": "v", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])


def _update_under_load(
    sagemaker: Any, server: RunningServer, name: str, photograph_path: Path, *, settings: Settings
) -> Mapping[str, Any]:
    """What the clients say of 5 s before the update, the update, 5 s in which both are up, and 5 s after it."""
    quiet_s = 1 if settings.is_quick else 5
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=f"{name}-0")
    _wait(sagemaker, name)
    with _load(server, name, photograph_path, environment=settings.environment) as clients:
        time.sleep(quiet_s)
        members = update_members(HostingConfig(bake_s=quiet_s), [])
        sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=f"{name}-1", **members)
        _wait(sagemaker, name)
        time.sleep(quiet_s)
        clients.send_signal(signal.SIGINT)
        told, _ = clients.communicate(timeout=_DEADLINE_S)
    sagemaker.delete_endpoint(EndpointName=name)
    if clients.returncode:
        raise BenchmarkError(f"The clients of {name} ended with {clients.returncode}.")
    answers: Mapping[str, Any] = json.loads(told)
    return answers


@contextmanager
def _load(
    server: RunningServer, name: str, photograph_path: Path, *, environment: Mapping[str, str]
) -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-m", "benchmarks.endpoint_load", name, str(photograph_path)]
    command += ["--clients", str(_NUM_CLIENTS), "--rate", str(_RATE), "--seconds", str(_DEADLINE_S)]
    clients = subprocess.Popen(
        command, cwd=CHECKOUT, env={**environment, **server.environment}, stdout=subprocess.PIPE, text=True
    )
    try:
        yield clients
    finally:
        if clients.poll() is None:
            clients.kill()
            clients.communicate()


def _wait(sagemaker: Any, name: str) -> None:
    """Until the endpoint is in service."""
    deadline = time.monotonic() + _DEADLINE_S
    while (status := sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"]) in ("Creating", "Updating"):
        if time.monotonic() > deadline:
            raise BenchmarkError(f"The endpoint is still {status} after {_DEADLINE_S:.0f} s.")
        time.sleep(0.1)
    if status != "InService":
        raise BenchmarkError(f"The endpoint must be InService, got {status}.")


def _figures(label: str, told: Mapping[str, Any]) -> list[Figure]:
    if len(told["answers"]) < 2:
        raise BenchmarkError(f"{label}: both versions must have answered, got {told['answers']}.")
    return [
        each(f"{label}: answered", [told["answered_per_s"]], "requests/s"),
        each(f"{label}: p50", [told["p50_ms"]], "ms"),
        each(f"{label}: p99", [told["p99_ms"]], "ms"),
        each(f"{label}: failed of {told['answered'] + told['failed']}", [told["failed"]], "", goal=Goal("at most", 0)),
    ]
