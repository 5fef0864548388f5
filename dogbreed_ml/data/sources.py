"""The front door of the data: a config in, checked and split photographs out."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from dogbreed_ml.config import DataConfig
from dogbreed_ml.data.listing import Layout, list_images, select_breeds
from dogbreed_ml.data.partition import build_splits
from dogbreed_ml.data.scan import scan_images
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.progress import NO_PROGRESS, Progress

logger = logging.getLogger(__name__)

SCANS_DIR = ".dogbreed/scans"
"""Folder of the kept scans; relative to the project root."""


@dataclass(frozen=True)
class _Fetched:
    """A source as a folder on this machine."""

    root: Path
    name: str
    """For people."""
    layout: Layout = "folders"


def load_splits(config: DataConfig, *, project_dir: Path, progress: Progress = NO_PROGRESS) -> Splits:
    """Fetches, lists, scans and splits; what was fetched or scanned before is not fetched or scanned again.

    Nothing is written but below `project_dir`. Raises DataError.
    """
    fetched = _fetch(config, project_dir, progress)
    images = select_breeds(list_images(fetched.root, layout=fetched.layout), config.classes)
    key = hashlib.sha256(bytes(fetched.root.resolve())).hexdigest()[:16]
    findings = scan_images(images, project_dir / SCANS_DIR / f"{key}.json", progress=progress)
    splits = build_splits(images, findings, config, source=fetched.name)
    logger.info(
        "%s: %d breeds, train %d, valid %d, test %d images, fingerprint %s",
        *(splits.source, len(splits.classes), len(splits.train), len(splits.valid), len(splits.test)),
        splits.fingerprint,
    )
    return splits


def _fetch(config: DataConfig, project_dir: Path, progress: Progress) -> _Fetched:
    path = config.path or ""
    root = project_dir / Path(path).expanduser()
    return _Fetched(root, f"folder {root.name}")
