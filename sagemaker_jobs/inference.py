"""The functions that SageMaker's PyTorch serving containers call, over serve.Predictor.

A model archive (model_archive.py) holds checkpoint.pt, int8/ beside it where the network was quantized, manifest.json
with the settings of deploy, and under code/ this file and what it imports. Requests and answers are those of `dogbreed
deploy`: one image, or several as JSON in the forms of MLflow's scoring server; JSON or CSV by Accept. All it needs is
torch from 2.6 on, torchvision and Pillow; where starlette and python-multipart are installed, multipart/form-data is
read too.
"""

import asyncio
import json
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from dogbreed_ml.errors import CheckpointError, ImageError
from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.serve import Prediction, Predictor
from dogbreed_ml.server.answers import Refusal, answer_type, render_body
from dogbreed_ml.server.parsing import media_type_of, parse_images

try:
    # AWS's toolkit answers 500 with a traceback for whatever is not its own error.
    from sagemaker_inference.errors import BaseInferenceToolkitError as _ToolkitError
except ImportError:
    _ToolkitError = Exception

CHECKPOINT_FILE, MANIFEST_FILE = "checkpoint.pt", "manifest.json"

SERVING_FIELDS = ("backend", "min_probability", "max_body_mib", "max_megapixels")
"""What holds of DeployConfig in a container too; the manifest has it under "deploy"."""


class RequestError(_ToolkitError):  # type: ignore[misc]
    """What a client sent cannot be answered; the serving toolkit takes status and sentence from these attributes."""

    def __init__(self, status: HTTPStatus, message: str):
        # Not super(): the toolkit's own wants other arguments from version to version.
        Exception.__init__(self, message)
        self.status_code = int(status)
        self.message = message
        self.phrase = status.phrase


def model_fn(model_dir: str) -> Predictor:
    """The checkpoint of the unpacked archive, served as its manifest says; without one, as DeployConfig's defaults."""
    config = _load_deploy_config(Path(model_dir) / MANIFEST_FILE)
    return Predictor.load(
        Path(model_dir) / CHECKPOINT_FILE,
        backend=config.backend,
        min_probability=config.min_probability,
        max_bytes=int(config.max_body_mib * 2**20),
        max_pixels=int(config.max_megapixels * 1e6),
    )


def _load_deploy_config(path: Path) -> DeployConfig:
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        return DeployConfig(**manifest["deploy"])
    except FileNotFoundError:
        return DeployConfig()
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} must be a model archive's manifest: {error!r}; build the archive again."
        ) from error


def input_fn(body: bytes | str, content_type: str) -> list[bytes]:
    """The image files' bytes. The toolkit hands text types over as str."""
    raw = body.encode() if isinstance(body, str) else bytes(body)
    headers = {"content-type": content_type}
    try:
        return asyncio.run(parse_images(raw, media_type_of(headers), headers, max_images=DeployConfig().queue_size))
    except Refusal as refusal:
        raise RequestError(refusal.status, str(refusal)) from refusal


def predict_fn(images: Sequence[bytes], predictor: Predictor) -> list[Prediction]:
    """The breeds, in the images' order."""
    try:
        return predictor.predict(images)
    except ImageError as error:
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error


def output_fn(predictions: Sequence[Prediction], accept: str) -> tuple[str, str]:
    """The body and its content type."""
    try:
        media_type = answer_type(accept)
    except Refusal as refusal:
        raise RequestError(refusal.status, str(refusal)) from refusal
    return render_body(predictions, media_type), media_type
