"""One bare forward pass, a process of its own: eager bf16 torch over images that are in memory as normalised tensors.

The network is converted to bf16 as a whole (`module.bfloat16()`, no autocast); decoding is not timed.
"""

import argparse
import json
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.photographs import read_folder, squares
from dogbreed_ml.config import ModelConfig
from dogbreed_ml.model import build_network, load_weights
from dogbreed_ml.transforms import IMAGENET_MEAN, IMAGENET_STD

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--resnet-version", required=True)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    config = ModelConfig(weights=arguments.weights, resnet_version=arguments.resnet_version)
    resnet = build_network(config, 2, weights=load_weights(config), seed=0).resnet.eval()
    images = torch.from_numpy(squares(read_folder(arguments.photographs).samples)).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    normalised = ((images.float() / 255 - mean) / std).to(device, torch.bfloat16)
    resnet = resnet.to(device, torch.bfloat16)
    seconds = {}
    for name, memory_format in LAYOUTS.items():
        inputs = normalised.contiguous(memory_format=memory_format)
        seconds[name] = _pass_seconds(resnet.to(memory_format=memory_format), inputs, arguments.batch_size)
    print(json.dumps({"seconds": seconds, "num_images": len(images)}))


@torch.inference_mode()
def _pass_seconds(model: torch.nn.Module, inputs: torch.Tensor, batch_size: int) -> float:
    model(inputs[:batch_size])
    _synchronize(inputs.device)
    start = perf_counter()
    for batch in inputs.split(batch_size):
        model(batch)
    _synchronize(inputs.device)
    return perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
