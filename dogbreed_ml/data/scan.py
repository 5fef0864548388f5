"""Every image decoded in full, once: its digest, or why it cannot be used; the answers are kept."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL

from dogbreed_ml.data.listing import ListedImage
from dogbreed_ml.errors import ImageError
from dogbreed_ml.files import write_whole
from dogbreed_ml.progress import NO_PROGRESS, Progress
from dogbreed_ml.transforms import MAX_BYTES, MAX_PIXELS, decode_image

logger = logging.getLogger(__name__)

_CHUNK = 32
_CANNOT_OPEN = "cannot be opened"
# Answers of other rules are not ours: bump the number when decode_image changes what it refuses.
_RULES = f"1 pillow {PIL.__version__} max_pixels {MAX_PIXELS} max_bytes {MAX_BYTES}"


@dataclass(frozen=True)
class Finding:
    """What the scan says of one file: a digest where it can be read, else a reason."""

    digest: str | None
    """sha256 of the bytes, in hex."""
    reason: str | None


def scan_images(
    images: Sequence[ListedImage], cache_path: Path, *, progress: Progress = NO_PROGRESS
) -> tuple[Finding, ...]:
    """One finding for each image, in the same order.

    A file whose relative path, size and modification time are in the cache is neither read nor decoded. The cache is
    also written when the scan is interrupted, so that the next one goes on.
    """
    cache = _load_cache(cache_path)
    known = {image.relative: _recall(cache, image) for image in images}
    todo = [image for image in images if known[image.relative] is None]
    if todo:
        try:
            for image, finding in _scan(todo, progress):
                known[image.relative] = finding
                if not (finding.reason or "").startswith(_CANNOT_OPEN):
                    cache[image.relative] = [image.size, image.mtime_ns, finding.digest, finding.reason]
        finally:
            _save_cache(cache_path, cache)
    return tuple(finding for finding in known.values() if finding is not None)


def _scan(todo: Sequence[ListedImage], progress: Progress) -> Iterator[tuple[ListedImage, Finding]]:
    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    # Pillow decodes outside the interpreter's lock, so threads are enough.
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="scan")
    try:
        with progress.track("scan", len(todo), "images") as advance:
            for chunk, findings in zip(chunks, pool.map(_examine_all, chunks), strict=True):
                yield from zip(chunk, findings, strict=True)
                advance(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)


def _examine_all(images: Sequence[ListedImage]) -> list[Finding]:
    return [_examine(image) for image in images]


def _examine(image: ListedImage) -> Finding:
    if image.size > MAX_BYTES:
        return Finding(None, f"too large: {image.size} bytes, at most {MAX_BYTES} are read")
    try:
        data = image.path.read_bytes()
    except OSError as error:
        return Finding(None, f"{_CANNOT_OPEN}: {error.strerror}")
    try:
        decode_image(data)
    except ImageError as error:
        return Finding(None, str(error))
    return Finding(hashlib.sha256(data).hexdigest(), None)


def _recall(cache: dict[str, list[Any]], image: ListedImage) -> Finding | None:
    size, mtime_ns, digest, reason = cache.get(image.relative, (None, None, None, None))
    return Finding(digest, reason) if (size, mtime_ns) == (image.size, image.mtime_ns) else None


def _load_cache(path: Path) -> dict[str, list[Any]]:
    """Relative path to [size, mtime_ns, digest, reason]; empty where there is none, or none that can be used."""
    try:
        stored = json.loads(path.read_text(encoding="ascii"))
        if stored["rules"] == _RULES:
            files: dict[str, list[Any]] = stored["files"]
            return files
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be used (%s): every image is checked again", path, error)
    return {}


def _save_cache(path: Path, files: dict[str, list[Any]]) -> None:
    write_whole(path, json.dumps({"rules": _RULES, "files": files}, separators=(",", ":")))
