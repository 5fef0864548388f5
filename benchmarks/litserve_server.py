"""LitServe as its manual shows it, a process of its own: around eager torch, and around our back end."""

import argparse
import base64
from pathlib import Path
from typing import Any, get_args

import litserve
import torch
from starlette.requests import Request

from dogbreed_ml.checkpoint import build_module, load_checkpoint
from dogbreed_ml.policies import ServingBackendName
from dogbreed_ml.serve import Predictor
from dogbreed_ml.transforms import decode_image, to_square

PLAIN = "plain"
"""Eager torch fp32, as a user writes it without us."""


# LitServe hands over the parsed JSON where `decode_request` says Request; for another type it asks for a query.


class PlainTorch(litserve.LitAPI):  # type: ignore[misc]
    checkpoint_path: Path

    def setup(self, device: str) -> None:
        checkpoint = load_checkpoint(self.checkpoint_path)
        self.preprocessing = checkpoint.preprocessing
        self.module = build_module(checkpoint)

    def decode_request(self, request: Request) -> Any:
        square = to_square(decode_image(base64.b64decode(request["image"])), self.preprocessing)
        return torch.from_numpy(square.copy()).permute(2, 0, 1)

    def predict(self, x: Any) -> Any:
        with torch.inference_mode():
            return self.module(x[None])[0]

    def encode_response(self, output: Any) -> Any:
        return {"logits": output.tolist()}


class OurBackend(litserve.LitAPI):  # type: ignore[misc]
    checkpoint_path: Path
    backend: ServingBackendName

    def setup(self, device: str) -> None:
        self.predictor = Predictor.load(self.checkpoint_path, backend=self.backend)

    def decode_request(self, request: Request) -> Any:
        return self.predictor.decode(base64.b64decode(request["image"]))

    def predict(self, x: Any) -> Any:
        return self.predictor.recognise(x[None])[0]

    def encode_response(self, output: Any) -> Any:
        return {"top5": [{"breed": breed, "probability": value} for breed, value in output.top5]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--backend", choices=(PLAIN, *get_args(ServingBackendName)), required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    api = PlainTorch() if arguments.backend == PLAIN else OurBackend()
    api.checkpoint_path = arguments.checkpoint
    api.backend = arguments.backend
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(port=arguments.port, host="127.0.0.1", generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
