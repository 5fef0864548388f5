"""From a body to images, and each refusal on the way."""

import asyncio
import base64
import json
from http import HTTPStatus
from typing import Any

import pytest
from starlette.datastructures import Headers

from dogbreed_ml.server.answers import Refusal
from dogbreed_ml.server.parsing import IMAGE_TYPES, media_type_of, parse_images

ONE, TWO = b"\xff\xd8one", b"\x89PNG two"
ONE64, TWO64 = base64.b64encode(ONE).decode(), base64.b64encode(TWO).decode()


def parse(body: bytes, content_type: str = "application/json", *, max_images: int = 8) -> list[bytes]:
    headers = Headers({"content-type": content_type})
    return asyncio.run(parse_images(body, media_type_of(headers), headers, max_images=max_images))


def parse_json(document: Any) -> list[bytes]:
    return parse(json.dumps(document).encode())


def multipart(*parts: tuple[str, bytes], boundary: str = "XX") -> bytes:
    lines = [b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (boundary.encode(), head.encode(), data)
             for head, data in parts]  # fmt: skip
    return b"".join(lines) + b"--%s--\r\n" % boundary.encode()


@pytest.mark.parametrize("content_type", [*IMAGE_TYPES, "IMAGE/JPEG", "image/png; name=rex"])
def test_raw_body_is_one_image(content_type: str) -> None:
    assert parse(ONE, content_type) == [ONE]


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_split": {"columns": ["image"], "data": [[ONE64], [TWO64]]}},
        {"dataframe_split": {"index": [5, 6], "columns": ["name", "image"], "data": [["a", ONE64], ["b", TWO64]]}},
        {"dataframe_records": [{"image": ONE64}, {"image": TWO64, "name": "b"}]},
        {"instances": [{"image": ONE64}, {"image": TWO64}]},
        {"instances": [ONE64, TWO64]},
        {"inputs": {"image": [ONE64, TWO64]}},
        {"inputs": [ONE64, TWO64]},
        {"inputs": [{"image": ONE64}, {"image": TWO64}], "params": {}},
    ],
)
def test_json_of_every_form_that_mlflow_takes(document: Any) -> None:
    assert parse_json(document) == [ONE, TWO]


@pytest.mark.parametrize("document", [{"inputs": ONE64}, {"inputs": {"image": ONE64}}, {"instances": [ONE64]}])
def test_json_of_a_single_image(document: Any) -> None:
    assert parse_json(document) == [ONE]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The body is empty"),
        (b"{", "The body must be JSON: .*line 1"),
        (b'"\xff"', "The body must be JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"1" * 5000, "The body must be JSON"),
        (b"[]", "must be an object with one of dataframe_split, dataframe_records, instances, inputs"),
        (b"null", "must be an object with one of"),
        (b"{}", "must be an object with one of"),
        (b'{"inputs": [], "instances": []}', "must be an object with one of"),
        (b'{"inputs": []}', "holds no image"),
        (b'{"inputs": {}}', "inputs must be a list of images"),
        (b'{"inputs": 5}', "inputs must be a list of images"),
        (b'{"instances": "abcd"}', "instances must be a list of images"),
        (b'{"instances": {"image": []}}', "instances must be a list of images"),
        (b'{"inputs": ["****"]}', r"images\[0\] must be base64 text: "),
        (b'{"inputs": ["abc"]}', r"images\[0\] must be base64 text: Incorrect padding"),
        ('{"inputs": ["éé=="]}'.encode(), r"images\[0\] must be base64 text: "),
        (b'{"inputs": ["AAAA", 5]}', r"images\[1\] must be base64 text, got a number"),
        (b'{"inputs": [true]}', "got a truth value"),
        (b'{"inputs": [null]}', "got nothing"),
        (b'{"inputs": [[1]]}', "got a list"),
        (b'{"inputs": [{"image": {"b64": "AAAA"}}]}', "got an object"),
        (b'{"dataframe_records": [{"picture": "AAAA"}]}', "got nothing"),
        (b'{"dataframe_split": []}', 'dataframe_split must hold "columns"'),
        (b'{"dataframe_split": {"columns": ["a"], "data": []}}', "'image' among them"),
        (b'{"dataframe_split": {"columns": ["image"], "data": 5}}', "a list of rows"),
        (b'{"dataframe_split": {"columns": ["image"], "data": ["AAAA"]}}', r"data\[0\] must be a list of 1 values"),
        (b'{"dataframe_split": {"columns": ["image"], "data": [[]]}}', r"data\[0\] must be a list of 1 values"),
    ],
)  # fmt: skip
def test_json_that_holds_no_images_is_a_bad_request(body: bytes, message: str) -> None:
    with pytest.raises(Refusal, match=message) as refused:
        parse(body)
    assert refused.value.status == HTTPStatus.BAD_REQUEST
    assert len(str(refused.value)) < 250


def test_multipart_gives_its_files_in_order() -> None:
    body = multipart(('name="b"; filename="x.jpg"', ONE), ('name="a"; filename=""', TWO))
    assert parse(body, "multipart/form-data; boundary=XX") == [ONE, TWO]


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (multipart(('name="a"; filename="x"', ONE)), "multipart/form-data", "Missing boundary"),
        (multipart(('name="a"; filename="x"', ONE)), "multipart/form-data; boundary=YY", "multipart/form-data"),
        (multipart(('name="a"', b"text")), "multipart/form-data; boundary=XX", "The part 'a' must be a file"),
        (multipart(('filename="x"', ONE)), "multipart/form-data; boundary=XX", "multipart/form-data"),
        (b"no parts at all", "multipart/form-data; boundary=XX", "multipart/form-data"),
        (b"--XX--\r\n", "multipart/form-data; boundary=XX", "holds no image"),
    ],
)
def test_multipart_that_holds_no_files_is_a_bad_request(body: bytes, content_type: str, message: str) -> None:
    with pytest.raises(Refusal, match=message) as refused:
        parse(body, content_type)
    assert refused.value.status == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"content-type": ""}, {"content-type": "text/plain"}, {"content-type": "image/tiff"}, {"content-type": ";"},
        {"content-type": "application/json/x"}, {"content-type": "image/jpeg", "content-encoding": "gzip"},
    ],
)  # fmt: skip
def test_types_that_are_not_served_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Refusal, match=r"Content-Type must be one of|must not be compressed, got 'gzip'") as refused:
        media_type_of(Headers(headers))
    assert refused.value.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE


def test_more_images_than_the_queue_can_hold_are_too_large() -> None:
    assert len(parse_json({"inputs": [ONE64] * 8})) == 8
    with pytest.raises(Refusal, match=r"A request may hold 8 images, got 9") as refused:
        parse_json({"inputs": [ONE64] * 9})
    assert refused.value.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
