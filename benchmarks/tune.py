"""`dogbreed tune` as a user starts it: a process of its own, in a project folder of its own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.photographs import Photographs
from benchmarks.processes import run_python
from benchmarks.results import BenchmarkError
from benchmarks.settings import Settings


@dataclass(frozen=True)
class Tuned:
    """One `dogbreed tune --json`."""

    wall_s: float
    """Of the whole process."""
    summary: dict[str, Any]

    @property
    def seconds(self) -> dict[str, float]:
        """By stage."""
        return {str(stage): float(seconds) for stage, seconds in self.summary["seconds"].items()}


LR = {"train.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}}
BATCH_SIZE = {"train.batch_size": {"type": "categorical", "choices": [16, 32, 64]}}


def write_config(
    settings: Settings,
    photographs: Photographs,
    path: Path,
    *,
    num_trials: int,
    num_epochs: int,
    space: Mapping[str, Any] = LR | BATCH_SIZE,
) -> Path:
    """The config of a search in which each trial runs each epoch: no pruner, no patience."""
    config = {
        "name": "benchmark",
        "data": {"source": "folder", "path": str(photographs.dir)},
        "model": settings.model_section(),
        "train": {"num_epochs": num_epochs},
        "search": {"num_trials": num_trials, "pruner": "none", "space": dict(space)},
    }
    # JSON is YAML too.
    path.write_text(json.dumps(config, indent=2))
    return path


def tune(settings: Settings, config_path: Path, project_dir: Path, *, flags: Sequence[str] = ()) -> Tuned:
    """Runs the search in `project_dir`; raises BenchmarkError where it fails."""
    arguments = ["-m", "dogbreed_ml", "tune", "--config", str(config_path), *flags, "--json"]
    finished = run_python(arguments, cwd=project_dir, environment=settings.environment)
    try:
        summary = json.loads(finished.stdout)
    except json.JSONDecodeError as error:
        raise BenchmarkError(f"tune --json must print one JSON object, got {finished.stdout[:200]!r}.") from error
    return Tuned(finished.wall_s, summary)
