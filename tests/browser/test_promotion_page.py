"""The gate's verdict as people see it, in Chromium: a page that needs nothing but itself."""

from collections.abc import Iterator

import pytest
from measurements import BREEDS, LABELS, plant
from playwright.sync_api import Browser, Locator, expect

from dogbreed_ml.policies import PromotionConfig
from dogbreed_ml.promotion import judge
from dogbreed_ml.promotion_page import render_promotion_page

from .chromium import Visit, open_page

CHALLENGER, CHAMPION = "version 3 (challenger)", "version 1 (champion)"


def _top(element: Locator) -> float:
    box = element.bounding_box()
    assert box is not None
    return box["y"]


@pytest.fixture(scope="module")
def page_url(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A refusal: the challenger lost a breed and is three times slower."""
    challenger = plant(recalls=dict.fromkeys(BREEDS, 0.95) | {"Boxer": 0.5}, factor=3.0)
    champion = plant(recalls=0.8)
    page = render_promotion_page(
        judge(challenger, champion, LABELS, config=PromotionConfig()),
        {CHALLENGER: challenger.timing, CHAMPION: champion.timing},
        model_name="dogs-resnet50",
        outcome="version 3 is refused.",
    )
    path = tmp_path_factory.mktemp("page") / "promotion.html"
    path.write_text(page, encoding="utf-8")
    # Chromium starts its storage process with the first page and keeps it; here it belongs to no single test.
    with open_page(chromium, allowed_url=path.as_uri()) as visit:
        visit.page.goto(path.as_uri())
    return path.as_uri()


@pytest.fixture
def refusal(chromium: Browser, page_url: str) -> Iterator[Visit]:
    with open_page(chromium, allowed_url=page_url) as visit:
        visit.page.goto(page_url)
        yield visit


def test_verdict_page_says_what_was_refused_and_why(refusal: Visit) -> None:
    page = refusal.page
    expect(page.locator("#outcome")).to_have_text("Version 3 is refused.")
    expect(page.locator("#outcome")).to_have_css("background-color", "rgb(178, 59, 59)")
    rows = page.locator("#checks tr")
    expect(rows).to_have_count(4)
    expect(rows.nth(1)).to_contain_text("passed")
    expect(rows.nth(2)).to_contain_text("refused")
    expect(rows.nth(3)).to_contain_text("Boxer 80% to 50%")
    expect(page.locator("#scores th").filter(has_text="version")).to_have_text([CHALLENGER, CHAMPION])
    assert refusal.outside == []


def test_verdict_page_draws_intervals_latencies_and_breeds(refusal: Visit) -> None:
    page = refusal.page
    expect(page.locator(".js-plotly-plot")).to_have_count(3)
    intervals, latencies, breeds = (page.locator(".js-plotly-plot").nth(index) for index in range(3))
    expect(intervals.locator(".errorbar")).to_have_count(2)
    expect(latencies.locator(".legendtext")).to_have_text([CHALLENGER, CHAMPION])
    # Two curves, and the dots of each one's rounds.
    expect(latencies.locator(".scatterlayer .trace")).to_have_count(4)
    expect(breeds.locator(".barlayer .point")).to_have_count(len(BREEDS))
    tops = {breed: _top(breeds.get_by_text(f"{breed} (40)")) for breed in BREEDS}
    assert min(tops, key=lambda breed: tops[breed]) == "Boxer"


def test_verdict_page_fits_a_narrow_window(refusal: Visit) -> None:
    page = refusal.page
    page.set_viewport_size({"width": 480, "height": 800})
    expect(page.locator("#outcome")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 480
