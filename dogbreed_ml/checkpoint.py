"""Checkpoints: weights, classes, preprocessing, temperature, config and format version in one file.

The file is torch.save's, loads with weights_only=True, and is written to a temporary name and then renamed.
"""

import json
import math
import os
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dogbreed_ml import __version__
from dogbreed_ml.config import ExperimentConfig, from_dict, to_dict
from dogbreed_ml.errors import CheckpointError, ConfigError
from dogbreed_ml.model import Normalize, build_resnet50
from dogbreed_ml.transforms import Preprocessing

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Format 1 knew neither temperature nor data_fingerprint."""
_KIND = "dogbreed-ml checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with everything that it needs to predict, and the config that it came from."""

    state_dict: dict[str, Tensor]
    """torchvision's resnet50 names; fc.weight (K, 2048), K = len(classes)."""
    classes: tuple[str, ...]
    """Breed names, in the order of the logits."""
    preprocessing: Preprocessing
    resnet_version: str
    """1 or 1.5, see ModelConfig.resnet_version."""
    config: ExperimentConfig
    temperature: float = 1.0
    """What logits are divided by before softmax, so that probabilities mean something; fitted on valid, above 0."""
    data_fingerprint: str | None = None
    """Splits.fingerprint of the data that it was trained on; None where nobody wrote it down."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise CheckpointError(f"A checkpoint's temperature must be above 0, got {self.temperature!r}.")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise CheckpointError(f"A checkpoint's classes must be distinct and at least one, got {self.classes!r}.")
        head = self.state_dict.get("fc.weight")
        if head is None or head.ndim != 2 or head.shape[0] != len(self.classes):
            shape = None if head is None else tuple(head.shape)
            raise CheckpointError(
                f"A checkpoint's fc.weight must have one row for each of its {len(self.classes)} classes, got {shape}."
            )


def build_module(checkpoint: Checkpoint) -> nn.Module:
    """The network in eval mode, fp32: uint8 images (B, 3, S, S) to logits (B, K). Raises ModelError."""
    preprocessing = checkpoint.preprocessing
    resnet = build_resnet50(
        len(checkpoint.classes), resnet_version=checkpoint.resnet_version, state_dict=checkpoint.state_dict
    )
    network = nn.Sequential(Normalize(preprocessing.mean, preprocessing.std), resnet)
    return network.to(torch.float32).eval().requires_grad_(False)


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> Path:
    """Writes the checkpoint, its folder included, and returns `path`; a file of that name is replaced at once.

    Raises CheckpointError where the disk refuses.
    """
    # As JSON, because a numpy scalar in a config would be saved by torch and then refused by weights_only=True.
    metadata = json.dumps(
        {
            "classes": checkpoint.classes,
            "preprocessing": checkpoint.preprocessing.to_dict(),
            "resnet_version": checkpoint.resnet_version,
            "config": to_dict(checkpoint.config),
            # float: a numpy scalar is no JSON.
            "temperature": float(checkpoint.temperature),
            "data_fingerprint": checkpoint.data_fingerprint,
        }
    )
    payload = {
        "kind": _KIND,
        "format_version": FORMAT_VERSION,
        "written_by": __version__,
        "metadata": metadata,
        "state_dict": {name: _standalone(tensor) for name, tensor in checkpoint.state_dict.items()},
    }
    temporary_path = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(payload, temporary_path)
        temporary_path.replace(path)
    # torch reports a full disk as a RuntimeError.
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} could not be written: {error}; free some space or name another folder."
        ) from error
    finally:
        temporary_path.unlink(missing_ok=True)
    return path


def _standalone(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    # torch.save writes the whole storage that a view looks at.
    is_view = tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
    return tensor.clone() if is_view else tensor


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint; its tensors are memory-mapped, so the file may be renamed or deleted, but not overwritten.

    Raises CheckpointError where the file is missing, damaged, something else, or of another format version.
    """
    payload = _load_payload(path)
    version = payload.get("format_version")
    if version not in READABLE_VERSIONS:
        known = " or ".join(map(str, READABLE_VERSIONS))
        raise CheckpointError(
            f"{path} must have checkpoint format {known}, got {version!r} (written by dogbreed-ml "
            f"{payload.get('written_by', 'unknown')}); read it with that version, or train again with this one."
        )
    try:
        metadata = json.loads(payload["metadata"])
        return Checkpoint(
            state_dict=dict(payload["state_dict"]),
            classes=tuple(metadata["classes"]),
            preprocessing=Preprocessing.from_dict(metadata["preprocessing"]),
            resnet_version=metadata["resnet_version"],
            config=from_dict(metadata["config"]),
            temperature=metadata["temperature"] if version > 1 else 1.0,
            data_fingerprint=metadata["data_fingerprint"] if version > 1 else None,
        )
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error} of a checkpoint; save it again with save_checkpoint.") from error
    except (TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{path} does not fit dogbreed-ml {__version__} (written by {payload.get('written_by', 'unknown')}): "
            f"{error}; read it with that version, or train again with this one."
        ) from error


def _load_payload(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"A checkpoint must be an existing file, got {str(path)!r}; `dogbreed train` makes one.")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load takes a flipped bit without a word; the archive's checksums cost 40 ms for 95 MB.
            damaged = archive.testzip()
        payload = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(
            f"{path} must be a whole checkpoint, got a file that is cut short or something else ({error}); "
            "copy it again, or train again."
        ) from error
    # torch.load raises what its unpickler and zip reader happen to raise for a file that is something else.
    except (pickle.UnpicklingError, RuntimeError, OSError, ValueError, KeyError, AttributeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} must be a checkpoint that dogbreed-ml wrote: {first_line}.") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged ({damaged} fails its checksum); copy it again, or train again.")
    if not isinstance(payload, dict) or payload.get("kind") != _KIND:
        raise CheckpointError(
            f"{path} must be a checkpoint that dogbreed-ml wrote; weights alone are given as model.weights."
        )
    return payload
