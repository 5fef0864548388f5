"""Captured events in SageMaker's schema: encodings, modes, keys, shares, and what does not fit."""

import base64
import json

import pytest

from sagemaker_jobs.local.capture import MAX_CAPTURED, Capture, Exchange, build_event, build_key

CONFIG = {
    "InitialSamplingPercentage": 100,
    "DestinationS3Uri": "s3://bucket/captured/",
    "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
    "CaptureContentTypeHeader": {"CsvContentTypes": ["text/csv"], "JsonContentTypes": ["application/json"]},
}
NOON_S = 1_795_262_400.5
EXCHANGE = Exchange(b"1,2\n", "text/csv", b'{"a": 1}', "application/json; charset=utf-8", time_s=NOON_S)


def test_event_has_sagemakers_schema() -> None:
    assert build_event(CONFIG, EXCHANGE, event_id="e-1") == {
        "captureData": {
            "endpointInput": {"observedContentType": "text/csv", "mode": "INPUT", "data": "1,2\n", "encoding": "CSV"},
            "endpointOutput": {
                "observedContentType": "application/json; charset=utf-8",
                "mode": "OUTPUT",
                "data": '{"a": 1}',
                "encoding": "JSON",
            },
        },
        "eventMetadata": {"eventId": "e-1", "inferenceTime": "2026-11-21T12:00:00Z"},
        "eventVersion": "0",
    }


def test_event_names_the_callers_id_and_attributes() -> None:
    exchange = Exchange(b"", "", b"", "", inference_id="mine", custom_attributes="trace=1", time_s=NOON_S)
    metadata = build_event(CONFIG, exchange, event_id="e")["eventMetadata"]
    assert metadata["inferenceId"] == "mine"
    assert metadata["customAttributes"] == ["trace=1"]


@pytest.mark.parametrize(
    ("content_type", "data"),
    [("image/jpeg", b"\xff\xd8"), ("application/json", b"\xff not text"), ("text/plain", b"x")],
)
def test_event_is_base64_where_no_text_type_fits(content_type: str, data: bytes) -> None:
    side = build_event(CONFIG, Exchange(data, content_type, b"", ""), event_id="e")["captureData"]["endpointInput"]
    assert side["encoding"] == "BASE64"
    assert base64.b64decode(side["data"]) == data


@pytest.mark.parametrize(
    ("mode", "members"),
    [
        ("Input", ["endpointInput"]),
        ("Output", ["endpointOutput"]),
        ("InputAndOutput", ["endpointInput", "endpointOutput"]),
    ],
)
def test_event_has_the_sides_that_the_config_names(mode: str, members: list[str]) -> None:
    config = {**CONFIG, "CaptureOptions": [{"CaptureMode": mode}]}
    assert list(build_event(config, EXCHANGE, event_id="e")["captureData"]) == members


@pytest.mark.parametrize(("prefix", "start"), [("", ""), ("captured/", "captured/"), ("a/b", "a/b/")])
def test_key_is_by_endpoint_variant_and_hour(prefix: str, start: str) -> None:
    key = build_key(prefix, "dogs", "blue", time_s=NOON_S, file_id="f")
    assert key == f"{start}dogs/blue/2026/11/21/12/00-00-500-f.jsonl"


def test_capture_is_taken_once_as_json_lines() -> None:
    capture = Capture(CONFIG, "dogs", "blue")
    assert capture.take(time_s=NOON_S) is None
    capture.add(EXCHANGE)
    capture.add(EXCHANGE)
    taken = capture.take(time_s=NOON_S)
    assert taken is not None
    key, content = taken
    assert capture.bucket == "bucket"
    assert key.startswith("captured/dogs/blue/")
    ids = [json.loads(line)["eventMetadata"]["eventId"] for line in content.decode().splitlines()]
    assert len(set(ids)) == 2
    assert capture.take(time_s=NOON_S) is None


def test_capture_keeps_the_configured_share() -> None:
    some = Capture({**CONFIG, "InitialSamplingPercentage": 30}, "dogs", "blue")
    none = Capture({**CONFIG, "InitialSamplingPercentage": 0}, "dogs", "blue")
    num_kept = 0
    for _ in range(10):
        for _ in range(MAX_CAPTURED // 5):
            some.add(EXCHANGE)
            none.add(EXCHANGE)
        taken = some.take(time_s=NOON_S)
        num_kept += len(taken[1].splitlines()) if taken else 0
    # 1,000 draws: 5 standard deviations are 72.
    assert 228 < num_kept < 372
    assert none.take(time_s=NOON_S) is None


def test_capture_that_nobody_takes_stays_small() -> None:
    capture = Capture(CONFIG, "dogs", "blue")
    for _ in range(MAX_CAPTURED + 50):
        capture.add(EXCHANGE)
    taken = capture.take(time_s=NOON_S)
    assert taken is not None
    assert len(taken[1].splitlines()) == MAX_CAPTURED
