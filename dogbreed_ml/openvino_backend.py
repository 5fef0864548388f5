"""OpenVINO on the CPU: a torch module converted, compiled for throughput or for latency, and run.

The only place that imports openvino; nothing here is imported before it is asked for.
"""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dogbreed_ml.errors import BackendError

Images = NDArray[np.uint8]
"""(B, S, S, 3)."""
Outputs = NDArray[Any]

Purpose = Literal["throughput", "latency"]
"""throughput: many images, one stream a core; latency: an image at a time, every core at work on it."""


class OpenVinoBackend:
    """A model that is fed (B, S, S, 3) uint8; a backend.Backend."""

    def __init__(self, model: Any, image_size: int, *, precision: str, name: str, purpose: Purpose):
        """`precision` is OpenVINO's: f32 or bf16."""
        self.name = name
        # Larger batches were slower, in both ways of running.
        self.batch_size = 2 if purpose == "throughput" else 1
        self.dtype = np.float32 if name == "openvino-fp32" else np.float16
        model.reshape([self.batch_size, image_size, image_size, 3])
        properties = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": purpose.upper()}
        compiled = import_openvino().Core().compile_model(model, "CPU", properties)
        # Two requests a stream: while one is computed, the other's output is fetched and its place is filled.
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


def import_openvino() -> Any:
    """OpenVINO without its telemetry; raises ImportError where it is not installed."""
    # Its converter sends each conversion to Google Analytics, unasked, and keeps a client id in the home folder, unless
    # this module cannot be imported; then it uses the stub that it brings for that.
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    import openvino

    return openvino


@cache
def capabilities() -> tuple[str, ...]:
    """What OpenVINO can do on this CPU, BF16 and INT8 among it; nothing where it is not installed."""
    try:
        ov = import_openvino()
    except ImportError:
        return ()
    return tuple(ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def convert(module: nn.Module, image_size: int) -> Any:
    """An OpenVINO model that takes (B, S, S, 3) uint8."""
    import warnings

    ov = import_openvino()

    class ChannelsLast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, images: Tensor) -> Tensor:
            output: Tensor = self.inner(images.permute(0, 3, 1, 2))
            return output

    example = torch.zeros(1, image_size, image_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        # OpenVINO's converter goes by torch.jit, which torch announces to retire.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        # Left to itself the converter traces with a check that takes as long again (1.0 of 2.0 s); each back end is
        # compared with torch anyway.
        traced = torch.jit.trace(ChannelsLast().eval(), example, check_trace=False)
        return ov.convert_model(traced, example_input=example)


def read_model(path: Path) -> Any:
    """A model that `save_model` wrote; raises BackendError where it cannot be read."""
    try:
        return import_openvino().Core().read_model(path)
    except RuntimeError as error:
        first_line = str(error).splitlines()[0]
        raise BackendError(f"{path} must be an OpenVINO model with its .bin beside it: {first_line}.") from error


def save_model(model: Any, path: Path) -> None:
    """Writes `path` (.xml) and the .bin beside it."""
    import_openvino().save_model(model, path)
