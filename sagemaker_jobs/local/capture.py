"""Data capture: what an endpoint was asked and what it answered, as JSON lines in S3, in SageMaker's schema."""

import base64
import json
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

EVENT_VERSION = "0"
MAX_CAPTURED = 500
"""Events that may wait for one file; further ones are dropped, as AWS drops them where the disk fills."""


@dataclass(frozen=True)
class Exchange:
    """One invocation, as the client sent it and the model's container answered it."""

    request: bytes
    request_type: str
    response: bytes
    response_type: str
    inference_id: str | None = None
    custom_attributes: str | None = None
    time_s: float = 0.0
    """Epoch seconds."""


def build_event(config: Mapping[str, Any], exchange: Exchange, *, event_id: str) -> dict[str, Any]:
    """One line of a capture file. `config` is a DataCaptureConfig."""
    modes = {option["CaptureMode"] for option in config["CaptureOptions"]}
    captured: dict[str, Any] = {}
    if modes & {"Input", "InputAndOutput"}:
        captured["endpointInput"] = _side(config, "INPUT", exchange.request, exchange.request_type)
    if modes & {"Output", "InputAndOutput"}:
        captured["endpointOutput"] = _side(config, "OUTPUT", exchange.response, exchange.response_type)
    metadata: dict[str, Any] = {"eventId": event_id}
    if exchange.custom_attributes is not None:
        metadata["customAttributes"] = [exchange.custom_attributes]
    if exchange.inference_id is not None:
        metadata["inferenceId"] = exchange.inference_id
    metadata["inferenceTime"] = datetime.fromtimestamp(exchange.time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"captureData": captured, "eventMetadata": metadata, "eventVersion": EVENT_VERSION}


def build_key(prefix: str, endpoint_name: str, variant_name: str, *, time_s: float, file_id: str) -> str:
    """prefix/endpoint/variant/yyyy/mm/dd/hh/mm-ss-mmm-ID.jsonl, in UTC."""
    moment = datetime.fromtimestamp(time_s, UTC)
    name = f"{moment:%M-%S}-{moment.microsecond // 1000:03d}-{file_id}.jsonl"
    parts = [prefix.strip("/"), endpoint_name, variant_name, f"{moment:%Y/%m/%d/%H}", name]
    return "/".join(part for part in parts if part)


def _side(config: Mapping[str, Any], mode: str, data: bytes, content_type: str) -> dict[str, Any]:
    encoding, text = _encode(config.get("CaptureContentTypeHeader", {}), data, content_type)
    return {"observedContentType": content_type, "mode": mode, "data": text, "encoding": encoding}


def _encode(headers: Mapping[str, Any], data: bytes, content_type: str) -> tuple[str, str]:
    """Text only where the config names the content type; base64 is what AWS does without."""
    plain_type = content_type.partition(";")[0].strip()
    for encoding, member in (("CSV", "CsvContentTypes"), ("JSON", "JsonContentTypes")):
        if plain_type in headers.get(member, ()):
            try:
                return encoding, data.decode()
            except UnicodeDecodeError:
                break
    return "BASE64", base64.b64encode(data).decode()


class Capture:
    """The captured events of one variant of one endpoint, until `take` hands them over as a file; thread-safe."""

    def __init__(self, config: Mapping[str, Any], endpoint_name: str, variant_name: str):
        self._config = config
        self._names = (endpoint_name, variant_name)
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self._random = random.Random()
        bucket, _, self._prefix = config["DestinationS3Uri"].partition("://")[2].partition("/")
        self.bucket: str = bucket

    def add(self, exchange: Exchange) -> None:
        """Keeps the exchange, or not, by the config's share of all requests."""
        if self._random.random() * 100 >= self._config["InitialSamplingPercentage"]:
            return
        line = json.dumps(build_event(self._config, exchange, event_id=str(uuid4())))
        with self._lock:
            if len(self._lines) < MAX_CAPTURED:
                self._lines.append(line)

    def take(self, *, time_s: float) -> tuple[str, bytes] | None:
        """Key and content of the file to write now; None where nothing was captured since the last one."""
        with self._lock:
            lines, self._lines = self._lines, []
        if not lines:
            return None
        key = build_key(self._prefix, *self._names, time_s=time_s, file_id=str(uuid4()))
        return key, "".join(f"{line}\n" for line in lines).encode()
