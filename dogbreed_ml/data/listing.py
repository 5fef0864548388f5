"""Which image files a folder holds, of which breed, and in which split. Reads names alone, never contents."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dogbreed_ml.checks import nearest
from dogbreed_ml.config import SplitName
from dogbreed_ml.data.breeds import breed_of_stem, clean_breed_name
from dogbreed_ml.errors import DataError

logger = logging.getLogger(__name__)

Layout = Literal["folders", "stems"]
"""folders: a folder per breed, perhaps below train, valid and test; stems: files named BREED_NN."""

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))

_SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class ListedImage:
    """One file that should be an image."""

    path: Path
    relative: str
    """From the source's root, with forward slashes."""
    breed: str
    """Cleaned name."""
    split: SplitName | None
    """None where the source has no split of its own."""
    size: int
    """Bytes."""
    mtime_ns: int


def list_images(root: Path, *, layout: Layout = "folders") -> tuple[ListedImage, ...]:
    """All image files below the breed folders of `root`, ordered by relative path.

    Hidden files and files without an image's suffix are ignored, and counted in the log. Raises DataError.
    """
    ignored: Counter[str] = Counter()
    try:
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; set data.path to a folder that has one folder per breed.")
        found = _list_stems(root, ignored) if layout == "stems" else _list_folders(root, ignored)
        images = sorted(found, key=lambda image: image.relative)
    except OSError as error:
        raise DataError(f"{error.filename or root} cannot be listed: {error.strerror}.") from error
    if ignored:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common(8))
        logger.info("%s: ignored %d files that are not images by suffix (%s)", root, ignored.total(), kinds)
    return tuple(images)


def select_breeds(images: Iterable[ListedImage], classes: list[str] | None) -> tuple[ListedImage, ...]:
    """The images of the breeds in `classes`, without regard to case; raises DataError for a breed that is not there."""
    listed = tuple(images)
    if classes is None:
        return listed
    known = {image.breed.casefold(): image.breed for image in listed}
    for name in classes:
        if name.casefold() not in known:
            hint = nearest(name, sorted(known.values())) or f"; there are {', '.join(sorted(known.values())[:10])}, ..."
            raise DataError(f"data.classes names {name!r}, and no such breed is there{hint}.")
    wanted = {name.casefold() for name in classes}
    return tuple(image for image in listed if image.breed.casefold() in wanted)


def _list_stems(root: Path, ignored: Counter[str]) -> Iterator[ListedImage]:
    for entry, relative in _walk(root, "", ignored):
        breed = breed_of_stem(Path(entry.name).stem)
        if breed is None:
            ignored["without a number"] += 1
        else:
            yield _listed(entry, relative, clean_breed_name(breed), split=None)


def _list_folders(root: Path, ignored: Counter[str]) -> Iterator[ListedImage]:
    top, prefix = _below_wrappers(root)
    split_dirs = _find_split_dirs(top)
    spelling: dict[str, str] = {}
    if not split_dirs:
        yield from _list_breeds(top, prefix, None, ignored, spelling)
    # Train comes first: its spelling of a breed counts where the splits differ in case.
    for name in sorted(split_dirs, key=("train", "valid", "test").index):
        folder = split_dirs[name]
        if not _subfolders(folder):
            raise DataError(
                f"{folder} has no breed folders, though {split_dirs['train'].name} has; sort its images into one "
                f"folder per breed, or set data.path to {split_dirs['train']} to have that split by seed."
            )
        yield from _list_breeds(folder, f"{prefix}{folder.name}/", name, ignored, spelling)


def _below_wrappers(root: Path) -> tuple[Path, str]:
    """The folder that has the breeds or splits: archives often wrap it into folders of one entry each."""
    top, prefix = root, ""
    while len(folders := _subfolders(top)) == 1 and _subfolders(folders[0]):
        top, prefix = folders[0], f"{prefix}{folders[0].name}/"
    return top, prefix


def _find_split_dirs(top: Path) -> dict[SplitName, Path]:
    """train, valid and test folders by their names; empty where the breeds are at the top."""
    found: dict[SplitName, Path] = {}
    for folder in _subfolders(top):
        name = _SPLIT_FOLDERS.get(folder.name.casefold())
        if name is None:
            continue
        if name in found:
            raise DataError(f"{found[name]} and {folder} are both the {name} split; keep one of them.")
        found[name] = folder
    if "train" in found and _subfolders(found["train"]):
        others = sorted(folder.name for folder in _subfolders(top) if folder not in found.values())
        if others:
            logger.warning("%s: ignored folders that are no split: %s", top, ", ".join(others))
        return found
    if any(_subfolders(folder) for folder in found.values()):
        raise DataError(
            f"{top} has {', '.join(sorted(found))} but no train; add {top / 'train'} with a folder per breed."
        )
    return {}


def _list_breeds(
    top: Path, prefix: str, split: SplitName | None, ignored: Counter[str], spelling: dict[str, str]
) -> Iterator[ListedImage]:
    by_breed: dict[str, Path] = {}
    for folder in _subfolders(top):
        breed = clean_breed_name(folder.name)
        breed = spelling.setdefault(breed.casefold(), breed)
        if breed in by_breed:
            raise DataError(f"{by_breed[breed]} and {folder} both mean the breed {breed!r}; rename or merge them.")
        by_breed[breed] = folder
        images = [
            _listed(entry, relative, breed, split=split)
            for entry, relative in _walk(folder, f"{prefix}{folder.name}/", ignored)
        ]
        if not images:
            raise DataError(f"{folder} holds no images; remove the folder, or list the breeds to use in data.classes.")
        yield from images
    with os.scandir(top) as entries:
        num_loose = sum(_is_image(entry) for entry in entries)
    if num_loose:
        logger.warning("%s: ignored %d images beside the breed folders", top, num_loose)


def _listed(entry: os.DirEntry[str], relative: str, breed: str, *, split: SplitName | None) -> ListedImage:
    stat = entry.stat()
    return ListedImage(Path(entry.path), relative, breed, split, stat.st_size, stat.st_mtime_ns)


def _walk(
    folder: Path | str, prefix: str, ignored: Counter[str], seen: frozenset[str] = frozenset()
) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Image files at any depth with their relative paths; follows links, but not round in circles."""
    here = os.path.realpath(folder)
    if here in seen:
        return
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if _is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{entry.name}/", ignored, seen | {here})
        elif _is_image(entry):
            yield entry, f"{prefix}{entry.name}"
        else:
            ignored[os.path.splitext(entry.name)[1].lower() or "without suffix"] += 1


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name))
    return [folder / name for name in names]


def _is_hidden(name: str) -> bool:
    # __MACOSX holds the resource forks in a zip made by a Mac.
    return name.startswith(".") or name == "__MACOSX"


def _is_image(entry: os.DirEntry[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in IMAGE_SUFFIXES and not _is_hidden(entry.name) and entry.is_file()
