"""s3://bucket/prefix against moto's server, reached as a user would: through AWS_ENDPOINT_URL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from imagefiles import make_breeds, make_image
from s3server import s3_client

from dogbreed_ml.config import DataConfig
from dogbreed_ml.data import s3
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Splits
from dogbreed_ml.errors import DataError


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_client(monkeypatch, bucket="photos") as client:
        yield client


def _upload(client: Any, root: Path, prefix: str) -> None:
    for path in sorted(root.rglob("*.png")):
        client.upload_file(str(path), "photos", f"{prefix}{path.relative_to(root).as_posix()}")


def _load(tmp_path: Path, uri: str = "s3://photos/dogs") -> Splits:
    return load_splits(DataConfig(source="s3", path=uri), project_dir=tmp_path / "project")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that are really downloaded."""
    keys: list[str] = []
    fetch = s3._fetch

    def recorded(client: Any, bucket: str, each: Any, target: Path) -> str:
        keys.append(each.key)
        return fetch(client, bucket, each, target)

    monkeypatch.setattr(s3, "_fetch", recorded)
    return keys


def test_s3_prefix_is_the_folder_it_was_uploaded_from(client: Any, tmp_path: Path, fetched: list[str]) -> None:
    root = make_breeds(tmp_path / "breeds")
    make_image(root / "001.Boxer" / "ein Hündchen 柴.png")
    _upload(client, root, "dogs/")
    client.put_object(Bucket="photos", Key="dogs/", Body=b"")
    client.put_object(Bucket="photos", Key="dogs/README.txt", Body=b"read me")
    client.put_object(Bucket="photos", Key="dogs-of-others/Pug/1.png", Body=b"not ours")
    splits = _load(tmp_path)
    folder = load_splits(DataConfig(source="folder", path=str(root)), project_dir=tmp_path / "project")
    assert splits.fingerprint == folder.fingerprint
    assert splits.source == "s3://photos/dogs"
    assert len(fetched) == 39
    assert _load(tmp_path, "s3://photos/dogs/").fingerprint == splits.fingerprint
    assert len(fetched) == 39


def test_s3_fetches_only_what_changed(client: Any, tmp_path: Path, fetched: list[str]) -> None:
    root = make_breeds(tmp_path / "breeds")
    _upload(client, root, "dogs/")
    before = _load(tmp_path)
    fetched.clear()
    changed = root / "001.Boxer" / "3.png"
    # One byte flipped: the same size, another ETag.
    content = bytearray((root / "001.Boxer" / "4.png").read_bytes())
    client.put_object(Bucket="photos", Key="dogs/001.Boxer/3.png", Body=bytes(content) + b"tail")
    client.delete_object(Bucket="photos", Key="dogs/001.Boxer/5.png")
    after = _load(tmp_path)
    assert fetched == ["dogs/001.Boxer/3.png"]
    assert changed.read_bytes() != content
    total = {len(s.train) + len(s.valid) + len(s.test) for s in (before, after)}
    assert total == {38, 37}


def test_s3_damaged_mirror_is_mended(client: Any, tmp_path: Path, fetched: list[str]) -> None:
    _upload(client, make_breeds(tmp_path / "breeds"), "dogs/")
    before = _load(tmp_path)
    before.train.samples[0].path.write_bytes(b"half")
    before.train.samples[1].path.unlink()
    fetched.clear()
    assert _load(tmp_path) == before
    assert len(fetched) == 2


def test_s3_whole_bucket_keeps_an_own_split(client: Any, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for breed in ("Boxer", "Chow"):
            make_image(tmp_path / "mine" / split / breed / "1.png")
    _upload(client, tmp_path / "mine", "")
    splits = _load(tmp_path, "s3://photos")
    assert [len(splits.train), len(splits.valid), len(splits.test)] == [2, 2, 2]


@pytest.mark.parametrize("key", ["dogs/../../evil.png", "dogs//evil.png", "dogs/./evil.png"])
def test_s3_key_that_leaves_the_mirror_is_refused(client: Any, tmp_path: Path, key: str) -> None:
    client.put_object(Bucket="photos", Key=key, Body=b"evil")
    with pytest.raises(DataError, match=r"is refused: no file can be named"):
        _load(tmp_path)
    assert not list(tmp_path.rglob("evil.png"))


def test_s3_bucket_that_is_not_there_names_the_way_out(client: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://nobody/dogs cannot be fetched: .*NoSuchBucket.*AWS_ENDPOINT_URL"):
        _load(tmp_path, "s3://nobody/dogs")


def test_s3_prefix_without_images_is_an_error(client: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="s3://photos/dogs has no images"):
        _load(tmp_path)


def test_s3_without_credentials_is_an_error(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DataError, match="Unable to locate credentials.*AWS_PROFILE"):
        _load(tmp_path)
