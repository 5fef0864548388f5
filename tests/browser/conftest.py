"""A finished search, MLflow's UI on it, and Chromium."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from .chromium import TIMEOUT_MS, Visit, find_chromium, launch_chromium, open_page
from .mlflow_ui import MlflowUi
from .processes import run_search, serve_ui

SMALL_SEARCH = [
    *("--name", "browser", "--data.num_breeds", "4", "--data.num_per_breed", "20", "--data.image_size", "64"),
    # Named, so that nothing is measured to choose it.
    *("--model.weights", "random", "--features.backend", "torch-fp32"),
    # Without pruning each trial has all that is compared; losses differ where few images give equal accuracies.
    *("--train.num_epochs", "3", "--search.num_trials", "6", "--search.pruner", "none"),
    *("--search.metric", "valid/loss", "--search.direction", "minimize"),
]


@dataclass(frozen=True)
class FinishedSearch:
    """A search that is over, as the UI serves it."""

    experiment_name: str
    summary: dict[str, Any]
    url: str
    """The UI's address."""

    @property
    def parent_name(self) -> str:
        name: str = self.summary["study_name"]
        return name

    @property
    def trial_names(self) -> list[str]:
        return [f"trial-{number:04d}" for number in range(self.summary["num_trials"])]


@pytest.fixture(scope="module")
def chromium_path() -> str:
    path = find_chromium()
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    return path


@pytest.fixture(scope="module")
def search(chromium_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FinishedSearch]:
    """Asks for Chromium first: without it the search would be made for nothing."""
    project_dir = tmp_path_factory.mktemp("project")
    summary = run_search(project_dir, *SMALL_SEARCH)
    with serve_ui(project_dir) as url:
        yield FinishedSearch("browser", summary, url)


@pytest.fixture(scope="module")
def chromium(chromium_path: str) -> Iterator[Browser]:
    """One browser for a module, no longer: while it runs, this thread counts as inside an event loop."""
    expect.set_options(timeout=TIMEOUT_MS)
    with launch_chromium(chromium_path) as browser:
        yield browser


@pytest.fixture
def visit(chromium: Browser, search: FinishedSearch) -> Iterator[Visit]:
    with open_page(chromium, allowed_url=search.url) as visit:
        yield visit


@pytest.fixture
def ui(visit: Visit, search: FinishedSearch) -> MlflowUi:
    """On the table of runs of the finished search."""
    ui = MlflowUi(visit.page, url=search.url)
    ui.open_runs(search.experiment_name)
    return ui
