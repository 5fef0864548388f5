"""tar.gz in and out of a folder."""

import io
import tarfile
from pathlib import Path

import pytest

from dogbreed_ml.errors import DataError
from sagemaker_jobs.local.archives import extract, pack


def _archive(path: Path, *members: tarfile.TarInfo, content: bytes = b"x") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            member.size = len(content) if member.isfile() else 0
            archive.addfile(member, io.BytesIO(content) if member.isfile() else None)
    return path


def _link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_what_is_packed_is_extracted(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "same").write_text(folder.name)
        (folder / folder.name).write_text("own")
    pack([first, second], tmp_path / "both.tar.gz")
    extract(tmp_path / "both.tar.gz", tmp_path / "out", name="both")
    files = {path.relative_to(tmp_path / "out").as_posix(): path.read_text() for path in _files(tmp_path / "out")}
    assert files == {"deep/same": "first", "first": "own", "second": "own"}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "member",
    [tarfile.TarInfo("../evil"), tarfile.TarInfo("a/../../evil"), _link("evil", "/etc/passwd", tarfile.SYMTYPE),
     _link("evil", "../../outside", tarfile.SYMTYPE), _link("evil", "/etc/passwd", tarfile.LNKTYPE),
     _link("evil", "", tarfile.CHRTYPE)],
    ids=["parent", "hidden-parent", "absolute-link", "relative-link", "hard-link", "device"],
)  # fmt: skip
def test_member_that_leaves_the_folder_is_refused(tmp_path: Path, member: tarfile.TarInfo) -> None:
    archive = _archive(tmp_path / "evil.tar.gz", member)
    with pytest.raises(DataError, match=r"s3://b/evil\.tar\.gz is refused"):
        extract(archive, tmp_path / "a" / "out", name="s3://b/evil.tar.gz")
    assert not any(path.name == "evil" for path in tmp_path.rglob("*"))


def test_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = _archive(tmp_path / "bomb.tar.gz", tarfile.TarInfo("zeros"), content=bytes(5_000_000))
    assert bomb.stat().st_size < 50_000
    with pytest.raises(DataError, match="unpacks to more than 1000000 bytes or 200000 files"):
        extract(bomb, tmp_path / "out", name="bomb", max_bytes=1_000_000)
    assert _files(tmp_path / "out") == []
    many = _archive(tmp_path / "many.tar.gz", *(tarfile.TarInfo(str(number)) for number in range(20)))
    with pytest.raises(DataError, match="or 10 files"):
        extract(many, tmp_path / "many", name="many", max_members=10)


@pytest.mark.parametrize("content", [b"", b"no archive at all", None], ids=["empty", "text", "cut"])
def test_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.tar.gz"
    if content is None:
        whole = _archive(path, tarfile.TarInfo("a"), content=bytes(range(256)) * 400).read_bytes()
        content = whole[: len(whole) // 2]
    path.write_bytes(content)
    with pytest.raises(DataError, match="x is no tar archive, or a damaged one"):
        extract(path, tmp_path / "out", name="x")
