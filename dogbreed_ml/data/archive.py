"""Zip and tar archives: from a preset's name, a URL or a local file to an unpacked folder."""

import gzip
import hashlib
import logging
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import unquote, urlsplit

from dogbreed_ml.data.download import download, verify_checksum
from dogbreed_ml.data.listing import IMAGE_SUFFIXES, Layout
from dogbreed_ml.errors import DataError
from dogbreed_ml.progress import NO_PROGRESS, Progress

logger = logging.getLogger(__name__)

MAX_RATIO = 20
"""Unpacked bytes for each byte of the archive; photographs are compressed already and stay below 2."""
ALLOWANCE_BYTES = 256 * 2**20
"""Unpacked bytes that any archive may have, whatever its ratio."""
MAX_MEMBERS = 5_000_000

_BLOCK = 2**20


@dataclass(frozen=True)
class Preset:
    """A published archive, under a short name."""

    url: str
    checksum: str | None
    layout: Layout


PRESETS = {
    # 133 breeds in train, valid and test. No checksum is published.
    "udacity-dogs": Preset(
        "https://s3-us-west-1.amazonaws.com/udacity-aind/dog-project/dogImages.zip", None, "folders"
    ),
    # 37 breeds, 12 of them cats, in one folder. URL and checksum are torchvision's.
    "oxford-iiit-pet": Preset(
        "https://thor.robots.ox.ac.uk/pets/images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c", "stems"
    ),
}


@dataclass(frozen=True)
class _Member:
    """A file in an archive: its path within, its bytes unpacked."""

    name: str
    size: int


def fetch_archive(
    path: str, parent_dir: Path, *, base_dir: Path, checksum: str | None = None, progress: Progress = NO_PROGRESS
) -> tuple[Path, Layout]:
    """Downloads if need be, verifies and unpacks, once, into a new folder of `parent_dir`; returns it and its layout.

    `path` is a preset's name, an http, https or file URL, or a file (relative to `base_dir`). A download is removed
    when it is unpacked; a file of the user's stays as it is. Raises DataError.
    """
    preset = PRESETS.get(path, Preset(path, None, "folders"))
    checksum = checksum or preset.checksum
    parent_dir.mkdir(parents=True, exist_ok=True)
    if preset.url.startswith(("http://", "https://")):
        target = _target(parent_dir, preset.url, checksum)
        if not target.is_dir():
            downloaded = parent_dir / f"{target.name}.download"
            if not downloaded.exists():
                download(preset.url, downloaded, checksum=checksum, progress=progress)
            try:
                unpack(downloaded, target, name=preset.url, progress=progress)
            except DataError:
                # Kept, it would be taken for whole by each later command.
                downloaded.unlink()
                raise
            downloaded.unlink()
        return target, preset.layout
    file = _local_file(preset.url, base_dir)
    # Another file under the same name is another data set.
    state = file.stat()
    target = _target(parent_dir, str(file), checksum, state.st_size, state.st_mtime_ns)
    if not target.is_dir():
        verify_checksum(file, checksum, name=str(file))
        unpack(file, target, name=str(file), progress=progress)
    return target, preset.layout


def _target(parent_dir: Path, *identity: object) -> Path:
    return parent_dir / f"archive-{hashlib.sha256(repr(identity).encode()).hexdigest()[:12]}"


def _local_file(path: str, base_dir: Path) -> Path:
    parts = urlsplit(path)
    if parts.scheme == "file":
        path = unquote(parts.path)
    elif "://" in path:
        raise DataError(f"data.path must be http(s)://, file:// or a file for data.source=archive, got {path!r}.")
    file = (base_dir / Path(path).expanduser()).resolve()
    if not file.is_file():
        raise DataError(
            f"{file} is not a file; data.source=archive takes a zip or tar, its URL, or one of {', '.join(PRESETS)}."
        )
    return file


