"""What a job's record, and its caller, ask of an MLflow server, against the rights that are printed for AWS's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Dataset, DatasetInput, LoggedModelOutput, LoggedModelStatus
from mlflow.store.model_registry.base_rest_store import BaseRestStore
from mlflow.store.tracking.rest_store import RestStore
from mlflow_server import MlflowServer

from dogbreed_ml import registry
from dogbreed_ml.config import ExperimentConfig, TrackingConfig
from dogbreed_ml.deployments import recorded
from dogbreed_ml.tracking import Tracker
from sagemaker_jobs.iam import MODEL_ACTIONS, RUN_ACTIONS
from sagemaker_jobs.job.environment import JobEnvironment
from sagemaker_jobs.job.jobrecord import JobRecord

CONFIG = ExperimentConfig(name="kennel", tracking=TrackingConfig(system_metrics=False))
ACTIONS = {
    "GetModelVersionDownloadUri": "GetDownloadURIForModelVersionArtifacts",
    # The service authorization reference has none of the operation's own name.
    "CreateLoggedModel": "LogModel",
    "LogLoggedModelParamsRequest": "LogLoggedModelParams",
}
"""Of operations, where AWS names the action otherwise."""


@pytest.fixture
def mlflow_url(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[str]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), empty_store=empty_store)
    server.start()
    yield server.url
    server.stop()


@contextmanager
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The actions that MLflow's clients ask for meanwhile."""
    found: set[str] = set()

    def heard(store: Any) -> None:
        call = store._call_endpoint

        def listen(self: Any, api: Any, *arguments: Any, **named: Any) -> Any:
            found.add(ACTIONS.get(api.__name__, api.__name__))
            return call(self, api, *arguments, **named)

        patched.setattr(store, "_call_endpoint", listen)

    with monkeypatch.context() as patched:
        heard(RestStore)
        heard(BaseRestStore)
        yield found


@pytest.mark.slow
def test_printed_rights_are_those_that_the_record_and_the_registry_ask_for(
    mlflow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asked(monkeypatch) as by_job:
        run_id = write_run(mlflow_url, tmp_path)
    assert sorted(by_job - set(RUN_ACTIONS)) == []
    assert sorted(set(RUN_ACTIONS) - by_job) == []
    with asked(monkeypatch) as by_caller:
        register(mlflow_url, run_id, tmp_path)
    assert sorted(by_caller - {*RUN_ACTIONS, *MODEL_ACTIONS}) == []
    assert sorted(set(MODEL_ACTIONS) - by_caller) == []


def write_run(mlflow_url: str, folder: Path) -> str:
    """As a job does whose spot instance was taken away and came again."""
    (folder / "figure.txt").write_text("a dog")
    environment = JobEnvironment(
        job_name="job-1",
        model_dir=folder,
        output_dir=folder,
        output_data_dir=folder,
        checkpoint_dir=folder,
        work_dir=folder,
        tracking_uri=mlflow_url,
    )
    for _ in range(2):
        record = JobRecord.open(environment, CONFIG, is_trial=False)
        assert record.kind == "live"
        with record.tracker, record.start(environment, CONFIG, run_name="train", tags={}) as run:
            run.log_config(CONFIG)
            run.log_metrics({"train/loss": 1.0}, step=0)
            run.log_environment(project_dir=folder, argv=("train.py",), seed=0)
            run.log_artifact(folder / "figure.txt", artifact_dir="figures")
            run.log_inputs([DatasetInput(Dataset("dogs", "0a1b2c", "local", "{}"))])
    return str(run.run_id)


def register(mlflow_url: str, run_id: str, folder: Path) -> None:
    """As the caller does with a job's model, from its log to its endpoint."""
    with Tracker.attach(mlflow_url, config=CONFIG.tracking) as tracker:
        client, name = tracker.client, CONFIG.registered_model_name
        logged = client.create_logged_model(
            tracker.stored(run_id).info.experiment_id,
            name="model",
            source_run_id=run_id,
            params={f"param_{number}": "value" for number in range(150)},
        )
        client.log_model_artifacts(logged.model_id, str(folder))
        (folder / "fetched").mkdir()
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        version = registry.register_challenger(tracker, name, model_uri=logged.model_uri, run_id=run_id)
        registry.move_alias(tracker, version, "champion")
        registry.set_version_tags(tracker, version, {"gate": "passed"})
        assert registry.resolve_version(tracker, name, "champion").version == version.version
        client.get_model_version_download_uri(name, str(version.version))
        assert tracker.epochs(run_id)
        tracker.client.set_tag(run_id, "sagemaker.imported", "live")
        assert (tracker.fetch_artifacts(run_id, "figures", folder / "fetched") / "figure.txt").is_file()
        with recorded(tracker, "deploy", target="sagemaker", endpoint="kennel", version=version):
            pass
