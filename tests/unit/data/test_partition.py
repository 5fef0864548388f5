"""Folders in, splits out: through load_splits, as the pipeline calls it."""

import hashlib
import logging
import os
import shutil
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from imagefiles import make_breeds, make_image
from PIL import Image

from dogbreed_ml.config import DataConfig
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import SPLIT_NAMES, Splits, describe, quarantine_rows
from dogbreed_ml.errors import DataError


@pytest.fixture
def breeds_dir(tmp_path: Path) -> Path:
    return make_breeds(tmp_path / "breeds")


def _load(root: Path, **values: object) -> Splits:
    config = replace(DataConfig(source="folder", path=str(root)), **values)  # type: ignore[arg-type]
    return load_splits(config, project_dir=root.parent / "project")


def _counts(splits: Splits) -> dict[str, dict[str, int]]:
    return {
        name: {splits.classes[label]: n for label, n in Counter(splits.split(name).labels.tolist()).items()}
        for name in SPLIT_NAMES
    }


def _digests(splits: Splits) -> dict[str, set[str]]:
    return {name: {sample.digest for sample in splits.split(name).samples} for name in SPLIT_NAMES}


def _tree(root: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(root)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_load_splits_is_stratified_and_disjoint(breeds_dir: Path) -> None:
    splits = _load(breeds_dir, valid_share=0.2, test_share=0.3)
    assert splits.classes == ("Boxer", "Chow", "Saint Bernard")
    assert _counts(splits) == {
        "train": {"Boxer": 10, "Chow": 6, "Saint Bernard": 3},
        "valid": {"Boxer": 4, "Chow": 2, "Saint Bernard": 1},
        "test": {"Boxer": 6, "Chow": 4, "Saint Bernard": 2},
    }
    for one, other in combinations(_digests(splits).values(), 2):
        assert not one & other


def test_load_splits_repeats_by_seed(breeds_dir: Path) -> None:
    assert _load(breeds_dir) == _load(breeds_dir)
    other = _load(breeds_dir, seed=1)
    assert _digests(other)["test"] != _digests(_load(breeds_dir))["test"]
    assert other.fingerprint != _load(breeds_dir).fingerprint


def test_load_splits_digest_is_of_the_bytes(breeds_dir: Path) -> None:
    sample = _load(breeds_dir).train.samples[0]
    assert sample.digest == hashlib.sha256(sample.path.read_bytes()).hexdigest()


def test_fingerprint_is_the_same_after_move_rename_and_touch(breeds_dir: Path) -> None:
    before = _load(breeds_dir)
    moved = breeds_dir.parent / "elsewhere" / "dogs"
    shutil.copytree(breeds_dir, moved)
    (moved / "001.Boxer").rename(moved / "17-Boxer")
    (moved / "17-Boxer" / "3.png").rename(moved / "17-Boxer" / "a b.png")
    os.utime(moved / "17-Boxer" / "4.png", (1, 1))
    after = _load(moved)
    assert after.fingerprint == before.fingerprint
    # Kept features are rows in this order: equal fingerprints must mean equal order.
    for name in SPLIT_NAMES:
        assert [s.digest for s in after.split(name).samples] == [s.digest for s in before.split(name).samples]


def test_fingerprint_changes_with_content_label_and_split(breeds_dir: Path) -> None:
    before = _load(breeds_dir).fingerprint
    changed = {before, _load(breeds_dir, seed=3).fingerprint}
    make_image(breeds_dir / "001.Boxer" / "3.png", seed=-1)
    changed.add(_load(breeds_dir).fingerprint)
    (breeds_dir / "001.Boxer" / "4.png").rename(breeds_dir / "n02085620-chow" / "moved.png")
    changed.add(_load(breeds_dir).fingerprint)
    (breeds_dir / "001.Boxer").rename(breeds_dir / "Bulldog")
    changed.add(_load(breeds_dir).fingerprint)
    assert len(changed) == 5


def test_load_splits_leaves_the_users_folder_alone(breeds_dir: Path) -> None:
    (breeds_dir / "001.Boxer" / "broken.jpg").write_bytes(b"no image")
    for folder in (breeds_dir, *breeds_dir.iterdir()):
        folder.chmod(0o555)
    before = _tree(breeds_dir)
    _load(breeds_dir, max_bad_share=0.5)
    assert _tree(breeds_dir) == before
    for folder in (breeds_dir, *breeds_dir.iterdir()):
        folder.chmod(0o755)


@pytest.mark.parametrize("valid_name", ["valid", "val", "Validation"])
def test_load_splits_keeps_a_split_of_the_users_own(tmp_path: Path, valid_name: str) -> None:
    root = tmp_path / "dogs"
    for split, count in (("train", 5), (valid_name, 2), ("test", 3)):
        for breed in ("Boxer", "Chow"):
            for number in range(count):
                make_image(root / split / breed / f"{number}.png")
    splits = _load(root)
    assert [len(splits.train), len(splits.valid), len(splits.test)] == [10, 4, 6]
    assert {sample.path.parts[-3] for sample in splits.valid.samples} == {valid_name}


def test_load_splits_cuts_valid_from_train_where_only_test_is_given(tmp_path: Path) -> None:
    root = tmp_path / "dogs"
    for split, count in (("train", 20), ("test", 3)):
        for breed in ("Boxer", "Chow"):
            for number in range(count):
                make_image(root / split / breed / f"{number}.png")
    splits = _load(root, valid_share=0.2)
    assert [len(splits.train), len(splits.valid), len(splits.test)] == [32, 8, 6]
    assert {sample.path.parts[-3] for sample in splits.valid.samples} == {"train"}
    assert {sample.path.parts[-3] for sample in splits.test.samples} == {"test"}


def test_load_splits_of_a_lone_train_folder_cuts_both(breeds_dir: Path) -> None:
    root = breeds_dir.parent / "wrapped"
    root.mkdir()
    breeds_dir.rename(root / "train")
    (root / "labels").mkdir()
    splits = _load(root)
    assert splits.classes == ("Boxer", "Chow", "Saint Bernard")
    assert min(len(splits.valid), len(splits.test)) >= 3


def test_load_splits_looks_below_wrapping_folders(breeds_dir: Path) -> None:
    root = breeds_dir.parent / "download"
    (root / "__MACOSX").mkdir(parents=True)
    (root / "dogs" / "Images").mkdir(parents=True)
    for folder in list(breeds_dir.iterdir()):
        folder.rename(root / "dogs" / "Images" / folder.name)
    assert _load(root).classes == ("Boxer", "Chow", "Saint Bernard")


def test_load_splits_of_a_breed_that_a_split_lacks_names_the_way_out(tmp_path: Path) -> None:
    root = tmp_path / "dogs"
    for place in ("train/Boxer", "train/Chow", "valid/Boxer", "valid/Chow", "test/Boxer", "test/Pug"):
        make_image(root / place / "1.png")
    with pytest.raises(DataError, match=r"breed 'Chow' has no usable image for test .*data\.classes"):
        _load(root)


def test_load_splits_of_too_small_a_breed_is_an_error(breeds_dir: Path) -> None:
    for number in (0, 1):
        make_image(breeds_dir / "Pug" / f"{number}.png")
    with pytest.raises(DataError, match=r"breed 'Pug' has no usable image for .* \(2 in all\)"):
        _load(breeds_dir)
    assert "Pug" not in _load(breeds_dir, classes=["Boxer", "Chow"]).classes


def test_load_splits_selects_breeds_without_regard_to_case(breeds_dir: Path) -> None:
    splits = _load(breeds_dir, classes=["saint bernard", "Boxer"])
    assert splits.classes == ("Boxer", "Saint Bernard")


def test_load_splits_of_an_unknown_breed_suggests_the_nearest(breeds_dir: Path) -> None:
    with pytest.raises(DataError, match="'St Bernard', and no such breed is there; did you mean Saint Bernard"):
        _load(breeds_dir, classes=["St Bernard", "Boxer"])


def test_load_splits_max_per_class_is_by_seed(breeds_dir: Path) -> None:
    splits = _load(breeds_dir, max_per_class=8)
    totals = {breed: sum(counts[breed] for counts in _counts(splits).values()) for breed in splits.classes}
    assert totals == {"Boxer": 8, "Chow": 8, "Saint Bernard": 6}
    assert splits == _load(breeds_dir, max_per_class=8)
    assert splits.fingerprint != _load(breeds_dir, max_per_class=8, seed=1).fingerprint


def test_load_splits_max_per_class_keeps_the_proportions_of_an_own_split(tmp_path: Path) -> None:
    root = tmp_path / "dogs"
    for split, count in (("train", 20), ("valid", 4), ("test", 6)):
        for breed in ("Boxer", "Chow"):
            for number in range(count):
                make_image(root / split / breed / f"{number}.png")
    assert _counts(_load(root, max_per_class=10)) == {
        "train": {"Boxer": 7, "Chow": 7},
        "valid": {"Boxer": 1, "Chow": 1},
        "test": {"Boxer": 2, "Chow": 2},
    }
    assert _counts(_load(root, max_per_class=3))["valid"] == {"Boxer": 1, "Chow": 1}
    assert len(_load(root, max_per_class=500).train) == 40


def test_load_splits_moves_copies_in_several_splits_to_train(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "dogs"
    for split, count in (("train", 5), ("valid", 3), ("test", 3)):
        for breed in ("Boxer", "Chow"):
            for number in range(count):
                make_image(root / split / breed / f"{number}.png")
    for split in ("train", "valid", "test"):
        make_image(root / split / "Boxer" / "copy.png", seed=7)
    with caplog.at_level(logging.WARNING):
        splits = _load(root)
    assert splits.num_duplicates == 2
    assert [len(splits.train), len(splits.valid), len(splits.test)] == [13, 6, 6]
    assert "2 duplicates by content; 2 moved to train" in caplog.text


def test_load_splits_keeps_copies_together_where_it_splits_itself(breeds_dir: Path) -> None:
    for number in range(6):
        make_image(breeds_dir / "001.Boxer" / f"copy-{number}.png", seed=9)
    for seed in range(4):
        splits = _load(breeds_dir, seed=seed)
        digest = hashlib.sha256((breeds_dir / "001.Boxer" / "copy-0.png").read_bytes()).hexdigest()
        assert [sample.digest for sample in splits.train.samples].count(digest) == 6
        assert splits.num_duplicates == 5


def test_load_splits_quarantines_what_two_breeds_claim(breeds_dir: Path) -> None:
    make_image(breeds_dir / "001.Boxer" / "same.png", seed=7)
    make_image(breeds_dir / "n02085620-chow" / "same.png", seed=7)
    splits = _load(breeds_dir)
    assert quarantine_rows(splits) == [
        {"path": "001.Boxer/same.png", "reason": "two breeds: same bytes as n02085620-chow/same.png"},
        {"path": "n02085620-chow/same.png", "reason": "two breeds: same bytes as 001.Boxer/same.png"},
    ]
    assert not any(sample.path.name == "same.png" for name in SPLIT_NAMES for sample in splits.split(name).samples)


def test_load_splits_quarantines_bad_images_with_their_reasons(breeds_dir: Path) -> None:
    boxer = breeds_dir / "001.Boxer"
    (boxer / "empty.jpg").touch()
    (boxer / "page.jpg").write_text("<html>not found</html>")
    (boxer / "half.png").write_bytes((boxer / "1.png").read_bytes()[:200])
    Image.new("1", (9000, 9000)).save(boxer / "bomb.png")
    splits = _load(breeds_dir, max_bad_share=0.2)
    reasons = {row["path"].rpartition("/")[2]: row["reason"].partition(":")[0] for row in quarantine_rows(splits)}
    assert reasons == {
        "empty.jpg": "empty file",
        "page.jpg": "not an image of a known format",
        "half.png": "truncated",
        "bomb.png": "too many pixels",
    }
    assert describe(splits)["bad_images"] == dict.fromkeys(reasons.values(), 1)


def test_load_splits_with_too_many_bad_images_names_the_first_ten(breeds_dir: Path) -> None:
    for number in range(12):
        (breeds_dir / "001.Boxer" / f"bad{number:02d}.jpg").touch()
    with pytest.raises(DataError, match=r"12 of 50 images \(24\.0%\) cannot be read.*max_bad_share=0\.01") as caught:
        _load(breeds_dir)
    assert str(caught.value).count("(empty file)") == 10
    assert "bad09.jpg (empty file); and 2 more" in str(caught.value)


def test_load_splits_of_one_breed_is_an_error(tmp_path: Path) -> None:
    make_image(tmp_path / "dogs" / "Boxer" / "1.png")
    with pytest.raises(DataError, match="at least 2 breeds, a folder for each; found only 'Boxer'"):
        _load(tmp_path / "dogs")


def test_load_splits_reads_unicode_and_spaces(tmp_path: Path) -> None:
    root = tmp_path / "мои собаки 🐕"
    for breed in ("柴犬", "Épagneul breton"):
        for number in range(4):
            make_image(root / breed / f"фото {number} ü.PNG")
    undecodable = os.fsencode(root / "柴犬") + b"/caf\xe9.png"
    Path(os.fsdecode(undecodable)).write_bytes((root / "柴犬" / "фото 0 ü.PNG").read_bytes()[:50])
    splits = _load(root, max_bad_share=0.5)
    assert splits.classes == ("Épagneul breton", "柴犬") or splits.classes == ("柴犬", "Épagneul breton")
    assert quarantine_rows(splits)[0]["path"] == "柴犬/caf\ufffd.png"


def test_describe_counts_by_breed_and_split(breeds_dir: Path) -> None:
    splits = _load(breeds_dir)
    described = describe(splits)
    assert described["num_breeds"] == 3
    assert described["smallest_breed"] == {"breed": "Saint Bernard", "num_images": 6}
    assert described["largest_breed"] == {"breed": "Boxer", "num_images": 20}
    assert sum(described["num_images"].values()) == 38
    assert described["breeds"]["Saint Bernard"] == {"train": 4, "valid": 1, "test": 1}
    assert described["source"] == "folder breeds"
