"""model.tar.gz for SageMaker's PyTorch inference image: the checkpoint, the code that serves it, examples, a manifest.

The same input gives the same bytes. Nobody builds a container: the image imports code/inference.py, which needs what
the image has.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from dogbreed_ml import __version__
from dogbreed_ml.checkpoint import Checkpoint, load_checkpoint
from dogbreed_ml.errors import ConfigError, ServingError
from dogbreed_ml.examples import example_images
from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.quantization import INT8_DIR
from dogbreed_ml.serve import Predictor
from dogbreed_ml.server.answers import JSON, render_body
from sagemaker_jobs.closure import source_files
from sagemaker_jobs.inference import CHECKPOINT_FILE, MANIFEST_FILE, SERVING_FIELDS

FORMAT_VERSION = 1

IMAGE_PACKAGES = ("torch", "torchvision", "numpy", "dogbreed-ml")
"""What code/requirements.txt must not name: the image has it, or the archive does."""

EXAMPLES_DIR = "examples"
CODE_DIR, PROGRAM, REQUIREMENTS_FILE = "code", "inference.py", "requirements.txt"

_EXPECTED = f"{EXAMPLES_DIR}/expected.json"
_ENTRY = "sagemaker_jobs.inference"
_DIGITS = 6
"""Decimals of expected probabilities: beyond them fp32 differs from machine to machine."""
# Weights hardly get smaller, and level 9 takes ten times as long.
_COMPRESSION = 1

Member = Path | bytes


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the model comes from; the endpoint's tags say the same."""

    model_name: str
    """Of the registered model."""
    version: int
    run_id: str | None
    """The MLflow run that made it."""
    commit: str | None
    """The git commit that the run was made with."""


@dataclass(frozen=True)
class Example:
    """One of the model's own example images, and what torch fp32 answers."""

    name: str
    """A path in the archive: examples/0.jpg."""
    image: bytes
    """A JPEG file."""
    answer: dict[str, Any]
    """breed, probability and top5, as an endpoint's `predictions` have them."""


@dataclass(frozen=True)
class Manifest:
    """What an archive says of itself."""

    origin: Origin
    deploy: dict[str, Any]
    """inference.SERVING_FIELDS of DeployConfig."""
    written_by: str
    """This package's version."""
    files: dict[str, str]
    """sha256 of every other file, by its path in the archive."""
    format_version: int = FORMAT_VERSION


def build_model_archive(
    checkpoint_path: Path,
    target: Path,
    *,
    origin: Origin,
    deploy: DeployConfig | None = None,
    requirements: Sequence[str] = (),
) -> Path:
    """Writes the archive, under a temporary name first, and returns `target`; loads the network for its examples.

    `checkpoint_path` is the file, or the folder that holds checkpoint.pt; of what lies beside it int8/ comes along.
    `requirements` are pip's, installed when a container starts, which needs a network then; starlette and
    python-multipart let it read multipart/form-data. Raises ConfigError for requirements or a back end that do not go
    with the image and for a secret in the checkpoint's config, CheckpointError for a checkpoint that would not load,
    ServingError where the disk refuses.
    """
    config = deploy or DeployConfig()
    _require_packages(requirements, config)
    path = checkpoint_path / CHECKPOINT_FILE if checkpoint_path.is_dir() else checkpoint_path
    checkpoint = load_checkpoint(path)
    members: dict[str, Member] = {
        **_example_files(checkpoint, config),
        **_code_files(requirements),
        CHECKPOINT_FILE: path,
        **{f"{INT8_DIR}/{each.name}": each for each in sorted((path.parent / INT8_DIR).glob("*")) if each.is_file()},
    }
    manifest = Manifest(
        origin=origin,
        deploy={name: getattr(config, name) for name in SERVING_FIELDS},
        written_by=__version__,
        files={name: _sha256(member) for name, member in sorted(members.items())},
    )
    # It and the examples come first: both are read without unpacking the weights.
    _write(target, {MANIFEST_FILE: _as_json(asdict(manifest)), **members})
    return target


def read_manifest(archive_path: Path) -> Manifest:
    """The manifest of an archive; ServingError where it is none of `build_model_archive`'s."""
    try:
        told = json.loads(next(_read(archive_path, [MANIFEST_FILE])))
        return Manifest(**{**told, "origin": Origin(**told["origin"])})
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(archive_path, error) from error


