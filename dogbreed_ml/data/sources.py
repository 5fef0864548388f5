"""The front door of the data: a config in, checked and split photographs out."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from dogbreed_ml.config import DataConfig
from dogbreed_ml.data.archive import fetch_archive
from dogbreed_ml.data.listing import Layout, list_images, select_breeds
from dogbreed_ml.data.partition import build_splits
from dogbreed_ml.data.s3 import mirror_prefix
from dogbreed_ml.data.scan import scan_images
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.data.synthetic import draw_breeds
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
    findings = scan_images(images, scan_path(fetched.root, project_dir), progress=progress)
    splits = build_splits(images, findings, config, source=fetched.name)
    logger.info(
        "%s: %d breeds, train %d, valid %d, test %d images, fingerprint %s",
        *(splits.source, len(splits.classes), len(splits.train), len(splits.valid), len(splits.test)),
        splits.fingerprint,
    )
    return splits


def scan_path(root: Path, project_dir: Path) -> Path:
    """Where the scan of a folder is kept."""
    key = hashlib.sha256(bytes(root.resolve())).hexdigest()[:16]
    return project_dir / SCANS_DIR / f"{key}.json"


def _fetch(config: DataConfig, project_dir: Path, progress: Progress) -> _Fetched:
    if config.source == "folder":
        root = project_dir / Path(config.path or "").expanduser()
        return _Fetched(root, f"folder {root.name}")
    parent_dir = project_dir / config.dir
    parent_dir.mkdir(parents=True, exist_ok=True)
    # Two processes that want the same download: one fetches, the other finds it there.
    with _locked(parent_dir / f".{config.source}.lock"):
        if config.source == "archive":
            return _fetch_archive(config, parent_dir, project_dir, progress)
        if config.source == "s3":
            path = config.path or ""
            return _Fetched(mirror_prefix(path, parent_dir, progress=progress), path)
        root = draw_breeds(
            parent_dir,
            num_breeds=config.num_breeds,
            num_per_breed=config.num_per_breed,
            seed=config.seed,
            progress=progress,
        )
        return _Fetched(root, f"synthetic {config.num_breeds}x{config.num_per_breed} seed {config.seed}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is fetching data: waiting for %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fetch_archive(config: DataConfig, parent_dir: Path, project_dir: Path, progress: Progress) -> _Fetched:
    path = config.path or ""
    root, layout = fetch_archive(path, parent_dir, base_dir=project_dir, checksum=config.checksum, progress=progress)
    return _Fetched(root, f"archive {path}", layout)
