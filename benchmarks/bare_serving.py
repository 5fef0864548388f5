"""The bare loop beside our server, a process of its own: decode, forward, decode, forward, in one thread.

The forward pass itself takes every core. Prints one JSON object.
"""

import argparse
import json
import statistics
from pathlib import Path
from time import perf_counter
from typing import get_args

from benchmarks.photographs import read_folder
from dogbreed_ml.policies import ServingBackendName
from dogbreed_ml.serve import Predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--backend", choices=get_args(ServingBackendName), required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    predictor = Predictor.load(arguments.checkpoint, backend=arguments.backend)
    files = [sample.path.read_bytes() for sample in read_folder(arguments.photographs).samples]
    for data in files[:5]:
        predictor.logits(predictor.decode(data)[None])
    seconds: list[float] = []
    start = perf_counter()
    while perf_counter() - start < arguments.seconds:
        begin = perf_counter()
        predictor.logits(predictor.decode(files[len(seconds) % len(files)])[None])
        seconds.append(perf_counter() - begin)
    total_s = perf_counter() - start
    print(json.dumps({"p50_ms": statistics.median(seconds) * 1000, "images_per_s": len(seconds) / total_s}))


if __name__ == "__main__":
    main()
