"""Requests that no client ought to send, generated: each is refused in one sentence, and none harms the server."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from serving import draw_photograph

TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(frozen=True)
class Case:
    name: str
    body: bytes
    content_type: str | None
    headers: tuple[tuple[str, str], ...] = ()
    may_be_read: bool = False
    """Whether 200 is right too: a flipped bit may leave a picture that can be seen."""


def cases() -> list[Case]:
    """At least 200, the same each time."""
    made = [*_truncated(), *_flipped(), *_bombs(), *_wrong_types(), *_json(), *_multipart(), *_headers()]
    assert len({case.name for case in made}) == len(made)
    return made


def _truncated() -> Iterator[Case]:
    for image_format, content_type in TYPES.items():
        data = draw_photograph(1, image_format)
        for share in range(10):
            length = len(data) * share // 10
            yield Case(f"{image_format} cut at {share}0 %", data[:length], content_type, may_be_read=share > 5)


def _flipped() -> Iterator[Case]:
    rng = np.random.default_rng(0)
    for image_format, content_type in TYPES.items():
        data = draw_photograph(2, image_format)
        for number in range(25):
            damaged = bytearray(data)
            # The first half of them in the header, where lengths and sizes are.
            end = 64 if number < 12 else len(data)
            for position in rng.integers(0, end, 1 + number % 4):
                damaged[position] ^= 1 << int(rng.integers(0, 8))
            yield Case(f"{image_format} with flipped bits {number}", bytes(damaged), content_type, may_be_read=True)


def _png(width: int, height: int, data: bytes, *, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _bombs() -> Iterator[Case]:
    black = zlib.compress(bytes(10_000_000), 9)
    text = zlib.compress(b"x" * 20_000_000, 9)
    text_chunk = b"zTXt" + b"Comment\0\0" + text
    as_chunk = struct.pack(">I", len(text_chunk) - 4) + text_chunk + struct.pack(">I", zlib.crc32(text_chunk))
    yield Case("PNG bomb of 20000 x 20000", _png(20_000, 20_000, black), "image/png")
    yield Case("PNG bomb of 2147483647 x 1", _png(2**31 - 1, 1, black), "image/png")
    yield Case("PNG bomb of 1 x 2147483647", _png(1, 2**31 - 1, black), "image/png")
    yield Case("PNG of 0 x 0", _png(0, 0, black), "image/png")
    yield Case("PNG with a text bomb", _png(8, 8, zlib.compress(bytes(8 * 25)), extra=as_chunk), "image/png", (), True)
    yield Case("PNG with too few pixels", _png(7000, 7000, zlib.compress(b"abc")), "image/png", (), True)
    wide = io.BytesIO()
    Image.new("L", (60_000, 2)).save(wide, "GIF")
    yield Case("GIF that says 65535 x 65535", wide.getvalue()[:6] + b"\xff" * 4 + wide.getvalue()[10:], "image/gif")
    yield Case("JPEG that says 65535 x 65535", _jpeg_of_size(65_535, 65_535), "image/jpeg")
    yield Case("JPEG that says 0 x 0", _jpeg_of_size(0, 0), "image/jpeg", (), True)


def _jpeg_of_size(width: int, height: int) -> bytes:
    data = draw_photograph(3)
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def _wrong_types() -> Iterator[Case]:
    rex = draw_photograph(4)
    types: list[str | None] = [
        None, "", "image/", "image", "image/tiff", "image/svg+xml", "text/plain", "text/html", "text/csv", "*/*",
        "application/octet-stream", "application/pdf", "application/xml", "application/x-www-form-urlencoded",
        "application/x-parquet", "video/mp4", "multipart/mixed", "applicationjson", "image/jpeg\x7f", "x" * 5000,
    ]  # fmt: skip
    for content_type in types:
        yield Case(f"content type {str(content_type)[:40]!r}", rex, content_type)
    others = {
        "text": b"a dog", "zip": b"PK\x03\x04" + bytes(100), "pdf": b"%PDF-1.7\n" + bytes(50), "zeros": bytes(1000),
        "html": b"<html>dog</html>", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "gzip": zlib.compress(rex),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "elf": b"\x7fELF" + bytes(60), "space": b" ",
        "noise": np.random.default_rng(1).bytes(5000), "base64": base64.b64encode(rex), "JPEG twice cut": rex[:90] * 2,
    }  # fmt: skip
    for name, body in others.items():
        yield Case(f"{name} as an image", body, "image/jpeg")
    for name in ("text", "zeros", "noise"):
        yield Case(f"{name} as application/x-image", others[name], "application/x-image")


def _json() -> Iterator[Case]:
    rex = base64.b64encode(draw_photograph(5)).decode()
    documents: list[object] = [
        None, True, 0, 1e308, "text", [], {}, [rex], {"image": rex}, {"inputs": None}, {"inputs": 1}, {"inputs": {}},
        {"inputs": []}, {"inputs": [None]}, {"inputs": [[rex]]}, {"inputs": {"image": None}},
        {"inputs": {"picture": rex}},
        {"inputs": {"image": [rex, 3]}}, {"inputs": [rex, "***"]}, {"inputs": [rex[:-1]]}, {"inputs": ["data:," + rex]},
        {"inputs": [""]}, {"inputs": [rex[:40]]}, {"inputs": ["é"]}, {"instances": rex}, {"instances": {"image": rex}},
        {"instances": [{"picture": rex}]}, {"instances": [{"image": {"b64": rex}}]}, {"instances": [1, 2, 3]},
        {"instances": [[0.1] * 100]}, {"dataframe_records": {}}, {"dataframe_records": [[]]},
        {"dataframe_records": [{}]},
        {"dataframe_split": None}, {"dataframe_split": {}}, {"dataframe_split": {"columns": ["image"]}},
        {"dataframe_split": {"columns": "image", "data": [[rex]]}},
        {"dataframe_split": {"columns": [], "data": [[]]}},
        {"dataframe_split": {"columns": ["image"], "data": [[rex, rex]]}},
        {"dataframe_split": {"columns": ["image"], "data": [[rex], [5]]}},
        {"dataframe_split": {"columns": ["image", []], "data": [[rex]]}}, {"inputs": [rex], "instances": [rex]},
        {"inputs": [rex] * 65},
    ]  # fmt: skip
    for number, document in enumerate(documents):
        yield Case(f"JSON document {number}", json.dumps(document).encode(), "application/json")
    texts = {
        "nested lists": b"[" * 200_000, "nested objects": b'{"inputs":' * 100_000,
        "closed nest": b"[" * 9000 + b"]" * 9000,
        "nest within": b'{"inputs":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "empty": b"", "cut": b'{"inputs": ["AAAA',
        "NaN": b'{"inputs": [NaN]}', "Infinity": b'{"inputs": -Infinity}', "comment": b"{} // dog", "NUL": b"\x00",
        "UTF-16": '{"inputs": ["A"]}'.encode("utf-16"), "bad UTF-8": b'{"inputs": ["\xff\xfe"]}',
        "BOM": b"\xef\xbb\xbf{}",
        "lone surrogate": b'{"inputs": ["\\ud800"]}', "huge number": b'{"inputs": ' + b"9" * 100_000 + b"}",
        "two documents": b"{}{}", "single quotes": b"{'inputs': []}",
        "many keys": json.dumps(dict.fromkeys(map(str, range(20_000)))).encode(),
        "an image": draw_photograph(5),
    }  # fmt: skip
    for name, body in texts.items():
        yield Case(f"JSON: {name}", body, "application/json")


def _multipart() -> Iterator[Case]:
    rex = draw_photograph(6)
    kind = "multipart/form-data; boundary=XX"
    head = b'--XX\r\nContent-Disposition: form-data; name="a"; filename="rex.jpg"\r\n'
    whole = head + b"\r\n" + rex + b"\r\n--XX--\r\n"
    yield Case("multipart without a boundary", whole, "multipart/form-data")
    yield Case("multipart with another boundary", whole, "multipart/form-data; boundary=YY")
    yield Case("multipart with an empty boundary", whole, "multipart/form-data; boundary=")
    yield Case("multipart with a long boundary", whole, "multipart/form-data; boundary=" + "X" * 3000)
    yield Case("multipart with an odd charset", whole[:90], kind + "; charset=klingon")
    yield Case("multipart of nothing", b"--XX--\r\n", kind)
    yield Case("multipart without parts", b"dog", kind)
    yield Case("multipart with text", b'--XX\r\nContent-Disposition: form-data; name="a"\r\n\r\nhi\r\n--XX--\r\n', kind)
    yield Case("multipart without names", b"--XX\r\nContent-Type: image/jpeg\r\n\r\n" + rex + b"\r\n--XX--\r\n", kind)
    yield Case("multipart with a part that is no image", head + b"\r\ndog\r\n--XX--\r\n", kind)
    yield Case("multipart with an empty file", head + b"\r\n\r\n--XX--\r\n", kind)
    yield Case("multipart with one good, one bad", whole[:-8] + head + b"\r\nno\r\n--XX--\r\n", kind, may_be_read=True)
    yield Case(
        "multipart with a huge part header", head + b"X-Dog: " + b"w" * 100_000 + b"\r\n\r\nx\r\n--XX--\r\n", kind
    )
    yield Case("multipart of 1500 files", (head + b"\r\nx\r\n") * 1500 + b"--XX--\r\n", kind)
    yield Case("multipart of 100 files", (head + b"\r\nx\r\n") * 100 + b"--XX--\r\n", kind)
    odd = b'--XX\r\nContent-Disposition: form-data; name="\xff\xfe"; filename="\xff"\r\n\r\nx\r\n--XX--\r\n'
    yield Case("multipart with odd bytes in its name", odd, kind)
    for share in range(1, 5):
        yield Case(f"multipart cut at {share}/5", whole[: len(whole) * share // 5], kind)


def _headers() -> Iterator[Case]:
    rex = draw_photograph(7)
    for name, value in (
        ("Accept", "text/html"), ("Accept", "application/json;q=0"), ("Accept", "image/jpeg"), ("Accept", "x" * 5000),
        ("Content-Encoding", "gzip"), ("Content-Encoding", "br, gzip"), ("Content-Encoding", "dog"),
    ):  # fmt: skip
        yield Case(f"{name}: {value[:30]}", rex, "image/jpeg", ((name, value),))
    yield Case("many headers", b"", "image/jpeg", tuple((f"X-Dog-{number}", "w" * 100) for number in range(90)))
    yield Case("more bytes than are taken", bytes(3 * 2**20), "image/jpeg")
    yield Case("more JSON than is taken", b'{"inputs": ["' + b"A" * (3 * 2**20) + b'"]}', "application/json")
