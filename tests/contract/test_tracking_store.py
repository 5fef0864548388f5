"""One class of tests, two real tracking stores: a database file, and a live MLflow server over HTTP."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient
from mlflow_server import MlflowServer

from dogbreed_ml import tracking
from dogbreed_ml.config import ExperimentConfig, SplitName, TrackingConfig, flatten, from_dict, with_values
from dogbreed_ml.data.splits import Sample, Split, Splits
from dogbreed_ml.errors import TrackingError
from dogbreed_ml.provenance import HOST_TAG, PID_TAG, process_tags
from dogbreed_ml.registry import CHALLENGER, CHAMPION, find_alias, load_version, register_challenger, resolve_version
from dogbreed_ml.reigns import begin_reign, list_reigns, return_to
from dogbreed_ml.tracking import Tracker

CONFIG = ExperimentConfig(name="dogs")
QUIET = TrackingConfig(system_metrics=False, retry_s=20)


@dataclass(frozen=True)
class Store:
    project_dir: Path
    environment: dict[str, str]

    def open(self, *, config: TrackingConfig = QUIET, **environment: str) -> Tracker:
        return Tracker.open(
            project_dir=self.project_dir, config=config, environment={**self.environment, **environment}
        )


@pytest.fixture(scope="module", params=["sqlite", "http"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        yield Store(folder, {})
        return
    server = MlflowServer(folder, empty_store=empty_store)
    server.start()
    yield Store(folder, {"MLFLOW_TRACKING_URI": server.url})
    server.stop()


@pytest.fixture
def tracker(store: Store) -> Iterator[Tracker]:
    with store.open() as tracker:
        yield tracker


def _splits() -> Splits:
    sample = Sample(Path("a.jpg"), 0, "0" * 64)
    sizes: dict[SplitName, int] = {"train": 3, "valid": 2, "test": 1}
    splits = {name: Split(name, (sample,) * size) for name, size in sizes.items()}
    return Splits(
        classes=("Beagle", "Boxer"),
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        fingerprint="0123456789abcdef",
        source="folder dogs",
        bad_images=(),
        num_duplicates=0,
    )


@dataclass(frozen=True)
class Epoch:
    epoch: int
    metrics: dict[str, float]
    ended_ms: int | None = None


class TestTrackingStore:
    def test_run_keeps_all_that_was_logged(self, tracker: Tracker, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("hello")
        with tracker.start_run("dogs", run_name="first", tags={"a": "b"}) as run:
            run.log_config(CONFIG)
            run.log_splits(_splits())
            run.log_environment(project_dir=Path.cwd(), argv=["dogbreed", "train"], seed=3)
            for epoch in range(3):
                run.log_epoch(Epoch(epoch, {"valid/loss": 1.0 / (epoch + 1)}))  # type: ignore[arg-type]
            run.log_artifact(tmp_path / "notes.txt", artifact_dir="notes")
            run.log_table([{"breed": "Boxer", "recall": 0.5}], "tables/breeds.csv")
            figure = Figure()
            figure.add_subplot().plot([1, 2])
            run.log_figure(figure, "figures/line.png")
        found = tracker.client.get_run(run.run_id)
        assert (found.info.status, found.info.run_name) == ("FINISHED", "first")
        assert found.info.end_time >= found.info.start_time
        assert set(found.data.params) == set(flatten(CONFIG))
        assert found.data.tags["a"] == "b"
        assert found.data.tags["dogbreed.command"] == "dogbreed train"
        history = tracker.client.get_metric_history(run.run_id, "valid/loss")
        assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
        assert found.inputs is not None
        contexts = {each.tags[0].value: each.dataset for each in found.inputs.dataset_inputs}
        assert set(contexts) == {"train", "valid", "test"}
        assert {dataset.digest for dataset in contexts.values()} == {"0123456789abcdef"}
        paths = ["config.yaml", "notes/notes.txt", "tables/breeds.csv", "figures/line.png"]
        files = {path: Path(tracker.client.download_artifacts(run.run_id, path, str(tmp_path))) for path in paths}
        assert from_dict(yaml.safe_load(files["config.yaml"].read_text())) == CONFIG
        assert files["tables/breeds.csv"].read_text() == "breed,recall\nBoxer,0.5\n"
        assert files["figures/line.png"].read_bytes().startswith(b"\x89PNG")
        assert [each.metrics for each in tracker.epochs(run.run_id)][1] == {"valid/loss": 0.5}

    def test_children_are_found_under_their_parent(self, tracker: Tracker) -> None:
        with tracker.start_run("dogs") as parent:
            for number in range(3):
                tags = {"optuna.trial_number": str(number)}
                with tracker.start_run("", parent=parent, run_name=f"trial-{number:04d}", tags=tags) as child:
                    child.log_metrics({"objective": number / 10})
        children = tracker.child_runs(parent.run_id)
        assert {child.tags["optuna.trial_number"]: child.metrics["objective"] for child in children} == {
            "0": 0.0,
            "1": 0.1,
            "2": 0.2,
        }
        assert {child.status for child in children} == {"FINISHED"}

    def test_runs_are_searched_page_by_page_in_order(self, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
        assert tracker.search_runs("searched", "") == []
        for colour in ("blue", "red", "green", "blue", "blue"):
            with tracker.start_run("searched", tags={"colour": colour}):
                pass
        monkeypatch.setattr(tracking, "_PAGE_SIZE", 2)
        blue = tracker.search_runs("searched", "tags.`colour` = 'blue'", order_by=["attributes.start_time ASC"])
        assert [run.data.tags["colour"] for run in blue] == ["blue"] * 3
        starts = [run.info.start_time for run in blue]
        assert starts == sorted(starts)
        newest = tracker.search_runs("searched", "", order_by=["attributes.start_time DESC"])
        assert len({run.info.run_id for run in newest}) == 5
        assert newest[0].info.start_time == starts[-1]

    def test_experiment_has_an_absolute_artifact_folder_beside_the_database(self, store: Store) -> None:
        with store.open() as tracker, tracker.start_run("dogs") as run:
            location = tracker.client.get_experiment(run.experiment_id).artifact_location
        if store.environment:
            assert location.startswith("mlflow-artifacts:/")
        else:
            assert location == (store.project_dir / "mlruns").as_uri()

    def test_run_url_is_a_page_of_the_server(self, store: Store, tracker: Tracker) -> None:
        with tracker.start_run("dogs") as run:
            url = tracker.run_url(run)
        expected = f"{tracker.tracking_uri}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
        assert url == (expected if store.environment else None)

    @pytest.mark.parametrize(("error", "status"), [(ValueError("bad"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
    def test_no_run_stays_running(self, tracker: Tracker, error: BaseException, status: str) -> None:
        with pytest.raises(type(error)), tracker.start_run("dogs") as run:
            raise error
        found = tracker.client.get_run(run.run_id)
        assert found.info.status == status
        assert found.data.tags.get("failure.cause") == ("ValueError: bad" if status == "FAILED" else None)
        assert [each.path for each in tracker.client.list_artifacts(run.run_id)] == (
            ["failure"] if status == "FAILED" else []
        )

    def test_refused_metric_fails_the_run(self, tracker: Tracker) -> None:
        with pytest.raises(TrackingError, match="refused a write"), tracker.start_run("dogs") as run:
            run.log_metrics({"top@5": 1.0})
        found = tracker.client.get_run(run.run_id)
        assert found.info.status == "FAILED"
        assert "refused a write" in found.data.tags["failure.cause"]

    def test_not_a_number_is_a_metric_too(self, tracker: Tracker) -> None:
        with tracker.start_run("dogs") as run:
            run.log_metrics({"valid/loss": float("nan")})
        value = tracker.client.get_run(run.run_id).data.metrics["valid/loss"]
        assert value != value

    def test_resumed_run_goes_on(self, tracker: Tracker) -> None:
        with tracker.start_run("dogs") as run:
            run.log_config(CONFIG)
            run.finish("KILLED")
        with tracker.start_run("dogs", run_id=run.run_id) as again:
            assert tracker.client.get_run(run.run_id).info.status == "RUNNING"
            again.log_config(with_values(CONFIG, {"search.num_trials": 99}))
        found = tracker.client.get_run(run.run_id)
        assert found.info.status == "FINISHED"
        assert found.data.params["search.num_trials"] == "20"
        assert found.data.tags["resumed.search.num_trials"] == "99"

    def test_missing_run_is_an_error(self, tracker: Tracker) -> None:
        assert not tracker.has_run("0" * 32)
        with pytest.raises(TrackingError, match="has no run"):
            tracker.start_run("dogs", run_id="0" * 32)

    def test_deleted_experiment_is_an_error_that_names_the_way_out(self, tracker: Tracker) -> None:
        with tracker.start_run("cats") as run:
            pass
        tracker.client.delete_experiment(run.experiment_id)
        with pytest.raises(TrackingError, match="mlflow experiments restore"):
            tracker.start_run("cats")

    def test_run_of_mlflow_run_is_taken(self, store: Store, caplog: pytest.LogCaptureFixture) -> None:
        with store.open() as tracker:
            handed = tracker.client.create_run("0", run_name="handed")
        with store.open(MLFLOW_RUN_ID=handed.info.run_id) as tracker, caplog.at_level(logging.WARNING):
            with tracker.start_run("dogs") as run:
                assert run.run_id == handed.info.run_id
            with tracker.start_run("dogs") as second:
                assert second.run_id != handed.info.run_id
            found = tracker.client.get_run(run.run_id)
        assert (found.info.status, found.info.experiment_id) == ("FINISHED", "0")
        assert "--experiment-name dogs" in caplog.text

    def test_run_of_mlflow_run_points_to_the_resumed_one(self, store: Store) -> None:
        with store.open() as tracker:
            with tracker.start_run("dogs") as first:
                pass
            handed = tracker.client.create_run(first.experiment_id)
        with store.open(MLFLOW_RUN_ID=handed.info.run_id) as tracker:
            with tracker.start_run("dogs", run_id=first.run_id) as run:
                found = tracker.client.get_run(handed.info.run_id)
            assert run.run_id == first.run_id
        assert (found.info.status, found.data.tags["dogbreed.resumed"]) == ("FINISHED", first.run_id)

    def test_runs_of_dead_processes_are_ended_and_no_others(self, store: Store) -> None:
        def left_running(client: MlflowClient, **changes: str) -> str:
            experiment = client.get_experiment_by_name("dogs")
            assert experiment is not None
            run = client.create_run(experiment.experiment_id, tags={**process_tags(), **changes})
            return str(run.info.run_id)

        with store.open() as tracker:
            with tracker.start_run("dogs"):
                pass
            dead = left_running(tracker.client, **{PID_TAG: str(2**22 + 1)})
            alive = left_running(tracker.client)
            elsewhere = left_running(tracker.client, **{HOST_TAG: "elsewhere", PID_TAG: "1"})
        with store.open() as tracker:
            states = {run_id: tracker.client.get_run(run_id).info.status for run_id in (dead, alive, elsewhere)}
            for run_id in (alive, elsewhere):
                tracker.end_run(run_id, "KILLED", tags={})
        assert states == {dead: "KILLED", alive: "RUNNING", elsewhere: "RUNNING"}

    def test_system_metrics_are_sampled_and_go_on_after_a_resume(self, store: Store) -> None:
        sampling = TrackingConfig(system_metrics=True, system_metrics_interval_s=60, retry_s=20)
        with store.open(config=sampling) as tracker:
            with tracker.start_run("dogs") as run:
                pass
            with tracker.start_run("dogs", run_id=run.run_id):
                pass
            history = tracker.client.get_metric_history(run.run_id, "system/cpu_utilization_percentage")
        assert [metric.step for metric in history] == [0, 1]

    def test_thousands_of_metrics_are_all_there(self, tracker: Tracker) -> None:
        with tracker.start_run("dogs") as run:
            run.log_params({f"p{index}": "x" * 7000 for index in range(120)})
            for step in range(600):
                run.log_metrics({f"train/m{index}": float(step) for index in range(3)}, step=step)
        found = tracker.client.get_run(run.run_id)
        assert len(found.data.params) == 120
        assert len(tracker.client.get_metric_history(run.run_id, "train/m2")) == 600

    def test_challenger_moves_to_the_newest_version(self, tracker: Tracker) -> None:
        name = "dogs-resnet50"
        assert find_alias(tracker, name, CHALLENGER) is None
        first_uri, first_run = _logged_model(tracker)
        first = register_challenger(tracker, name, model_uri=first_uri, run_id=first_run, tags={"a": "1"})
        assert (first.version, first.aliases, first.run_id) == (1, (CHALLENGER,), first_run)
        assert first.tags == {"a": "1", "run_id": first_run, "model_id": first_uri.removeprefix("models:/")}
        second_uri, second_run = _logged_model(tracker)
        second = register_challenger(tracker, name, model_uri=second_uri, run_id=second_run)
        assert (second.version, second.uri) == (2, "models:/dogs-resnet50/2")
        assert find_alias(tracker, name, CHALLENGER) == second
        assert load_version(tracker, name, 1).aliases == ()
        assert find_alias(tracker, name, CHAMPION) is None
        assert register_challenger(tracker, name, model_uri=second_uri, run_id=second_run) == second
        assert load_version(tracker, name, 2).model_id == second_uri.removeprefix("models:/")
        for reference in ("2", "challenger", "models:/dogs-resnet50/2", "models:/dogs-resnet50@challenger"):
            assert resolve_version(tracker, name, reference) == second
        with pytest.raises(TrackingError, match="no version 9; it has the versions 1, 2"):
            resolve_version(tracker, name, "9")
        with pytest.raises(TrackingError):
            load_version(tracker, name, 9)

    def test_reigns_of_champions_are_read_from_the_store_alone(self, store: Store, tracker: Tracker) -> None:
        name = "reigns-resnet50"
        assert list_reigns(tracker, name) == []
        for _ in range(2):
            model_uri, run_id = _logged_model(tracker)
            register_challenger(tracker, name, model_uri=model_uri, run_id=run_id)
        first, second = load_version(tracker, name, 1), load_version(tracker, name, 2)
        begin_reign(tracker, first, "passed", replaces=None, run_id="gate", figures={"p95_ms": 9.5})
        begin_reign(tracker, second, "forced", replaces=1, reason="größer, 'schneller' & \"besser\"")
        return_to(tracker, name, 1, reason=None)
        with store.open() as another:
            reigns = list_reigns(another, name)
            champion = find_alias(another, name, CHAMPION)
        assert [(each.version, each.ground) for each in reigns] == [(1, "passed"), (2, "forced"), (1, "returned")]
        assert reigns[0].figures == reigns[2].figures == {"p95_ms": 9.5}
        assert reigns[1].reason == "größer, 'schneller' & \"besser\""
        assert [each.until for each in reigns] == [reigns[1].since, reigns[2].since, None]
        assert champion is not None
        assert champion.version == 1


def _logged_model(tracker: Tracker) -> tuple[str, str]:
    """A logged model without files: its URI and its run."""
    with tracker.start_run("dogs") as run:
        logged = tracker.client.create_logged_model(run.experiment_id, name="model", source_run_id=run.run_id)
        tracker.client.finalize_logged_model(logged.model_id, "READY")
    return f"models:/{logged.model_id}", run.run_id


def test_server_that_is_not_there_is_reported_soon(tmp_path: Path) -> None:
    environment = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    with pytest.raises(TrackingError, match="check MLFLOW_TRACKING_URI and that its server runs"):
        Tracker.open(project_dir=tmp_path, config=TrackingConfig(), environment=environment)
    assert not os.listdir(tmp_path)
