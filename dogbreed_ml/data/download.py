"""One file over http(s), resumed where an earlier try broke off."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dogbreed_ml.errors import DataError
from dogbreed_ml.progress import NO_PROGRESS, Progress

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
NUM_TRIES = 3
"""Tries in a row that bring no new byte before a download is given up."""

_BLOCK = 2**20


class _Retry(Exception):
    """A try that failed in a way that another one may mend."""


def download(
    url: str,
    path: Path,
    *,
    checksum: str | None = None,
    progress: Progress = NO_PROGRESS,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Fetches `url` to `path`; until it is whole and its checksum fits, it is `path` with `.part` behind its name.

    What a broken connection or an ended process left is continued with a Range request, if the server still has the
    same file (If-Range). `checksum` is sha256:HEX or md5:HEX. Raises DataError.
    """
    part = path.with_name(f"{path.name}.part")
    num_futile = 0
    while True:
        before = _size(part)
        try:
            _fetch_rest(url, part, progress)
            break
        except _Retry as error:
            num_futile = 0 if _size(part) > before else num_futile + 1
            if num_futile == NUM_TRIES:
                raise DataError(
                    f"{url} cannot be downloaded: {error}. The same command goes on at {_size(part)} bytes; "
                    "or download it by other means and set data.path to the file."
                ) from error
            logger.warning("%s: %s; trying again at %d bytes", url, error, _size(part))
            sleep(2.0**num_futile)
    try:
        verify_checksum(part, checksum, name=url)
    except DataError:
        part.unlink()
        raise
    finally:
        _validator_path(part).unlink(missing_ok=True)
    os.replace(part, path)


def verify_checksum(path: Path, checksum: str | None, *, name: str) -> None:
    """Raises DataError where the file's digest is not the expected sha256:HEX or md5:HEX; None expects nothing."""
    if checksum is None:
        return
    kind, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected.lower():
        raise DataError(
            f"{name} has {kind} {found}, but {expected.lower()} is expected; "
            "the file is not the one that was published, or data.checksum is wrong."
        )


def _fetch_rest(url: str, part: Path, progress: Progress) -> None:
    """One connection: appends what is missing. Raises _Retry, or DataError where another try is pointless."""
    import requests
    import urllib3

    start, validator = _size(part), _load_validator(part, url)
    headers = {"Accept-Encoding": "identity"}
    if start and validator:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    try:
        timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            if response.status_code == 416:
                part.unlink()
                raise _Retry("the server's file is shorter than what was kept of it")
            _check_status(response.status_code, url)
            start = start if response.status_code == 206 else 0
            _save_validator(part, url, response.headers)
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else 0
            with progress.track("download", total, "bytes") as advance, part.open("ab" if start else "wb") as file:
                advance(start)
                for block in _blocks(response):
                    file.write(block)
                    advance(len(block))
    except (requests.exceptions.MissingSchema, requests.exceptions.InvalidURL) as error:
        raise DataError(f"{url} is not a URL: {error}.") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Retry(f"{type(error).__name__}: {error}") from error
    if _size(part) < total:
        raise _Retry(f"the connection ended at {_size(part)} of {total} bytes")


def _blocks(response: Any) -> Iterator[bytes]:
    # The raw bytes: requests' own iterator would unpack a Content-Encoding, and resuming counts bytes as sent.
    yield from response.raw.stream(_BLOCK, decode_content=False)


def _check_status(status: int, url: str) -> None:
    if status in (429, 500, 502, 503, 504):
        raise _Retry(f"the server answered {status}")
    if status not in (200, 206):
        raise DataError(f"{url} cannot be downloaded: the server answered {status}; check data.path.")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _validator_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _load_validator(part: Path, url: str) -> str | None:
    """The ETag or date that the kept bytes belong to; None where nobody can tell, so that they are fetched again."""
    try:
        stored = json.loads(_validator_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(stored["validator"]) if stored.get("url") == url and stored.get("validator") else None


def _save_validator(part: Path, url: str, headers: Any) -> None:
    etag = headers.get("ETag", "")
    # RFC 9110: If-Range takes no weak ETag.
    validator = headers.get("Last-Modified") if not etag or etag.startswith("W/") else etag
    _validator_path(part).write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
