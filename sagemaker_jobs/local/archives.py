"""tar.gz files, in and out of a job's folder: nothing leaves the folder, nothing fills the disk."""

import gzip
import lzma
import shutil
import tarfile
import zlib
from pathlib import Path

from dogbreed_ml.errors import DataError

MAX_BYTES = 16 * 2**30
MAX_MEMBERS = 200_000


def extract(
    archive_path: Path, folder: Path, *, name: str, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS
) -> None:
    """Unpacks a tar, compressed or not; `name` is what errors call it.

    Raises DataError for what is no tar, and for members that would lie outside of `folder` (links included), devices,
    and more bytes or members than allowed; what was unpacked before stays in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    limit = min(max_bytes, free)
    num_bytes = num_members = 0
    try:
        with tarfile.open(archive_path, "r:*") as archive:
            for member in archive:
                num_members += 1
                num_bytes += member.size
                if num_bytes > limit or num_members > max_members:
                    raise DataError(f"{name} is refused: it unpacks to more than {limit} bytes or {max_members} files.")
                archive.extract(member, folder, filter="data")
    except tarfile.FilterError as error:
        raise DataError(f"{name} is refused: {error}.") from error
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise DataError(f"{name} is no tar archive, or a damaged one: {error or type(error).__name__}.") from error
    except OSError as error:
        raise DataError(f"{name} cannot be unpacked: {error}.") from error


def pack(folders: list[Path], archive_path: Path) -> None:
    """Writes what the folders hold to one tar.gz; where two hold the same path, the first one's counts."""
    seen: set[str] = set()
    # A model's weights hardly get smaller, and level 9 takes ten times as long.
    with tarfile.open(archive_path, "w:gz", compresslevel=1) as archive:
        for folder in folders:
            for path in sorted(folder.rglob("*")):
                relative = path.relative_to(folder).as_posix()
                if relative not in seen and (path.is_file() or path.is_dir() or path.is_symlink()):
                    seen.add(relative)
                    archive.add(path, relative, recursive=False)
