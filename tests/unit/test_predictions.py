"""What predict answers, and which images its patterns stand for."""

import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from dogbreed_ml.errors import ConfigError
from dogbreed_ml.pipeline.predict import expand
from dogbreed_ml.predictions import PredictedImage, Predictions, write_contact_sheet
from dogbreed_ml.serve import Prediction


def image_bytes(colour: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, kind)
    return buffer.getvalue()


def predicted(name: str, probability: float, *, is_sure: bool = True) -> PredictedImage:
    top5 = (("Boxer", probability), ("Beagle", 1 - probability))
    return PredictedImage(name, image_bytes("green", "JPEG"), Prediction("Boxer", probability, top5, is_sure=is_sure))


BROKEN = PredictedImage("broken <1>.jpg", b"no", None, error="not an image of a known format")


def test_table_has_a_bar_as_long_as_the_probability() -> None:
    rows = Predictions((predicted("a.jpg", 1.0), predicted("folder/b.jpg", 0.5))).render().splitlines()
    assert rows == [
        "a.jpg         Boxer  ████████████████████ 100.0%",
        "folder/b.jpg  Boxer  ██████████··········  50.0%",
    ]


def test_table_tells_of_unsure_and_of_unreadable_images() -> None:
    rows = Predictions((predicted("a.jpg", 0.25, is_sure=False), BROKEN)).render().splitlines()
    assert "unsure (Boxer?)" in rows[0]
    assert rows[1] == "broken <1>.jpg  cannot be read: not an image of a known format"


def test_csv_has_a_row_an_image() -> None:
    text = Predictions((predicted('a,"b".jpg', 0.25, is_sure=False), BROKEN), as_csv=True).render()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0] == {
        "image": 'a,"b".jpg',
        "breed": "Boxer",
        "probability": "0.250000",
        "is_sure": "false",
        "error": "",
    }
    assert (rows[1]["breed"], rows[1]["error"]) == ("", "not an image of a known format")


def test_json_has_top5_or_the_error() -> None:
    first, second = Predictions((predicted("a.jpg", 0.75), BROKEN)).to_dict()["predictions"]
    assert first["top5"] == [{"breed": "Boxer", "probability": 0.75}, {"breed": "Beagle", "probability": 0.25}]
    assert second == {"image": "broken <1>.jpg", "error": "not an image of a known format"}


def test_contact_sheet_png_shows_each_image_and_its_probability(tmp_path: Path) -> None:
    sure = PredictedImage("a.png", image_bytes("red", "PNG"), Prediction("Boxer", 1.0, (("Boxer", 1.0),), is_sure=True))
    path = tmp_path / "new" / "sheet.png"
    write_contact_sheet([sure, *[BROKEN] * 5], path)
    with Image.open(path) as sheet:
        assert sheet.size == (5 * 212 + 12, 2 * 256 + 12)
        assert sheet.getpixel((100, 100)) == (255, 0, 0)
        assert sheet.getpixel((312, 100)) == (0xE4, 0xE7, 0xEB)
        # The bar under the first tile is full, under the second empty.
        assert sheet.getpixel((211, 213)) == (0x21, 0x66, 0xAC)
        assert sheet.getpixel((230, 213)) == (255, 255, 255)


def test_contact_sheet_html_needs_nothing_else(tmp_path: Path) -> None:
    write_contact_sheet([predicted("a.jpg", 0.75), BROKEN], tmp_path / "sheet.html")
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg;base64,') == page.count("<img") == 2
    assert "http" not in page
    assert "broken &lt;1&gt;.jpg" in page
    assert "<tr><td>Boxer</td><td>75.0%</td></tr>" in page


@pytest.fixture
def _photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.JPG", "notes.txt", "deep/c.png", "deep/.hidden.jpg", "odd name.data", "[x].jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()


@pytest.mark.usefixtures("_photographs")
@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["b.jpg", "odd name.data"], ["b.jpg", "odd name.data"]),
        (["."], ["[x].jpg", "a.JPG", "b.jpg", "deep/c.png"]),
        (["deep"], ["deep/c.png"]),
        (["*.jpg"], ["[x].jpg", "b.jpg"]),
        (["[x].jpg"], ["[x].jpg"]),
        (["**/*.png"], ["deep/c.png"]),
        (["b.jpg", "*.jpg", "-"], ["b.jpg", "[x].jpg", "-"]),
    ],
)
def test_expand_takes_files_folders_and_globs(patterns: list[str], names: list[str]) -> None:
    assert expand(patterns) == names


@pytest.mark.usefixtures("_photographs")
def test_expand_names_what_stands_for_no_image() -> None:
    with pytest.raises(ConfigError, match=r"there is none at \*\.gif"):
        expand(["b.jpg", "*.gif"])
