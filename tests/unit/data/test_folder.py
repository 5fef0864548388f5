"""A folder of breeds to evaluate on, labelled as the model's classes are."""

from pathlib import Path

import pytest
from imagefiles import make_image

from dogbreed_ml.data.folder import load_folder, relabelled
from dogbreed_ml.data.splits import Sample, Split, Splits
from dogbreed_ml.errors import DataError

CLASSES = ("Affenpinscher", "Boxer", "Chow")


def make_folder(root: Path) -> Path:
    for index, name in enumerate(("n02085620-chow/1.png", "n02085620-chow/2.png", "001.Boxer/1.png")):
        make_image(root / name, seed=index)
    return root


def test_folder_is_labelled_by_the_models_classes(tmp_path: Path) -> None:
    splits = load_folder(make_folder(tmp_path / "dogs"), CLASSES, project_dir=tmp_path)
    found = {(sample.path.parent.name, sample.label) for sample in splits.test.samples}
    assert found == {("n02085620-chow", 2), ("001.Boxer", 1)}
    assert splits.classes == CLASSES
    assert (len(splits.test), len(splits.train), len(splits.valid)) == (3, 0, 0)
    assert splits.source == "folder dogs"


def test_folder_takes_the_images_of_all_its_splits(tmp_path: Path) -> None:
    for index, split in enumerate(("train", "valid", "test")):
        make_image(tmp_path / "dogs" / split / "Boxer" / f"{index}.png", seed=index)
    assert len(load_folder(tmp_path / "dogs", CLASSES, project_dir=tmp_path).test) == 3


def test_folder_with_unknown_breeds_is_refused_by_their_names(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "dogs")
    make_image(root / "Dingo" / "1.png", seed=9)
    with pytest.raises(DataError, match=r"breeds that the model does not know: 'Dingo'; it knows Affenpinscher, Boxer"):
        load_folder(root, CLASSES, project_dir=tmp_path)


def test_folder_leaves_out_what_cannot_be_read_and_lists_it(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "dogs")
    (root / "001.Boxer" / "broken.jpg").write_bytes(b"no image")
    splits = load_folder(root, CLASSES, project_dir=tmp_path)
    assert len(splits.test) == 3
    assert [(bad.path, bad.reason) for bad in splits.bad_images] == [
        ("001.Boxer/broken.jpg", "not an image of a known format")
    ]


def test_folder_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dogs" / "Boxer").mkdir(parents=True)
    (tmp_path / "dogs" / "Boxer" / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="must hold images that can be read"):
        load_folder(tmp_path / "dogs", CLASSES, project_dir=tmp_path)


def test_folders_scan_is_the_one_that_training_keeps(tmp_path: Path) -> None:
    load_folder(make_folder(tmp_path / "dogs"), CLASSES, project_dir=tmp_path)
    assert len(list((tmp_path / ".dogbreed" / "scans").glob("*.json"))) == 1


def two_breeds() -> Splits:
    samples = (Sample(Path("a"), 0, "aa"), Sample(Path("b"), 1, "bb"))
    train, valid, test = Split("train", samples), Split("valid", samples), Split("test", samples)
    return Splits(("boxer", "Chow"), train=train, valid=valid, test=test, fingerprint="f", source="two")


def test_relabelled_splits_have_the_models_labels() -> None:
    splits = relabelled(two_breeds(), CLASSES)
    assert splits.classes == CLASSES
    for split in (splits.train, splits.valid, splits.test):
        assert [sample.label for sample in split.samples] == [1, 2]
    assert splits.fingerprint == "f"


def test_relabelled_splits_with_an_unknown_breed_are_refused() -> None:
    with pytest.raises(DataError, match="two has breeds that the model does not know: 'boxer'"):
        relabelled(two_breeds(), ("Chow", "Dingo"))
