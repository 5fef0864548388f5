"""Archives from a real HTTP server on this machine that honours Range, cuts connections and changes its files."""

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from imagefiles import make_breeds, make_image

from dogbreed_ml.config import DataConfig
from dogbreed_ml.data.archive import PRESETS, Preset, fetch_archive, unpack
from dogbreed_ml.data.download import download
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.errors import DataError


@dataclass
class _Shelf:
    """What the server gives out, and how it misbehaves."""

    content: bytes = b""
    etag: str | None = '"one"'
    status: int | None = None
    """Answers so, whatever is asked."""
    cut_at: list[int] = field(default_factory=list)
    """Bytes after which each of the next connections breaks."""
    ranges: list[str | None] = field(default_factory=list)
    """Range headers as they came."""


class _Handler(BaseHTTPRequestHandler):
    shelf: _Shelf

    def do_GET(self) -> None:
        shelf, asked = self.shelf, self.headers["Range"]
        shelf.ranges.append(asked)
        if shelf.status is not None:
            self.send_error(shelf.status)
            return
        start = 0
        if asked and self.headers["If-Range"] == shelf.etag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start > len(shelf.content):
            self.send_error(416)
            return
        body = shelf.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if shelf.etag:
            self.send_header("ETag", shelf.etag)
        self.end_headers()
        self.wfile.write(body[: shelf.cut_at.pop(0)] if shelf.cut_at else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def shelf() -> _Shelf:
    return _Shelf()


@pytest.fixture
def url(shelf: _Shelf) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"shelf": shelf})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/dogs.zip"
        server.shutdown()
        thread.join()


def _no_sleep(seconds: float) -> None:
    pass


def _zip(root: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, f"dogImages/{path.relative_to(root).as_posix()}")
        archive.writestr("dogImages/README.txt", "read me")
        archive.writestr("__MACOSX/dogImages/._1.png", "fork")
    return buffer.getvalue()


