"""INT8: a checkpoint's network quantized after training by NNCF, kept only where that costs almost no accuracy.

It lives beside the checkpoint: int8/model.xml and int8/model.bin for OpenVINO, int8/report.json for whoever asks.
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dogbreed_ml.backend import Images, Outputs, build_backend, run_all
from dogbreed_ml.checkpoint import build_module, load_checkpoint
from dogbreed_ml.errors import BackendError, CheckpointError
from dogbreed_ml.openvino_backend import capabilities, convert, import_openvino, save_model

logger = logging.getLogger(__name__)

INT8_DIR, MODEL_FILE, WEIGHTS_FILE, REPORT_FILE = "int8", "model.xml", "model.bin", "report.json"

MAX_ACCURACY_LOSS = 0.005
"""An INT8 model is accepted where it loses less than this share of valid's top-1."""

MAX_CALIBRATION_IMAGES = 300
"""Train images that the ranges of the activations are measured on; NNCF's own default."""


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """What quantization cost, and whether the result may serve."""

    accepted: bool
    accuracy_fp32: float
    """Top-1 on valid of torch fp32, a share in [0, 1]."""
    accuracy_int8: float
    """Top-1 of the same images in INT8."""
    num_valid: int
    num_calibration: int
    checkpoint_sha256: str
    """Of the checkpoint's file: the INT8 model goes with no other."""
    model_bytes: int
    nncf_version: str

    @property
    def accuracy_loss(self) -> float:
        """Share of valid's top-1 lost; negative where INT8 is right more often."""
        return self.accuracy_fp32 - self.accuracy_int8

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def quantize(
    checkpoint_path: Path, *, calibration: Images, valid: Iterable[Images], labels: NDArray[np.int64]
) -> QuantizationReport:
    """Writes int8/ beside the checkpoint: the report, and the model where it is accepted.

    `calibration` are train images (n, S, S, 3), `valid` batches (B, S, S, 3) of the valid split with `labels`.
    Took 395 s for 960 images in all on a busy machine of 2 cores. Raises BackendError where OpenVINO is not installed.
    """
    if not capabilities():
        raise BackendError("--int8 needs OpenVINO and NNCF, and this machine has none of them.")
    if not len(calibration) or not len(labels):
        raise BackendError(
            f"Quantization needs train and valid images, got {len(calibration)} and {len(labels)}; "
            "give the config whose data the checkpoint was trained on."
        )
    checkpoint = load_checkpoint(checkpoint_path)
    module, image_size = build_module(checkpoint), checkpoint.preprocessing.image_size
    with tempfile.TemporaryDirectory(dir=checkpoint_path.parent, prefix=".int8-") as folder:
        made_dir = Path(folder) / INT8_DIR
        made_dir.mkdir()
        model_path = made_dir / MODEL_FILE
        save_model(_quantized(convert(module, image_size), calibration), model_path)
        cpu = torch.device("cpu")
        fp32 = build_backend("torch-fp32", module, image_size=image_size, device=cpu)
        int8 = build_backend("openvino-int8", module, image_size=image_size, device=cpu, int8_path=model_path)
        right = np.zeros(2)
        start = 0
        for batch in valid:
            expected = labels[start : start + len(batch)]
            right += [_num_right(run_all(backend, batch), expected) for backend in (fp32, int8)]
            start += len(batch)
        accuracy_fp32, accuracy_int8 = (right / len(labels)).tolist()
        report = QuantizationReport(
            accepted=accuracy_fp32 - accuracy_int8 < MAX_ACCURACY_LOSS,
            accuracy_fp32=accuracy_fp32,
            accuracy_int8=accuracy_int8,
            num_valid=len(labels),
            num_calibration=len(calibration),
            checkpoint_sha256=_sha256(checkpoint_path),
            model_bytes=sum(path.stat().st_size for path in made_dir.iterdir()),
            nncf_version=metadata.version("nncf"),
        )
        # OpenVINO maps the weights' file: it can be removed only where nothing computes with it any more.
        del int8
        if not report.accepted:
            for name in (MODEL_FILE, WEIGHTS_FILE):
                (made_dir / name).unlink()
        (made_dir / REPORT_FILE).write_text(json.dumps(report.to_dict(), indent=2), encoding="utf-8")
        target_dir = checkpoint_path.parent / INT8_DIR
        shutil.rmtree(target_dir, ignore_errors=True)
        made_dir.rename(target_dir)
    return report


def load_report(checkpoint_path: Path) -> QuantizationReport | None:
    """The report beside a checkpoint; None where it has none. Raises CheckpointError where it cannot be read."""
    path = checkpoint_path.parent / INT8_DIR / REPORT_FILE
    try:
        return QuantizationReport(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} must be a report of `dogbreed evaluate --int8`: {error}.") from error


def find_int8(checkpoint_path: Path) -> Path | None:
    """The accepted INT8 model of a checkpoint; None where there is none, or one of another checkpoint."""
    report = load_report(checkpoint_path)
    if report is None or not report.accepted:
        return None
    model_path = checkpoint_path.parent / INT8_DIR / MODEL_FILE
    if report.checkpoint_sha256 != _sha256(checkpoint_path):
        logger.warning("%s was made of another checkpoint than %s and is left alone.", model_path, checkpoint_path)
        return None
    return model_path


def _quantized(model: Any, calibration: Images) -> Any:
    import_openvino()
    logger_class = logging.getLoggerClass()
    import nncf

    # NNCF makes its own logger class everybody's; its set_log_level would silence the handlers of others.
    logging.setLoggerClass(logger_class)
    logging.getLogger("nncf").setLevel(logging.ERROR)
    dataset = nncf.Dataset([image[None] for image in calibration[:MAX_CALIBRATION_IMAGES]])
    return nncf.quantize(model, dataset, subset_size=min(len(calibration), MAX_CALIBRATION_IMAGES))


def _num_right(logits: Outputs, labels: NDArray[np.int64]) -> int:
    return int((logits.argmax(axis=1) == labels).sum())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
