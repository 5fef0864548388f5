"""The gate with real servers and a real store; models are planted: better, worse, equal, slow, blind to a breed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from plantedmodels import Planter

from dogbreed_ml.cli import main
from dogbreed_ml.config import DataConfig, ExperimentConfig, TrackingConfig
from dogbreed_ml.context import Context
from dogbreed_ml.data.sources import load_splits
from dogbreed_ml.errors import DataError, GateError, ServingError
from dogbreed_ml.openvino_backend import capabilities
from dogbreed_ml.options import PromoteOptions
from dogbreed_ml.pipeline import contenders
from dogbreed_ml.pipeline.deploy import MEASURED_BACKEND_TAG
from dogbreed_ml.pipeline.history import list_history
from dogbreed_ml.pipeline.promote import Promotion, Return, promote
from dogbreed_ml.policies import DeployConfig, PromotionConfig, ServingBackendName
from dogbreed_ml.registry import CHAMPION, ModelVersion, find_alias, load_version, move_alias
from dogbreed_ml.reigns import begin_reign
from dogbreed_ml.server.process import start_server
from dogbreed_ml.tracking import Tracker

DATA = DataConfig(source="synthetic", num_breeds=4, num_per_breed=30, test_share=0.54, image_size=64)
BACKEND: ServingBackendName = "openvino-fp32" if capabilities() else "torch-fp32"
CONFIG = ExperimentConfig(
    name="planted",
    data=DATA,
    tracking=TrackingConfig(system_metrics=False, retry_s=20),
    # 16 test images a breed.
    promotion=PromotionConfig(min_breed_images=10, num_requests=20),
    # Named, so that nothing is measured to choose it.
    deploy=DeployConfig(backend=BACKEND, max_batch_size=4),
)


class Project:
    """A project with drawn dogs, and versions planted on need."""

    def __init__(self, folder: Path, name: str):
        self.folder = folder
        self.config = replace(CONFIG, name=name)
        self.context = Context(project_dir=folder, argv=("dogbreed", "promote"))
        self.splits = load_splits(DATA, project_dir=folder)
        self._planters: dict[int, Planter] = {}

    @property
    def model_name(self) -> str:
        return self.config.registered_model_name

    def open(self) -> Tracker:
        return Tracker.open(project_dir=self.folder, config=self.config.tracking)

    def plant(self, mistakes: int = 0, *, image_size: int = 32, **of_breeds: int) -> ModelVersion:
        """A version that mistakes so many of the 16 test images of each breed; `breed2=9` of the third one's."""
        planter = self._planters.setdefault(image_size, Planter(self.config, self.splits, image_size=image_size))
        counts = {breed: of_breeds.get(f"breed{i}", mistakes) for i, breed in enumerate(self.splits.classes)}
        with self.open() as tracker:
            return planter.register(tracker, self.folder / "planted", mistakes=counts)

    def promote(self, *, config: ExperimentConfig | None = None, **options: object) -> Promotion:
        answer = promote(config or self.config, PromoteOptions(**options), context=self.context)  # type: ignore[arg-type]
        assert isinstance(answer, Promotion)
        return answer

    def go_back(self, to: int, reason: str | None = None) -> Return:
        answer = promote(self.config, PromoteOptions(to=to, reason=reason), context=self.context)
        assert isinstance(answer, Return)
        return answer

    def champion(self) -> int | None:
        with self.open() as tracker:
            found = find_alias(tracker, self.model_name, CHAMPION)
        return None if found is None else found.version

    def tags(self, version: int) -> dict[str, str]:
        with self.open() as tracker:
            return load_version(tracker, self.model_name, version).tags

    def run(self, run_id: str) -> Run:
        with self.open() as tracker:
            return tracker.client.get_run(run_id)

    def artifact(self, run_id: str, name: str) -> str:
        with self.open() as tracker:
            return Path(tracker.client.download_artifacts(run_id, name)).read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """One store and one set of drawings; each project has a model name of its own."""
    folder = tmp_path_factory.mktemp("gate")
    shutil.copy(empty_store, folder / "mlflow.db")
    return folder


def _failed(promotion: Promotion) -> list[str]:
    return [check.name for check in promotion.verdict.checks if not check.passed]