def read_examples(archive_path: Path) -> list[Example]:
    """What a smoke test sends to an endpoint, and what it should answer; ServingError as `read_manifest`."""
    try:
        answers = json.loads(next(_read(archive_path, [_EXPECTED])))
    except ValueError as error:
        raise _not_ours(archive_path, error) from error
    images = _read(archive_path, list(answers))
    return [Example(name, image, answers[name]) for name, image in zip(answers, images, strict=True)]


def _read(archive_path: Path, names: Sequence[str]) -> Iterator[bytes]:
    """The files of these names, in their order, which is the archive's; what lies behind them is not unpacked."""
    wanted = list(names)
    try:
        with tarfile.open(archive_path, "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if wanted and member.name == wanted[0] else None
                if file is not None:
                    wanted.pop(0)
                    yield file.read()
                if not wanted:
                    return
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise _not_ours(archive_path, error) from error
    raise _not_ours(archive_path, f"it has no {wanted[0]}")


def _not_ours(archive_path: Path, why: object) -> ServingError:
    return ServingError(f"{archive_path} must be a model archive of dogbreed-ml ({why}); build it again.")


def _require_packages(requirements: Sequence[str], config: DeployConfig) -> None:
    names = set()
    for line in requirements:
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise ConfigError(f"A model archive's requirements must be pip's, got {line!r}.") from error
        name = canonicalize_name(requirement.name)
        if requirement.url or name in IMAGE_PACKAGES:
            raise ConfigError(
                f"A model archive's requirements must be names of packages other than {', '.join(IMAGE_PACKAGES)}, "
                f"which the image or the archive has; got {line!r}."
            )
        names.add(name)
    if config.backend.startswith("openvino") and "openvino" not in names:
        raise ConfigError(
            f"deploy.backend must be one that the container has; {config.backend} is not, unless the requirements "
            "name openvino. Take auto, torch-bf16 or torch-fp32, or add it."
        )


def _example_files(checkpoint: Checkpoint, config: DeployConfig) -> dict[str, Member]:
    """The images, and what torch fp32 answers by their paths."""
    predictor = Predictor.from_checkpoint(
        checkpoint, backend="torch-fp32", device="cpu", min_probability=config.min_probability
    )
    images = {f"{EXAMPLES_DIR}/{index}.jpg": image for index, image in enumerate(example_images())}
    rows = json.loads(render_body(predictor.predict(list(images.values())), JSON))["predictions"]
    expected = {name: _rounded(row) for name, row in zip(images, rows, strict=True)}
    return {_EXPECTED: _as_json(expected), **images}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, _DIGITS) if isinstance(value, float) else value


def _code_files(requirements: Sequence[str]) -> dict[str, Member]:
    """inference.py where the image looks for it, and below it the packages that it imports."""
    files: dict[str, Member] = {f"{CODE_DIR}/{name}": path for name, path in source_files([_ENTRY]).items()}
    package = _ENTRY.partition(".")[0]
    program = files.pop(f"{CODE_DIR}/{_ENTRY.replace('.', '/')}.py")
    del files[f"{CODE_DIR}/{package}/__init__.py"]
    lines = "".join(f"{line.strip()}\n" for line in requirements)
    return {**files, f"{CODE_DIR}/{PROGRAM}": program, f"{CODE_DIR}/{REQUIREMENTS_FILE}": lines.encode()}


def _as_json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _sha256(member: Member) -> str:
    with _opened(member) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _opened(member: Member) -> IO[bytes]:
    return io.BytesIO(member) if isinstance(member, bytes) else member.open("rb")


def _write(target: Path, members: Mapping[str, Member]) -> None:
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _compressed(partial) as archive:
            for name, member in members.items():
                # A new TarInfo has no time, no owner, and mode 0644.
                info = tarfile.TarInfo(name)
                info.size = len(member) if isinstance(member, bytes) else member.stat().st_size
                with _opened(member) as file:
                    archive.addfile(info, file)
        partial.replace(target)
    except OSError as error:
        raise ServingError(f"{target} could not be written: {error}; free some space or name another place.") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _compressed(path: Path) -> Iterator[tarfile.TarFile]:
    """Without the name and the time that gzip writes into its header."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", _COMPRESSION, fileobj=raw, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        yield archive
