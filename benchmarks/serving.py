"""Our server beside what a user would run instead: same photographs, same checkpoint, same clients, same run."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import torch

from benchmarks.features import build_frozen
from benchmarks.litserve_server import PLAIN
from benchmarks.load_client import Kind
from benchmarks.photographs import PREPROCESSING, Photographs, collect, squares
from benchmarks.processes import run_python
from benchmarks.results import BenchmarkError, Figure, Goal, Result, each, ratios
from benchmarks.settings import CHECKOUT, Settings
from dogbreed_ml.backend import available_backends, build_backend, device_of, run_all
from dogbreed_ml.checkpoint import Checkpoint, build_module, load_checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig, ModelConfig
from dogbreed_ml.policies import DeployConfig, ServingBackendName
from dogbreed_ml.quantization import find_int8, quantize
from dogbreed_ml.server.process import start_server

logger = logging.getLogger(__name__)

NUM_CLIENTS = (1, 2, 4, 8, 16, 32)
MAX_OVERHEAD_MS = 2.5
"""What one client may wait beyond the bare loop."""
_START_TIMEOUT_S = 180.0
_OVERLOAD_CLIENTS = 200
_OVERLOAD = 4
_OVERLOAD_TIMES = 3
"""The queue takes some seconds to fill."""

Level = Mapping[str, Any]
"""What benchmarks.load_client tells of one number of clients."""


@dataclass(frozen=True)
class Served:
    """A way to serve, measured at each number of clients, once a repetition."""

    name: str
    levels: list[Mapping[str, Level]]

    def values(self, num_clients: int, what: str) -> list[float]:
        return [float(level[str(num_clients)][what]) for level in self.levels]


def measure(settings: Settings) -> Result:
    """Every way of serving in turn, as often as there are repetitions."""
    quick = settings.is_quick
    photographs = collect(settings, "serving", num_breeds=8, num_per_breed=3 if quick else 20)
    checkpoint_path = make_checkpoint(settings, photographs)
    backends = _our_backends(checkpoint_path)
    run = _Run(settings, photographs, checkpoint_path, seconds=0.5 if quick else 4.0)
    clients = (1, 8) if quick else NUM_CLIENTS
    served: dict[str, Served] = {}
    bare: dict[str, list[dict[str, float]]] = {}
    overload: list[Level] = []
    for _ in range(settings.num_repetitions):
        for backend in backends:
            bare.setdefault(backend, []).append(run.bare(backend))
            for name, level in run.ours(backend, clients).items():
                served.setdefault(name, Served(name, [])).levels.append(level)
        others: list[tuple[str, Callable[[], Mapping[str, Level]]]] = [
            ("mlflow models serve, pytorch flavour", lambda: run.mlflow(clients)),
            ("LitServe, plain torch", lambda: run.litserve(PLAIN, clients)),
            (f"LitServe, our {backends[0]}", lambda: run.litserve(backends[0], clients)),
        ]
        for name, level_of in others:
            served.setdefault(name, Served(name, [])).levels.append(level_of())
        rate = _OVERLOAD * served[f"ours, {backends[0]}"].values(8, "images_per_s")[-1]
        overload.append(run.overload(backends[0], rate))
    figures = [*_goals(served, bare, backends), *_overload_figures(overload, served, backends[0])]
    for name, rounds in bare.items():
        figures.append(each(f"bare loop, {name}: p50", [found["p50_ms"] for found in rounds], "ms"))
        figures.append(each(f"bare loop, {name}", [found["images_per_s"] for found in rounds], "images/s"))
    for way in served.values():
        figures += _table(way, clients)
    notes = (
        f"{photographs.describe()}; {run.seconds:g} s for each number of clients, the clients on the same cores",
        "ours: raw JPEG, default deploy config; mlflow: normalised tensors as JSON; LitServe: base64 JSON, defaults",
        "the bare loop decodes and runs one photograph after the other in one process, without HTTP",
        f"overload: {_OVERLOAD} times the images/s of 8 clients, sent at that rate whether or not answers come",
    )
    return Result("serving", "requests to a server", tuple(figures), notes)


def _goals(
    served: Mapping[str, Served], bare: Mapping[str, list[dict[str, float]]], backends: Sequence[str]
) -> list[Figure]:
    figures = []
    mlflow = served["mlflow models serve, pytorch flavour"].values(8, "images_per_s")
    for backend in backends:
        ours = served[f"ours, {backend}"]
        p50, bare_p50 = ours.values(1, "p50_ms"), [found["p50_ms"] for found in bare[backend]]
        if backend.startswith("torch"):
            goal = Goal("at most", 1.2)
            figures.append(each(f"1 client, {backend}: p50 / bare loop's", ratios(p50, bare_p50), "x", goal=goal))
        else:
            beyond = [mine - theirs for mine, theirs in zip(p50, bare_p50, strict=True)]
            goal = Goal("at most", MAX_OVERHEAD_MS)
            figures.append(each(f"1 client, {backend}: p50 beyond the bare loop's", beyond, "ms", goal=goal))
        rates, bare_rates = ours.values(8, "images_per_s"), [found["images_per_s"] for found in bare[backend]]
        share = each(f"8 clients, {backend} / bare loop", ratios(rates, bare_rates), "x", goal=Goal("at least", 0.85))
        figures.append(share)
        goal = Goal("at least", 10)
        figures.append(each(f"8 clients, {backend} / mlflow models serve", ratios(rates, mlflow), "x", goal=goal))
    lit = served[f"LitServe, our {backends[0]}"].values(8, "images_per_s")
    rates = served[f"ours, {backends[0]}"].values(8, "images_per_s")
    goal = Goal("at least", 1)
    return [*figures, each(f"8 clients, {backends[0]} / LitServe with it", ratios(rates, lit), "x", goal=goal)]


def _overload_figures(overload: Sequence[Level], served: Mapping[str, Served], backend: str) -> list[Figure]:
    deploy = DeployConfig()
    # What is queued and what two batches hold, at the rate of 8 clients.
    rates = served[f"ours, {backend}"].values(8, "images_per_s")
    waits_ms = [(deploy.queue_size + 2 * deploy.max_batch_size) / rate * 1000 for rate in rates]
    p99 = [float(level["p99_ms"]) for level in overload]
    odd = [sum(num for status, num in level["statuses"].items() if status not in ("200", "503")) for level in overload]
    refused = [level["statuses"].get("503", 0) / sum(level["statuses"].values()) for level in overload]
    zero = Goal("at most", 0)
    return [
        each("overload: p99 / the full queue's time", ratios(p99, waits_ms), "x", goal=Goal("at most", 1.5)),
        each("overload: p99", p99, "ms"),
        each("overload: images/s that were answered", [float(level["images_per_s"]) for level in overload], "images/s"),
        each("overload: share answered with 503", refused, ""),
        each("overload: requests lost or answered otherwise", [float(num) for num in odd], "", goal=zero),
        each("overload: answers mixed up", [float(level["num_mixed"]) for level in overload], "", goal=zero),
    ]


def _table(way: Served, clients: Sequence[int]) -> list[Figure]:
    figures = []
    for number in clients:
        name = f"{way.name}: {number} client{'s' * (number > 1)}"
        figures.append(each(f"{name}, throughput", way.values(number, "images_per_s"), "images/s"))
        figures.append(each(f"{name}, p50", way.values(number, "p50_ms"), "ms"))
        figures.append(each(f"{name}, p95", way.values(number, "p95_ms"), "ms"))
    return figures


def make_checkpoint(settings: Settings, photographs: Photographs) -> Path:
    """The weights with a head of the breeds' mean features, and its INT8 model beside it.

    The speed of neither depends on the head; INT8's accuracy is measured by `dogbreed evaluate --int8`.
    """
    weights, network = build_frozen(settings)
    images = squares(photographs.samples)
    labels = np.array([sample.label for sample in photographs.samples], dtype=np.int64)
    device = device_of()
    backend = build_backend(
        available_backends(device)[0], network.prefix, image_size=PREPROCESSING.image_size, device=device
    )
    features = torch.from_numpy(run_all(backend, images).astype(np.float32))
    means = torch.stack([features[torch.from_numpy(labels == label)].mean(0) for label in sorted(set(labels.tolist()))])
    head = means - features.mean(0)
    head = head / (features @ head.T).std()
    config = ExperimentConfig(model=ModelConfig(weights="random", resnet_version=settings.resnet_version))
    state_dict = weights.state_dict | {"fc.weight": head, "fc.bias": -(features @ head.T).mean(0)}
    checkpoint = Checkpoint(state_dict, photographs.classes, PREPROCESSING, settings.resnet_version, config)
    path = save_checkpoint(checkpoint, settings.folder("serving") / "checkpoint.pt")
    if "openvino-fp32" in available_backends(device):
        logger.info("serving: quantizing")
        quantize(path, calibration=images, valid=[images[:8]], labels=_own_answers(path, images[:8]))
    return path


def _own_answers(path: Path, images: Any) -> Any:
    """torch fp32's, as the labels: the gate of INT8 is not what is measured here."""
    module = build_module(load_checkpoint(path))
    backend = build_backend("torch-fp32", module, image_size=PREPROCESSING.image_size, device=torch.device("cpu"))
    return run_all(backend, images).argmax(axis=1).astype(np.int64)


