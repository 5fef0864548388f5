import logging
from pathlib import Path

import pytest
from imagefiles import make_image

from dogbreed_ml.data.listing import list_images, select_breeds
from dogbreed_ml.errors import DataError


def test_list_images_ignores_hidden_and_other_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("Boxer/1.png", "Boxer/deep/2.PNG", "Chow/.hidden.png", "Chow/3.jpeg", ".cache/4.png"):
        make_image(tmp_path / name)
    for name in ("Boxer/Thumbs.db", "Boxer/notes.txt", "Chow/.DS_Store", "README.md", "Chow/labels.txt"):
        (tmp_path / name).write_text("text")
    with caplog.at_level(logging.INFO):
        images = list_images(tmp_path)
    assert [image.relative for image in images] == ["Boxer/1.png", "Boxer/deep/2.PNG", "Chow/3.jpeg"]
    assert "ignored 3 files that are not images by suffix (2 .txt, 1 .db)" in caplog.text


def test_list_images_warns_of_images_beside_the_breed_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("Boxer/1.png", "Chow/1.png", "loose.png"):
        make_image(tmp_path / name)
    assert len(list_images(tmp_path)) == 2
    assert "ignored 1 images beside the breed folders" in caplog.text


def test_list_images_of_two_folders_for_one_breed_names_both(tmp_path: Path) -> None:
    for name in ("001.Boxer/1.png", "n02108089-boxer/1.png"):
        make_image(tmp_path / name)
    with pytest.raises(DataError, match=r"001\.Boxer and .*n02108089-boxer both mean the breed 'Boxer'"):
        list_images(tmp_path)


def test_list_images_takes_one_spelling_across_splits(tmp_path: Path) -> None:
    for name in ("train/Boston Terrier/1.png", "test/001.boston_terrier/1.png", "train/Pug/1.png", "test/Pug/1.png"):
        make_image(tmp_path / name)
    assert {image.breed for image in list_images(tmp_path)} == {"Boston Terrier", "Pug"}


def test_list_images_of_an_empty_breed_folder_is_an_error(tmp_path: Path) -> None:
    make_image(tmp_path / "Boxer" / "1.png")
    (tmp_path / "Chow").mkdir()
    with pytest.raises(DataError, match="Chow holds no images; remove the folder"):
        list_images(tmp_path)


def test_list_images_of_a_missing_folder_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder; set data\.path"):
        list_images(tmp_path / "nowhere")


def test_list_images_of_valid_and_val_asks_for_one(tmp_path: Path) -> None:
    for split in ("train", "valid", "val"):
        make_image(tmp_path / split / "Boxer" / "1.png")
    with pytest.raises(DataError, match="are both the valid split; keep one"):
        list_images(tmp_path)


def test_list_images_of_test_without_train_is_an_error(tmp_path: Path) -> None:
    for split in ("valid", "test"):
        make_image(tmp_path / split / "Boxer" / "1.png")
    with pytest.raises(DataError, match="has test, valid but no train; add"):
        list_images(tmp_path)


def test_list_images_of_an_unsorted_test_folder_points_at_train(tmp_path: Path) -> None:
    for name in ("train/Boxer/1.png", "train/Chow/1.png", "test/1.png"):
        make_image(tmp_path / name)
    with pytest.raises(DataError, match=r"test has no breed folders.*set data\.path to .*train"):
        list_images(tmp_path)


def test_list_images_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    make_image(tmp_path / "elsewhere" / "1.png")
    root = tmp_path / "root"
    make_image(root / "Chow" / "1.png")
    (root / "Boxer").symlink_to(tmp_path / "elsewhere")
    (root / "Chow" / "again").symlink_to(root / "Chow")
    assert [image.relative for image in list_images(root)] == ["Boxer/1.png", "Chow/1.png"]


def test_list_images_by_stems_takes_the_breed_from_the_name(tmp_path: Path) -> None:
    for name in ("images/american_bulldog_1.jpg", "images/american_bulldog_20.jpg", "images/Abyssinian_3.jpg"):
        make_image(tmp_path / name)
    (tmp_path / "images" / "Abyssinian_100.mat").write_bytes(b"MATLAB")
    images = list_images(tmp_path, layout="stems")
    assert [image.breed for image in images] == ["Abyssinian", "American bulldog", "American bulldog"]


def test_select_breeds_without_filter_keeps_all(tmp_path: Path) -> None:
    make_image(tmp_path / "Boxer" / "1.png")
    images = list_images(tmp_path)
    assert select_breeds(images, None) == images
