"""An nn.Module run as fast as this device can, and the check that it still computes the same.

Every back end takes batches of images as (B, S, S, 3) uint8 arrays, the layout that decoding gives, and keeps several
in flight while it yields the outputs in order. The reference is torch fp32.
"""

import logging
import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dogbreed_ml.config import BackendName
from dogbreed_ml.errors import BackendError
from dogbreed_ml.openvino_backend import Images as Images
from dogbreed_ml.openvino_backend import OpenVinoBackend, Purpose, capabilities, convert, read_model
from dogbreed_ml.openvino_backend import Outputs as Outputs
from dogbreed_ml.policies import ServingBackendName

logger = logging.getLogger(__name__)

MIN_COSINE = 0.999
"""A back end agrees where every image's output has at least this cosine to torch fp32's."""

NUM_AGREEMENT_IMAGES = 64
"""Images of the data set that the agreement is checked on."""

_NUM_TIMED_IMAGES = 16


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

    def __init__(
        self,
        module: nn.Module,
        *,
        device: torch.device,
        autocast: torch.dtype | None,
        name: str,
        purpose: Purpose = "throughput",
    ):
        self.name = name
        # Requests that came together are run together.
        self.batch_size = 128 if device.type == "cuda" else 8 if purpose == "throughput" else 16
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
        # Pillow gives arrays that cannot be written, and torch warns of each.
        images = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
        if self._device.type == "cuda":
            images = images.pin_memory().to(self._device, non_blocking=True)
        enabled = self._autocast is not None
        with torch.inference_mode(), torch.autocast(self._device.type, dtype=self._autocast, enabled=enabled):
            output: Tensor = self._module(images.permute(0, 3, 1, 2))
        return output

    def _fetch(self, output: Tensor) -> Outputs:
        result: Outputs = output.float().cpu().numpy()
        return result


def device_of(name: str = "auto") -> torch.device:
    """The device that `auto` means: CUDA where there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def available_backends(device: torch.device) -> list[BackendName]:
    """The back ends that this machine can run, the reduced precisions first."""
    if device.type == "cuda":
        return ["torch-amp", "torch-fp32"]
    reduced: list[BackendName] = []
    full: list[BackendName] = ["torch-fp32"]
    openvino_capabilities = capabilities()
    if "BF16" in openvino_capabilities:
        reduced.append("openvino-bf16")
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        reduced.append("torch-bf16")
    if openvino_capabilities:
        full.insert(0, "openvino-fp32")
    return [*reduced, *full]


def build_backend(
    name: ServingBackendName,
    module: nn.Module,
    *,
    image_size: int,
    device: torch.device,
    purpose: Purpose = "throughput",
    int8_path: Path | None = None,
) -> Backend:
    """Makes `module` ready; raises BackendError where this machine cannot run `name`.

    openvino-int8 runs the quantized network of `int8_path` (model.xml) in place of `module`.
    """
    available: list[str] = [*available_backends(device)]
    if int8_path is not None and device.type == "cpu" and capabilities():
        available.append("openvino-int8")
    if name not in available:
        hint = "; `dogbreed evaluate --int8` makes an INT8 model" if name == "openvino-int8" else ""
        raise BackendError(
            f"A back end must be one that runs on this {device.type}: auto, {', '.join(available)}; got {name}{hint}."
        )
    if name == "openvino-int8" and int8_path is not None:
        # What NNCF left unquantized runs in bf16 where the CPU has it.
        precision = "bf16" if "BF16" in capabilities() else "f32"
        return OpenVinoBackend(read_model(int8_path), image_size, precision=precision, name=name, purpose=purpose)
    if name.startswith("openvino"):
        precision = "bf16" if name == "openvino-bf16" else "f32"
        model = convert(module, image_size)
        return OpenVinoBackend(model, image_size, precision=precision, name=name, purpose=purpose)
    autocast = {"torch-bf16": torch.bfloat16, "torch-amp": torch.float16}.get(name)
    return TorchBackend(module, device=device, autocast=autocast, name=name, purpose=purpose)


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
