"""A checkpoint's round trip, and every way in which a file can be something else."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dogbreed_ml.checkpoint import FORMAT_VERSION, Checkpoint, load_checkpoint, save_checkpoint
from dogbreed_ml.config import CategoricalDimension, ExperimentConfig, FloatDimension, IntDimension, with_values
from dogbreed_ml.errors import CheckpointError
from dogbreed_ml.transforms import Preprocessing


def small_checkpoint(**changes: Any) -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    state_dict: dict[str, Tensor] = {
        "conv1.weight": torch.randn(64, 3, 7, 7, generator=generator).to(memory_format=torch.channels_last),
        "bn1.num_batches_tracked": torch.tensor(7),
        "layer1.0.conv1.weight": torch.tensor([float("nan"), float("inf"), -0.0, 1e-42]),
        "fc.weight": torch.randn(3, 2048, generator=generator),
        "fc.bias": torch.randn(3, generator=generator),
    }
    space = {
        "train.lr": FloatDimension(low=1e-4, high=0.1, log=True),
        "train.num_epochs": IntDimension(low=2, high=10),
        "train.optimizer": CategoricalDimension(choices=["adamw", "sgd"]),
    }
    config = with_values(ExperimentConfig(), {"search.space": space, "data.classes": ["a", "b"], "train.lr": 0.1 + 0.2})
    checkpoint = Checkpoint(
        state_dict,
        ("Affenpinscher", "Löwchen", "犬"),
        Preprocessing(160, mean=(0.1, 0.2, 0.3)),
        "1",
        config,
        temperature=1.25,
        data_fingerprint="0123456789abcdef",
    )
    return dataclasses.replace(checkpoint, **changes)


def test_checkpoint_round_trip_changes_nothing(tmp_path: Path) -> None:
    saved = small_checkpoint()
    loaded = load_checkpoint(save_checkpoint(saved, tmp_path / "model.pt"))
    assert loaded.state_dict.keys() == saved.state_dict.keys()
    for name, tensor in saved.state_dict.items():
        other = loaded.state_dict[name]
        assert (other.dtype, other.shape, other.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        # Bytes, because NaN is not equal to itself and -0.0 is equal to 0.0.
        assert other.contiguous().numpy().tobytes() == tensor.contiguous().numpy().tobytes()
    for field in ("classes", "preprocessing", "resnet_version", "config", "temperature", "data_fingerprint"):
        assert getattr(loaded, field) == getattr(saved, field)


def test_checkpoint_saves_of_a_view_only_what_it_shows(tmp_path: Path) -> None:
    head = torch.randn(3000, 2048)[:3]
    state_dict = {"fc.weight": head, "fc.bias": torch.zeros(3)}
    path = save_checkpoint(small_checkpoint(state_dict=state_dict), tmp_path / "model.pt")
    assert path.stat().st_size < 100_000
    assert torch.equal(load_checkpoint(path).state_dict["fc.weight"], head)


def test_checkpoint_replaces_a_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.pt"
    save_checkpoint(small_checkpoint(resnet_version="1"), path)
    first = load_checkpoint(path)
    save_checkpoint(small_checkpoint(resnet_version="1.5"), path)
    assert load_checkpoint(path).resnet_version == "1.5"
    assert [each.name for each in path.parent.iterdir()] == ["model.pt"]
    # The first one's tensors are mapped from the file that was replaced.
    assert torch.equal(first.state_dict["fc.bias"], small_checkpoint().state_dict["fc.bias"])


def test_checkpoint_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.pt").mkdir()
    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(small_checkpoint(), tmp_path / "model.pt")
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ()}, "at least one"),
        ({"classes": ("a", "a", "b")}, "distinct"),
        ({"classes": ("a", "b")}, r"one row for each of its 2 classes, got \(3, 2048\)"),
        ({"state_dict": {}}, "got None"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be above 0, got nan"),
    ],
)
def test_checkpoint_refuses_classes_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        small_checkpoint(**changes)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit_payload(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    payload = torch.load(path, weights_only=True)
    edit(payload)
    torch.save(payload, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "must be an existing file"),
        (lambda path: path.write_bytes(b""), "cut short or something else"),
        (lambda path: path.write_bytes(path.read_bytes()[:10_000]), "cut short or something else"),
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), "cut short or something else"),
        (lambda path: path.write_text("name: quickstart\n"), "cut short or something else"),
        (flip_a_bit, "fails its checksum"),
        (lambda path: torch.save({"fc.bias": torch.zeros(3)}, path), "model.weights"),
        (lambda path: torch.save(torch.zeros(3), path), "model.weights"),
        (lambda path: torch.save(Path("x"), path), "must be a checkpoint that dogbreed-ml wrote"),
        (
            lambda path: edit_payload(path, lambda p: p.update(format_version=99)),
            "format 1 or 2, got 99 .*read it",
        ),
        (lambda path: edit_payload(path, lambda p: p.pop("format_version")), "format 1 or 2, got None"),
        (lambda path: edit_payload(path, lambda p: p.pop("state_dict")), "lacks 'state_dict'"),
        (lambda path: edit_payload(path, lambda p: p.update(metadata="{}")), "lacks 'classes'"),
        (
            lambda path: edit_payload(path, lambda p: p.update(metadata=p["metadata"].replace("batch_size", "bath"))),
            "does not fit dogbreed-ml",
        ),
    ],
)
def test_checkpoint_that_is_none_is_refused_with_a_reason(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    path = save_checkpoint(small_checkpoint(), tmp_path / "model.pt")
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_checkpoint_of_format_1_is_read_with_neither_temperature_nor_fingerprint(tmp_path: Path) -> None:
    path = save_checkpoint(small_checkpoint(), tmp_path / "model.pt")

    def back_to_1(payload: dict[str, Any]) -> None:
        metadata = json.loads(payload["metadata"])
        for name in ("temperature", "data_fingerprint"):
            del metadata[name]
        # The config had no such sections then.
        for name in ("promotion", "deploy"):
            del metadata["config"][name]
        payload.update(format_version=1, metadata=json.dumps(metadata))

    edit_payload(path, back_to_1)
    loaded = load_checkpoint(path)
    assert (loaded.temperature, loaded.data_fingerprint) == (1.0, None)
    assert loaded.classes == small_checkpoint().classes


def test_checkpoint_format_version_is_two() -> None:
    """A change of what is stored needs a new number here and a way to read the old one."""
    assert FORMAT_VERSION == 2
