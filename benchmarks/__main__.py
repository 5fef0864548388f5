"""Measures what the README claims, side by side with what a user would write instead: `python -m benchmarks`.

Figures go to stdout as Markdown, progress to stderr. A missed goal is printed as missed and is no failure of the
benchmark: the exit status is 0 unless a measurement could not be made.
"""

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.results import BenchmarkError, Result, render
from benchmarks.settings import CHECKOUT, RANDOM_WEIGHTS, Settings
from dogbreed_ml.errors import DogbreedError

logger = logging.getLogger("benchmarks")

DEFAULT_NAMES = (
    *("search", "features", "agreement", "trials", "memory", "profiling", "recording", "serving", "gpu"),
    *("local_training", "local_tuning", "local_invoke", "endpoint_update"),
)
ALL_NAMES = (*DEFAULT_NAMES, "accuracy")
_WEIGHTS_FILE = "resnet50-v1-imagenet-fp16.pth"

_EPILOG = """\
measurements (minutes on two cores):
  search     20 trials of 5 epochs on 400 photographs: naive script, careful script, ours, a bare forward pass (8)
  features   the feature pass beside the best bare back end on images in memory (4)
  agreement  a linear probe on the chosen back end's features beside torch fp32's, 6,000 photographs (7)
  trials     the cost of one more trial around trials 10, 100 and 500 (3)
  memory     peak anonymous memory for 1,000 and 6,000 photographs (5)
  profiling  trainings with the profiler's collectors and without; what saving tensors adds (2)
  recording  1,000,000 samples read, judged and made into a report; the peak of memory (1)
  serving    our server beside mlflow models serve, LitServe and the bare loop, 1 to 32 clients (12)
  gpu        the feature pass on a GPU and what holds it back
  local_training, local_tuning, local_invoke  what the local SageMaker adds to a job, a tuning job, an invocation (3)
  endpoint_update  what an endpoint's callers notice of its update: rate held, latencies, failures (3)
  accuracy   120 breeds, data.seed 0 to 4, a search each: runs only by --only accuracy (15 and more)
"""


def parse(argv: Sequence[str], environment: Mapping[str, str]) -> argparse.Namespace:
    """Arguments, with defaults from DOGBREED_DATA_DIR where that is set and holds what is needed."""
    shared = Path(environment["DOGBREED_DATA_DIR"]) if environment.get("DOGBREED_DATA_DIR") else None
    data = shared / "dogs" if shared and (shared / "dogs").is_dir() else None
    weights = shared / "weights" / _WEIGHTS_FILE if shared and (shared / "weights" / _WEIGHTS_FILE).is_file() else None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, epilog=_EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, default=data, metavar="DIR",
        help="a folder per breed; default $DOGBREED_DATA_DIR/dogs, without it synthetic dogs are drawn",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path, default=weights, metavar="FILE",
        help=f"ResNet50 weights; default $DOGBREED_DATA_DIR/weights/{_WEIGHTS_FILE}, without it random",
    )  # fmt: skip
    parser.add_argument(
        "--resnet-version", choices=("1", "1.5"), default=None,
        help="version of the weights given; default 1 for the default weights, else 1.5",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", choices=ALL_NAMES, default=list(DEFAULT_NAMES), metavar="NAME",
        help="measurements to make; default all but accuracy",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs; figures mean nothing")
    parser.add_argument(
        "--repetitions", type=int, default=None, metavar="N", help="paired repetitions; default 3, quick 1"
    )
    parser.add_argument(
        "--accuracy-config", type=Path, default=CHECKOUT / "experiments" / "dogs-120.yaml", metavar="FILE",
        help="config of the accuracy measurement; default experiments/dogs-120.yaml",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write all figures there too")
    arguments = parser.parse_args(argv)
    for flag, path, exists in (("--data", arguments.data, Path.is_dir), ("--weights", arguments.weights, Path.is_file)):
        if path is not None and not exists(path):
            parser.error(f"{flag} must exist, got {path}")
    if arguments.repetitions is not None and arguments.repetitions < 1:
        parser.error(f"--repetitions must be at least 1, got {arguments.repetitions}")
    if arguments.resnet_version is None:
        is_default = arguments.weights is not None and arguments.weights.name == _WEIGHTS_FILE
        arguments.resnet_version = "1" if is_default else "1.5"
    return arguments


def main(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs the chosen measurements and prints each as soon as it is made."""
    arguments = parse(argv, environment)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    from benchmarks.machine import describe_machine

    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="dogbreed-benchmark-") as work_dir:
        settings = Settings(
            data_dir=arguments.data.resolve() if arguments.data else None,
            weights=str(arguments.weights.resolve()) if arguments.weights else RANDOM_WEIGHTS,
            resnet_version=arguments.resnet_version,
            num_repetitions=arguments.repetitions or (1 if arguments.quick else 3),
            is_quick=arguments.quick,
            accuracy_config=arguments.accuracy_config.resolve(),
            environment=environment,
            work_dir=Path(work_dir),
        )
        head = [*(f"{name}: {value}" for name, value in machine.items()), *settings.describe()]
        print("# dogbreed-ml benchmarks\n", *(f"- {line}" for line in head), sep="\n", flush=True)
        return _measure_all(arguments.only, settings, machine, json_path=arguments.json)


def _measure_all(
    names: Sequence[str], settings: Settings, machine: Mapping[str, str], *, json_path: Path | None
) -> int:
    """The exit status; the JSON file is written anew after each measurement, so that a stop loses one at most."""
    results: list[Result] = []
    num_failed = 0
    for name in dict.fromkeys(names):
        logger.info("%s: begins", name)
        start = perf_counter()
        try:
            result: Result = import_module(f"benchmarks.{name}").measure(settings)
        except (BenchmarkError, DogbreedError) as error:
            num_failed += 1
            logger.error("%s: could not be measured: %s", name, error)
            print(f"\n## {name}: could not be measured, see stderr", flush=True)
            continue
        results.append(result)
        print(f"\n{render(result)}", flush=True)
        if json_path:
            _write_json(json_path, machine, settings, results)
        logger.info("%s: done in %.0f s", name, perf_counter() - start)
    return 1 if num_failed else 0


def _write_json(path: Path, machine: Mapping[str, str], settings: Settings, results: Sequence[Result]) -> None:
    document: dict[str, Any] = {
        "machine": dict(machine),
        "settings": settings.describe(),
        "results": [result.to_dict() for result in results],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    # Announcements of libraries are no figures; subprocesses keep theirs in files.
    warnings.simplefilter("ignore")
    # Both ways of stopping end the process that is being measured and remove the temporary folder.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:], dict(os.environ)))
    except KeyboardInterrupt:
        sys.exit(130)
