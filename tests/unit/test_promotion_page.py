"""The verdict's page, on planted measurements."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from measurements import BREEDS, LABELS, plant

from dogbreed_ml.measurement import Answer, Measurement
from dogbreed_ml.policies import PromotionConfig
from dogbreed_ml.promotion import judge
from dogbreed_ml.promotion_page import render_promotion_page

GATE = PromotionConfig()
CHALLENGERS = {
    "passed": plant(recalls=0.9),
    "refused": plant(recalls=dict.fromkeys(BREEDS, 0.95) | {"Boxer": 0.5}, factor=3.0),
    "equal": plant(recalls=0.8),
}


class _Outside(HTMLParser):
    """Finds whatever a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "srcset", "href", "data") and value]


def _page(
    challenger: Measurement,
    champion: Measurement | None,
    labels: tuple[str, ...] = LABELS,
    outcome: str = "Version 3 passed",
    notes: tuple[str, ...] = (),
) -> str:
    verdict = judge(challenger, champion, labels, config=GATE)
    timings = {"version 3 (challenger)": challenger.timing}
    if champion is not None:
        timings["version 1 (champion)"] = champion.timing
    return render_promotion_page(verdict, timings, model_name="dogs-resnet50", outcome=outcome, notes=notes)


def _text(page: str) -> str:
    """What stands outside the scripts, tags removed."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)).split())


@pytest.mark.parametrize("case", CHALLENGERS)
def test_page_is_one_file_that_fetches_nothing(case: str) -> None:
    page = _page(CHALLENGERS[case], plant(recalls=0.8))
    parser = _Outside()
    parser.feed(page)
    assert parser.found == []
    assert page.count("plotly.js v") == 1
    # The intervals, the latencies, the breeds.
    assert page.count("Plotly.newPlot(") == 3
    assert "$" not in _text(page)


def test_page_shows_each_check_and_both_versions() -> None:
    text = _text(_page(CHALLENGERS["refused"], plant(recalls=0.8), outcome="Version 3 is refused"))
    assert "Version 3 is refused" in text
    assert "passed accuracy" in text
    assert "refused latency" in text
    assert "refused breeds" in text
    assert "Boxer 80% to 50%" in text
    assert "top-1 accuracy 86.00% 80.00%" in text
    assert "worst breed Boxer Akita" in text
    assert "200 test images; in 5 rounds by turns, 40 requests of one client in each" in text


def test_page_of_a_first_champion_compares_nothing() -> None:
    page = _page(plant(recalls=0.9), None)
    text = _text(page)
    assert "The first champion recognises at least 50.0% of the test images." in text
    assert "How sure it is" not in text
    assert "Breeds" not in text
    assert page.count("Plotly.newPlot(") == 1


def test_page_shows_every_breed_of_many() -> None:
    breeds = [f"Breed {number:03d}" for number in range(120)]
    labels = tuple(np.repeat(breeds, 3).tolist())
    page = _page(plant(recalls=1.0, labels=labels), plant(recalls=0.7, labels=labels), labels)
    assert all(f"{breed} (3)" in page for breed in breeds)


def test_names_and_notes_are_text_not_markup() -> None:
    measured = plant(recalls=0.9)
    odd = replace(measured, answers=tuple(Answer(()) for _ in LABELS), backend="<b>bold</b>")
    page = _page(
        odd, measured, outcome="Forced: </h1><script>alert(1)</script>", notes=("<img src=x onerror=alert(2)>",)
    )
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
    assert "<b>bold</b>" not in page
    assert "&lt;img src=x" in page
    assert "images refused 200 0" in _text(page)
