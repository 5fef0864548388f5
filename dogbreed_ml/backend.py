"""An nn.Module run as fast as this device can, and the check that it still computes the same.

Every back end takes batches of images as (B, S, S, 3) uint8 arrays, the layout that decoding gives, and keeps several
in flight while it yields the outputs in order. The reference is torch fp32.
"""

import logging
import os
import platform
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from time import perf_counter
from types import ModuleType
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dogbreed_ml.config import BackendName
from dogbreed_ml.errors import BackendError

logger = logging.getLogger(__name__)

MIN_COSINE = 0.999
"""A back end agrees where every image's output has at least this cosine to torch fp32's."""

NUM_AGREEMENT_IMAGES = 64
"""Images of the data set that the agreement is checked on."""

_NUM_TIMED_IMAGES = 16

Images = NDArray[np.uint8]
Outputs = NDArray[Any]


class Backend(Protocol):
    """A module made ready to run on one device in one precision."""

    name: str
    batch_size: int
    """Images in a batch at which this back end is fastest; the last batch may be smaller."""
    dtype: type[np.floating[Any]]
    """What the outputs are worth keeping in: float32 for an fp32 back end, else float16."""

    def run(self, batches: Iterable[Images]) -> Iterator[Outputs]:
        """Yields the output (B, ...) of each batch (B, S, S, 3), in order."""


class TorchBackend:
    """torch on the CPU or on CUDA, channels last."""

    def __init__(self, module: nn.Module, *, device: torch.device, autocast: torch.dtype | None, name: str):
        self.name = name
        self.batch_size = 128 if device.type == "cuda" else 8
        self.dtype = np.float32 if autocast is None else np.float16
        self._device = device
        self._autocast = autocast
        self._module = module.eval().to(device).to(memory_format=torch.channels_last)

    def run(self, batches: Iterable[Images]) -> Iterator[Outputs]:
        # On CUDA each result is fetched one batch late, so that the device never waits for the host.
        pending: deque[Tensor] = deque()
        for batch in batches:
            pending.append(self._launch(batch))
            if len(pending) > (2 if self._device.type == "cuda" else 0):
                yield self._fetch(pending.popleft())
        while pending:
            yield self._fetch(pending.popleft())

    def _launch(self, batch: Images) -> Tensor:
        images = torch.from_numpy(batch)
        if self._device.type == "cuda":
            images = images.pin_memory().to(self._device, non_blocking=True)
        enabled = self._autocast is not None
        with torch.inference_mode(), torch.autocast(self._device.type, dtype=self._autocast, enabled=enabled):
            output: Tensor = self._module(images.permute(0, 3, 1, 2))
        return output

    def _fetch(self, output: Tensor) -> Outputs:
        result: Outputs = output.float().cpu().numpy()
        return result


class OpenVinoBackend:
    """OpenVINO on the CPU: one stream a core, small batches."""

    def __init__(self, module: nn.Module, *, image_size: int, precision: str, name: str):
        ov = _import_openvino()
        self.name = name
        self.batch_size = 2
        self.dtype = np.float32 if precision == "f32" else np.float16
        model = _convert(module, image_size)
        model.reshape([self.batch_size, image_size, image_size, 3])
        properties = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "THROUGHPUT"}
        compiled = ov.Core().compile_model(model, "CPU", properties)
        num_requests = 2 * int(compiled.get_property("NUM_STREAMS"))
        self._idle = deque(compiled.create_infer_request() for _ in range(num_requests))

    def run(self, batches: Iterable[Images]) -> Iterator[Outputs]:
        pending: deque[tuple[Any, int]] = deque()
        try:
            for batch in batches:
                if not self._idle:
                    yield self._fetch(pending)
                request = self._idle.popleft()
                # The shape is fixed: the last batch is filled up, and its surplus rows are dropped.
                surplus = self.batch_size - len(batch)
                full = np.concatenate([batch, np.repeat(batch[-1:], surplus, axis=0)]) if surplus else batch
                request.start_async({0: full})
                pending.append((request, len(batch)))
            while pending:
                yield self._fetch(pending)
        finally:
            for request, _ in pending:
                request.wait()
                self._idle.append(request)

    def _fetch(self, pending: deque[tuple[Any, int]]) -> Outputs:
        request, num_rows = pending.popleft()
        request.wait()
        output: Outputs = request.get_output_tensor(0).data[:num_rows].copy()
        self._idle.append(request)
        return output


def _import_openvino() -> Any:
    """OpenVINO without its telemetry; raises ImportError where it is not installed."""
    # Its converter sends each conversion to Google Analytics, unasked, and keeps a client id in the home folder, unless
    # this module cannot be imported; then it uses the stub that it brings for that.
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    import openvino

    return openvino


def _convert(module: nn.Module, image_size: int) -> Any:
    """An OpenVINO model that takes (B, S, S, 3) uint8."""
    import warnings

    ov = _import_openvino()

    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, images: Tensor) -> Tensor:
            output: Tensor = self.inner(images.permute(0, 3, 1, 2))
            return output

    example = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # OpenVINO's converter traces with torch.jit, which torch announces to retire.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        return ov.convert_model(ChannelsLast().eval(), example_input=example)


