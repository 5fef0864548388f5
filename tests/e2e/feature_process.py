"""A process of test_feature_processes: asks for the features of a folder of images, slowly, and prints what it got."""

import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from dogbreed_ml.config import FeaturesConfig
from dogbreed_ml.data.splits import Sample
from dogbreed_ml.features import FeatureStore, FrozenPrefix
from dogbreed_ml.model import Normalize
from dogbreed_ml.transforms import Preprocessing


class Slow(nn.Module):
    """Takes 10 ms an image, so that a pass can be met in its middle."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.01 * len(images))
        return images.mean(dim=(2, 3))


def main(images_dir: str, features_dir: str) -> None:
    samples = [
        Sample(path, 0, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(Path(images_dir).iterdir())
    ]
    prefix = FrozenPrefix("slow", "1.5", "head", lambda: nn.Sequential(Normalize(), Slow()))
    store = FeatureStore(FeaturesConfig(backend="torch-fp32"), Path(features_dir), device=torch.device("cpu"))
    print("asking", flush=True)
    table = store.table(samples, prefix, Preprocessing(image_size=32))
    print(json.dumps({"cached": table.cached, "key": table.key, "sum": float(table.values.sum(dtype="float64"))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
