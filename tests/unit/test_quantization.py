"""INT8 by NNCF: what it writes, when it is accepted, and which checkpoint it goes with."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dogbreed_ml import quantization
from dogbreed_ml.backend import Images, available_backends, batched, min_cosine
from dogbreed_ml.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import BackendError
from dogbreed_ml.model import build_resnet50
from dogbreed_ml.quantization import QuantizationReport, find_int8, load_report, quantize
from dogbreed_ml.serve import Predictor
from dogbreed_ml.transforms import Preprocessing

CLASSES = ("Affenpinscher", "Beagle", "Chow")
SIZE = 32

pytestmark = pytest.mark.skipif(
    "openvino-fp32" not in available_backends(torch.device("cpu")), reason="needs OpenVINO and NNCF"
)


def images(num: int, *, seed: int) -> Images:
    rough = np.random.default_rng(seed).integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
    return rough.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)


def quantized(path: Path, *, labels: list[int]) -> QuantizationReport:
    valid = batched(images(len(labels), seed=1), 4)
    return quantize(path, calibration=images(6, seed=0), valid=valid, labels=np.array(labels))


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose answer is always Beagle, with an INT8 model beside it."""
    torch.manual_seed(0)
    resnet = build_resnet50(len(CLASSES), resnet_version="1")
    torch.nn.init.constant_(resnet.fc.bias, 0.0)
    resnet.fc.bias.data[1] = 20.0
    checkpoint = Checkpoint(dict(resnet.state_dict()), CLASSES, Preprocessing(SIZE), "1", ExperimentConfig())
    path = save_checkpoint(checkpoint, tmp_path_factory.mktemp("int8") / "checkpoint.pt")
    quantized(path, labels=[1] * 5 + [0])
    return path


@pytest.fixture
def copied(checkpoint_path: Path, tmp_path: Path) -> Path:
    shutil.copytree(checkpoint_path.parent, tmp_path / "copied")
    return tmp_path / "copied" / checkpoint_path.name


def test_quantization_reports_both_accuracies_on_valid(checkpoint_path: Path) -> None:
    report = load_report(checkpoint_path)
    assert report is not None
    assert (report.accepted, report.num_valid, report.num_calibration) == (True, 6, 6)
    assert (report.accuracy_fp32, report.accuracy_int8) == pytest.approx((5 / 6, 5 / 6))
    assert report.accuracy_loss == 0.0
    files = {path.name: path.stat().st_size for path in (checkpoint_path.parent / "int8").iterdir()}
    assert set(files) == {"model.xml", "model.bin", "report.json"}
    assert report.model_bytes == files["model.xml"] + files["model.bin"]
    # A quarter of the weights' bytes, and the graph.
    assert files["model.bin"] < checkpoint_path.stat().st_size / 3


def test_quantized_network_answers_as_the_network_does(checkpoint_path: Path) -> None:
    int8 = Predictor.load(checkpoint_path, backend="openvino-int8")
    fp32 = Predictor.load(checkpoint_path, backend="torch-fp32")
    assert int8.backend_name == "openvino-int8"
    squares = images(7, seed=2)
    assert min_cosine(int8.logits(squares), fp32.logits(squares)) > 0.99


def test_quantized_network_takes_part_in_auto(checkpoint_path: Path) -> None:
    choice = Predictor.load(checkpoint_path).choice
    assert choice is not None
    assert "openvino-int8" in choice.latency_ms


def test_quantized_network_that_loses_accuracy_is_not_kept(
    checkpoint_path: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No loss at all would already be too much.
    monkeypatch.setattr(quantization, "MAX_ACCURACY_LOSS", 0.0)
    report = quantized(copied, labels=[1, 1])
    assert not report.accepted
    assert [path.name for path in (copied.parent / "int8").iterdir()] == ["report.json"]
    assert load_report(copied) == report
    assert find_int8(copied) is None
    assert find_int8(checkpoint_path) is not None


def test_quantized_network_of_another_checkpoint_is_left_alone(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(dataclasses.replace(load_checkpoint(copied), temperature=2.0), copied)
    assert find_int8(copied) is None
    assert "was made of another checkpoint" in caplog.text


def test_checkpoint_without_int8_has_no_report(tmp_path: Path) -> None:
    assert load_report(tmp_path / "checkpoint.pt") is None
    assert find_int8(tmp_path / "checkpoint.pt") is None


def test_quantized_network_that_is_damaged_is_told_of(copied: Path) -> None:
    (copied.parent / "int8" / "model.xml").write_text("<net")
    with pytest.raises(BackendError, match="must be an OpenVINO model with its .bin beside it"):
        Predictor.load(copied, backend="openvino-int8")


def test_quantization_without_images_is_refused(checkpoint_path: Path) -> None:
    with pytest.raises(BackendError, match="needs train and valid images, got 0 and 1"):
        quantize(checkpoint_path, calibration=images(0, seed=0), valid=[], labels=np.array([1]))


def test_report_survives_its_file(checkpoint_path: Path) -> None:
    report = load_report(checkpoint_path)
    assert report is not None
    stored = json.loads((checkpoint_path.parent / "int8" / "report.json").read_text())
    assert QuantizationReport(**stored) == report
    assert len(stored["checkpoint_sha256"]) == 64
