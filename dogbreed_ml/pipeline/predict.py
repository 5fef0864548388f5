"""`dogbreed predict`: image files to breeds, by a checkpoint, a logged model or a running endpoint."""

import glob
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import requests
from numpy.typing import NDArray

from dogbreed_ml.context import Context
from dogbreed_ml.data.listing import IMAGE_SUFFIXES
from dogbreed_ml.errors import ConfigError, ImageError, ServingError
from dogbreed_ml.options import PredictOptions
from dogbreed_ml.predictions import PredictedImage, Predictions, check_writable, write_contact_sheet
from dogbreed_ml.serve import BATCH_SIZE, UNSURE, Prediction, Predictor

logger = logging.getLogger(__name__)

STDIN = "-"

_TIMEOUT_S = 60.0
"""For one image of an endpoint; it answers 503 where it is too busy, long before."""

_WORTH_CHOOSING = 64
"""To choose a back end takes 3 s, in which torch fp32 recognises about as many images."""

Recogniser = Callable[[Sequence[bytes]], list[Prediction | ImageError]]
"""What each image shows, or why it cannot be read."""


def predict(options: PredictOptions, *, context: Context, stdin: BinaryIO) -> Predictions:
    """Recognises each image; one that cannot be read is told of in its row. Raises ImageError where none can.

    Raises ConfigError where --out cannot be written, before anything is recognised.
    """
    names = expand(options.images)
    if options.out is not None:
        check_writable(options.out)
    if options.endpoint:
        recognise = _endpoint(options.endpoint)
    else:
        with tempfile.TemporaryDirectory(prefix="dogbreed-") as folder:
            recognise = _predictor(options, context, len(names), Path(folder))
    images: list[PredictedImage] = []
    with context.progress.track("predict", len(names), "images") as advance:
        for start in range(0, len(names), BATCH_SIZE):
            batch = names[start : start + BATCH_SIZE]
            data = [_read(name, stdin) for name in batch]
            found = iter(recognise([each for each in data if isinstance(each, bytes)]))
            answers = [each if isinstance(each, ImageError) else next(found) for each in data]
            # The bytes of all images are kept only for the contact sheet, which shows them.
            kept = [each if options.out is not None and isinstance(each, bytes) else b"" for each in data]
            images += [_predicted(*each) for each in zip(batch, kept, answers, strict=True)]
            advance(len(batch))
    failed = [image for image in images if image.error]
    if len(failed) == len(images):
        raise ImageError(f"None of the {len(images)} images can be read; {failed[0].name}: {failed[0].error}.")
    for image in failed:
        logger.warning("%s cannot be read: %s", image.name, image.error)
    if options.out is not None:
        write_contact_sheet(images, options.out)
    return Predictions(tuple(images), as_csv=options.csv, out=options.out)


def expand(patterns: Sequence[str]) -> list[str]:
    """Files as they are, folders as the images below them, globs as what they match, in order, each once.

    Raises ConfigError for a pattern that stands for no image.
    """
    names: dict[str, None] = {}
    for pattern in patterns:
        found = _expanded(pattern)
        if not found:
            raise ConfigError(f"predict takes image files, folders and globs, and there is none at {pattern}.")
        names |= dict.fromkeys(found)
    return list(names)


def _expanded(pattern: str) -> list[str]:
    if pattern == STDIN or os.path.isfile(pattern):
        return [pattern]
    if os.path.isdir(pattern):
        below = (path for path in Path(pattern).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        return sorted(str(path) for path in below if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))


def _read(name: str, stdin: BinaryIO) -> bytes | ImageError:
    try:
        return stdin.read() if name == STDIN else Path(name).read_bytes()
    except OSError as error:
        return ImageError(error.strerror or str(error))


def _predicted(name: str, data: bytes, found: Prediction | ImageError) -> PredictedImage:
    if isinstance(found, ImageError):
        return PredictedImage(name, data, None, error=str(found))
    return PredictedImage(name, data, found)


def _predictor(options: PredictOptions, context: Context, num_images: int, folder: Path) -> Recogniser:
    """A model of the store is read from a copy in the folder, which may be deleted afterwards."""
    checkpoint_path = options.checkpoint
    if options.model is not None:
        from dogbreed_ml.pyfunc import fetch_checkpoint

        checkpoint_path = fetch_checkpoint(options.model, folder, tracking_uri=context.tracking_uri)
    assert checkpoint_path is not None, "PredictOptions has one of checkpoint, model and endpoint"
    predictor = Predictor.load(checkpoint_path, backend="auto" if num_images > _WORTH_CHOOSING else "torch-fp32")
    logger.info("%s recognises %d images.", predictor.backend_name, num_images)

    def recognise(images: Sequence[bytes]) -> list[Prediction | ImageError]:
        decoded = [_decoded(predictor, data) for data in images]
        squares = [each for each in decoded if not isinstance(each, ImageError)]
        predictions = iter(predictor.recognise(np.stack(squares)) if squares else [])
        return [each if isinstance(each, ImageError) else next(predictions) for each in decoded]

    return recognise


def _decoded(predictor: Predictor, data: bytes) -> NDArray[np.uint8] | ImageError:
    try:
        return predictor.decode(data)
    except ImageError as error:
        return error


def _endpoint(url: str) -> Recogniser:
    session = requests.Session()
    headers = {"Content-Type": "application/x-image", "Accept": "application/json"}

    def ask(data: bytes) -> Prediction | ImageError:
        address = f"{url.rstrip('/')}/invocations"
        try:
            response = session.post(address, data=data, headers=headers, timeout=_TIMEOUT_S)
        except requests.RequestException as error:
            raise ServingError(
                f"{url} does not answer ({type(error).__name__}); `dogbreed endpoints` lists what runs."
            ) from error
        if response.status_code in (400, 413, 415, 422):
            return ImageError(_message(response))
        if not response.ok:
            raise ServingError(f"{url} answered {response.status_code}: {_message(response)}")
        try:
            row = response.json()["predictions"][0]
            top5 = tuple((str(each["breed"]), float(each["probability"])) for each in row["top5"])
            return Prediction(top5[0][0], float(row["probability"]), top5, is_sure=row["breed"] != UNSURE)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ServingError(f"{url} must answer as `dogbreed deploy` does, got {response.text[:80]!r}.") from error

    return lambda images: [ask(data) for data in images]


def _message(response: requests.Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
