"""The functions that SageMaker's PyTorch serving containers call, over serve.Predictor.

A model archive holds checkpoint.pt (int8/ beside it where it was quantized) and this package under code/. Requests and
answers are those of `dogbreed deploy`: one image, several by multipart/form-data, or JSON as MLflow's scoring server
takes it; JSON or CSV by Accept. The container needs torch, torchvision, Pillow, starlette and python-multipart.
"""

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from starlette.datastructures import Headers

from dogbreed_ml.errors import ImageError
from dogbreed_ml.policies import DeployConfig
from dogbreed_ml.serve import Prediction, Predictor
from dogbreed_ml.server.answers import Refusal, answer_type, render_body
from dogbreed_ml.server.parsing import media_type_of, parse_images

CHECKPOINT_FILE = "checkpoint.pt"


class RequestError(Exception):
    """What a client sent cannot be answered; the serving toolkit takes status and sentence from these attributes."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status_code = int(status)
        self.message = message
        self.phrase = status.phrase


def model_fn(model_dir: str) -> Predictor:
    """The checkpoint of the unpacked archive, on the fastest back end that agrees with torch fp32."""
    return Predictor.load(Path(model_dir) / CHECKPOINT_FILE)


def input_fn(body: bytes | str, content_type: str) -> list[bytes]:
    """The image files' bytes. The toolkit hands text types over as str."""
    raw = body.encode() if isinstance(body, str) else bytes(body)
    headers = Headers({"content-type": content_type})
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
