"""What a person does in MLflow's UI (3.17) to compare trials, one method for each action; each waits for its effect."""

import re
from collections.abc import Sequence

from playwright.sync_api import FrameLocator, Locator, Page, expect

TRIAL_NAME = re.compile(r"^trial-\d{4}$")


class MlflowUi:
    """The UI at `url`, which ends with a slash, on one page."""

    def __init__(self, page: Page, *, url: str) -> None:
        self.page = page
        self.url = url

    # The front page and the table of runs

    def open_runs(self, experiment_name: str) -> None:
        """From the front page to the experiment's table of runs."""
        self.page.goto(self.url)
        # The UI starts in its mode for language models, where an experiment opens on other pages.
        self.page.get_by_role("button", name="Model training").click()
        self.page.get_by_role("link", name=experiment_name, exact=True).click()
        expect(self.page.get_by_role("heading", name="Runs", exact=True)).to_be_visible()
        self._close_assistant()

    def _close_assistant(self) -> None:
        """The chat panel, open on a first visit, takes the right quarter of the page."""
        panel = self.page.get_by_role("textbox", name="Ask a question...")
        expect(panel).to_be_visible()
        self.page.get_by_role("button", name="Close", exact=True).click()
        expect(panel).to_be_hidden()

    def fold_sidebar(self) -> None:
        self.page.get_by_role("button", name="Toggle sidebar").click()

    def run_link(self, run_name: str) -> Locator:
        return self.page.get_by_role("grid").get_by_role("link", name=run_name, exact=True)

    def trial_links(self) -> Locator:
        return self.page.get_by_role("grid").get_by_role("link", name=TRIAL_NAME)

    def trials_from_top(self) -> list[str]:
        """The trials as they stand in the table; its rows are placed by coordinates, whatever their order in HTML."""
        by_height = []
        for link in self.trial_links().all():
            box = link.bounding_box()
            if box is not None:
                by_height.append((box["y"], link.inner_text()))
        return [name for _, name in sorted(by_height)]

    def run_row(self, run_name: str) -> Locator:
        """The left part of a run's row: checkbox, name and age."""
        return self.page.get_by_role("row").filter(has=self.page.get_by_role("link", name=run_name, exact=True))

    def expand(self, run_name: str) -> None:
        """Shows the children of a parent run."""
        self.run_row(run_name).get_by_role("button").click()
        expect(self.trial_links().first).to_be_visible()

    def sort_oldest_first(self) -> None:
        """Created is the only order of this table that keeps children under their parent."""
        self.page.get_by_role("button", name="Sort: Created").click()
        self.page.get_by_role("button", name="Sort ascending").click()
        expect(self.page).to_have_url(re.compile("orderByAsc=true"))

    def choose_columns(self, *, shown: Sequence[str], hidden: Sequence[str]) -> None:
        """Ticks and unticks columns by their names, and makes the ticked ones as wide as what they hold."""
        opener = self.page.get_by_role("button", name="Columns", exact=True)
        opener.click()
        chooser = self.page.get_by_role("dialog")
        for name in [*shown, *hidden]:
            chooser.get_by_role("textbox", name="Search columns").fill(name)
            chooser.get_by_text(name, exact=True).click()
        opener.click()
        expect(chooser).to_be_hidden()
        edge = self.page.locator(".ag-header-cell-resize")
        for name in shown:
            self.page.get_by_role("columnheader", name=name).filter(has=edge).last.locator(edge).dblclick()

    def compare(self, run_names: Sequence[str]) -> None:
        """Ticks runs and opens the page that compares them, in the order in which they were ticked."""
        for name in run_names:
            self.run_row(name).get_by_role("checkbox").first.check()
        self.page.get_by_role("button", name="Compare", exact=True).click()
        expect(self.page.get_by_role("heading", name=f"Comparing {len(run_names)} Runs")).to_be_visible()

    # The page that compares runs

    def fold(self, section: str) -> None:
        """Closes a section of the page, such as Run details."""
        opener = self.page.get_by_role("button", name=section, exact=True)
        opener.click()
        expect(opener).to_have_attribute("aria-expanded", "false")

    def show_different_params(self) -> None:
        """Leaves out the params that are the same in all runs."""
        switch = self.page.get_by_role("switch", name="Parameters - Show diff only")
        switch.click()
        expect(switch).to_be_checked()

    def compared(self, title: str) -> list[str]:
        """What a row of the run details or of the params shows, a text for each run."""
        row = self.page.get_by_role("row").filter(has=self.page.get_by_role("rowheader", name=title, exact=True))
        return row.get_by_role("cell").all_inner_texts()

    def compared_metric(self, name: str) -> list[str]:
        """What the table of metrics shows for one of them, a text for each run."""
        grids = self.page.get_by_role("grid")
        expect(grids).to_have_count(2)
        # Names and values are two grids side by side; the second holds its cells row by row.
        names = grids.first.get_by_role("link").all_inner_texts()
        values = grids.last.locator("span").all_inner_texts()
        num_runs = len(values) // len(names)
        start = names.index(name) * num_runs
        return values[start : start + num_runs]

    def parallel_coordinates(self) -> Locator:
        return self.page.get_by_role("tabpanel", name="Parallel Coordinates Plot").locator(".js-plotly-plot")

    def plot_metric(self, name: str) -> None:
        """Draws one metric in the parallel coordinates in place of the one that MLflow chose."""
        panel = self.page.get_by_role("tabpanel", name="Parallel Coordinates Plot")
        box = panel.get_by_role("combobox").last
        chosen = (box.get_attribute("aria-description") or "").split(", ")
        # The input itself has no size; what a person clicks is the frame around it.
        box.click(force=True)
        for each in [name, *chosen]:
            self.page.get_by_title(each, exact=True).filter(visible=True).last.click()
        self.page.keyboard.press("Escape")
        expect(box).to_have_attribute("aria-description", name)
        expect(box).to_have_attribute("aria-expanded", "false")

    # The page of one run

    def open_artifact(self, run_name: str, artifact: str) -> FrameLocator:
        """From the table of runs to a run's artifacts; returns the page that MLflow shows in a frame."""
        self.run_link(run_name).click()
        self.page.get_by_role("tab", name="Artifacts").click()
        self.page.get_by_text(artifact, exact=True).first.click()
        return self.page.frame_locator("iframe")
