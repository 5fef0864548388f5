"""The one preprocessing, for training and serving: bytes to an upright RGB image to a square of uint8.

Normalisation is the network's first layer (`model.Normalize`), so that a back end can fold it into a convolution.
"""

import io
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from dogbreed_ml.config import Augmentation
from dogbreed_ml.errors import ImageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_BYTES = 256 * 2**20
"""Bytes of the largest image file that is read."""

MAX_PIXELS = 64_000_000
"""Pixels of the largest image that is decoded; a larger one is taken for a bomb. 64 million is a 8000 x 8000 scan."""

# What Pillow's decoders raise for damaged files; which one depends on the format.
_DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, AttributeError, OverflowError,
    ZeroDivisionError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
# Not all that Pillow knows: for EPS it would start Ghostscript on a stranger's file.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
_PILLOW = re.compile(r"PIL(\.|$)")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

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

    The first frame of an animation; transparency over white; 16 bit scaled to 8. Safe to call from several threads.
    Raises ImageError with the reason, as `kind` or `kind: details`, where that cannot be done.
    """
    if not data:
        raise ImageError("empty file")
    _silence_pillow()
    try:
        # The header alone is read here; pixels are decoded by _to_rgb, after the check of their number.
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(f"too many pixels: {image.width}x{image.height}, at most {max_pixels} are decoded")
            return _to_rgb(image)
    except Image.DecompressionBombError as error:
        raise ImageError(f"too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError("not an image of a known format") from error
    except _DECODER_ERRORS as error:
        kind = "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "damaged"
        raise ImageError(f"{kind}: {error or type(error).__name__}") from error


def _silence_pillow() -> None:
    """Ignores Pillow's warnings in this process: what matters about a file becomes an ImageError.

    Not warnings.catch_warnings, which swaps the filters of all threads and, where two overlap, leaves the wrong ones.
    """
    if not any(action == "ignore" and module == _PILLOW for action, _, _, module, _ in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    # After load(): a PNG may carry its EXIF behind the pixels.
    turn = _TURNS.get(_exif_orientation(image))
    rgb = _flatten(image)
    return rgb if turn is None else rgb.transpose(turn)


def _exif_orientation(image: Image.Image) -> int:
    """1 to 8 as in EXIF; 1, upright, where the image says nothing or nothing that can be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # Damaged EXIF leaves a picture that can be seen all the same.
    except _DECODER_ERRORS:
        return 1


def _flatten(image: Image.Image) -> Image.Image:
    """A loaded image of any mode as RGB; transparency over white."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8_bit(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, rgba).convert("RGB")
    # A copy where the mode is RGB already, so that closing the file leaves the pixels.
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> NDArray[np.uint8]:
    """16 and 32 bit greyscale in [0, 255]: Pillow's own convert() clips at 255 instead of scaling.

    Mode I;16 has its range; I and F have none, so the largest value decides between 1 (F alone), 255, 65535 and more.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(values.max(initial=0.0))
    if image.mode.startswith("I;16"):
        high = 65535.0
    elif image.mode == "F" and largest <= 1:
        high = 1.0
    else:
        high = next((bound for bound in (255.0, 65535.0) if largest <= bound), largest)
    scaled: NDArray[np.uint8] = np.rint((values * (255.0 / high)).clip(0, 255)).astype(np.uint8)
    return scaled


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
