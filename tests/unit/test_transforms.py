"""Each kind of odd or bad image, made here, and the pixels or the reason that decode_image answers with."""

import io
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dogbreed_ml.errors import ImageError
from dogbreed_ml.transforms import MAX_PIXELS, Preprocessing, augmented_square, decode_image, mirror, to_square


def _gradient(width: int = 60, height: int = 40) -> Image.Image:
    """Red grows to the right, green to the bottom: every turn and flip is seen."""
    across, down = np.linspace(0, 255, width), np.linspace(0, 255, height)
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = across[None, :], down[:, None]
    pixels[..., 2] = 60
    return Image.fromarray(pixels)


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _assert_close(image: Image.Image, expected: Image.Image, *, tolerance: float = 3.0) -> None:
    assert image.mode == "RGB"
    assert image.size == expected.size
    difference = np.abs(np.asarray(image, dtype=float) - np.asarray(expected.convert("RGB"), dtype=float))
    assert difference.mean() <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_decode_image_reads_each_format(kind: str) -> None:
    _assert_close(decode_image(_encode(_gradient(), kind)), _gradient(), tolerance=4)


def test_decode_image_greyscale_has_three_equal_channels() -> None:
    pixels = np.asarray(decode_image(_encode(_gradient().convert("L"), "JPEG", quality=95)))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert pixels.std() > 10


def test_decode_image_black_and_white_spans_the_range() -> None:
    pixels = np.asarray(decode_image(_encode(_gradient().convert("1"), "PNG")))
    assert set(np.unique(pixels)) == {0, 255}


def test_decode_image_cmyk_jpeg_keeps_colours() -> None:
    # Pillow writes what Adobe does: inverted, with the marker that says so.
    data = _encode(_gradient().convert("CMYK"), "JPEG", quality=95)
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.mode == "CMYK"
    _assert_close(decode_image(data), _gradient(), tolerance=4)


def test_decode_image_16_bit_greyscale_is_scaled() -> None:
    values = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    pixels = np.asarray(decode_image(_encode(Image.fromarray(values), "PNG")))[..., 0]
    assert np.abs(pixels.astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


def test_decode_image_dark_16_bit_stays_dark() -> None:
    values = np.full((16, 16), 200, dtype=np.uint16)
    assert np.asarray(decode_image(_encode(Image.fromarray(values), "PNG"))).max() <= 1


@pytest.mark.parametrize(("high", "expected"), [(1.0, 255), (255.0, 255), (65535.0, 255)])
def test_decode_image_float_tiff_is_scaled_by_its_range(high: float, expected: int) -> None:
    values = np.linspace(0, high, 64, dtype=np.float32).reshape(8, 8)
    pixels = np.asarray(decode_image(_encode(Image.fromarray(values), "TIFF")))
    assert (pixels.min(), pixels.max()) == (0, expected)


def test_decode_image_rgba_lies_on_white() -> None:
    image = _gradient().convert("RGBA")
    alpha = np.full((40, 60), 255, dtype=np.uint8)
    alpha[:, :30] = 0
    image.putalpha(Image.fromarray(alpha))
    pixels = np.asarray(decode_image(_encode(image, "PNG")))
    assert (pixels[:, :30] == 255).all()
    assert (pixels[:, 30:] == np.asarray(_gradient())[:, 30:]).all()


def test_decode_image_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (20, 10), 1)
    image.putpalette([0, 0, 0, 200, 30, 40])
    image.paste(0, (0, 0, 10, 10))
    pixels = np.asarray(decode_image(_encode(image, "PNG", transparency=0)))
    assert (pixels[:, :10] == 255).all()
    assert (pixels[:, 10:] == (200, 30, 40)).all()


