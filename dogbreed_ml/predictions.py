"""What `dogbreed predict` answers: a table with bars, CSV, JSON, and a contact sheet as PNG or HTML."""

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from dogbreed_ml.errors import ConfigError, ImageError
from dogbreed_ml.serve import UNSURE, Prediction
from dogbreed_ml.transforms import decode_image

_BAR_WIDTH = 20
_TILE, _MARGIN, _CAPTION = 200, 12, 44
_COLUMNS = 5
_INK, _MUTED, _BLUE, _PAPER = "#1f2933", "#7b8794", "#2166ac", "#ffffff"


@dataclass(frozen=True)
class PredictedImage:
    """One image and what was recognised on it, or why it could not be read."""

    name: str
    """Path as found, or `-`."""
    data: bytes
    """As it was sent; empty where no contact sheet is asked for, or where the file could not be read."""
    prediction: Prediction | None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        if self.prediction is None:
            return {"image": self.name, "error": self.error}
        top5 = [{"breed": breed, "probability": probability} for breed, probability in self.prediction.top5]
        return {
            "image": self.name,
            "breed": self.prediction.breed,
            "probability": self.prediction.probability,
            "is_sure": self.prediction.is_sure,
            "top5": top5,
        }

    @property
    def answer(self) -> str:
        """The breed, or that the model is unsure; empty where the image could not be read."""
        if self.prediction is None:
            return ""
        return self.prediction.breed if self.prediction.is_sure else f"{UNSURE} ({self.prediction.breed}?)"


@dataclass(frozen=True)
class Predictions:
    """The answer of `dogbreed predict`."""

    images: tuple[PredictedImage, ...]
    as_csv: bool = False
    out: Path | None = None
    """The contact sheet that was written."""

    def to_dict(self) -> dict[str, Any]:
        return {"predictions": [image.to_dict() for image in self.images]}

    def render(self) -> str:
        return self._render_csv() if self.as_csv else self._render_table()

    def _render_table(self) -> str:
        width = max(len(image.name) for image in self.images)
        answer_width = max(len(image.answer) for image in self.images)
        lines = []
        for image in self.images:
            if image.prediction is None:
                lines.append(f"{image.name:{width}}  cannot be read: {image.error}")
                continue
            share = image.prediction.probability
            lines.append(f"{image.name:{width}}  {image.answer:{answer_width}}  {_render_bar(share)} {share:6.1%}")
        return "\n".join([*lines, *([f"contact sheet: {self.out}"] if self.out else [])])

    def _render_csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["image", "breed", "probability", "is_sure", "error"])
        for image in self.images:
            found = image.prediction
            answer = (found.breed, f"{found.probability:.6f}", str(found.is_sure).lower()) if found else ("", "", "")
            writer.writerow([image.name, *answer, image.error or ""])
        return buffer.getvalue().rstrip("\n")


def _render_bar(share: float) -> str:
    eighths = round(share * _BAR_WIDTH * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")).ljust(_BAR_WIDTH, "·")


def check_writable(path: Path) -> None:
    """Raises ConfigError where no contact sheet can be written to `path`; a file that is there stays as it is."""
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise ConfigError(
            f"--out must be a file that can be written, and {path} cannot ({error.strerror}); choose another one."
        ) from error
    if is_new:
        path.unlink()


def write_contact_sheet(images: Sequence[PredictedImage], path: Path) -> None:
    """Writes the images with their breeds as one picture (.png) or one page that needs nothing else (.html)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".html":
        path.write_text(_render_page(images), encoding="utf-8")
    else:
        _draw_sheet(images).save(path)


def _thumbnail(image: PredictedImage) -> Image.Image:
    """A square of the image as it was sent, the right way up; grey where it cannot be read."""
    try:
        return ImageOps.fit(decode_image(image.data), (_TILE, _TILE))
    except ImageError:
        return Image.new("RGB", (_TILE, _TILE), "#e4e7eb")


def _draw_sheet(images: Sequence[PredictedImage]) -> Image.Image:
    columns = min(_COLUMNS, len(images))
    num_rows = -(-len(images) // columns)
    step_x, step_y = _TILE + _MARGIN, _TILE + _CAPTION + _MARGIN
    sheet = Image.new("RGB", (columns * step_x + _MARGIN, num_rows * step_y + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    for index, image in enumerate(images):
        x, y = _MARGIN + index % columns * step_x, _MARGIN + index // columns * step_y
        sheet.paste(_thumbnail(image), (x, y))
        if image.prediction is not None:
            bar = round((_TILE - 1) * image.prediction.probability)
            draw.rectangle((x, y + _TILE, x + bar, y + _TILE + 3), fill=_BLUE)
        draw.text((x, y + _TILE + 6), _fitting(draw, _caption(image), font), font=font, fill=_INK)
        draw.text((x, y + _TILE + 25), _fitting(draw, Path(image.name).name, small), font=small, fill=_MUTED)
    return sheet


def _caption(image: PredictedImage) -> str:
    if image.prediction is None:
        return image.error or ""
    return f"{image.prediction.probability:.0%} {image.answer}"


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Any) -> str:
    """The text, cut to the width of a tile."""
    if draw.textlength(text, font=font) <= _TILE:
        return text
    while text and draw.textlength(f"{text}…", font=font) > _TILE:
        text = text[:-1]
    return f"{text}…"


def _render_page(images: Sequence[PredictedImage]) -> str:
    figures = "\n".join(_render_figure(image) for image in images)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Recognised breeds</title><style>
body {{ font: 15px system-ui, sans-serif; color: {_INK}; margin: 24px; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({_TILE}px, 1fr)); gap: 20px; }}
figure {{ margin: 0; }} img {{ width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 4px; }}
figcaption small {{ color: {_MUTED}; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px; }} td:last-child {{ text-align: right; }}
meter {{ width: 100%; height: 10px; }} tr:first-child {{ font-weight: 600; }}
</style></head><body><h1>{len(images)} images</h1><main>
{figures}
</main></body></html>
"""


def _render_figure(image: PredictedImage) -> str:
    buffer = io.BytesIO()
    _thumbnail(image).save(buffer, "JPEG", quality=80)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    name = html.escape(image.name)
    if image.prediction is None:
        told = f"<p>cannot be read: {html.escape(image.error or '')}</p>"
    else:
        rows = "".join(
            f"<tr><td>{html.escape(breed)}</td><td>{share:.1%}</td></tr>" for breed, share in image.prediction.top5
        )
        unsure = "" if image.prediction.is_sure else f"<b>{UNSURE}</b>"
        told = f'{unsure}<meter value="{image.prediction.probability:.4f}"></meter><table>{rows}</table>'
    return f'<figure><img src="{source}" alt="{name}"><figcaption>{told}<small>{name}</small></figcaption></figure>'
