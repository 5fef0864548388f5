"""The source archive of a training job: the code that it needs, its config, its data set, its requirements."""

import gzip
import importlib.metadata
import io
import json
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

from dogbreed_ml.config import ExperimentConfig, from_dict, to_dict, without_secrets
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.provenance import git_tags
from dogbreed_ml.runcopy import empty_database
from sagemaker_jobs.closure import source_files
from sagemaker_jobs.job import splitsfile

Kind = Literal["train", "trial", "features"]
"""What a job is for: a whole `dogbreed train`, one trial of a search, or the features for the trials to come."""

PROGRAM: Final = "train.py"
"""sagemaker_program."""
EXPERIMENT_FILE: Final = "experiment.json"
REQUIREMENTS_FILE: Final = "requirements.txt"
STORES_DIR: Final = ".dogbreed/sagemaker"
"""Relative to the project root."""
FORMAT_VERSION: Final = 1

IN_THE_IMAGE: Final = ("numpy", "torch", "torchvision")
"""What AWS's training image has, built for its drivers: never among the requirements."""

_MAIN = """import os
import sys

from sagemaker_jobs.train_entry import main

if __name__ == "__main__":
    sys.exit(main(os.environ))
"""
# The hooks are imported by computed name, which the closure does not see.
_ENTRY_MODULES = ("sagemaker_jobs.train_entry", "dogbreed_ml.debugging.hook", "dogbreed_ml.debugging.tensorrules")
# setuptools brings distutils, which smdebug imports and Python 3.12 has no more.
_PACKAGES = (
    "boto3",
    "filelock",
    "matplotlib",
    "mlflow",
    "nvidia-ml-py",
    "pandas",
    "pillow",
    "plotly",
    "psutil",
    "pyyaml",
    "requests",
    "rich",
    "sagemaker-mlflow",
    "scikit-learn",
    "scipy",
    "setuptools",
    "smdebug-rulesconfig",
)
_GPU_INSTANCE = re.compile(r"ml\.(p|g)\d")


@dataclass(frozen=True)
class JobExperiment:
    """experiment.json: what the caller asked for, before a job's hyperparameters."""

    kind: Kind
    config: ExperimentConfig
    command: str
    """The caller's command line."""
    source_tags: dict[str, str]
    """Commit, branch and dirtiness of the caller's checkout."""

    def render(self) -> str:
        document = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "config": to_dict(self.config),
            "command": self.command,
            "source_tags": self.source_tags,
        }
        return json.dumps(document, sort_keys=True, indent=1)

    @classmethod
    def parse(cls, text: str) -> "JobExperiment":
        document: dict[str, Any] = json.loads(text)
        if document["format_version"] != FORMAT_VERSION:
            raise ConfigError(f"{EXPERIMENT_FILE} must have format {FORMAT_VERSION}, got {document['format_version']}.")
        return cls(document["kind"], from_dict(document["config"]), document["command"], document["source_tags"])


def build_source(
    config: ExperimentConfig,
    splits: Splits | None,
    target: Path,
    *,
    kind: Kind,
    command: str = "",
    project_dir: Path | None = None,
) -> Path:
    """Writes sourcedir.tar.gz to `target`; the same inputs and code give the same bytes in one `project_dir`.

    Without `splits` the job reads, checks and splits its channel `train` itself. `command` and the commit of
    `project_dir`'s checkout are recorded with the run. Values of sagemaker.environment stay out: the job has them as
    variables.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"The kind of a job must be one of {', '.join(get_args(Kind))}, got {kind!r}.")
    tags = {} if project_dir is None else git_tags(project_dir)
    experiment = JobExperiment(kind, without_secrets(config), command, tags)
    files = {name: path.read_bytes() for name, path in source_files(_ENTRY_MODULES).items()}
    files[PROGRAM] = _MAIN.encode()
    files[EXPERIMENT_FILE] = experiment.render().encode()
    files[store_file()] = _empty_store(project_dir)
    files[REQUIREMENTS_FILE] = render_requirements(config).encode()
    if splits is not None:
        files[splitsfile.FILE_NAME] = splitsfile.render_splits(splits).encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(_pack(files))
    return target


def store_file() -> str:
    """The empty store for a job's record, which that version of MLflow alone may open."""
    return f"mlflow-{importlib.metadata.version('mlflow')}.db"


def _empty_store(project_dir: Path | None) -> bytes:
    """Kept in the project, so that the next archive has the same one."""
    if project_dir is None:
        return empty_database()
    path = project_dir / STORES_DIR / store_file()
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        unfinished.write_bytes(empty_database())
        unfinished.replace(path)
    return path.read_bytes()


def render_requirements(config: ExperimentConfig) -> str:
    """What the job installs, pinned to what is installed here but for what the image has."""
    packages = list(_PACKAGES)
    if config.profile.debugger:
        # It holds numpy below 2, whatever the image has; asked for only where it is used.
        packages.append("smdebug")
    if not _GPU_INSTANCE.match(config.sagemaker.instance_type):
        packages.append("openvino")
    return "".join(f"{line}\n" for line in sorted(map(_requirement, packages)))


def _requirement(package: str) -> str:
    try:
        return f"{package}=={importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"{package} is needed by training jobs and is not installed here.") from error


def _pack(files: Mapping[str, bytes]) -> bytes:
    content = io.BytesIO()
    with (
        # No time and no name in the header: equal files give equal bytes.
        gzip.GzipFile(filename="", fileobj=content, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, data in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def load_experiment(code_dir: Path) -> JobExperiment:
    """What `build_source` put into the archive that was unpacked to `code_dir`."""
    return JobExperiment.parse((code_dir / EXPERIMENT_FILE).read_text(encoding="utf-8"))


def with_weights(config: ExperimentConfig, weights: Path | None) -> ExperimentConfig:
    """The config as the job trains it: weights from its channel, random where there is none."""
    return replace(config, model=replace(config.model, weights="random" if weights is None else str(weights)))
