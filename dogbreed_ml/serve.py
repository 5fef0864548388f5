"""The Predictor: image bytes in, breeds out. No HTTP, no MLflow; torch, torchvision, Pillow and numpy alone.

OpenVINO is used where it is installed and asked for, or where `auto` finds it faster.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from dogbreed_ml.backend import Backend, Images, available_backends, build_backend, device_of, run_all
from dogbreed_ml.checkpoint import Checkpoint, build_module, load_checkpoint
from dogbreed_ml.errors import BackendError, ConfigError, ImageError
from dogbreed_ml.policies import ServingBackendName
from dogbreed_ml.quantization import find_int8, load_report
from dogbreed_ml.servingchoice import ServingChoice, choose_serving_backend, softmax
from dogbreed_ml.transforms import MAX_BYTES, MAX_PIXELS, Preprocessing, decode_image, to_square

BATCH_SIZE = 16
"""Images that `predict` decodes and recognises at a time."""

UNSURE = "unsure"
"""The answer where no breed is as probable as asked for."""


@dataclass(frozen=True)
class Prediction:
    """What one image shows."""

    breed: str
    """The most probable breed."""
    probability: float
    """Of that breed, in [0, 1]."""
    top5: tuple[tuple[str, float], ...]
    """The most probable breeds with their probabilities, best first; five of them unless asked otherwise."""
    is_sure: bool = True
    """Whether the probability reaches the predictor's min_probability."""

    @property
    def answer(self) -> str:
        """The breed, or `unsure`."""
        return self.breed if self.is_sure else UNSURE


class Predictor:
    """Recognises breeds with one network; safe to share between threads."""

    def __init__(
        self,
        backend: Backend,
        classes: tuple[str, ...],
        *,
        preprocessing: Preprocessing,
        temperature: float = 1.0,
        min_probability: float = 0.0,
        flip: bool = False,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
        choice: ServingChoice | None = None,
    ):
        """`backend` gives logits (B, len(classes)) for squares (B, S, S, 3) uint8.

        `flip` averages the logits of each image and its mirror image, in twice the time.
        """
        self.classes = classes
        self.preprocessing = preprocessing
        self.temperature = temperature
        self.min_probability = min_probability
        self.choice = choice
        """How `auto` came to its back end; None where one was asked for by name."""
        self._backend = backend
        self._flip = flip
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        # A back end's requests are its own; two callers at once would only take turns on the same cores.
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        backend: ServingBackendName = "auto",
        device: str = "auto",
        min_probability: float = 0.0,
        flip: bool = False,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
    ) -> "Predictor":
        """Loads a checkpoint file, and the INT8 model beside it where there is one.

        `auto` takes the back end that is fastest here and agrees with torch fp32 on the example images. Raises
        CheckpointError, ModelError, or BackendError for a device or back end that is absent.
        """
        int8_path = find_int8(path)
        if backend == "openvino-int8" and int8_path is None:
            report = load_report(path)
            if report is not None and not report.accepted:
                raise BackendError(
                    f"openvino-int8 must lose less than half a point of valid's top-1; this model fell from "
                    f"{report.accuracy_fp32:.2%} to {report.accuracy_int8:.2%}. Take another back end."
                )
        return cls.from_checkpoint(
            load_checkpoint(path),
            backend=backend,
            device=device,
            int8_path=int8_path,
            min_probability=min_probability,
            flip=flip,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
        )

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        backend: ServingBackendName = "auto",
        device: str = "auto",
        int8_path: Path | None = None,
        min_probability: float = 0.0,
        flip: bool = False,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
    ) -> "Predictor":
        """As `load`, of a checkpoint in memory; `int8_path` is its model.xml."""
        torch_device = _available_device(device)
        preprocessing = checkpoint.preprocessing
        module = build_module(checkpoint)

        def build(name: ServingBackendName) -> Backend:
            return build_backend(
                name,
                module,
                image_size=preprocessing.image_size,
                device=torch_device,
                purpose="latency",
                int8_path=int8_path,
            )

        choice = None
        if backend == "auto":
            candidates: list[ServingBackendName] = [*available_backends(torch_device)]
            if int8_path is not None and "openvino-fp32" in candidates:
                candidates.insert(0, "openvino-int8")
            built, choice = choose_serving_backend(
                build, candidates, preprocessing=preprocessing, temperature=checkpoint.temperature
            )
        else:
            built = build(backend)
        return cls(
            built,
            checkpoint.classes,
            preprocessing=preprocessing,
            temperature=checkpoint.temperature,
            min_probability=min_probability,
            flip=flip,
            max_bytes=max_bytes,
            max_pixels=max_pixels,
            choice=choice,
        )

    @property
    def backend_name(self) -> ServingBackendName:
        """What runs the network; never `auto`."""
        return cast(ServingBackendName, self._backend.name)

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """An image file's bytes as the square (S, S, 3) that the network sees.

        JPEG, PNG, WebP, the first frame of a GIF and what else training reads. Raises ImageError with the reason.
        """
        if len(data) > self._max_bytes:
            raise ImageError(f"too large: {len(data)} bytes, at most {self._max_bytes} are read")
        return to_square(decode_image(data, max_pixels=self._max_pixels), self.preprocessing)

    def logits(self, squares: Images) -> NDArray[np.float32]:
        """Logits (B, K), before the temperature, of squares (B, S, S, 3) uint8; B may be 0."""
        if not len(squares):
            return np.zeros((0, len(self.classes)), dtype=np.float32)
        with self._lock:
            logits = run_all(self._backend, squares).astype(np.float32)
            if self._flip:
                mirrored = np.ascontiguousarray(squares[:, :, ::-1])
                logits = (logits + run_all(self._backend, mirrored).astype(np.float32)) / 2
        return logits

    def recognise(self, squares: Images, *, top_k: int = 5) -> list[Prediction]:
        """What each of the squares (B, S, S, 3) uint8 shows; B may be 0."""
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}.")
        probabilities = softmax(self.logits(squares), self.temperature)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        rows = zip(best.tolist(), np.take_along_axis(probabilities, best, axis=1).tolist(), strict=True)
        ranked = [tuple(zip((self.classes[i] for i in indices), values, strict=True)) for indices, values in rows]
        return [
            Prediction(breeds[0][0], breeds[0][1], breeds, is_sure=breeds[0][1] >= self.min_probability)
            for breeds in ranked
        ]

    def predict(self, images: Sequence[bytes], *, top_k: int = 5) -> list[Prediction]:
        """Recognises each image file's bytes; all of them or, with an ImageError that names the index, none."""
        predictions = self.recognise(np.zeros((0, 0, 0, 3), dtype=np.uint8), top_k=top_k)
        for start in range(0, len(images), BATCH_SIZE):
            squares = self._decode_all(images[start : start + BATCH_SIZE], first_index=start)
            predictions.extend(self.recognise(squares, top_k=top_k))
        return predictions

    def _decode_all(self, images: Sequence[bytes], *, first_index: int) -> Images:
        squares = []
        for index, data in enumerate(images, start=first_index):
            try:
                squares.append(self.decode(data))
            except ImageError as error:
                raise ImageError(f"images[{index}] must be an image that can be read: {error}.") from error
        return np.stack(squares)


def _available_device(name: str) -> torch.device:
    try:
        device = device_of(name)
        torch.empty(0, device=device)
    # torch raises an AssertionError where it is built without that device.
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise BackendError(f"device must be one that torch has here, got {name!r} ({first_line}); try cpu.") from error
    return device