def test_decode_image_grey_with_alpha_lies_on_white() -> None:
    image = Image.merge("LA", [Image.new("L", (8, 8), 90), Image.new("L", (8, 8), 0)])
    assert (np.asarray(decode_image(_encode(image, "PNG"))) == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_decode_image_animation_gives_first_frame(kind: str) -> None:
    first, second = Image.new("RGB", (32, 32), (200, 20, 20)), Image.new("RGB", (32, 32), (20, 20, 200))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = _encode(first, kind, save_all=True, append_images=[second], duration=50, **options)
    _assert_close(decode_image(data), first)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_decode_image_turns_exif_upright(kind: str, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = _gradient().transpose(undo[orientation]) if orientation > 1 else _gradient()
    exif = Image.Exif()
    exif[0x0112] = orientation
    _assert_close(decode_image(_encode(stored, kind, exif=exif, quality=95)), _gradient(), tolerance=4)


def test_decode_image_with_damaged_exif_is_read() -> None:
    data = _encode(_gradient(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12garbage")
    _assert_close(decode_image(data), _gradient(), tolerance=4)


def test_decode_image_empty_file_is_refused() -> None:
    with pytest.raises(ImageError, match="^empty file$"):
        decode_image(b"")


@pytest.mark.parametrize("data", [b"<html>404 Not Found</html>", b"\x00" * 500, b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n"])
def test_decode_image_of_something_else_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="^not an image of a known format$"):
        decode_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_decode_image_truncated_is_refused(kind: str) -> None:
    data = _encode(_gradient(200, 200), kind)
    with pytest.raises(ImageError, match="^(truncated|damaged): "):
        decode_image(data[: len(data) * 2 // 3])


def test_decode_image_truncated_jpeg_names_the_kind() -> None:
    data = _encode(_gradient(200, 200), "JPEG", progressive=True)
    with pytest.raises(ImageError, match="^truncated: image file is truncated"):
        decode_image(data[:-200])


def test_decode_image_bomb_is_refused_before_decoding() -> None:
    side = int(MAX_PIXELS**0.5) + 100
    data = _encode(Image.new("1", (side, side)), "PNG")
    assert len(data) < 50_000
    with pytest.raises(ImageError, match=f"^too many pixels: {side}x{side}, at most {MAX_PIXELS} are decoded$"):
        decode_image(data)


def test_decode_image_enormous_bomb_is_refused() -> None:
    # Only the header: a PNG of 60000 x 60000 that claims to hold pixels.
    data = bytearray(_encode(Image.new("1", (8, 8)), "PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    header = bytes(data[12:29])
    data[29:33] = zlib.crc32(header).to_bytes(4, "big")
    with pytest.raises(ImageError, match="^too many pixels"):
        decode_image(bytes(data))


def test_decode_image_in_threads_leaves_the_warning_filters() -> None:
    data = _encode(_gradient(), "PNG")
    decode_image(data)
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [decode_image(data) for _ in range(30)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_decode_image_real_photographs_equal_pillow(photographs_dir: Path) -> None:
    for folder in sorted((photographs_dir / "dogs").iterdir())[:5]:
        path = sorted(folder.iterdir())[0]
        with Image.open(path) as image:
            assert (np.asarray(decode_image(path.read_bytes())) == np.asarray(image.convert("RGB"))).all()


def test_to_square_keeps_the_centre() -> None:
    square = to_square(_gradient(400, 200), Preprocessing(image_size=100, crop_share=1.0))
    assert square.shape == (100, 100, 3)
    assert square.dtype == np.uint8
    # The middle half of the width: a quarter to three quarters of red.
    assert square[50, 0, 0] == pytest.approx(64, abs=3)
    assert square[50, -1, 0] == pytest.approx(191, abs=3)


def test_to_square_of_the_right_size_is_untouched() -> None:
    image = _gradient(64, 64)
    assert (to_square(image, Preprocessing(image_size=64, crop_share=1.0)) == np.asarray(image)).all()


@pytest.mark.parametrize("augmentation", ["flip", "flip_crop", "randaugment"])
def test_augmented_square_repeats_by_seed(augmentation: Any) -> None:
    preprocessing = Preprocessing(image_size=48)
    squares = [augmented_square(_gradient(), preprocessing, augmentation, seed=seed) for seed in (1, 1, 2, 3, 4, 5, 6)]
    assert (squares[0] == squares[1]).all()
    assert any((squares[0] != other).any() for other in squares[2:])
    assert all(square.shape == (48, 48, 3) for square in squares)


def test_augmented_square_leaves_torchs_generator_alone() -> None:
    import torch

    torch.manual_seed(5)
    state = torch.get_rng_state()
    augmented_square(_gradient(), Preprocessing(image_size=48), "flip_crop", seed=9)
    assert torch.equal(torch.get_rng_state(), state)


def test_mirror_is_its_own_inverse() -> None:
    assert (np.asarray(mirror(mirror(_gradient()))) == np.asarray(_gradient())).all()
    assert (np.asarray(mirror(_gradient())) == np.asarray(_gradient())[:, ::-1]).all()


def test_preprocessing_survives_its_dict() -> None:
    preprocessing = Preprocessing(image_size=96, crop_share=0.9)
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
