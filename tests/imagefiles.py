"""Small real images in folders, for tests of the data."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image


def make_image(path: Path, *, seed: int | None = None) -> Path:
    """Writes a small PNG, different for each path or, where given, the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = str(path) if seed is None else str(seed)
    rng = np.random.default_rng(list(hashlib.sha256(identity.encode(errors="replace")).digest()))
    Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(path, "PNG")
    return path


def make_breeds(root: Path) -> Path:
    """Three breeds of 20, 12 and 6 images, the same bytes wherever `root` is."""
    for index, (breed, count) in enumerate((("001.Boxer", 20), ("n02085620-chow", 12), ("Saint Bernard", 6))):
        for number in range(count):
            make_image(root / breed / f"{number}.png", seed=1000 * (index + 1) + number)
    return root
