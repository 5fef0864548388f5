"""Kept features: computed once, shared, never taken for whole when they are not."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from dogbreed_ml.config import FeaturesConfig
from dogbreed_ml.data.splits import Sample, Split
from dogbreed_ml.errors import FeaturesError
from dogbreed_ml.features import (
    CHOICES_FILE,
    FEATURES_FILE,
    FeatureBatches,
    FeatureStore,
    FrozenPrefix,
    Views,
)
from dogbreed_ml.model import Normalize
from dogbreed_ml.transforms import Preprocessing, decode_image, mirror, to_square

PREPROCESSING = Preprocessing(image_size=32)


class CountingPrefix:
    """A small frozen prefix that counts how often it is built."""

    def __init__(self) -> None:
        self.num_builds = 0

    def __call__(self) -> nn.Module:
        self.num_builds += 1
        torch.manual_seed(0)
        return nn.Sequential(Normalize(), nn.Conv2d(3, 6, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(1)).eval()


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    folder = tmp_path / "images"
    folder.mkdir()
    result = []
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        result.append(Sample(path, number % 3, hashlib.sha256(path.read_bytes()).hexdigest()))
    return tuple(result)


@pytest.fixture
def build() -> CountingPrefix:
    return CountingPrefix()


@pytest.fixture
def prefix(build: CountingPrefix) -> FrozenPrefix:
    return FrozenPrefix("0123456789abcdef", "1.5", "head", build)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(FeaturesConfig(backend="torch-fp32"), tmp_path / "features", device=torch.device("cpu"))


def direct(sample: Sample, module: nn.Module, *, mirrored: bool = False) -> torch.Tensor:
    image = decode_image(sample.path.read_bytes())
    square = to_square(mirror(image) if mirrored else image, PREPROCESSING)
    with torch.inference_mode():
        output: torch.Tensor = module(torch.from_numpy(square.copy()).permute(2, 0, 1)[None])[0]
    return output


def test_rows_are_the_prefixs_outputs(
    store: FeatureStore, samples: tuple[Sample, ...], prefix: FrozenPrefix, build: CountingPrefix
) -> None:
    table = store.table(samples, prefix, PREPROCESSING)
    assert not table.cached
    assert table.values.dtype == np.float32
    module = build()
    for sample in samples:
        row = torch.from_numpy(np.array(table.values[table.rows[sample.digest]]))
        torch.testing.assert_close(row, direct(sample, module), rtol=1e-4, atol=1e-5)


def test_second_ask_makes_no_forward_pass(
    store: FeatureStore, samples: tuple[Sample, ...], prefix: FrozenPrefix, build: CountingPrefix
) -> None:
    first = store.table(samples, prefix, PREPROCESSING)
    # Another order and another split of the same images: the same table.
    second = store.table(tuple(reversed(samples)), prefix, PREPROCESSING)
    assert second.cached
    assert build.num_builds == 1
    assert first.key == second.key
    np.testing.assert_array_equal(first.values, second.values)


@pytest.mark.parametrize("what", ["weights", "version", "cut", "preprocessing", "views", "images", "backend"])
def test_whatever_changes_the_numbers_changes_the_key(
    store: FeatureStore, samples: tuple[Sample, ...], prefix: FrozenPrefix, what: str
) -> None:
    key = store.table(samples, prefix, PREPROCESSING).key
    other = {
        "weights": lambda: store.table(samples, replace(prefix, weights_digest="f" * 16), PREPROCESSING),
        "version": lambda: store.table(samples, replace(prefix, resnet_version="1"), PREPROCESSING),
        "cut": lambda: store.table(samples, replace(prefix, cut="layer4"), PREPROCESSING),
        "preprocessing": lambda: store.table(samples, prefix, replace(PREPROCESSING, crop_share=1.0)),
        "views": lambda: store.table(samples, prefix, PREPROCESSING, views=Views(1, 1, "flip", 0)),
        "images": lambda: store.table(samples[:-1], prefix, PREPROCESSING),
        "backend": lambda: replace(store, config=FeaturesConfig(backend="openvino-fp32")).table(
            samples, prefix, PREPROCESSING
        ),
    }[what]()
    assert other.key != key
    assert not other.cached


def test_auto_chooses_once_and_keeps_the_choice_beside_the_cache(
    tmp_path: Path, samples: tuple[Sample, ...], prefix: FrozenPrefix, build: CountingPrefix
) -> None:
    store = FeatureStore(FeaturesConfig(), tmp_path / "features", device=torch.device("cpu"))
    first = store.table(samples, prefix, PREPROCESSING)
    (choice,) = json.loads((store.dir / CHOICES_FILE).read_text()).values()
    assert choice["name"] == first.backend
    assert choice["images_per_s"][first.backend] > 0
    assert store.table(samples, prefix, PREPROCESSING).cached
    assert build.num_builds == 1


def test_damaged_file_is_noticed_and_made_again(
    store: FeatureStore, samples: tuple[Sample, ...], prefix: FrozenPrefix, caplog: pytest.LogCaptureFixture
) -> None:
    first = store.table(samples, prefix, PREPROCESSING)
    path = store.dir / first.key / FEATURES_FILE
    good = np.array(first.values)
    content = bytearray(path.read_bytes())
    content[-7] ^= 0xFF
    path.write_bytes(content)
    again = store.table(samples, prefix, PREPROCESSING)
    assert "does not match its checksum" in caplog.text
    assert not again.cached
    np.testing.assert_array_equal(again.values, good)


def test_truncated_file_is_made_again(store: FeatureStore, samples: tuple[Sample, ...], prefix: FrozenPrefix) -> None:
    first = store.table(samples, prefix, PREPROCESSING)
    path = store.dir / first.key / FEATURES_FILE
    path.write_bytes(path.read_bytes()[:200])
    assert not store.table(samples, prefix, PREPROCESSING).cached


def test_killed_writers_leftover_is_removed_and_not_taken_for_whole(
    store: FeatureStore, samples: tuple[Sample, ...], prefix: FrozenPrefix
) -> None:
    leftover = store.dir / "abc.partial"
    leftover.mkdir(parents=True)
    (leftover / FEATURES_FILE).write_bytes(b"half")
    assert not store.table(samples, prefix, PREPROCESSING).cached
    assert not leftover.exists()


def test_features_that_do_not_fit_name_the_need_and_the_way_out(
    store: FeatureStore, samples: tuple[Sample, ...], prefix: FrozenPrefix
) -> None:
    small = replace(store, config=FeaturesConfig(backend="torch-fp32", max_gib=1e-7))
    with pytest.raises(FeaturesError, match=r"9 x 24 need 0\.00 GiB, got 1e-07; raise it, lower train.num_views"):
        small.table(samples, prefix, PREPROCESSING)
    assert not list(store.dir.glob("*/" + FEATURES_FILE))


def test_flip_view_is_the_mirror_image(
    store: FeatureStore, samples: tuple[Sample, ...], prefix: FrozenPrefix, build: CountingPrefix
) -> None:
    table = store.table(samples, prefix, PREPROCESSING, views=Views(1, 1, "flip", 0))
    row = torch.from_numpy(np.array(table.values[table.rows[samples[2].digest]]))
    torch.testing.assert_close(row, direct(samples[2], build(), mirrored=True), rtol=1e-4, atol=1e-5)


def test_views_are_drawn_from_the_seed(
    store: FeatureStore, samples: tuple[Sample, ...], prefix: FrozenPrefix, tmp_path: Path
) -> None:
    def values(folder: str, seed: int) -> NDArray[np.float32]:
        apart = replace(store, dir=tmp_path / folder)
        views = Views(1, 2, "randaugment", seed)
        return np.array(apart.table(samples, prefix, PREPROCESSING, views=views).values)

    np.testing.assert_array_equal(values("a", 0), values("b", 0))
    assert not np.array_equal(values("a", 0), values("a", 1))


def test_batches_follow_the_order_and_mix_the_views(
    store: FeatureStore, samples: tuple[Sample, ...], prefix: FrozenPrefix
) -> None:
    plain = store.table(samples, prefix, PREPROCESSING)
    views = store.table(samples, prefix, PREPROCESSING, views=Views(1, 2, "flip_crop", 0))
    split = Split("train", samples)
    order = torch.tensor([3, 1, 8, 0, 2, 4, 5, 6, 7])
    batches = FeatureBatches(split, plain, views, seed=0)

    def drawn(epoch: int) -> Iterator[int]:
        """Which of its three views each sample showed, in the order given."""
        inputs = torch.cat([x for x, _ in batches.batches(4, order=order, epoch=epoch)])
        for position, index in enumerate(order.tolist()):
            row = views.rows[samples[index].digest] * 2
            options = [plain.values[plain.rows[samples[index].digest]], views.values[row], views.values[row + 1]]
            (view,) = [v for v, option in enumerate(options) if np.array_equal(option, inputs[position])]
            yield view

    seen = [list(drawn(epoch)) for epoch in range(4)]
    assert {view for epoch in seen for view in epoch} == {0, 1, 2}
    assert seen[0] == list(drawn(0))
    assert len({tuple(epoch) for epoch in seen}) > 1
    labels = torch.cat([y for _, y in batches.batches(4, order=order, epoch=0)])
    assert labels.tolist() == [samples[index].label for index in order.tolist()]
    as_they_stand = torch.cat([x for x, _ in batches.batches(4, order=None, epoch=0)])
    np.testing.assert_array_equal(as_they_stand[5], plain.values[plain.rows[samples[5].digest]])


def test_clear_frees_every_table(store: FeatureStore, samples: tuple[Sample, ...], prefix: FrozenPrefix) -> None:
    table = store.table(samples, prefix, PREPROCESSING)
    assert store.clear() >= table.values.nbytes
    assert not store.table(samples, prefix, PREPROCESSING).cached
    assert replace(store, dir=store.dir / "nowhere").clear() == 0
