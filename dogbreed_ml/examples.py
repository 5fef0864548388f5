"""A model's example images: drawn dogs, because a photograph of the user's has no place in a model others may see."""

import io
from functools import cache

import numpy as np

from dogbreed_ml.data.drawing import draw_dog
from dogbreed_ml.data.invention import invent_breeds

NUM_EXAMPLES = 8


@cache
def example_images() -> tuple[bytes, ...]:
    """JPEG files of NUM_EXAMPLES breeds that do not exist, always the same (drawing them takes 0.2 s)."""
    files = []
    for index, breed in enumerate(invent_breeds(NUM_EXAMPLES, seed=0)):
        buffer = io.BytesIO()
        draw_dog(breed, np.random.default_rng(index)).save(buffer, "JPEG", quality=80)
        files.append(buffer.getvalue())
    return tuple(files)
