"""The search for planted secrets finds them wherever they hide."""

import base64
import gzip
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plantedsecrets import API_TOKEN, SECRET_ACCESS_KEY, SECRETS, STORE_PASSWORD, assert_absent, plant, tracking_uri


def _tar(folder: Path) -> Path:
    (folder / "inner.txt").write_text(f"token={API_TOKEN}")
    with tarfile.open(folder / "outer.tar.gz", "w:gz") as archive:
        archive.add(folder / "inner.txt", "code/inner.txt")
    (folder / "inner.txt").unlink()
    return folder


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "outer.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.gz", gzip.compress(STORE_PASSWORD.encode()))
    return folder / "outer.zip"


def _name(folder: Path) -> Path:
    (folder / API_TOKEN).mkdir()
    return folder


@pytest.mark.parametrize(
    "hide",
    [
        lambda folder: f"export KEY={SECRET_ACCESS_KEY}",
        lambda folder: tracking_uri("127.0.0.1:5000"),
        lambda folder: {"hyperparameters": [{"key": SECRET_ACCESS_KEY}]},
        lambda folder: json.dumps({"password": STORE_PASSWORD}).encode(),
        lambda folder: base64.b64encode(b"a" + SECRET_ACCESS_KEY.encode() + b"z"),
        lambda folder: base64.b64encode(b"rex:" + SECRET_ACCESS_KEY.encode()),
        lambda folder: base64.b64encode(SECRET_ACCESS_KEY.encode() + b", and so on"),
        _tar,
        _zip,
        _name,
    ],
)
def test_planted_secret_is_found(hide: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=f"secrets were given away: ({'|'.join(SECRETS)}) in "):
        assert_absent("a harmless line", hide(tmp_path))


def test_absent_secrets_are_not_found_and_planting_sets_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, mlflow_host="127.0.0.1:5000")
    assert {name: os.environ[name] for name in SECRETS} == SECRETS
    assert os.environ["MLFLOW_TRACKING_URI"].startswith("http://rex:planted%3Apa55")
    (tmp_path / "log.txt").write_text("epoch=3 train/loss=0.5")
    assert_absent(tmp_path, {"Tags": [{"Key": "run_id", "Value": "a"}]}, "line", b"\x1f\x8c", tmp_path / "log.txt")
