"""The comparison that people use: trials under their parent, side by side, and the search report, in MLflow's UI."""

import pytest
from playwright.sync_api import FrameLocator, Locator, expect

from .chromium import Visit, wait_until
from .conftest import FinishedSearch
from .mlflow_ui import MlflowUi
from .plots import wait_for_lines


def three_trials(search: FinishedSearch) -> list[str]:
    """The best trial and two others."""
    best = f"trial-{search.summary['best_trial']:04d}"
    return [best, *(name for name in search.trial_names if name != best)][:3]


def left_edge(element: Locator) -> float:
    box = element.bounding_box()
    assert box is not None
    return box["x"]


def test_runs_table_shows_trials_under_their_parent(ui: MlflowUi, search: FinishedSearch) -> None:
    expect(ui.run_link(search.parent_name)).to_be_visible()
    expect(ui.trial_links()).to_have_count(0)
    ui.expand(search.parent_name)
    ui.sort_oldest_first()
    wait_until(lambda: ui.trials_from_top() == search.trial_names, page=ui.page, what="the trials, oldest first")
    for name in search.trial_names:
        assert left_edge(ui.run_link(name)) > left_edge(ui.run_link(search.parent_name))


def test_comparison_shows_params_and_metrics_side_by_side(ui: MlflowUi, search: FinishedSearch) -> None:
    names = three_trials(search)
    ui.expand(search.parent_name)
    ui.compare(names)
    assert ui.compared("Run Name:") == names
    ui.show_different_params()
    for name, value in search.summary["best_params"].items():
        values = ui.compared(name)
        assert len(values) == 3
        assert values[0] == str(value)
    # What is the same in all trials is left out.
    assert ui.compared("data.seed") == []
    values = ui.compared_metric("objective")
    assert len(values) == 3
    # MLflow rounds to three decimals.
    assert float(values[0]) == pytest.approx(search.summary["best_value"], abs=0.001)
    assert float(values[0]) == min(map(float, values))
    assert len(ui.compared_metric("valid/accuracy_top1")) == 3


def test_comparison_draws_parallel_coordinates(ui: MlflowUi, search: FinishedSearch) -> None:
    ui.expand(search.parent_name)
    ui.compare(three_trials(search))
    ui.plot_metric("valid/accuracy_top1")
    axes = ui.parallel_coordinates().locator(".axis-title")
    expect(axes).to_have_text(["train.batch_size", "train.lr", "valid/accuracy_top1"])
    wait_for_lines(ui.parallel_coordinates())


def plot_of(report: FrameLocator, title: str) -> Locator:
    section = report.locator("section").filter(has=report.get_by_role("heading", name=title, exact=True))
    return section.locator(".js-plotly-plot")


def test_search_report_opens_from_the_artifacts(ui: MlflowUi, search: FinishedSearch, visit: Visit) -> None:
    num_trials, num_dimensions = search.summary["num_trials"], len(search.summary["best_params"])
    report = ui.open_artifact(search.parent_name, "search_report.html")
    expect(report.get_by_role("heading", level=1)).to_have_text("browser: what the search found")
    expect(report.locator("#trials tbody").get_by_role("row")).to_have_count(num_trials)
    drawn = {
        "History": (".points path", num_trials),
        "Importances": (".bars .point path", num_dimensions),
        "Slices": (".points path", num_trials * num_dimensions),
    }
    for title, (mark, count) in drawn.items():
        marks = plot_of(report, title).locator(mark)
        expect(marks).to_have_count(count)
        for each in marks.all():
            expect(each).to_be_visible()
    # Lines are only counted: one that is level has no height, which counts as invisible.
    expect(plot_of(report, "Parallel coordinates").locator(".lines .js-line")).to_have_count(num_trials)
    assert visit.outside == []


def test_search_report_leads_to_the_runs(ui: MlflowUi, search: FinishedSearch) -> None:
    best = f"trial-{search.summary['best_trial']:04d}"
    report = ui.open_artifact(search.parent_name, "search_report.html")
    expect(report.get_by_text("Ctrl-click")).to_be_visible()
    with ui.page.context.expect_page() as opened:
        report.locator("#trials").get_by_role("link", name=best, exact=True).click(modifiers=["Control"])
    expect(opened.value.get_by_role("heading", name=best, exact=True)).to_be_visible()
