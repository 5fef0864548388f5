"""A tiny model and a plain HTTP client, for tests of whatever serves."""

import http.client
import io
import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image

from dogbreed_ml.checkpoint import Checkpoint, save_checkpoint
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.model import build_resnet50
from dogbreed_ml.serve import Prediction
from dogbreed_ml.transforms import Preprocessing

CLASSES = ("Affenpinscher", "Beagle", "Chow", "Dingo", "Eskimo dog", "Foxhound")


def save_tiny_checkpoint(path: Path, *, seed: int = 0) -> Path:
    """Random weights, 6 breeds, images of 64 x 64."""
    torch.manual_seed(seed)
    state_dict = dict(build_resnet50(len(CLASSES), resnet_version="1").state_dict())
    return save_checkpoint(Checkpoint(state_dict, CLASSES, Preprocessing(image_size=64), "1", ExperimentConfig()), path)


def draw_photograph(seed: int, image_format: str = "JPEG") -> bytes:
    """Large patches of colour, so that the random network tells one from another."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((120, 90), Image.Resampling.NEAREST).save(buffer, image_format)
    return buffer.getvalue()


def as_row(prediction: Prediction) -> dict[str, Any]:
    """What the server and the MLflow model answer for it."""
    top5 = [{"breed": breed, "probability": probability} for breed, probability in prediction.top5]
    return {"breed": prediction.answer, "probability": prediction.probability, "top5": top5}


def is_same_row(row: dict[str, Any], expected: dict[str, Any], *, tolerance: float = 1e-5) -> bool:
    """Whether both name the same breeds in the same order with the same probabilities."""
    ranked, wanted = ([(each["breed"], each["probability"]) for each in one["top5"]] for one in (row, expected))
    return row["breed"] == expected["breed"] and all(
        breed == other and abs(probability - other_probability) <= tolerance
        for (breed, probability), (other, other_probability) in zip(ranked, wanted, strict=True)
    )


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, kept alive; opened again where the server has closed it."""

    def __init__(self, port: int, *, timeout_s: float = 60.0):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def get(self, path: str) -> Reply:
        return self._ask("GET", path, None, {})

    def post(self, body: bytes, content_type: str | None = "image/jpeg", **headers: str) -> Reply:
        """Posts to /invocations; further headers by name, _ for -."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._ask("POST", "/invocations", body, sent | ({"Content-Type": content_type} if content_type else {}))

    def post_json(self, document: Any, **headers: str) -> Reply:
        return self.post(json.dumps(document).encode(), "application/json", **headers)

    def _ask(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
