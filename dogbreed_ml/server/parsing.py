"""From a request's body to images: raw, JSON as MLflow's scoring server takes it, or multipart/form-data.

The server and SageMaker's containers share it. Only multipart/form-data needs starlette and python-multipart.
"""

import base64
import binascii
import json
from collections.abc import AsyncGenerator, Mapping
from http import HTTPStatus
from typing import Any

from dogbreed_ml.server.answers import Refusal

IMAGE_TYPES = (
    "image/jpeg", "image/jpg", "image/png", "image/webp", "image/gif", "application/x-image",
)  # fmt: skip
"""Bodies that are one image; what it is, its own first bytes say."""

JSON_TYPE, MULTIPART_TYPE = "application/json", "multipart/form-data"

JSON_KEYS = ("dataframe_split", "dataframe_records", "instances", "inputs")

_COLUMN = "image"
_MAX_PARTS = 1000


def media_type_of(headers: Mapping[str, str]) -> str:
    """The content type without its parameters; Refusal (415) where it is none that is served.

    `headers` are by name in lower case, here and below.
    """
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        encoding = headers["content-encoding"][:50]
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The body must not be compressed, got {encoding!r}.")
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    served = (*IMAGE_TYPES, JSON_TYPE, MULTIPART_TYPE)
    if media_type not in served:
        message = f"Content-Type must be one of {', '.join(served)}; got {media_type[:50]!r}."
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, message)
    return media_type


async def parse_images(body: bytes, media_type: str, headers: Mapping[str, str], *, max_images: int) -> list[bytes]:
    """The image files' bytes, at least one; Refusal where the body is not what its type says."""
    if not body:
        raise _bad("The body is empty; send an image.")
    if media_type == JSON_TYPE:
        images = _parse_json(body)
    elif media_type == MULTIPART_TYPE:
        images = await _parse_multipart(body, headers)
    else:
        images = [body]
    if not images:
        raise _bad("The request holds no image; send one at least.")
    if len(images) > max_images:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"A request may hold {max_images} images, got {len(images)}; send several requests.",
        )
    return images


def _bad(message: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, message)


def _parse_json(body: bytes) -> list[bytes]:
    try:
        parsed = json.loads(body)
    except RecursionError as error:
        raise _bad("The JSON is nested too deeply.") from error
    except ValueError as error:
        raise _bad(f"The body must be JSON: {str(error)[:100]}.") from error
    if not isinstance(parsed, dict) or sum(key in parsed for key in JSON_KEYS) != 1:
        raise _bad(f"The JSON must be an object with one of {', '.join(JSON_KEYS)}.")
    key = next(each for each in JSON_KEYS if each in parsed)
    values = _split_values(parsed[key]) if key == "dataframe_split" else _values(parsed[key], key)
    return [_decode_base64(value, index) for index, value in enumerate(values)]


def _split_values(split: Any) -> list[Any]:
    """{"columns": ["image"], "data": [[base64], ...]}; further columns and the index are of no use here."""
    columns, rows = (split.get("columns"), split.get("data")) if isinstance(split, dict) else (None, None)
    if not isinstance(columns, list) or not isinstance(rows, list) or _COLUMN not in columns:
        raise _bad(f'dataframe_split must hold "columns" with {_COLUMN!r} among them, and "data", a list of rows.')
    position = columns.index(_COLUMN)
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(columns):
            raise _bad(f"dataframe_split's data[{index}] must be a list of {len(columns)} values, one for each column.")
    return [row[position] for row in rows]


def _values(given: Any, key: str) -> list[Any]:
    """[{"image": base64}, ...], [base64, ...], and for `inputs` {"image": [base64, ...]} or base64 alone too."""
    if key == "inputs":
        given = given.get(_COLUMN) if isinstance(given, dict) else given
        given = [given] if isinstance(given, str) else given
    if not isinstance(given, list):
        raise _bad(f'{key} must be a list of images, [{{"{_COLUMN}": BASE64}}, ...].')
    return [value.get(_COLUMN) if isinstance(value, dict) else value for value in given]


def _decode_base64(value: Any, index: int) -> bytes:
    if not isinstance(value, str):
        raise _bad(f"images[{index}] must be base64 text, got {_json_name(value)}.")
    try:
        return base64.b64decode(value, validate=True)
    # Of characters beyond ASCII a plain ValueError tells.
    except (binascii.Error, ValueError) as error:
        raise _bad(f"images[{index}] must be base64 text: {error}.") from error


def _json_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), "nothing")


async def _parse_multipart(body: bytes, headers: Mapping[str, str]) -> list[bytes]:
    """The files, in their order, whatever their fields are called; Refusal (415) where their readers are absent."""
    try:
        # starlette itself imports without python-multipart, and fails later.
        import python_multipart  # noqa: F401
        from starlette.datastructures import Headers, UploadFile
        from starlette.formparsers import MultiPartException, MultiPartParser
    except ImportError as error:
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"{MULTIPART_TYPE} needs starlette and python-multipart, which this server lacks; send one image as the "
            f"body, or several as {JSON_TYPE}.",
        ) from error

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(Headers(headers), stream(), max_files=_MAX_PARTS, max_fields=_MAX_PARTS)
    # A body that is in memory already need not go through a file.
    parser.spool_max_size = len(body) + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise _bad(f"The body must be multipart/form-data: {error.message[:100].rstrip('.')}.") from error
    # Its reader takes the charset that a part names, and any bytes for a name.
    except (KeyError, LookupError, UnicodeDecodeError) as error:
        raise _bad("The body must be multipart/form-data with a boundary and named parts.") from error
    try:
        images = []
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                raise _bad(f"The part {name[:50]!r} must be a file, as `curl -F image=@rex.jpg` sends it.")
            images.append(await value.read())
        return images
    finally:
        await form.close()
