"""Model versions that answer each test image as they were told to: heads solved for their answers, not trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dogbreed_ml import pyfunc
from dogbreed_ml.checkpoint import Checkpoint, build_module, save_checkpoint
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.model import build_resnet50
from dogbreed_ml.registry import ModelVersion, register_challenger
from dogbreed_ml.tracking import Tracker
from dogbreed_ml.transforms import Preprocessing, decode_image, to_square

_BATCH_SIZE = 16


@dataclass(frozen=True, eq=False)
class Planter:
    """Plants models for the test images of one data set; `image_size` makes them slow or fast."""

    config: ExperimentConfig
    splits: Splits
    image_size: int = 64

    def register(self, tracker: Tracker, folder: Path, *, mistakes: Mapping[str, int]) -> ModelVersion:
        """A version that takes so many images of each breed for the next one, and knows the others."""
        path = save_checkpoint(self._checkpoint(self._answers(mistakes)), folder / "checkpoint.pt")
        with tracker.start_run(self.config.name, run_name="planted") as run:
            run.log_params({"mistakes": dict(mistakes), "image_size": self.image_size})
            run.flush()
            model_uri = pyfunc.log_model(run.run_id, path, tracking_uri=tracker.tracking_uri)
            name = self.config.registered_model_name
            return register_challenger(tracker, name, model_uri=model_uri, run_id=run.run_id)

    def _answers(self, mistakes: Mapping[str, int]) -> list[int]:
        left = dict(mistakes)
        answers = []
        for sample in self.splits.test.samples:
            breed = self.splits.classes[sample.label]
            is_mistaken = left.get(breed, 0) > 0
            left[breed] = left.get(breed, 0) - 1
            answers.append((sample.label + is_mistaken) % len(self.splits.classes))
        return answers

    def _checkpoint(self, answers: Sequence[int]) -> Checkpoint:
        wanted = np.eye(len(self.splits.classes))[list(answers)] * 12.0
        mean, scale = self._features.mean(axis=0), self._features.std(axis=0) + 1e-3
        # More features than images: there is a head that gives each image the logits wanted.
        weight = np.linalg.pinv((self._features - mean) / scale, rcond=1e-4) @ (wanted - wanted.mean(axis=0))
        weight /= scale[:, None]
        state_dict = dict(self._backbone.state_dict)
        state_dict["fc.weight"] = torch.tensor(weight.T, dtype=torch.float32)
        state_dict["fc.bias"] = torch.tensor(wanted.mean(axis=0) - mean @ weight, dtype=torch.float32)
        return Checkpoint(
            state_dict,
            classes=self.splits.classes,
            preprocessing=self._preprocessing,
            resnet_version="1.5",
            config=self.config,
            data_fingerprint=self.splits.fingerprint,
        )

    @property
    def _preprocessing(self) -> Preprocessing:
        return Preprocessing(image_size=self.image_size)

    @cached_property
    def _backbone(self) -> Checkpoint:
        torch.manual_seed(0)
        network = build_resnet50(len(self.splits.classes), resnet_version="1.5")
        return Checkpoint(
            dict(network.state_dict()), self.splits.classes, self._preprocessing, "1.5", ExperimentConfig()
        )

    @cached_property
    def _features(self) -> NDArray[np.float64]:
        """(n, 2048) of the test images."""
        module = build_module(self._backbone)
        module.get_submodule("1").fc = torch.nn.Identity()
        paths = [sample.path for sample in self.splits.test.samples]
        squares = np.stack([to_square(decode_image(path.read_bytes()), self._preprocessing) for path in paths])
        images = torch.from_numpy(squares).permute(0, 3, 1, 2)
        with torch.inference_mode():
            features = torch.cat([module(images[i : i + _BATCH_SIZE]) for i in range(0, len(images), _BATCH_SIZE)])
        return np.asarray(features.numpy(), dtype=np.float64)
