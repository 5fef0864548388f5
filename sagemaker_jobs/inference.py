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
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from dogbreed_ml.errors import CheckpointError, ImageError
from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.serve import Prediction, Predictor
from dogbreed_ml.server.answers import JSON, Refusal, answer_type, render_body, render_refusal
from dogbreed_ml.server.parsing import media_type_of, parse_images

try:
    # AWS's toolkit answers 500 for whatever is not its own error.
    from sagemaker_inference.errors import BaseInferenceToolkitError as _ToolkitError
except ImportError:
    _ToolkitError = Exception

CHECKPOINT_FILE, MANIFEST_FILE = "checkpoint.pt", "manifest.json"

SERVING_FIELDS = ("backend", "min_probability", "max_body_mib", "max_megapixels")
"""What holds of DeployConfig in a container too; the manifest has it under "deploy"."""


class RequestError(_ToolkitError):  # type: ignore[misc]
    """What a client sent cannot be answered, told to a caller without a context to set the status in."""

    def __init__(self, status: HTTPStatus, message: str):
        # Not super(): the toolkit's own wants other arguments from version to version.
        Exception.__init__(self, message)
        self.status_code = int(status)
        self.message = message
        self.phrase = status.phrase


@dataclass(frozen=True)
class Refused:
    """Goes through the functions in place of images and breeds, where the request's status has been set."""

    body: str


class Context(Protocol):
    """What AWS's toolkit hands to a function that takes one parameter more than it must."""

    def set_response_status(self, code: int, phrase: str) -> None: ...


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


def input_fn(body: bytes | str, content_type: str, context: Context | None = None) -> list[bytes] | Refused:
    """The image files' bytes. The toolkit hands text types over as str."""
    raw = body.encode() if isinstance(body, str) else bytes(body)
    headers = {"content-type": content_type}
    try:
        return asyncio.run(parse_images(raw, media_type_of(headers), headers, max_images=DeployConfig().queue_size))
    except Refusal as refusal:
        return _refuse(refusal.status, refusal, context)


def predict_fn(
    images: Sequence[bytes] | Refused, predictor: Predictor, context: Context | None = None
) -> list[Prediction] | Refused:
    """The breeds, in the images' order."""
    if isinstance(images, Refused):
        return images
    try:
        return predictor.predict(images)
    except ImageError as error:
        return _refuse(HTTPStatus.UNPROCESSABLE_ENTITY, error, context)


def output_fn(
    predictions: Sequence[Prediction] | Refused, accept: str, context: Context | None = None
) -> tuple[str, str]:
    """The body and its content type."""
    try:
        media_type = answer_type(accept)
    except Refusal as refusal:
        predictions, media_type = _refuse(refusal.status, refusal, context), JSON
    if isinstance(predictions, Refused):
        return predictions.body, JSON
    return render_body(predictions, media_type), media_type


def _refuse(status: HTTPStatus, error: Exception, context: Context | None) -> Refused:
    # For an error that is raised, the toolkit sends a traceback after the sentence.
    if context is None or not hasattr(context, "set_response_status"):
        raise RequestError(status, str(error)) from error
    context.set_response_status(int(status), status.phrase)
    return Refused(render_refusal(status, str(error)))
