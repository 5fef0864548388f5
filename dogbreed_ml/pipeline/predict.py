"""`dogbreed predict`: image files to breeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreed_ml.context import Context

if TYPE_CHECKING:
    from dogbreed_ml.serve import Prediction


def predict(paths: Sequence[Path], *, model: str, context: Context) -> "list[Prediction]":
    """The breeds on image files, from a checkpoint file or a model URI (models:/..., runs:/...)."""
    from dogbreed_ml.serve import Predictor

    checkpoint_path = Path(model)
    if ":/" in model:
        from dogbreed_ml.pyfunc import fetch_checkpoint

        checkpoint_path = fetch_checkpoint(model, tracking_uri=context.tracking_uri)
    return Predictor.load(checkpoint_path).predict([path.read_bytes() for path in paths])
