"""The profiler report as people see it: drawn, without a complaint, without a look outside."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from profilerfiles import steps, write_machine, write_trace

from dogbreed_ml.profiling.readers import read_recording
from dogbreed_ml.profiling.report import save_profiler_report
from dogbreed_ml.profiling.rules import judge, profiler_report

from .chromium import VIEWPORT, Visit, open_page

NUM_CORES, NUM_TICKS = 4, 200
TITLE = "Run 0123456789abcdef0123456789abcdef"
"""As a run's report has it: a word that is wider than a narrow window."""


@pytest.fixture(scope="module")
def report_path(chromium_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A busy core, two GPUs of which one idles, and one step in 50 that takes ten times as long."""
    root = tmp_path_factory.mktemp("profile")
    write_machine(
        root,
        cpus={f"cpu{core}": [95.0 if core == 0 else 20.0] * NUM_TICKS for core in range(NUM_CORES)},
        gpus={"gpu0": [80.0] * NUM_TICKS, "gpu1": [2.0] * NUM_TICKS},
        memory=[20 + tick / 10 for tick in range(NUM_TICKS)],
        waits=[3.0] * NUM_TICKS,
    )
    events = steps([2_000_000 if number % 50 == 49 else 200_000 for number in range(250)], first_ts=5_000_000)
    parts = [
        {"phase": name, "name": name, "ts": each["ts"] + shift * each["dur"] // 4, "dur": each["dur"] // 4}
        | {"args": each["args"]}
        for each in events
        for shift, name in enumerate(("data_wait", "forward", "backward"))
    ]
    write_trace(root, [*events, *parts])
    recording = read_recording(root)
    verdicts = judge(recording, [profiler_report({"LoadBalancing_patience": 100})])
    return save_profiler_report(root, recording, verdicts, title=TITLE)


@pytest.fixture(scope="module")
def visit(chromium: Browser, report_path: Path) -> Iterator[Visit]:
    with open_page(chromium, allowed_url=report_path.as_uri()) as visit:
        messages: list[str] = []
        visit.page.on("console", lambda message: messages.append(message.text))
        visit.page.on("pageerror", lambda error: messages.append(str(error)))
        visit.page.goto(report_path.as_uri())
        yield visit
        # Said or asked at any time, by any of the tests.
        assert visit.outside == []
        assert messages == []


def plot(page: Page, name: str) -> str:
    expect(page.locator(f"#plot-{name} .main-svg").first).to_be_visible()
    return f"#plot-{name}"


def test_profiler_report_draws_every_plot(visit: Visit) -> None:
    page = visit.page
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{TITLE}: profiler report")
    expect(page.locator(".js-plotly-plot")).to_have_count(7)
    for name in ("utilisation", "heat-map", "step-parts", "step-series", "step-histogram", "memory", "balance"):
        plot(page, name)
    rows = page.locator("#plot-heat-map .yaxislayer-above text")
    expect(rows).to_have_count(NUM_CORES + 2)
    assert sorted(rows.all_text_contents()) == [*(f"cpu{core}" for core in range(NUM_CORES)), "gpu0", "gpu1"]
    expect(page.locator("#plot-utilisation .scatterlayer .trace")).to_have_count(4)
    expect(page.locator("#plot-step-series .scatterlayer .trace")).to_have_count(2)
    # Three phases and what is left, over 84 bins of three steps.
    parts = page.locator("#plot-step-parts .legendtext")
    expect(parts).to_have_count(4)
    assert sorted(parts.all_text_contents()) == ["backward", "data_wait", "forward", "other"]


def test_profiler_report_opens_evidence_and_leads_to_its_sections(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("link", name="Load balancing", exact=True).click()
    expect(page.locator("#load-balancing")).to_be_in_viewport()
    badge = page.locator("#rules tr").filter(has_text="StepOutlier").locator(".badge")
    expect(badge).to_have_text("NoIssuesFound")
    evidence = page.locator("#rule-StepOutlier details")
    expect(evidence.locator("tbody tr")).to_have_count(5)
    expect(evidence.locator("tbody tr").first).to_be_visible()
    evidence.locator("summary").click()
    expect(evidence.locator("tbody tr").first).to_be_hidden()


def test_profiler_report_shows_the_rules_table_whole(visit: Visit) -> None:
    box = visit.page.locator("#rules").locator("xpath=..")
    assert box.evaluate("box => box.scrollWidth - box.clientWidth") == 0


def test_profiler_report_fits_a_narrow_window(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 480, "height": 800})
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 480
    visit.page.set_viewport_size(VIEWPORT)
