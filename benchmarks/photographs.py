"""The photographs that a measurement works on: a part of the user's folder, or drawn dogs where there is none."""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.results import BenchmarkError
from benchmarks.settings import Settings
from dogbreed_ml.backend import Images
from dogbreed_ml.config import DataConfig
from dogbreed_ml.data.splits import Sample
from dogbreed_ml.transforms import Preprocessing, decode_image, to_square

logger = logging.getLogger(__name__)

_MAX_SYNTHETIC_BREEDS = 60
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}

PREPROCESSING = Preprocessing()


@dataclass(frozen=True)
class Photographs:
    """A folder per breed, copied, so that a measurement reads exactly these and nothing is written in the user's."""

    dir: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    """By breed, and by content within a breed: an order that says nothing about what is on them."""

    def describe(self) -> str:
        return f"{len(self.samples)} photographs of {len(self.classes)} breeds"

    def of_breed(self, label: int) -> list[Sample]:
        return [sample for sample in self.samples if sample.label == label]


def collect(settings: Settings, name: str, *, num_breeds: int, num_per_breed: int) -> Photographs:
    """Copies that many (or all there are) into a new folder; breeds are spread over the alphabet."""
    target = settings.folder(f"photographs-{name}")
    source = settings.data_dir or _drawn(settings, name, min(num_breeds, _MAX_SYNTHETIC_BREEDS), num_per_breed)
    breeds = sorted(path for path in source.iterdir() if path.is_dir())
    if not breeds:
        raise BenchmarkError(f"--data must be a folder that holds a folder per breed, got {source.name}.")
    chosen = [breeds[i * len(breeds) // num_breeds] for i in range(num_breeds)] if num_breeds < len(breeds) else breeds
    for breed in chosen:
        (target / breed.name).mkdir()
        files = sorted(path for path in breed.iterdir() if path.suffix.lower() in _SUFFIXES)[:num_per_breed]
        for path in files:
            shutil.copyfile(path, target / breed.name / path.name)
    return read_folder(target)


def read_folder(folder: Path) -> Photographs:
    """What a folder per breed holds; equal files of a breed count once."""
    breeds = sorted(path for path in folder.iterdir() if path.is_dir())
    samples = []
    for label, breed in enumerate(breeds):
        digests = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in sorted(breed.iterdir())}
        samples += [Sample(digests[digest], label, digest) for digest in sorted(digests)]
    return Photographs(folder, tuple(breed.name for breed in breeds), tuple(samples))


def _drawn(settings: Settings, name: str, num_breeds: int, num_per_breed: int) -> Path:
    """A folder per breed of the project's synthetic dogs."""
    # Imported here: the sources bring parsers and clients that a run on real photographs never needs.
    from dogbreed_ml.data.sources import load_splits

    logger.info("drawing %d synthetic dogs", num_breeds * num_per_breed)
    project_dir = settings.folder(f"drawn-{name}")
    splits = load_splits(DataConfig(num_breeds=num_breeds, num_per_breed=num_per_breed), project_dir=project_dir)
    folder = project_dir / "breeds"
    for split in (splits.train, splits.valid, splits.test):
        for sample in split.samples:
            breed_dir = folder / splits.classes[sample.label]
            breed_dir.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sample.path, breed_dir / f"{sample.digest[:16]}{sample.path.suffix}")
    return folder


def squares(samples: Sequence[Sample]) -> Images:
    """Decoded and cropped as the project does it, in memory: (N, S, S, 3) uint8."""
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda sample: to_square(decode_image(sample.path.read_bytes()), PREPROCESSING), samples)
        return np.stack(list(decoded))
