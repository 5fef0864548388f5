"""Remakes the pictures in docs/images, of drawn dogs only: `.venv/bin/pytest tests/browser/screenshots.py`.

Not a test_ file: it runs only where it is named. With DOGBREED_DATA_DIR set the search starts from its ImageNet
weights, otherwise from what model.weights=auto finds.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, expect

from dogbreed_ml.config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.evaluation import compute_metrics
from dogbreed_ml.policies import ProfileConfig
from dogbreed_ml.profiling.report import save_profiler_report
from dogbreed_ml.profiling.session import profiled
from dogbreed_ml.train import fit
from dogbreed_ml.workbench import Workbench

from .chromium import VIEWPORT, open_page
from .conftest import FinishedSearch
from .mlflow_ui import MlflowUi
from .plots import wait_for_lines
from .processes import REPOSITORY, run_search, serve_ui

IMAGES_DIR = REPOSITORY / "docs" / "images"
MAX_BYTES = 300_000
METRIC = "valid/accuracy_top1"
TALL: ViewportSize = {"width": 1750, "height": 1125}
"""Shows what lies below the first thing of a page; its pictures are made smaller, to the size of the others."""


def weights_flags() -> list[str]:
    folder = os.environ.get("DOGBREED_DATA_DIR")
    if not folder:
        return []
    path = Path(folder, "weights", "resnet50-v1-imagenet-fp16.pth")
    return ["--model.weights", str(path), "--model.resnet_version", "1"]


@pytest.fixture(scope="module")
def search(chromium_path: str) -> Iterator[FinishedSearch]:
    """The quickstart, a little shorter."""
    config_path = REPOSITORY / "experiments" / "quickstart.yaml"
    # Its path is in a picture.
    with tempfile.TemporaryDirectory(prefix="dogbreed-") as folder:
        flags = ["--config", str(config_path), "--search.num_trials", "12", *weights_flags()]
        summary = run_search(Path(folder), *flags)
        with serve_ui(Path(folder)) as url:
            yield FinishedSearch("quickstart", summary, url)


@pytest.fixture
def tall_ui(chromium: Browser, search: FinishedSearch) -> Iterator[MlflowUi]:
    with open_page(chromium, allowed_url=search.url, viewport=TALL) as visit:
        ui = MlflowUi(visit.page, url=search.url)
        ui.open_runs(search.experiment_name)
        yield ui


@pytest.fixture(scope="module")
def profiler_report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """layer4 tuned on freshly augmented drawings, profiled."""
    folder = tmp_path_factory.mktemp("profile")
    config = ExperimentConfig(
        data=DataConfig(num_breeds=6, num_per_breed=20, image_size=64),
        model=ModelConfig(weights="random", trainable="layer4"),
        train=TrainConfig(num_epochs=4, batch_size=8, augmentation="flip_crop", num_workers=1),
        profile=ProfileConfig(enabled=True, interval_ms=250),
    )
    with profiled(folder, config.profile) as session:
        splits = load_splits(config.data, project_dir=folder)
        bench = Workbench(splits, folder, torch.device("cpu"), spans=session.spans)
        with closing(bench):
            feeds, model = bench.feeds(config), bench.model(config)
            epochs = fit(
                model,
                feeds.train,
                valid=feeds.valid,
                config=config.train,
                metrics=compute_metrics,
                num_classes=len(splits.classes),
                device=torch.device("cpu"),
                spans=session.spans,
            )
            assert len(list(epochs)) == config.train.num_epochs
    profile = session.judge()
    recording = replace(profile.recording, source="profiler/raw")
    return save_profiler_report(folder, recording, profile.verdicts, title="layer4")


def save_picture(page: Page, name: str) -> None:
    # Away from whatever it was over.
    page.mouse.move(0, 0)
    picture = Image.open(BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    size = (VIEWPORT["width"], VIEWPORT["height"])
    path = IMAGES_DIR / name
    (picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)).save(path, optimize=True)
    assert path.stat().st_size < MAX_BYTES


def test_picture_of_the_runs_table(ui: MlflowUi, search: FinishedSearch) -> None:
    ui.fold_sidebar()
    ui.expand(search.parent_name)
    ui.sort_oldest_first()
    ui.choose_columns(shown=[METRIC, *search.summary["best_params"]], hidden=["Dataset", "Source", "Models"])
    save_picture(ui.page, "runs.png")


def test_picture_of_the_comparison(tall_ui: MlflowUi, search: FinishedSearch) -> None:
    tall_ui.expand(search.parent_name)
    tall_ui.compare(search.trial_names)
    tall_ui.plot_metric(METRIC)
    tall_ui.fold("Run details")
    tall_ui.show_different_params()
    wait_for_lines(tall_ui.parallel_coordinates())
    save_picture(tall_ui.page, "comparison.png")


def test_picture_of_the_search_report(tall_ui: MlflowUi, search: FinishedSearch) -> None:
    report = tall_ui.open_artifact(search.parent_name, "search_report.html")
    expect(report.locator(".js-plotly-plot")).to_have_count(4)
    save_picture(tall_ui.page, "search_report.png")


def test_picture_of_the_profiler_report(chromium: Browser, profiler_report_path: Path) -> None:
    url = profiler_report_path.as_uri()
    with open_page(chromium, allowed_url=url, viewport=TALL) as visit:
        visit.page.goto(url)
        expect(visit.page.locator("#plot-heat-map .main-svg").first).to_be_visible()
        save_picture(visit.page, "profiler_report.png")