@pytest.mark.slow
def test_gate_refuses_the_worse_lets_the_better_pass_and_goes_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Small siblings: the tests below, a step each."""
    project = Project(folder, "reigns")
    with project.open() as tracker:
        begin_reign(tracker, project.plant(4), "forced", replaces=None, reason="planted")
    worse = project.plant(10)
    refused = project.promote()
    assert worse.version == 2
    assert refused.is_refused
    assert not refused.moved
    assert "accuracy" in _failed(refused)
    assert project.champion() == 1
    assert refused.verdict.champion is not None
    # What the servers answered is what was planted, through HTTP, for both.
    assert refused.verdict.challenger.accuracy_top1 == 0.375
    assert refused.verdict.champion.accuracy_top1 == 0.75
    assert refused.verdict.comparison is not None
    assert (refused.verdict.comparison.num_gained, refused.verdict.comparison.num_lost) == (0, 24)
    _assert_recorded(project, refused)

    project.plant(1)
    better = project.promote()
    assert (better.outcome, better.champion, better.moved) == ("passed", 1, True)
    assert project.champion() == 3

    assert project.go_back(1, reason="3 is too sure of itself").replaced == 3
    assert project.champion() == 1
    with pytest.raises(GateError, match="goes back to an earlier champion"):
        project.go_back(2)
    history = list_history(project.config, context=project.context)
    assert [(reign.version, reign.ground) for reign in history.reigns] == [
        (1, "forced"),
        (3, "passed"),
        (1, "returned"),
    ]
    assert [(each.version, each.outcome, each.dry_run) for each in history.verdicts] == [
        (2, "refused", False),
        (3, "passed", False),
    ]
    assert history.champion == 1
    monkeypatch.chdir(folder)
    capfd.readouterr()
    assert main(["history", "--name", "reigns", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == history.to_dict()


def _assert_recorded(project: Project, refused: Promotion) -> None:
    """The refusal of version 2 against version 1, wherever it is to be found."""
    verdict = json.loads(project.artifact(refused.run_id, "promotion.json"))
    assert verdict == json.loads(json.dumps(refused.to_dict()))
    assert "Version 2 is refused for its accuracy" in project.artifact(refused.run_id, "promotion.html")
    run = project.run(refused.run_id)
    assert (run.info.run_name, run.info.status) == ("promote", "FINISHED")
    assert run.data.tags["promotion.verdict"] == "refused"
    assert run.data.metrics["challenger/accuracy_top1"] == 0.375
    assert run.data.metrics["champion/accuracy_top1"] == 0.75
    assert run.data.metrics["comparison/accuracy_change"] == -0.375
    assert run.data.metrics["comparison/p95_ratio_low"] > 0
    tags = project.tags(2)
    assert run.inputs is not None
    assert run.inputs.model_inputs[0].model_id == tags["model_id"]
    assert [each.dataset.digest for each in run.inputs.dataset_inputs] == [project.splits.fingerprint]
    assert (tags["promotion.verdict"], tags["promotion.run_id"]) == ("refused", refused.run_id)
    assert (tags["promotion.accuracy_top1"], tags["promotion.against"]) == ("0.375", "1")
    assert float(tags["promotion.p95_ms"]) > 0
    assert tags[MEASURED_BACKEND_TAG] == BACKEND
    assert tags["promotion.reasons"].startswith("accuracy: -37.50 points")
    defender = project.tags(1)
    assert "promotion.verdict" not in defender
    assert (defender["challenged.by"], defender["challenged.outcome"]) == ("2", "refused")
    assert defender["challenged.accuracy_top1"] == "0.75"


@pytest.mark.slow
def test_first_champion_needs_what_the_config_asks_for(folder: Path) -> None:
    project = Project(folder, "first")
    project.plant(10)
    refused = project.promote()
    assert (refused.outcome, refused.champion, _failed(refused)) == ("refused", None, ["accuracy"])
    assert project.champion() is None
    project.plant(4)
    first = project.promote()
    assert (first.outcome, first.champion, first.moved) == ("passed", None, True)
    assert first.verdict.challenger.accuracy_top1 == 0.75
    assert project.champion() == 2
    assert project.tags(2)["promotion.against"] == "no champion"


def test_champion_is_not_measured_against_itself(folder: Path) -> None:
    project = Project(folder, "itself")
    version = project.plant(4)
    with project.open() as tracker:
        move_alias(tracker, version, CHAMPION)
    with pytest.raises(GateError, match="Version 1 of itself-resnet50 \\(challenger\\) is champion already"):
        project.promote()


def test_config_of_other_breeds_is_an_error(folder: Path) -> None:
    project = Project(folder, "breeds")
    project.plant(4)
    others = replace(project.config, data=replace(DATA, seed=1))
    with pytest.raises(DataError, match="give the config of the data that it was trained for"):
        project.promote(config=others)
    with project.open() as tracker:
        experiment = tracker.client.get_experiment_by_name("breeds")
        assert experiment is not None
        runs = tracker.client.search_runs([experiment.experiment_id], "attributes.run_name = 'promote'")
    assert [run.info.status for run in runs] == ["FAILED"]


def _with_unservable_champion(folder: Path, name: str) -> Project:
    """Version 2 is champion, and its file is rubbish."""
    project = Project(folder, name)
    project.plant(4)
    champion = project.plant(4)
    with project.open() as tracker:
        move_alias(tracker, champion, CHAMPION)
        location = tracker.client.get_model_version_download_uri(champion.name, str(champion.version))
    for path in Path(location.removeprefix("file://")).rglob("checkpoint.pt"):
        path.write_bytes(b"rubbish")
    return project


def test_champion_that_cannot_be_served_is_an_error_with_ways_out(folder: Path) -> None:
    project = _with_unservable_champion(folder, "unservable")
    with pytest.raises(ServingError, match="version 2 of unservable-resnet50, cannot be served: .*--to .*--force"):
        project.promote(version="1")
    assert project.champion() == 2
    assert "promotion.verdict" not in project.tags(1)


@pytest.mark.slow
def test_champion_that_cannot_be_served_is_replaced_by_force(folder: Path) -> None:
    project = _with_unservable_champion(folder, "replaced")
    forced = project.promote(version="1", force=True, reason="its file is rubbish")
    assert (forced.outcome, forced.moved) == ("forced", True)
    assert forced.verdict.champion is None
    assert "cannot be served" in forced.notes[0]
    assert project.champion() == 1
    assert project.tags(1)["promotion.verdict"] == "forced"
    reign = list_history(project.config, context=project.context).reigns[-1]
    assert (reign.version, reign.ground, reign.reason) == (1, "forced", "its file is rubbish")


@pytest.fixture(scope="module")
def defended(folder: Path) -> Project:
    """Version 1, 75 % right in every breed, is champion."""
    project = Project(folder, "defended")
    version = project.plant(4)
    with project.open() as tracker:
        move_alias(tracker, version, CHAMPION)
    return project


@pytest.mark.slow
def test_back_ends_that_auto_chose_by_chance_refuse_nobody(defended: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    challenger = defended.plant(4)
    chosen: dict[str, ServingBackendName] = {"1": "torch-bf16", str(challenger.version): "torch-fp32"}

    def start(path: Path, *, config: DeployConfig, model_name: str, model_version: str) -> Any:
        """What auto does on a busy machine."""
        if config.backend == "auto":
            config = replace(config, backend=chosen[model_version])
        return start_server(path, config=config, model_name=model_name, model_version=model_version)

    monkeypatch.setattr(contenders, "start_server", start)
    auto = replace(defended.config, deploy=replace(defended.config.deploy, backend="auto"))
    promotion = defended.promote(config=auto, version=str(challenger.version), dry_run=True)
    assert promotion.verdict.champion is not None
    assert promotion.verdict.challenger.backend == promotion.verdict.champion.backend == "torch-bf16"
    assert promotion.notes == ("auto chose torch-fp32 for the challenger; both were measured with torch-bf16.",)


@pytest.mark.slow
def test_equal_challenger_passes(defended: Project) -> None:
    challenger = defended.plant(4)
    promotion = defended.promote(version=str(challenger.version), dry_run=True)
    assert promotion.verdict.comparison is not None
    assert promotion.verdict.comparison.p_value == 1.0
    assert (promotion.outcome, promotion.moved) == ("passed", False)
    # A rehearsal leaves its run and nothing else.
    assert defended.champion() == 1
    assert "promotion.verdict" not in defended.tags(challenger.version)
    assert "challenged.by" not in defended.tags(1)
    assert list_history(defended.config, context=defended.context).verdicts[-1].dry_run


@pytest.mark.slow
def test_better_challenger_that_lost_a_breed_is_refused_for_it(defended: Project) -> None:
    challenger = defended.plant(0, breed2=9)
    promotion = defended.promote(version=str(challenger.version), dry_run=True)
    assert promotion.verdict.comparison is not None
    assert promotion.verdict.comparison.accuracy_change.value > 0.1
    assert _failed(promotion) == ["breeds"]
    assert promotion.verdict.comparison.breeds[0].breed == defended.splits.classes[2]
    assert promotion.is_refused


@pytest.mark.slow
def test_better_but_slow_challenger_is_refused_and_forced(defended: Project) -> None:
    # 49 times the pixels in fp32: far more than three times the time, whatever else the machine does.
    challenger = defended.plant(1, image_size=224)
    promotion = defended.promote(version=str(challenger.version))
    assert promotion.verdict.comparison is not None
    assert promotion.verdict.comparison.accuracy_change.value > 0.1
    assert promotion.verdict.comparison.p95_ratio.value > 3
    assert _failed(promotion) == ["latency"]
    assert defended.champion() == 1
    forced = defended.promote(version=str(challenger.version), force=True, reason="nobody waits")
    assert forced.outcome == "forced"
    assert _failed(forced) == ["latency"]
    assert defended.champion() == challenger.version
    tags = defended.tags(challenger.version)
    assert (tags["promotion.verdict"], tags["promotion.reason"]) == ("forced", "nobody waits")
    assert "was refused for its latency, and is champion by --force: nobody waits" in forced.render()
    with defended.open() as tracker:
        move_alias(tracker, load_version(tracker, defended.model_name, 1), CHAMPION)
