from pathlib import Path

import pytest
import torch
from imagefiles import make_breeds

from dogbreed_ml.config import Augmentation, DataConfig
from dogbreed_ml.data.loaders import ImageBatches
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.splits import Split
from dogbreed_ml.errors import DataError
from dogbreed_ml.transforms import Preprocessing, decode_image, to_square

PREPROCESSING = Preprocessing(image_size=32)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    config = DataConfig(source="folder", path=str(make_breeds(tmp_path / "breeds")))
    return load_splits(config, project_dir=tmp_path).train


def _batches(split: Split, *, augmentation: Augmentation = "none", seed: int = 0) -> ImageBatches:
    return ImageBatches(split, PREPROCESSING, augmentation=augmentation, num_workers=0, seed=seed)


def _images(batches: ImageBatches, *, epoch: int = 0) -> torch.Tensor:
    return torch.cat([images for images, _ in batches.batches(8, order=None, epoch=epoch)])


def test_image_batches_in_natural_order_are_the_preprocessed_images(split: Split) -> None:
    batches = _batches(split)
    found = list(batches.batches(8, order=None, epoch=0))
    assert [len(labels) for _, labels in found] == [8, 8, 8, 2]
    images, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    assert images.dtype == torch.uint8
    assert images.shape == (26, 3, 32, 32)
    assert labels.tolist() == batches.labels.tolist() == split.labels.tolist()
    expected = to_square(decode_image(split.samples[5].path.read_bytes()), PREPROCESSING)
    assert (images[5].permute(1, 2, 0).numpy() == expected).all()


def test_image_batches_follow_the_order(split: Split) -> None:
    order = torch.randperm(len(split))
    images = torch.cat([images for images, _ in _batches(split).batches(7, order=order, epoch=0)])
    assert torch.equal(images, _images(_batches(split))[order])


def test_image_batches_augment_by_seed_epoch_and_content(split: Split) -> None:
    batches = _batches(split, augmentation="flip_crop")
    first = _images(batches, epoch=0)
    assert torch.equal(first, _images(_batches(split, augmentation="flip_crop"), epoch=0))
    assert not torch.equal(first, _images(batches, epoch=1))
    assert not torch.equal(first, _images(_batches(split, augmentation="flip_crop", seed=1), epoch=0))
    # Not by place in the batch: another order of the same epoch shows the same variants.
    order = torch.randperm(len(split))
    shuffled = torch.cat([images for images, _ in batches.batches(5, order=order, epoch=0)])
    assert torch.equal(shuffled, first[order])


def test_image_batches_of_a_vanished_image_name_it(split: Split) -> None:
    split.samples[3].path.unlink()
    with pytest.raises(DataError, match=rf"{split.samples[3].path.name} could be read when it was scanned"):
        _images(_batches(split))
