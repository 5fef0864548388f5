import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from imagefiles import make_breeds, make_image

from dogbreed_ml.config import DataConfig
from dogbreed_ml.data.listing import list_images
from dogbreed_ml.data.scan import scan_images
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import SPLIT_NAMES


@pytest.fixture
def breeds_dir(tmp_path: Path) -> Path:
    return make_breeds(tmp_path / "breeds")


class _Counting:
    """Progress that counts; may stop the stage as Ctrl-C would."""

    def __init__(self, *, stop_after: int | None = None):
        self.totals: list[int] = []
        self._stop_after = stop_after

    @contextmanager
    def track(self, description: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        self.totals.append(total)
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            if self._stop_after is not None and done >= self._stop_after:
                raise KeyboardInterrupt

        yield advance


def test_scan_images_reads_nothing_the_second_time(breeds_dir: Path, tmp_path: Path) -> None:
    (breeds_dir / "001.Boxer" / "bad.jpg").touch()
    images, cache_path = list_images(breeds_dir), tmp_path / "scan.json"
    first = scan_images(images, cache_path)
    # Unreadable now; the same size and time say that nothing changed.
    for image in images:
        stat = image.path.stat()
        image.path.write_bytes(b"x" * stat.st_size)
        os.utime(image.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    progress = _Counting()
    assert scan_images(images, cache_path, progress=progress) == first
    assert progress.totals == []
    assert [finding.reason for finding in first if finding.reason] == ["empty file"]


def test_scan_images_reads_a_changed_file_again(breeds_dir: Path, tmp_path: Path) -> None:
    cache_path = tmp_path / "scan.json"
    scan_images(list_images(breeds_dir), cache_path)
    make_image(breeds_dir / "001.Boxer" / "3.png", seed=-5)
    make_image(breeds_dir / "001.Boxer" / "new.png")
    progress = _Counting()
    scan_images(list_images(breeds_dir), cache_path, progress=progress)
    assert progress.totals == [2]


def test_scan_images_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    for breed in ("Boxer", "Chow"):
        for number in range(80):
            make_image(tmp_path / "dogs" / breed / f"{number}.png")
    images, cache_path = list_images(tmp_path / "dogs"), tmp_path / "scan.json"
    with pytest.raises(KeyboardInterrupt):
        scan_images(images, cache_path, progress=_Counting(stop_after=64))
    progress = _Counting()
    scan_images(images, cache_path, progress=progress)
    assert progress.totals == [96]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rules": "of another version", "files": {}}'])
def test_scan_images_replaces_a_cache_it_cannot_use(breeds_dir: Path, tmp_path: Path, content: str) -> None:
    cache_path = tmp_path / "scan.json"
    cache_path.write_text(content)
    findings = scan_images(list_images(breeds_dir), cache_path)
    assert all(finding.digest for finding in findings)
    assert len(json.loads(cache_path.read_text())["files"]) == len(findings)


def test_scan_images_leaves_no_temporary_file(breeds_dir: Path, tmp_path: Path) -> None:
    cache_path = tmp_path / "scans" / "one.json"
    scan_images(list_images(breeds_dir), cache_path)
    assert [path.name for path in cache_path.parent.iterdir()] == ["one.json"]


def test_scan_images_does_not_remember_a_file_that_could_not_be_opened(breeds_dir: Path, tmp_path: Path) -> None:
    images, cache_path = list_images(breeds_dir), tmp_path / "scan.json"
    content = images[0].path.read_bytes()
    times = (images[0].path.stat().st_atime_ns, images[0].mtime_ns)
    images[0].path.unlink()
    assert scan_images(images, cache_path)[0].reason == "cannot be opened: No such file or directory"
    images[0].path.write_bytes(content)
    os.utime(images[0].path, ns=times)
    assert scan_images(images, cache_path)[0].digest


def test_load_splits_of_real_photographs_finds_120_breeds(photographs_dir: Path, tmp_path: Path) -> None:
    root = tmp_path / "dogs"
    for folder in (photographs_dir / "dogs").iterdir():
        (root / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:5]:
            (root / folder.name / path.name).symlink_to(path)
    splits = load_splits(DataConfig(source="folder", path=str(root)), project_dir=tmp_path)
    assert len(splits.classes) == 120
    assert {"Chihuahua", "Toy terrier", "Shih-Tzu", "Mexican hairless"} <= set(splits.classes)
    assert [len(splits.split(name)) for name in SPLIT_NAMES] == [360, 120, 120]
    assert splits.bad_images == ()
