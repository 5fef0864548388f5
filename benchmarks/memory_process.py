"""What `memory` watches: a feature pass and the training of a head, in the folder it is started in."""

import argparse
import json
from pathlib import Path

from dogbreed_ml.backend import device_of
from dogbreed_ml.config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.evaluation import compute_metrics
from dogbreed_ml.train import fit
from dogbreed_ml.workbench import Workbench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--resnet-version", required=True)
    arguments = parser.parse_args()
    config = ExperimentConfig(
        data=DataConfig(source="folder", path=str(arguments.photographs)),
        model=ModelConfig(weights=arguments.weights, resnet_version=arguments.resnet_version),
        train=TrainConfig(num_epochs=5),
    )
    project_dir = Path.cwd()
    splits = load_splits(config.data, project_dir=project_dir)
    bench = Workbench(splits, project_dir, device_of())
    feeds = bench.feeds(config)
    epochs = fit(
        bench.model(config),
        feeds.train,
        valid=feeds.valid,
        config=config.train,
        metrics=compute_metrics,
        num_classes=bench.num_classes,
        device=bench.device,
    )
    last = [epoch.metrics["valid/accuracy_top1"] for epoch in epochs][-1]
    features_bytes = 0 if feeds.table is None else feeds.table.values.nbytes
    print(json.dumps({"features_bytes": features_bytes, "valid_accuracy_top1": last}))


if __name__ == "__main__":
    main()
