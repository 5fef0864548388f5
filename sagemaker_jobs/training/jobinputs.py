"""What a training job is given: code, photographs, weights and features, each content under its digest in S3.

A plan says what lies where and what must be sent; a dry run prints it, and `upload` sends it.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torchvision.models import ResNet50_Weights

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.data.splits import SPLIT_NAMES, Split, Splits
from dogbreed_ml.model import AUTO_WEIGHTS, load_weights
from dogbreed_ml.progress import NO_PROGRESS, Progress
from dogbreed_ml.provenance import render_command
from sagemaker_jobs.job.source import Kind, build_source
from sagemaker_jobs.job.splitsfile import image_name
from sagemaker_jobs.storage import Storage, file_digest

IMAGES_KEY = "images"
OUTPUT_KEY = "jobs"
UNKNOWN_DIGEST = "DIGEST-KNOWN-ONCE-DOWNLOADED"
"""Stands for the digest of what is not here yet, such as weights that a dry run does not download."""


@dataclass(frozen=True)
class JobInputs:
    """What a request for a training job says of its inputs."""

    source_uri: str
    """The source archive."""
    channels: tuple[dict[str, Any], ...]
    """InputDataConfig."""
    output_uri: str
    """S3OutputPath; SageMaker appends the job's name."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside `sagemaker.environment`: where the record goes."""


@dataclass(frozen=True)
class JobPlan:
    """The inputs, and what must be in S3 for them, by key."""

    inputs: JobInputs
    files: Mapping[str, Path]
    contents: Mapping[str, bytes]

    def beside(self, other: "JobPlan") -> "JobPlan":
        """What lies in S3 for both, with this one's inputs."""
        return replace(self, files={**other.files, **self.files}, contents={**other.contents, **self.contents})

    def upload(self, storage: Storage, *, progress: Progress = NO_PROGRESS) -> JobInputs:
        """Sends what S3 has not; raises CloudError, and a repeated call goes on where that ended."""
        storage.upload_all(self.files, what="what the job needs", progress=progress)
        present = storage.sizes("manifests") if self.contents else {}
        for key, content in self.contents.items():
            if present.get(key) != len(content):
                storage.put(key, content)
        return self.inputs


def prepare_inputs(
    config: ExperimentConfig,
    splits: Splits | None,
    storage: Storage,
    *,
    kind: Kind,
    context: Context,
    features_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> JobInputs:
    """Builds the source archive and uploads whatever the job needs; see `plan_inputs`. Raises CloudError."""
    with planned_inputs(
        config, splits, uri=storage.uri, kind=kind, context=context, features_dir=features_dir, environment=environment
    ) as plan:
        return plan.upload(storage, progress=context.progress)


@contextmanager
def planned_inputs(
    config: ExperimentConfig,
    splits: Splits | None,
    *,
    uri: Callable[[str], str],
    kind: Kind,
    context: Context,
    features_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
    download: bool = True,
) -> Iterator[JobPlan]:
    """The plan while the source archive that it names lies in a temporary folder; see `plan_inputs`.

    Where `download` is false, weights that are not here yet are not fetched.
    """
    weights_path, config = local_weights(config, download=download)
    with tempfile.TemporaryDirectory() as folder:
        source_path = build_source(
            config,
            splits,
            Path(folder) / "sourcedir.tar.gz",
            kind=kind,
            command=render_command(context.argv),
            project_dir=context.project_dir,
        )
        yield plan_inputs(
            config,
            splits,
            uri=uri,
            source_path=source_path,
            weights_path=weights_path,
            features_dir=features_dir,
            environment=environment,
        )


def plan_inputs(
    config: ExperimentConfig,
    splits: Splits | None,
    *,
    uri: Callable[[str], str],
    source_path: Path,
    weights_path: Path | None,
    features_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> JobPlan:
    """Where everything lies: `uri` makes an s3:// URI of a key. Nothing is sent.

    Without `splits` the job splits `data.path` in S3 itself. `features_dir` is a kept table, named by its key.
    """
    files, contents, channels = {}, {}, []
    source_key = f"code/{file_digest(source_path)}.tar.gz"
    files[source_key] = source_path
    if splits is None:
        channels.append(_channel("train", str(config.data.path), mode="FastFile"))
    else:
        for name in SPLIT_NAMES:
            files |= {f"{IMAGES_KEY}/{image_name(each)}": each.path for each in splits.split(name).samples}
            manifest = _manifest(splits.split(name), uri(IMAGES_KEY))
            key = f"manifests/{hashlib.sha256(manifest).hexdigest()}.json"
            contents[key] = manifest
            channels.append(_channel(name, uri(key), kind="ManifestFile", mode="FastFile"))
    if weights_path is not None:
        is_here = weights_path.is_file()
        key = f"weights/{file_digest(weights_path) if is_here else UNKNOWN_DIGEST}/{weights_path.name}"
        if is_here:
            files[key] = weights_path
        channels.append(_channel("weights", uri(key)))
    if features_dir is not None:
        key = f"features/{features_dir.name}"
        files |= {f"{key}/{each.name}": each for each in sorted(features_dir.iterdir()) if each.is_file()}
        channels.append(_channel("features", f"{uri(key)}/"))
    inputs = JobInputs(uri(source_key), tuple(channels), uri(OUTPUT_KEY), dict(environment or {}))
    return JobPlan(inputs, files, contents)


def local_weights(config: ExperimentConfig, *, download: bool = True) -> tuple[Path | None, ExperimentConfig]:
    """The file of model.weights, downloaded where it must be, and the config as the job is to have it.

    None for random weights; and where `auto` falls back to them here, the job's config says random. With `download`
    false the path is where a download would lie.
    """
    name = config.model.weights
    if name == "random":
        return None, config
    if name != "auto" and name not in ResNet50_Weights.__members__:
        path = Path(name).expanduser()
        if not path.is_file():
            load_weights(config.model)
        return path, config
    member = ResNet50_Weights[AUTO_WEIGHTS if name == "auto" else name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / member.url.rpartition("/")[2]
    if not path.is_file() and download and load_weights(config.model).name == "random":
        return None, replace(config, model=replace(config.model, weights="random"))
    return path, config


def unknown_inputs(uri: Callable[[str], str], environment: Mapping[str, str]) -> JobInputs:
    """Inputs of no content: what a request is checked on where the real ones cost a job, a pass or an upload."""
    return JobInputs(
        uri(f"code/{UNKNOWN_DIGEST}.tar.gz"),
        (_channel("train", uri(f"manifests/{UNKNOWN_DIGEST}.json"), kind="ManifestFile", mode="FastFile"),),
        uri(OUTPUT_KEY),
        dict(environment),
    )


def _manifest(split: Split, prefix: str) -> bytes:
    """SageMaker's manifest: where the objects lie, then their names; images of the same bytes once."""
    names = sorted({image_name(each) for each in split.samples})
    return json.dumps([{"prefix": f"{prefix}/"}, *names]).encode()


def _channel(name: str, uri: str, *, kind: str = "S3Prefix", mode: str = "File") -> dict[str, Any]:
    source = {"S3DataType": kind, "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": mode}
