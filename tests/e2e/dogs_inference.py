"""The model archive's inference.py: image bytes in, the breed as JSON out."""

import json
from pathlib import Path

from dogbreed_ml.serve import Prediction, Predictor


def model_fn(model_dir: str) -> Predictor:
    return Predictor.load(Path(model_dir) / "checkpoint.pt")


def input_fn(body: bytes, content_type: str) -> bytes:
    if not content_type.startswith("image/"):
        raise ValueError(f"An image is wanted, got {content_type}.")
    return body


def predict_fn(image: bytes, predictor: Predictor) -> Prediction:
    return predictor.predict([image])[0]


def output_fn(prediction: Prediction, accept: str) -> tuple[str, str]:
    return json.dumps({"breed": prediction.breed, "probability": prediction.probability}), "application/json"
