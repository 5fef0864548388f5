"""Isolation of every test: its own stores, no credentials, no network but loopback, seeds, nothing left behind."""

import gc
import importlib.metadata
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest_plugins = ["sagemaker_jobs.local.fixture"]

FOLDER_MARKERS = ("unit", "contract", "e2e", "browser")
"""tests/<folder>/ gives its tests the marker of the same name."""

LEFTOVER_GRACE_S = 2.0
"""How long a test's threads and child processes may take to end after it."""

# Kept by a library for the rest of the process, by design; MLflow caches its artifact repositories with their pools.
PROCESS_LONG_THREADS = ("pytest_timeout", "tqdm_monitor", "MlflowMlflowArtifactsRepository")

VERSIONS = ("torch", "torchvision", "mlflow", "optuna", "numpy", "openvino", "moto")


def pytest_report_header() -> list[str]:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in VERSIONS]
    data_dir = os.environ.get("DOGBREED_DATA_DIR", "not set")
    return [f"{', '.join(versions)}; {os.cpu_count()} cores, {platform.machine()}", f"DOGBREED_DATA_DIR: {data_dir}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests_dir = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(tests_dir).parts[0]
        if folder in FOLDER_MARKERS:
            item.add_marker(folder)


@pytest.fixture(autouse=True)
def _isolated_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tracking store, run, credentials or user settings of the machine; config files in an empty folder."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "AWS_", "SM_", "OPTUNA_", "JSONARGPARSE_")):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    # Fixed credentials: boto3 signs with them, and finds no others on the machine.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "aws-credentials"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever connects outside this machine fails at once, with the address in the message."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def refuse_outside(sock: socket.socket, address: Any) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if host not in ("localhost", "::1") and not host.startswith("127."):
                raise OSError(f"Tests stay on 127.0.0.1; this one tried to reach {host}:{address[1]}.")

    def guarded_connect(sock: socket.socket, address: Any) -> None:
        refuse_outside(sock, address)
        connect(sock, address)

    def guarded_connect_ex(sock: socket.socket, address: Any) -> int:
        refuse_outside(sock, address)
        return connect_ex(sock, address)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_connect_ex)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """torch's global generator starts every test in the same state; where torch is not loaded, it stays so."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Where other programs work too, torch's threads wait for each other."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fails a test that leaves threads or child processes of its own."""
    threads_before = set(threading.enumerate())
    children_before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    # An executor that nobody holds any more ends its threads when it is collected.
    if set(threading.enumerate()) - threads_before:
        gc.collect()
    deadline = time.monotonic() + LEFTOVER_GRACE_S
    while (left := _leftovers(threads_before, children_before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    if left:
        pytest.fail(f"The test left behind: {'; '.join(left)}.", pytrace=False)


def _leftovers(threads_before: set[threading.Thread], children_before: set[int]) -> list[str]:
    left = [
        f"thread {thread.name}"
        for thread in threading.enumerate()
        if thread not in threads_before and thread.is_alive() and not _is_process_long(thread)
    ]
    for child in psutil.Process().children(recursive=True):
        if child.pid in children_before:
            continue
        try:
            if child.status() != psutil.STATUS_ZOMBIE and not _is_resource_tracker(child):
                left.append(f"process {child.pid} {' '.join(child.cmdline())[:120]}")
        except psutil.NoSuchProcess:
            continue
    return left


def _is_process_long(thread: threading.Thread) -> bool:
    return thread.name.startswith(PROCESS_LONG_THREADS)


def _is_resource_tracker(child: psutil.Process) -> bool:
    """multiprocessing keeps one of these for the life of the process that first spawned a worker."""
    return any("resource_tracker" in part or "forkserver" in part for part in child.cmdline())


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run, to be copied: MLflow takes 2 to 6 s to make one."""
    from dogbreed_ml.config import TrackingConfig
    from dogbreed_ml.tracking import Tracker

    folder = tmp_path_factory.mktemp("empty-store")
    Tracker.open(project_dir=folder, config=TrackingConfig()).close()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def photographs_dir() -> Path:
    """Real photographs: dogs/<breed>/*.jpg, dogs-original-size/, weights/resnet50-v1-imagenet-fp16.pth."""
    folder = os.environ.get("DOGBREED_DATA_DIR")
    if not folder or not Path(folder, "dogs").is_dir():
        pytest.skip("needs real photographs: set DOGBREED_DATA_DIR to a folder that holds dogs/BREED/*.jpg")
    return Path(folder)


@pytest.fixture(scope="session")
def weights_path(photographs_dir: Path) -> Path:
    """Real ImageNet weights of ResNet50; they go with model.resnet_version "1"."""
    return photographs_dir / "weights" / "resnet50-v1-imagenet-fp16.pth"