def device_of(name: str = "auto") -> torch.device:
    """The device that `auto` means: CUDA where there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def available_backends(device: torch.device) -> list[BackendName]:
    """The back ends that this machine can run, the reduced precisions first."""
    if device.type == "cuda":
        return ["torch-amp", "torch-fp32"]
    reduced: list[BackendName] = []
    full: list[BackendName] = ["torch-fp32"]
    openvino_capabilities = _openvino_capabilities()
    if "BF16" in openvino_capabilities:
        reduced.append("openvino-bf16")
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        reduced.append("torch-bf16")
    if openvino_capabilities:
        full.insert(0, "openvino-fp32")
    return [*reduced, *full]


def _openvino_capabilities() -> list[str]:
    try:
        ov = _import_openvino()
    except ImportError:
        return []
    return list(ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def build_backend(name: BackendName, module: nn.Module, *, image_size: int, device: torch.device) -> Backend:
    """Makes `module` ready; raises BackendError where this machine cannot run `name`."""
    available = available_backends(device)
    if name not in available:
        raise BackendError(
            f"features.backend must be one that runs on this {device.type}: auto, {', '.join(available)}; got {name}."
        )
    if name == "openvino-bf16":
        return OpenVinoBackend(module, image_size=image_size, precision="bf16", name=name)
    if name == "openvino-fp32":
        return OpenVinoBackend(module, image_size=image_size, precision="f32", name=name)
    autocast = {"torch-bf16": torch.bfloat16, "torch-amp": torch.float16}.get(name)
    return TorchBackend(module, device=device, autocast=autocast, name=name)


def batched(images: Images, batch_size: int) -> Iterator[Images]:
    """Cuts (N, S, S, 3) into batches."""
    for start in range(0, len(images), batch_size):
        yield images[start : start + batch_size]


def run_all(backend: Backend, images: Images) -> Outputs:
    """The outputs (N, ...) of images (N, S, S, 3) that are in memory."""
    return np.concatenate(list(backend.run(batched(images, backend.batch_size))))


def min_cosine(outputs: Outputs, reference: Outputs) -> float:
    """The smallest cosine between corresponding rows, in [-1, 1]; NaN where an output is NaN."""
    a = torch.from_numpy(np.asarray(outputs, dtype=np.float32)).flatten(1)
    b = torch.from_numpy(np.asarray(reference, dtype=np.float32)).flatten(1)
    return float(torch.nn.functional.cosine_similarity(a, b, dim=1).min())


def check_agreement(backend: Backend, images: Images, reference: Outputs) -> float:
    """The smallest cosine of the back end's outputs on `images` to torch fp32's.

    Raises BackendError, by the back end's name, where it is below MIN_COSINE or not a number.
    """
    cosine = min_cosine(run_all(backend, images).astype(backend.dtype), reference)
    if not cosine >= MIN_COSINE:
        raise BackendError(
            f"{backend.name} must agree with torch-fp32 to a cosine of {MIN_COSINE} on each of {len(images)} images, "
            f"got {cosine:.5f}; set features.backend to another."
        )
    return cosine


@dataclass(frozen=True)
class BackendChoice:
    """What `auto` chose on this machine, and how fast each candidate was."""

    name: BackendName
    images_per_s: dict[str, float]


def choose_backend(
    build: Callable[[BackendName], Backend], images: Images, reference: Outputs, *, device: torch.device
) -> tuple[Backend, BackendChoice]:
    """The fastest back end here that agrees with torch fp32.

    The reduced precisions are timed first; fp32 ones only where none of those agrees, because on the same machine
    they are slower (measured: 32 to 62 images/s).
    """
    available = available_backends(device)
    speeds: dict[str, float] = {}
    for group in ([n for n in available if "fp32" not in n], [n for n in available if "fp32" in n]):
        timed = []
        for name in group:
            backend = build(name)
            speeds[name] = _images_per_s(backend, images[:_NUM_TIMED_IMAGES])
            timed.append(backend)
        for backend in sorted(timed, key=lambda each: -speeds[each.name]):
            try:
                check_agreement(backend, images, reference)
            except BackendError as error:
                logger.warning("%s", error)
                continue
            return backend, BackendChoice(next(n for n in group if n == backend.name), speeds)
    raise BackendError(f"No back end of {', '.join(available)} gives finite features; are the weights damaged?")


def _images_per_s(backend: Backend, images: Images) -> float:
    run_all(backend, images[: 2 * backend.batch_size])
    start = perf_counter()
    run_all(backend, images)
    return round(len(images) / (perf_counter() - start), 1)


def machine_key(device: torch.device) -> str:
    """Names the machine and library versions that a choice holds for."""
    try:
        openvino = metadata.version("openvino")
    except metadata.PackageNotFoundError:
        openvino = "none"
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return f"{processor} x{os.cpu_count()} torch {torch.__version__} openvino {openvino}"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
