"""A training job's folders and variables without a SageMaker, for tests that run its program in their own process."""

import json
import tarfile
from pathlib import Path
from typing import Any

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.data.splits import SPLIT_NAMES, Splits
from sagemaker_jobs.job.source import Kind, build_source
from sagemaker_jobs.job.splitsfile import image_name


class JobFolders:
    """As SageMaker lays them out below /opt/ml; `code_dir` holds the unpacked source archive."""

    def __init__(
        self,
        folder: Path,
        config: ExperimentConfig,
        splits: Splits | None,
        *,
        kind: Kind = "trial",
        name: str = "job-1",
    ):
        self.name = name
        self.ml_dir = folder / "opt" / "ml"
        self.code_dir = self.ml_dir / "code"
        self.channels: dict[str, Path] = {}
        for part in ("model", "output/data", "input/data", "code"):
            (self.ml_dir / part).mkdir(parents=True)
        archive = build_source(config, splits, folder / "sourcedir.tar.gz", kind=kind)
        with tarfile.open(archive) as packed:
            packed.extractall(self.code_dir, filter="data")
        for split in SPLIT_NAMES if splits else ():
            assert splits is not None
            for sample in splits.split(split).samples:
                path = self.channel(split) / image_name(sample)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(sample.path.read_bytes())

    def channel(self, name: str) -> Path:
        """The channel's folder; made on the first call."""
        self.channels[name] = self.ml_dir / "input" / "data" / name
        self.channels[name].mkdir(exist_ok=True)
        return self.channels[name]

    def variables(self, hyperparameters: dict[str, Any] | None = None, **others: str) -> dict[str, str]:
        """The environment of the job's program."""
        return {
            "TRAINING_JOB_NAME": self.name,
            "SM_MODEL_DIR": str(self.ml_dir / "model"),
            "SM_OUTPUT_DIR": str(self.ml_dir / "output"),
            "SM_OUTPUT_DATA_DIR": str(self.output_data_dir),
            "SM_CHANNELS": json.dumps(sorted(self.channels)),
            "SM_HPS": json.dumps(hyperparameters or {}),
            "SM_CURRENT_INSTANCE_TYPE": "ml.m5.xlarge",
            **{f"SM_CHANNEL_{name.upper()}": str(path) for name, path in self.channels.items()},
            **others,
        }

    @property
    def output_data_dir(self) -> Path:
        return self.ml_dir / "output" / "data"

    @property
    def bundle_dir(self) -> Path:
        return self.output_data_dir / "bundle"

    @property
    def model_dir(self) -> Path:
        return self.ml_dir / "model"

    @property
    def failure(self) -> str:
        return (self.ml_dir / "output" / "failure").read_text(encoding="utf-8")