def _our_backends(checkpoint_path: Path) -> list[ServingBackendName]:
    """The one that LitServe is compared with comes first."""
    available = available_backends(device_of())
    wanted: list[ServingBackendName] = ["openvino-bf16", "torch-bf16", "torch-amp"]
    chosen: list[ServingBackendName] = [name for name in wanted if name in available]
    if find_int8(checkpoint_path) is not None:
        chosen.append("openvino-int8")
    return chosen or ["openvino-fp32" if "openvino-fp32" in available else "torch-fp32"]


@dataclass(frozen=True)
class _Run:
    settings: Settings
    photographs: Photographs
    checkpoint_path: Path
    seconds: float

    def ours(self, backend: ServingBackendName, clients: Sequence[int]) -> dict[str, Mapping[str, Level]]:
        logger.info("serving: ours, %s", backend)
        with start_server(self.checkpoint_path, config=DeployConfig(backend=backend)) as server:
            return {f"ours, {backend}": self._load(server.settings.port, "ours", clients)}

    def overload(self, backend: ServingBackendName, rate: float) -> Level:
        logger.info("serving: overload, %.0f requests/s", rate)
        with start_server(self.checkpoint_path, config=DeployConfig(backend=backend)) as server:
            extra = ("--rate", str(rate), "--seconds", str(_OVERLOAD_TIMES * self.seconds))
            levels = self._load(server.settings.port, "ours", (_OVERLOAD_CLIENTS,), *extra)
        return levels[str(_OVERLOAD_CLIENTS)]

    def litserve(self, backend: str, clients: Sequence[int]) -> Mapping[str, Level]:
        logger.info("serving: LitServe, %s", backend)
        port = _free_port()
        arguments = ["-m", "benchmarks.litserve_server", "--checkpoint", str(self.checkpoint_path)]
        arguments += ["--backend", backend, "--port", str(port)]
        with self._running(arguments, port, "/health"):
            return self._load(port, "litserve", clients, "--path", "/predict")

    def mlflow(self, clients: Sequence[int]) -> Mapping[str, Level]:
        logger.info("serving: mlflow models serve")
        folder = self.checkpoint_path.with_name("mlflow")
        if not folder.exists():
            _save_pytorch_flavour(self.checkpoint_path, folder)
        port = _free_port()
        arguments = ["-m", "mlflow", "models", "serve", "-m", str(folder), "--env-manager", "local"]
        with self._running([*arguments, "--port", str(port), "--workers", "1"], port, "/ping"):
            return self._load(port, "mlflow", clients)

    def bare(self, backend: str) -> dict[str, float]:
        logger.info("serving: the bare loop, %s", backend)
        arguments = ["-m", "benchmarks.bare_serving", "--checkpoint", str(self.checkpoint_path)]
        arguments += ["--backend", backend, "--photographs", str(self.photographs.dir)]
        arguments += ["--seconds", str(2 * self.seconds)]
        finished = run_python(arguments, cwd=self.checkpoint_path.parent, environment=self.settings.environment)
        told: dict[str, float] = json.loads(finished.stdout)
        return told

    def _load(self, port: int, kind: Kind, clients: Sequence[int], *extra: str) -> Mapping[str, Level]:
        arguments = ["-m", "benchmarks.load_client", "--port", str(port), "--kind", kind]
        arguments += ["--photographs", str(self.photographs.dir), "--seconds", str(self.seconds)]
        arguments += ["--clients", *map(str, clients), *extra]
        finished = run_python(arguments, cwd=self.checkpoint_path.parent, environment=self.settings.environment)
        told: Mapping[str, Level] = json.loads(finished.stdout)
        for number, level in told.items():
            logger.info(
                "serving:   %s clients: %.1f images/s, p50 %.1f ms", number, level["images_per_s"], level["p50_ms"]
            )
        return told

    @contextmanager
    def _running(self, arguments: Sequence[str], port: int, health_path: str) -> Iterator[None]:
        """A server of somebody else's, in a process group of its own; ended as a whole."""
        # MLflow starts `uvicorn` by its name.
        path = f"{Path(sys.executable).parent}{os.pathsep}{self.settings.environment.get('PATH', '')}"
        environment = {**self.settings.environment, "PATH": path, "PYTHONPATH": str(CHECKOUT)}
        log_path = self.checkpoint_path.with_name(f"server-{port}.log")
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=log_path.parent, env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            deadline = monotonic() + _START_TIMEOUT_S
            while not _is_up(port, health_path):
                if process.poll() is not None or monotonic() > deadline:
                    tail = log_path.read_text(errors="replace")[-1500:]
                    raise BenchmarkError(f"python {' '.join(arguments)} does not serve:\n{tail}")
                sleep(0.2)
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _save_pytorch_flavour(checkpoint_path: Path, folder: Path) -> None:
    """The plain module, as MLflow's manual says to save it."""
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    resnet = list(build_module(load_checkpoint(checkpoint_path)).children())[-1]
    shape = (3, PREPROCESSING.image_size, PREPROCESSING.image_size)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, *shape))]), Schema([TensorSpec(np.dtype("float32"), (-1, -1))])
    )
    # The format of its default, pt2, is made from the example.
    example = np.zeros((1, *shape), dtype=np.float32)
    requirements = ["torch", "torchvision"]
    mlflow.pytorch.save_model(
        resnet, str(folder), signature=signature, input_example=example, pip_requirements=requirements
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _is_up(port: int, path: str) -> bool:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
