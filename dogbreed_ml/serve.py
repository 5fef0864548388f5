"""The Predictor: image bytes in, breeds out. No HTTP, no MLflow; torch, torchvision, Pillow and numpy alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dogbreed_ml.checkpoint import Checkpoint, load_checkpoint
from dogbreed_ml.errors import BackendError, ConfigError, ImageError
from dogbreed_ml.model import Normalize, build_resnet50
from dogbreed_ml.transforms import Preprocessing, decode_image, to_square

BATCH_SIZE = 16
"""Images of one forward pass."""


@dataclass(frozen=True)
class Prediction:
    """What one image shows."""

    breed: str
    """The most probable breed."""
    probability: float
    """Of that breed, in [0, 1]."""
    top5: tuple[tuple[str, float], ...]
    """The most probable breeds with their probabilities, best first; five of them unless asked otherwise."""


class Predictor:
    """Recognises breeds with one network; safe to share between threads."""

    def __init__(
        self, network: nn.Module, classes: tuple[str, ...], *, preprocessing: Preprocessing, device: torch.device
    ):
        """`network` takes uint8 images (B, 3, S, S) on `device` and gives logits (B, len(classes))."""
        self.classes = classes
        self.preprocessing = preprocessing
        self._network = network
        self._device = device

    @classmethod
    def load(cls, path: Path, *, device: str = "cpu") -> "Predictor":
        """Loads a checkpoint file; raises CheckpointError, ModelError, or BackendError for a device that is absent."""
        return cls.from_checkpoint(load_checkpoint(path), device=device)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, *, device: str = "cpu") -> "Predictor":
        """Builds the network in eval mode, fp32, channels_last."""
        torch_device = _available_device(device)
        preprocessing = checkpoint.preprocessing
        resnet = build_resnet50(
            len(checkpoint.classes), resnet_version=checkpoint.resnet_version, state_dict=checkpoint.state_dict
        )
        network = nn.Sequential(Normalize(preprocessing.mean, preprocessing.std), resnet).eval().requires_grad_(False)
        network.to(torch_device, torch.float32).to(memory_format=torch.channels_last)
        return cls(network, checkpoint.classes, preprocessing=preprocessing, device=torch_device)

    def predict(self, images: Sequence[bytes], *, top_k: int = 5) -> list[Prediction]:
        """Recognises each image file's bytes; all of them or, with an ImageError that names the index, none."""
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}.")
        predictions: list[Prediction] = []
        for start in range(0, len(images), BATCH_SIZE):
            squares = self._decode(images[start : start + BATCH_SIZE], first_index=start)
            predictions.extend(self._recognise(squares, top_k=top_k))
        return predictions

    def _decode(self, images: Sequence[bytes], *, first_index: int) -> Tensor:
        squares = []
        for index, data in enumerate(images, start=first_index):
            try:
                squares.append(to_square(decode_image(data), self.preprocessing))
            except ImageError as error:
                raise ImageError(f"images[{index}] must be an image that can be read: {error}.") from error
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)

    def _recognise(self, squares: Tensor, *, top_k: int) -> list[Prediction]:
        with torch.inference_mode():
            probabilities = self._network(squares.to(self._device)).softmax(dim=1)
            best = probabilities.topk(min(top_k, len(self.classes)), dim=1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ranked = [tuple(zip((self.classes[i] for i in indices), values, strict=True)) for indices, values in rows]
        return [Prediction(breeds[0][0], breeds[0][1], breeds) for breeds in ranked]


def _available_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # torch raises an AssertionError where it is built without that device.
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise BackendError(f"device must be one that torch has here, got {name!r} ({first_line}); try cpu.") from error
    return device