def unpack(
    archive_path: Path,
    target: Path,
    *,
    name: str,
    progress: Progress = NO_PROGRESS,
    max_ratio: float = MAX_RATIO,
    allowance_bytes: int = ALLOWANCE_BYTES,
) -> None:
    """Unpacks an archive's images to `target`, which appears when all of them are there.

    `name` is what errors call the archive. Refuses, before it unpacks anything, members that leave the target, links
    and devices, and archives that unpack to more than max_ratio times their size. Raises DataError.
    """
    limit = max(allowance_bytes, int(archive_path.stat().st_size * max_ratio))
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with _reader(archive_path, name) as reader:
            # By name: an archive may hold a path twice, and the last one counts.
            members = {member.name: member for member in reader.members(limit) if _is_wanted(member)}
            total = sum(member.size for member in members.values())
            free = shutil.disk_usage(target.parent).free
            if total > free:
                raise DataError(f"{name} needs {total} bytes unpacked and {target.parent} has {free} left; make room.")
            with progress.track("unpack", len(members), "images") as advance:
                for name_within, content in reader.open_all(members):
                    _write_member(unfinished / name_within, content)
                    advance(1)
        unfinished.chmod(0o755)
        os.rename(unfinished, target)
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{name} is damaged: {error or type(error).__name__}; fetch it again.") from error
    # zipfile raises RuntimeError for a password, NotImplementedError for a compression that it does not know.
    except (RuntimeError, OSError) as error:
        raise DataError(f"{name} cannot be unpacked: {error}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _is_wanted(member: _Member) -> bool:
    return PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES


def _write_member(path: Path, content: IO[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        shutil.copyfileobj(content, file, _BLOCK)


def _require_inside(name: str, archive_name: str) -> None:
    """Refuses a path that would leave the folder it is unpacked into, on any operating system."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name) or "\0" in name:
        raise DataError(
            f"{archive_name} is refused: its member {name!r} would be written outside of the target folder."
        )


class _Tally:
    """Counts members and bytes while an archive is listed, and refuses it at the limit."""

    def __init__(self, archive_name: str, limit: int):
        self._name, self._limit = archive_name, limit
        self._num_members = self._num_bytes = 0

    def add(self, size: int) -> None:
        self._num_members += 1
        self._num_bytes += size
        if self._num_bytes > self._limit or self._num_members > MAX_MEMBERS:
            raise DataError(
                f"{self._name} is refused: it unpacks to more than {self._limit} bytes or {MAX_MEMBERS} files, which "
                "photographs never do. If it is what it should be, unpack it yourself and use data.source=folder."
            )


class _ZipReader:
    def __init__(self, archive: zipfile.ZipFile, name: str):
        self._archive, self._name = archive, name

    def members(self, limit: int) -> Iterator[_Member]:
        tally = _Tally(self._name, limit)
        for info in self._archive.infolist():
            _require_inside(info.filename, self._name)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(f"{self._name} is refused: its member {info.filename!r} is a link or a device.")
            tally.add(info.file_size)
            if not info.is_dir():
                yield _Member(info.filename, info.file_size)

    def open_all(self, names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
        for name in names:
            # zipfile reads no more than the declared size, and checks the CRC.
            with self._archive.open(name) as content:
                yield name, content


class _TarReader:
    def __init__(self, archive: tarfile.TarFile, name: str):
        self._archive, self._name = archive, name

    def members(self, limit: int) -> Iterator[_Member]:
        tally = _Tally(self._name, limit)
        for info in self._archive:
            _require_inside(info.name, self._name)
            if not (info.isfile() or info.isdir()):
                raise DataError(f"{self._name} is refused: its member {info.name!r} is a link or a device.")
            tally.add(info.size)
            if info.isfile():
                yield _Member(info.name, info.size)

    def open_all(self, names: Collection[str]) -> Iterator[tuple[str, IO[bytes]]]:
        last = {info.name: info for info in self._archive.getmembers() if info.name in names}
        # In the archive's order: seeking back in a compressed tar would unpack it from its start each time.
        for info in sorted(last.values(), key=lambda info: info.offset):
            content = self._archive.extractfile(info)
            if content is not None:
                yield info.name, content


@contextmanager
def _reader(path: Path, name: str) -> Iterator[_ZipReader | _TarReader]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as zip_archive:
            yield _ZipReader(zip_archive, name)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as tar_archive:
            yield _TarReader(tar_archive, name)
    else:
        raise DataError(f"{name} is neither a zip nor a tar archive; set data.path to one, or use data.source=folder.")
