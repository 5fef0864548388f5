"""A search as a process of its own, over a made-up training: python search_process.py FOLDER OPTIONS-AS-JSON.

What `dogbreed tune` does between the data and the refit, without torch; prints the result as JSON.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dogbreed_ml.config import (
    CategoricalDimension,
    ExperimentConfig,
    FloatDimension,
    SearchConfig,
    TrackingConfig,
    TrainConfig,
)
from dogbreed_ml.search import SearchStudy
from dogbreed_ml.tracking import Tracker

EPOCHS = 4
HELD_S = 600.0


@dataclass(frozen=True)
class Epoch:
    """Of the shape of train.EpochResult, which imports torch."""

    epoch: int
    global_step: int
    metrics: dict[str, float]
    seconds: float = 0.001
    is_best: bool = True
    ended_ms: int | None = None


@dataclass
class Training:
    """Sleeps through its epochs; best at lr 1e-2.

    After `hold_after` trials of a process, the next hangs in its second epoch: a search is cut off there, however late
    whoever does it comes.
    """

    epoch_s: float
    hold_after: int | None = None
    num_begun: int = 0

    def __call__(self, config: ExperimentConfig) -> Iterator[Any]:
        self.num_begun += 1
        is_held = self.hold_after is not None and self.num_begun > self.hold_after
        for epoch in range(config.train.num_epochs):
            time.sleep(HELD_S if is_held and epoch else self.epoch_s)
            value = (1 - abs(math.log10(config.train.lr) + 2) / 4) * (1 - 0.5 ** (epoch + 1))
            yield Epoch(epoch, epoch, {"valid/accuracy_top1": value, "valid/loss": 1 - value})


def keep_threads(num_threads: int) -> None:
    """In the place of torch's threads."""
    assert num_threads >= 1


def build_config(options: dict[str, Any]) -> ExperimentConfig:
    search = SearchConfig(
        num_trials=options["num_trials"],
        num_parallel=options.get("num_parallel", 1),
        sampler=options.get("sampler", "tpe"),
        pruner=options.get("pruner", "none"),
        space={
            "train.lr": FloatDimension(low=1e-4, high=1e-1, log=True),
            "train.batch_size": CategoricalDimension(choices=[16, 32, 64]),
        },
    )
    tracking = TrackingConfig(
        system_metrics=options.get("system_metrics", False),
        system_metrics_interval_s=0.5,
        retry_s=options.get("retry_s", 300.0),
    )
    return ExperimentConfig(name="dogs", search=search, tracking=tracking, train=TrainConfig(num_epochs=EPOCHS))


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    config = build_config(options)
    with Tracker.open(project_dir=folder, config=config.tracking, environment=os.environ) as tracker:
        study = SearchStudy.open(
            config, fingerprint="f" * 16, tracking_uri=tracker.tracking_uri, project_dir=folder, tracker=tracker
        )
        with study, tracker.start_run(config.name, run_id=study.parent_run_id) as parent:
            study.begin(parent.run_id)
            parent.log_config(config)
            training = Training(options.get("epoch_s", 0.05), options.get("hold_after"))
            result = study.run(training, tracker=tracker, parent=parent, limit_threads=keep_threads)
            study.finish()
    told = {"parent_run_id": parent.run_id, "resumed": study.resumed, "trials": [asdict(t) for t in result.trials]}
    print(json.dumps(told))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
