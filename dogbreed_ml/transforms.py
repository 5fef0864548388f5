"""The one preprocessing, for training and serving: bytes to an upright RGB image to a square of uint8.

Normalisation is the network's first layer (`model.Normalize`), so that a back end can fold it into a convolution.
"""

import io
import threading
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dogbreed_ml.config import Augmentation
from dogbreed_ml.errors import ImageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_PIXELS = 64_000_000
"""Pixels of the largest image that is decoded; a larger one is taken for a bomb. 64 million is a 8000 x 8000 scan."""

# torchvision draws from torch's global generator; one augmentation at a time may have it seeded.
_GENERATOR_LOCK = threading.Lock()


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; stored in every checkpoint."""

    image_size: int = 224
    """Side in pixels of the square."""
    crop_share: float = 0.875
    """Share of the shorter side that the square keeps."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Per channel, of values in [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Per channel, of values in [0, 1]."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image file's bytes to RGB, the right way up.

    The first frame of an animation; transparency over white; 16 bit scaled to 8.
    Raises ImageError with the reason where that cannot be done.
    """
    if not data:
        raise ImageError("empty file")
    with warnings.catch_warnings():
        # Our own limit below is the rule; Pillow would only warn at its own.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            with Image.open(io.BytesIO(data)) as image:
                num_pixels = image.width * image.height
                if num_pixels > max_pixels:
                    raise ImageError(f"too many pixels: {image.width}x{image.height}, at most {max_pixels} are decoded")
                return _to_rgb(image)
        except Image.DecompressionBombError as error:
            raise ImageError(f"too many pixels: {error}") from error
        except Image.UnidentifiedImageError as error:
            raise ImageError("not an image that Pillow can read") from error
        # Pillow's decoders raise these for damaged files; which one depends on the format.
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError) as error:
            raise ImageError(f"damaged: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGB":
        return upright
    if upright.mode.startswith("I") or upright.mode == "F":
        # 16 and 32 bit greyscale: Pillow's own convert() clips at 255 instead of scaling.
        values = np.asarray(upright, dtype=np.float64)
        high = 65535.0 if values.max(initial=0.0) > 255 else 255.0
        return Image.fromarray((values * (255.0 / high)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    return upright.convert("RGB")


def to_square(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Resizes and crops to the central square: (image_size, image_size, 3) uint8, RGB.

    One bilinear, antialiased resampling straight from the source box: the same picture as resizing the shorter side
    and cropping, without the pixels that the crop would throw away.
    """
    size = preprocessing.image_size
    side = min(image.size) * preprocessing.crop_share
    left, top = (image.width - side) / 2, (image.height - side) / 2
    if (left, top, side) == (0, 0, size) and image.size == (size, size):
        return np.asarray(image, dtype=np.uint8)
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box), dtype=np.uint8)


def augmented_square(
    image: Image.Image, preprocessing: Preprocessing, augmentation: Augmentation, *, seed: int
) -> NDArray[np.uint8]:
    """One random variant of a decoded image, (image_size, image_size, 3) uint8; the same seed, the same variant.

    flip mirrors every second image on average; flip_crop takes a random crop of 35 to 100 % of the area instead of
    the central square; randaugment adds torchvision's RandAugment with its defaults.
    """
    if augmentation == "none":
        return to_square(image, preprocessing)
    import torch

    transform = _augmentation(augmentation, preprocessing.image_size)
    with _GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        varied: Image.Image = transform(image)
    return to_square(varied, preprocessing) if augmentation == "flip" else np.asarray(varied, dtype=np.uint8)


def mirror(image: Image.Image) -> Image.Image:
    """The horizontal mirror image."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


@lru_cache
def _augmentation(augmentation: Augmentation, image_size: int) -> Any:
    from torchvision.transforms import v2

    flip = v2.RandomHorizontalFlip()
    if augmentation == "flip":
        return flip
    crop = v2.RandomResizedCrop(image_size, scale=(0.35, 1.0), antialias=True)
    if augmentation == "flip_crop":
        return v2.Compose([crop, flip])
    return v2.Compose([crop, flip, v2.RandAugment()])