def _tar(root: Path, mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        archive.add(root, "dogImages")
    return buffer.getvalue()


@pytest.fixture
def breeds_zip(tmp_path: Path) -> bytes:
    return _zip(make_breeds(tmp_path / "breeds"))


def _config(path: str, **values: object) -> DataConfig:
    return replace(DataConfig(source="archive", path=path), **values)  # type: ignore[arg-type]


def test_archive_over_http_is_fetched_once(url: str, shelf: _Shelf, breeds_zip: bytes, tmp_path: Path) -> None:
    shelf.content = breeds_zip
    checksum = f"sha256:{hashlib.sha256(breeds_zip).hexdigest()}"
    splits = load_splits(_config(url, checksum=checksum), project_dir=tmp_path / "project")
    assert splits.classes == ("Boxer", "Chow", "Saint Bernard")
    assert len(splits.train) + len(splits.valid) + len(splits.test) == 38
    assert splits == load_splits(_config(url, checksum=checksum), project_dir=tmp_path / "project")
    assert shelf.ranges == [None]
    left = [path.name for path in (tmp_path / "project" / ".dogbreed" / "data").iterdir() if path.name[0] != "."]
    assert [re.sub("[0-9a-f]{12}", "KEY", name) for name in left] == ["archive-KEY"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_archive_of_a_local_tar_is_left_as_it_is(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "my dogs.tar"
    path.write_bytes(_tar(make_breeds(tmp_path / "breeds"), mode))
    splits = load_splits(_config(path.as_uri()), project_dir=tmp_path / "project")
    same = load_splits(_config("../my dogs.tar"), project_dir=tmp_path / "project")
    folder = load_splits(DataConfig(source="folder", path=str(tmp_path / "breeds")), project_dir=tmp_path / "project")
    assert splits.fingerprint == same.fingerprint == folder.fingerprint
    assert path.exists()


def test_archive_that_changed_on_disk_is_unpacked_again(tmp_path: Path) -> None:
    root, path = make_breeds(tmp_path / "breeds"), tmp_path / "dogs.zip"
    path.write_bytes(_zip(root))
    before = load_splits(_config(str(path)), project_dir=tmp_path / "project")
    make_image(root / "001.Boxer" / "new.png")
    path.write_bytes(_zip(root))
    after = load_splits(_config(str(path)), project_dir=tmp_path / "project")
    assert before.fingerprint != after.fingerprint


def test_download_goes_on_where_the_connection_broke(
    url: str, shelf: _Shelf, breeds_zip: bytes, tmp_path: Path
) -> None:
    shelf.content, shelf.cut_at = breeds_zip, [5000, 1000]
    download(url, tmp_path / "dogs.zip", sleep=_no_sleep)
    assert (tmp_path / "dogs.zip").read_bytes() == breeds_zip
    assert shelf.ranges == [None, "bytes=5000-", "bytes=6000-"]
    assert sorted(path.name for path in tmp_path.glob("dogs.zip*")) == ["dogs.zip"]


def test_download_goes_on_after_the_process_ended(url: str, shelf: _Shelf, breeds_zip: bytes, tmp_path: Path) -> None:
    shelf.content, shelf.cut_at = breeds_zip, [7000, 0, 0, 0]
    with pytest.raises(DataError, match="The same command goes on at 7000 bytes"):
        download(url, tmp_path / "dogs.zip", sleep=_no_sleep)
    assert not (tmp_path / "dogs.zip").exists()
    download(url, tmp_path / "dogs.zip", sleep=_no_sleep)
    assert shelf.ranges[-1] == "bytes=7000-"
    assert (tmp_path / "dogs.zip").read_bytes() == breeds_zip


@pytest.mark.parametrize("etag", ['"two"', None])
def test_download_starts_again_where_the_file_changed(
    url: str, shelf: _Shelf, breeds_zip: bytes, tmp_path: Path, etag: str | None
) -> None:
    shelf.content, shelf.cut_at = b"old" * 5000, [7000, 0, 0, 0]
    with pytest.raises(DataError):
        download(url, tmp_path / "dogs.zip", sleep=_no_sleep)
    shelf.content, shelf.etag = breeds_zip, etag
    download(url, tmp_path / "dogs.zip", sleep=_no_sleep)
    assert (tmp_path / "dogs.zip").read_bytes() == breeds_zip


def test_download_of_a_shorter_file_than_kept_starts_again(url: str, shelf: _Shelf, tmp_path: Path) -> None:
    shelf.content, shelf.cut_at = b"x" * 9000, [8000, 0, 0, 0]
    with pytest.raises(DataError):
        download(url, tmp_path / "dogs.zip", sleep=_no_sleep)
    shelf.content = b"y" * 100
    download(url, tmp_path / "dogs.zip", sleep=_no_sleep)
    assert (tmp_path / "dogs.zip").read_bytes() == b"y" * 100


def test_download_with_another_checksum_is_thrown_away(
    url: str, shelf: _Shelf, breeds_zip: bytes, tmp_path: Path
) -> None:
    shelf.content = breeds_zip
    with pytest.raises(DataError, match=f"has md5 {hashlib.md5(breeds_zip).hexdigest()}, but {'0' * 32} is expected"):
        download(url, tmp_path / "dogs.zip", checksum=f"md5:{'0' * 32}")
    assert list(tmp_path.glob("dogs.zip*")) == []


def test_download_that_is_not_there_is_not_tried_again(url: str, shelf: _Shelf, tmp_path: Path) -> None:
    shelf.status = 404
    with pytest.raises(DataError, match="the server answered 404"):
        download(url, tmp_path / "dogs.zip", sleep=_no_sleep)
    assert len(shelf.ranges) == 1


def test_download_from_a_busy_server_waits_longer_each_time(url: str, shelf: _Shelf, tmp_path: Path) -> None:
    shelf.status = 503
    slept: list[float] = []
    with pytest.raises(DataError, match="the server answered 503"):
        download(url, tmp_path / "dogs.zip", sleep=slept.append)
    assert slept == [2.0, 4.0]


def test_archive_by_a_presets_name_has_its_checksum_and_layout(
    url: str, shelf: _Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for breed in ("american_bulldog", "Abyssinian"):
        for number in range(1, 5):
            make_image(tmp_path / "pets" / "images" / f"{breed}_{number}.jpg")
    (tmp_path / "pets" / "images" / "Abyssinian_100.mat").write_bytes(b"MATLAB")
    shelf.content = _tar(tmp_path / "pets" / "images", "w:gz")
    real = PRESETS["oxford-iiit-pet"]
    assert real == Preset(
        "https://thor.robots.ox.ac.uk/pets/images.tar.gz", "md5:5c4f3ee8e5d25df40f4fd59a7f44e54c", "stems"
    )
    monkeypatch.setitem(
        PRESETS, "oxford-iiit-pet", replace(real, url=url, checksum=f"md5:{hashlib.md5(shelf.content).hexdigest()}")
    )
    splits = load_splits(_config("oxford-iiit-pet"), project_dir=tmp_path / "project")
    assert splits.classes == ("Abyssinian", "American bulldog")
    assert splits.source == "archive oxford-iiit-pet"
    with pytest.raises(DataError, match="is expected"):
        load_splits(_config("oxford-iiit-pet", checksum=f"md5:{'0' * 32}"), project_dir=tmp_path / "project")


EVIL_NAMES = ("../evil.png", "/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png", "C:/evil.png")


def _evil_zip(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("Boxer/1.png", b"good")
        archive.writestr(name, b"evil")
    return buffer.getvalue()


def _tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _evil_tar(name: str) -> bytes:
    return _tar_of((tarfile.TarInfo("Boxer/1.png"), b"good"), (tarfile.TarInfo(name), b"evil"))


@pytest.mark.parametrize("make", [_evil_zip, _evil_tar])
@pytest.mark.parametrize("name", EVIL_NAMES)
def test_unpack_refuses_members_that_leave_the_target(tmp_path: Path, make: Callable[[str], bytes], name: str) -> None:
    archive = tmp_path / "in" / "archive"
    archive.parent.mkdir()
    archive.write_bytes(make(name))
    with pytest.raises(DataError, match="is refused: its member .*evil.png.* outside of the target folder"):
        unpack(archive, tmp_path / "in" / "target", name="dogs")
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "archive"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_unpack_refuses_links_and_devices_in_a_tar(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("Boxer/link.png")
    info.type, info.linkname = kind, "../../outside"
    (tmp_path / "dogs.tar").write_bytes(_tar_of((info, b"")))
    with pytest.raises(DataError, match="'Boxer/link.png' is a link or a device"):
        unpack(tmp_path / "dogs.tar", tmp_path / "target", name="dogs")


def test_unpack_refuses_links_in_a_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("Boxer/link.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "dogs.zip", "w") as archive:
        archive.writestr(info, "../../outside")
    with pytest.raises(DataError, match="'Boxer/link.png' is a link or a device"):
        unpack(tmp_path / "dogs.zip", tmp_path / "target", name="dogs")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_unpack_refuses_a_bomb_before_it_writes(tmp_path: Path, kind: str) -> None:
    zeros = bytes(3_000_000)
    path = tmp_path / "bomb"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("Boxer/1.png", zeros)
    else:
        path.write_bytes(_tar_of((tarfile.TarInfo("Boxer/1.png"), zeros)))
    with pytest.raises(DataError, match="is refused: it unpacks to more than 1000000 bytes"):
        unpack(path, tmp_path / "target", name="bomb", allowance_bytes=1_000_000)
    assert [each.name for each in tmp_path.iterdir()] == ["bomb"]


@pytest.mark.parametrize("mode", ["zip", "w:gz", "w:xz", "w"])
def test_unpack_of_a_damaged_archive_is_an_error(tmp_path: Path, mode: str) -> None:
    root, path = make_breeds(tmp_path / "breeds"), tmp_path / "dogs"
    content = bytearray(_zip(root) if mode == "zip" else _tar(root, mode))
    if mode == "zip":
        content[100:140] = bytes(40)
    path.write_bytes(content if mode == "zip" else content[: len(content) // 2])
    with pytest.raises(DataError, match="dogs is damaged: .*; fetch it again"):
        unpack(path, tmp_path / "target", name="dogs")
    assert not (tmp_path / "target").exists()


def test_archive_that_was_downloaded_damaged_is_fetched_again(
    url: str, shelf: _Shelf, breeds_zip: bytes, tmp_path: Path
) -> None:
    shelf.content = breeds_zip[: len(breeds_zip) // 2]
    with pytest.raises(DataError):
        fetch_archive(url, tmp_path / "data", base_dir=tmp_path)
    shelf.content = breeds_zip
    folder, _ = fetch_archive(url, tmp_path / "data", base_dir=tmp_path)
    assert len(list(folder.rglob("*.png"))) == 39


def test_unpack_takes_the_last_of_two_members_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "dogs.tar"
    path.write_bytes(_tar_of((tarfile.TarInfo("B/1.png"), b"first"), (tarfile.TarInfo("B/1.png"), b"second")))
    unpack(path, tmp_path / "target", name="dogs")
    assert (tmp_path / "target" / "B" / "1.png").read_bytes() == b"second"


def test_unpack_where_a_file_and_a_folder_share_a_name_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "dogs.tar"
    path.write_bytes(_tar_of((tarfile.TarInfo("B.png"), b"file"), (tarfile.TarInfo("B.png/1.png"), b"below")))
    with pytest.raises(DataError, match="dogs cannot be unpacked"):
        unpack(path, tmp_path / "target", name="dogs")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ftp://127.0.0.1/dogs.zip", r"must be http\(s\)://, file:// or a file"),
        ("missing.zip", "missing.zip is not a file; .* one of udacity-dogs, oxford-iiit-pet"),
        ("text.zip", "is neither a zip nor a tar archive"),
    ],
)
def test_archive_that_is_none_says_what_to_give(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(DataError, match=message):
        load_splits(_config(path), project_dir=tmp_path)
