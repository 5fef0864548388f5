import hashlib
from pathlib import Path

import numpy as np
import pytest

from dogbreed_ml.config import DataConfig
from dogbreed_ml.data import synthetic
from dogbreed_ml.data.drawing import draw_dog
from dogbreed_ml.data.invention import invent_breeds
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.data.synthetic import draw_breeds


def _digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*.jpg"))
    }


def test_draw_breeds_repeats_by_seed(tmp_path: Path) -> None:
    folders = [
        draw_breeds(tmp_path / str(n), num_breeds=3, num_per_breed=3, seed=seed) for n, seed in enumerate((4, 4, 5))
    ]
    one, same, other = (_digests(folder) for folder in folders)
    assert one == same
    assert len(set(one.values())) == 9
    assert not set(one.values()) & set(other.values())
    assert {path.name for path in folders[0].iterdir()} == {
        breed.name.replace(" ", "_") for breed in invent_breeds(3, seed=4)
    }


def test_draw_breeds_draws_once(tmp_path: Path) -> None:
    folder = draw_breeds(tmp_path, num_breeds=2, num_per_breed=3, seed=0)
    marker = next(folder.rglob("*.jpg"))
    marker.write_bytes(b"not drawn again")
    assert draw_breeds(tmp_path, num_breeds=2, num_per_breed=3, seed=0) == folder
    assert marker.read_bytes() == b"not drawn again"
    assert draw_breeds(tmp_path, num_breeds=2, num_per_breed=4, seed=0) != folder


def test_draw_breeds_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "draw_dog", stop)
    with pytest.raises(KeyboardInterrupt):
        draw_breeds(tmp_path, num_breeds=2, num_per_breed=3, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_invent_breeds_are_different_and_a_prefix_of_more() -> None:
    breeds = invent_breeds(60, seed=0)
    assert len({breed.name for breed in breeds}) == 60
    assert len({(b.coat, b.marking, b.pattern, b.ear, b.tail, b.leg) for b in breeds}) == 60
    assert invent_breeds(8, seed=0) == breeds[:8]
    assert all(breed.name.replace(" ", "").isalpha() for breed in breeds)


def test_invent_breeds_has_twins_of_one_colour() -> None:
    breeds = invent_breeds(6, seed=0)
    assert (breeds[1].coat, breeds[1].pattern) == (breeds[2].coat, breeds[2].pattern)
    assert breeds[1].ear != breeds[2].ear


def test_draw_dog_varies_within_a_breed() -> None:
    (breed, _) = invent_breeds(2, seed=0)
    dogs = [draw_dog(breed, np.random.default_rng(number)) for number in range(4)]
    assert all(dog.mode == "RGB" and min(dog.size) >= 224 and max(dog.size) <= 288 for dog in dogs)
    assert len({dog.tobytes() for dog in dogs}) == 4


def test_load_splits_of_synthetic_is_whole(tmp_path: Path) -> None:
    config = DataConfig(num_breeds=2, num_per_breed=4)
    splits = load_splits(config, project_dir=tmp_path)
    assert [len(splits.train), len(splits.valid), len(splits.test)] == [4, 2, 2]
    assert splits.source == "synthetic 2x4 seed 0"
    assert splits.bad_images == ()
    assert splits.num_duplicates == 0
    assert splits == load_splits(config, project_dir=tmp_path)
