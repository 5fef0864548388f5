"""Secrets planted where a user has theirs, and the search for them in whatever was written, sent or said."""

import base64
import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

ACCESS_KEY_ID = "AKIAPLANTEDROTTWEILER"
SECRET_ACCESS_KEY = "planted/Schnauzer+9/kennelKeyOfFortyLetters="
SESSION_TOKEN = "planted-session-token-of-a-Komondor"
STORE_PASSWORD = "planted:pa55/word of@a Kuvasz"
API_TOKEN = "planted-token-of-a-Leonberger"

SECRETS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
    "AWS_SESSION_TOKEN": SESSION_TOKEN,
    "MLFLOW_TRACKING_PASSWORD": STORE_PASSWORD,
    "KENNEL_API_TOKEN": API_TOKEN,
}
"""By environment variable; the last stands for whatever else a user's environment holds."""


def tracking_uri(host: str) -> str:
    """An MLflow server's address with the password in it; `host` is HOST:PORT."""
    return f"http://rex:{quote(STORE_PASSWORD, safe='')}@{host}"


def plant(monkeypatch: pytest.MonkeyPatch, *, mlflow_host: str | None = None) -> None:
    """Sets every secret in this process's environment; with `mlflow_host` in MLFLOW_TRACKING_URI too."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    if mlflow_host is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(mlflow_host))


def assert_absent(*searched: Any) -> None:
    """Fails, naming place and variable, where a secret is in one of them.

    A Path is a file or a folder with all below it, a str the text itself, bytes the content; anything else (tags,
    hyperparameters, a request) is searched as JSON. Archives and gzip are unpacked, names of files are searched too.
    Secrets are found as they are, quoted for an address, in JSON, and in base64.
    """
    found = sorted({f"{name} in {place}" for each in searched for place, data in _contents(each) for name in _in(data)})
    assert not found, f"secrets were given away: {'; '.join(found)}"


def _contents(searched: Any) -> Iterator[tuple[str, bytes]]:
    if isinstance(searched, Path) and searched.is_dir():
        for path in sorted(searched.rglob("*")):
            yield f"the name {path.name}", os.fsencode(path.name)
            if path.is_file():
                yield from _unpacked(str(path.relative_to(searched)), path.read_bytes())
    elif isinstance(searched, Path):
        yield from _unpacked(searched.name, searched.read_bytes())
    elif isinstance(searched, bytes):
        yield from _unpacked("bytes", searched)
    else:
        text = searched if isinstance(searched, str) else json.dumps(searched, default=str, ensure_ascii=False)
        yield repr(text[:60]), text.encode()


def _unpacked(place: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    yield place, data
    if data[:2] == b"\x1f\x8b":
        yield from _unpacked(f"{place}, unzipped", gzip.decompress(data))
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield f"{place}: the name {name}", name.encode()
                # A checkpoint's tensors lie in it as they are, and were searched with it.
                if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                    yield from _unpacked(f"{place}: {name}", archive.read(name))
    elif data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                yield f"{place}: the head of {member.name}", json.dumps(member.get_info(), default=str).encode()
                file = archive.extractfile(member)
                if file is not None:
                    yield from _unpacked(f"{place}: {member.name}", file.read())


def _in(data: bytes) -> Iterator[str]:
    return (name for name, value in SECRETS.items() if any(form in data for form in _forms(value)))


def _forms(value: str) -> set[bytes]:
    forms = {value, quote(value, safe=""), quote(value), quote_plus(value), json.dumps(value)[1:-1]}
    raw = value.encode()
    for offset in range(3):
        # Whatever stands before it, three shifts of it are all that base64 knows; the ends depend on the neighbours.
        encoded = base64.b64encode(bytes(offset) + raw).decode()
        forms.add(encoded[4 if offset else 0 : len(encoded) // 4 * 4 - 4])
    return {form.encode() for form in forms}
