"""A finished job's run in the caller's store: whatever the job left, whatever is repeated or cut off."""

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError
from mlflow.entities import Run as MlflowRun
from requests.exceptions import ConnectionError as LostConnection

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.config import ExperimentConfig, TrackingConfig
from dogbreed_ml.errors import CloudError, TrackingError
from dogbreed_ml.runcopy import DATABASE_FILE, empty_database
from dogbreed_ml.runs import Run, RunRef
from dogbreed_ml.tracking import Tracker
from dogbreed_ml.train import EpochResult
from dogbreed_ml.trialrun import record_trial
from sagemaker_jobs.client import Aws
from sagemaker_jobs.job.jobrecord import JOB_TAG
from sagemaker_jobs.storage import Storage
from sagemaker_jobs.training import importing
from sagemaker_jobs.training.importing import IMPORTED_TAG, import_job

CONFIG = ExperimentConfig(name="entry", tracking=TrackingConfig(system_metrics=False, retry_s=1))
NUM_EPOCHS = 3


class _LocalAws:
    """What of Aws the links are made of, far from any account."""

    is_local = False
    region = "eu-west-1"

    def console_url(self, path: str) -> str:
        return f"https://console.example/{path}"


class FolderStorage(Storage):
    """S3 as a folder: s3://bucket/key is bucket/key in it."""

    def __init__(self, folder: Path):
        super().__init__(cast(Aws, _LocalAws()), "bucket", "dogbreed")
        object.__setattr__(self, "folder", folder)

    def path(self, uri: str) -> Path:
        found: Path = self.__dict__["folder"] / uri.removeprefix("s3://")
        return found

    def fetch(self, uri: str, path: Path) -> Path:
        if not self.path(uri).is_file():
            answer: Any = {"Error": {"Code": "404", "Message": "Not Found"}}
            raise CloudError(f"Could not fetch {uri}") from ClientError(answer, "HeadObject")
        path.write_bytes(self.path(uri).read_bytes())
        return path


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "s3")


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[Tracker]:
    project_dir = tmp_path / "project"
    project_dir.mkdir()
    (project_dir / DATABASE_FILE).write_bytes(empty_database())
    with Tracker.open(project_dir=project_dir, config=CONFIG.tracking) as tracker:
        yield tracker


@pytest.fixture
def parent(tracker: Tracker) -> Iterator[RunRef]:
    with tracker.start_run(CONFIG.name, run_name="search") as run:
        yield run.ref


def _job(name: str, status: str = "Completed", **members: Any) -> dict[str, Any]:
    """As DescribeTrainingJob answers."""
    return {
        "TrainingJobName": name,
        "TrainingJobArn": f"arn:aws:sagemaker:eu-west-1:123456789012:training-job/{name}",
        "TuningJobArn": "arn:aws:sagemaker:eu-west-1:123456789012:hyper-parameter-tuning-job/dogs-tune",
        "TrainingJobStatus": status,
        "SecondaryStatus": status,
        "HyperParameters": {"train.lr": "0.25", "sagemaker_program": "train.py"},
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/dogbreed/jobs"},
        "ModelArtifacts": {"S3ModelArtifacts": f"s3://bucket/dogbreed/jobs/{name}/output/model.tar.gz"},
        "ResourceConfig": {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1},
        "CreationTime": datetime(2026, 11, 21, 10, 0, tzinfo=UTC),
        "TrainingStartTime": datetime(2026, 11, 21, 10, 5, tzinfo=UTC),
        "TrainingEndTime": datetime(2026, 11, 21, 10, 15, tzinfo=UTC),
        "LastModifiedTime": datetime(2026, 11, 21, 10, 16, tzinfo=UTC),
        "BillableTimeInSeconds": 90,
        "TrainingTimeInSeconds": 300,
        **members,
    }


def _epochs(config: ExperimentConfig) -> Iterator[EpochResult]:
    for epoch in range(NUM_EPOCHS):
        figures = {"train/loss": 1 / (epoch + 1), "valid/accuracy_top1": 0.5 + 0.1 * epoch}
        yield EpochResult(epoch, epoch, figures, 0.1, True, 1_795_255_500_000 + epoch)


def _stopped(config: ExperimentConfig) -> Iterator[EpochResult]:
    yield next(_epochs(config))
    raise KeyboardInterrupt


def _write(run: Run, epochs: Any) -> None:
    run.log_text("hello", "notes/hello.txt")
    record_trial(run, config=CONFIG, values={"train.lr": 0.25}, objective=epochs)


def _leave_bundle(storage: FolderStorage, folder: Path, name: str, *, epochs: Any = _epochs) -> None:
    """What a job that trained leaves in its output."""
    bundle_dir = folder / name / "bundle"
    bundle_dir.mkdir(parents=True)
    (bundle_dir / DATABASE_FILE).write_bytes(empty_database())
    try:
        with (
            Tracker.open(project_dir=bundle_dir, config=CONFIG.tracking) as bundle,
            bundle.start_run(CONFIG.name, run_name=name, tags={JOB_TAG: name}) as run,
        ):
            _write(run, epochs)
    except KeyboardInterrupt:
        pass
    archive = storage.path(f"s3://bucket/dogbreed/jobs/{name}/output/output.tar.gz")
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(bundle_dir, "bundle")


def _runs(tracker: Tracker, name: str) -> list[MlflowRun]:
    return tracker.search_runs(CONFIG.name, f"tags.`{JOB_TAG}` = '{name}'")


def _state(tracker: Tracker, run_id: str) -> Any:
    run = tracker.client.get_run(run_id)
    metrics = {
        name: [vars(each) for each in tracker.client.get_metric_history(run_id, name)] for name in run.data.metrics
    }
    inputs = len(run.inputs.dataset_inputs) if run.inputs else 0
    return vars(run.info), run.data.params, run.data.tags, metrics, inputs


def test_bundle_becomes_the_trials_run(
    tmp_path: Path, tracker: Tracker, parent: RunRef, storage: FolderStorage
) -> None:
    _leave_bundle(storage, tmp_path, "a-1")
    run_id = import_job(tracker, _job("a-1"), storage=storage, config=CONFIG, parent=parent, number=7)
    assert run_id is not None
    run = tracker.client.get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("trial-0007", "FINISHED")
    assert run.info.end_time == int(datetime(2026, 11, 21, 10, 15, tzinfo=UTC).timestamp() * 1000)
    assert run.data.params["train.lr"] == "0.25"
    assert run.data.metrics["objective"] == pytest.approx(0.7)
    assert (run.data.metrics["sagemaker/billable_s"], run.data.metrics["sagemaker/training_s"]) == (90, 300)
    times = [each.timestamp for each in tracker.client.get_metric_history(run_id, "train/loss")]
    assert times == [1_795_255_500_000, 1_795_255_500_001, 1_795_255_500_002]
    tags = run.data.tags
    assert (tags["optuna.trial_number"], tags["trial.state"], tags["trial.best_epoch"]) == ("7", "COMPLETE", "2")
    assert tags["mlflow.parentRunId"] == parent.run_id
    assert tags["sagemaker.tuning_job"] == "dogs-tune"
    assert tags["sagemaker.model_uri"].endswith("a-1/output/model.tar.gz")
    assert tags["sagemaker.output_uri"] == "s3://bucket/dogbreed/jobs/a-1/output"
    assert tags["sagemaker.instance_type"] == "ml.g4dn.xlarge"
    assert tags["sagemaker.log_url"].endswith(
        "#logsV2:log-groups/log-group/$252Faws$252Fsagemaker$252FTrainingJobs$3FlogStreamNameFilter$3Da-1$2F"
    )
    hello = Path(tracker.client.download_artifacts(run_id, "notes/hello.txt", str(tmp_path)))
    assert hello.read_text() == "hello"


def test_running_job_is_not_imported(tracker: Tracker, storage: FolderStorage) -> None:
    assert import_job(tracker, _job("a-1", "InProgress"), storage=storage, config=CONFIG) is None
    assert _runs(tracker, "a-1") == []


@pytest.mark.parametrize("step", ["ensure_run", "write_run", "set_terminated", "end_copy"])
def test_import_that_was_cut_off_is_completed_once(
    step: str,
    tmp_path: Path,
    tracker: Tracker,
    parent: RunRef,
    storage: FolderStorage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _leave_bundle(storage, tmp_path, "a-1")
    with monkeypatch.context() as patch:
        # Cut off right after the step: what it wrote is there.
        owner: Any = importing if hasattr(importing, step) else tracker.client
        work = getattr(owner, step)

        def cut_off(*args: Any, **keywords: Any) -> Any:
            work(*args, **keywords)
            raise KeyboardInterrupt

        patch.setattr(owner, step, cut_off)
        with pytest.raises(KeyboardInterrupt):
            import_job(tracker, _job("a-1"), storage=storage, config=CONFIG, parent=parent, number=7)
    run_id = import_job(tracker, _job("a-1"), storage=storage, config=CONFIG, parent=parent, number=7)
    assert run_id is not None
    assert [run.info.run_id for run in _runs(tracker, "a-1")] == [run_id]
    once = _state(tracker, run_id)
    assert len(once[3]["train/loss"]) == NUM_EPOCHS
    assert IMPORTED_TAG in once[2]
    # And not once more, though S3 is empty by now.
    again = import_job(
        tracker, _job("a-1"), storage=FolderStorage(tmp_path / "empty"), config=CONFIG, parent=parent, number=7
    )
    assert again == run_id
    assert _state(tracker, run_id) == once


def test_answer_of_a_creation_that_is_lost_makes_no_second_run(
    tmp_path: Path, tracker: Tracker, parent: RunRef, storage: FolderStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave_bundle(storage, tmp_path, "a-1")
    create = tracker.client.create_run
    lost: list[MlflowRun] = []

    def create_and_lose(*args: Any, **keywords: Any) -> Any:
        made = create(*args, **keywords)
        if not lost:
            lost.append(made)
            raise LostConnection("the answer is lost")
        return made

    monkeypatch.setattr(tracker.client, "create_run", create_and_lose)
    run_id = import_job(tracker, _job("a-1"), storage=storage, config=CONFIG, parent=parent, number=1)
    assert [run.info.run_id for run in _runs(tracker, "a-1")] == [run_id] == [lost[0].info.run_id]


def test_job_stopped_early_is_a_pruned_trial(
    tmp_path: Path, tracker: Tracker, parent: RunRef, storage: FolderStorage
) -> None:
    _leave_bundle(storage, tmp_path, "a-2", epochs=_stopped)
    run_id = import_job(tracker, _job("a-2", "Stopped"), storage=storage, config=CONFIG, parent=parent, number=2)
    assert run_id is not None
    run = tracker.client.get_run(run_id)
    assert (run.info.status, run.data.tags["trial.state"]) == ("KILLED", "PRUNED")
    assert run.data.metrics["objective"] == pytest.approx(0.5)
    assert run.data.tags["trial.best_epoch"] == "0"


def test_job_that_the_user_stopped_is_an_interrupted_trial(
    tmp_path: Path, tracker: Tracker, parent: RunRef, storage: FolderStorage
) -> None:
    _leave_bundle(storage, tmp_path, "a-3", epochs=_stopped)
    run_id = import_job(
        tracker,
        _job("a-3", "Stopped"),
        storage=storage,
        config=CONFIG,
        parent=parent,
        number=2,
        stopped_as="INTERRUPTED",
    )
    run = tracker.client.get_run(str(run_id))
    assert (run.info.status, run.data.tags["trial.state"]) == ("KILLED", "INTERRUPTED")
    assert "objective" not in run.data.metrics


def test_job_without_a_record_is_a_run_with_its_cause_and_links(
    tracker: Tracker, parent: RunRef, storage: FolderStorage
) -> None:
    config = replace(CONFIG, sagemaker=SagemakerConfig(environment={"TOKEN": "hush-4711"}))
    job = _job("a-4", "Failed", FailureReason="CapacityError: Unable to provision\nrequested ML capacity.")
    run_id = import_job(tracker, job, storage=storage, config=config, parent=parent, number=4)
    run = tracker.client.get_run(str(run_id))
    assert (run.info.status, run.data.tags["trial.state"]) == ("FAILED", "FAILED")
    assert run.data.tags["failure.cause"] == "CapacityError: Unable to provision requested ML capacity."
    assert run.data.params["train.lr"] == "0.25"
    assert run.data.tags[IMPORTED_TAG] == "none"
    assert run.data.tags["sagemaker.training_job_arn"].endswith("training-job/a-4")
    assert "hush-4711" not in str(run.to_dictionary())


def test_job_that_never_trained_but_was_completed_is_no_complete_trial(
    tracker: Tracker, parent: RunRef, storage: FolderStorage
) -> None:
    run_id = import_job(tracker, _job("a-5"), storage=storage, config=CONFIG, parent=parent, number=5)
    run = tracker.client.get_run(str(run_id))
    assert (run.info.status, run.data.tags["trial.state"]) == ("FAILED", "FAILED")
    assert "no record" in run.data.tags["failure.cause"]


def test_live_run_of_a_killed_job_is_ended_with_its_links(
    tracker: Tracker, parent: RunRef, storage: FolderStorage
) -> None:
    live = tracker.start_run(CONFIG.name, run_name="a-6", parent=parent, tags={JOB_TAG: "a-6"})
    live.log_config(CONFIG, is_trial=True)
    for result in _epochs(CONFIG):
        live.log_epoch(result)
    live.flush()
    run_id = import_job(
        tracker, _job("a-6", "Failed", FailureReason="killed"), storage=storage, config=CONFIG, parent=parent, number=6
    )
    assert run_id == live.run_id
    run = tracker.client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FAILED", "trial-0006")
    assert (run.data.tags["failure.cause"], run.data.tags[IMPORTED_TAG]) == ("killed", "live")
    assert len(tracker.client.get_metric_history(run_id, "train/loss")) == NUM_EPOCHS


def test_damaged_output_is_told_of_and_can_be_imported_later(
    tmp_path: Path, tracker: Tracker, storage: FolderStorage
) -> None:
    _leave_bundle(storage, tmp_path, "a-7")
    archive = storage.path("s3://bucket/dogbreed/jobs/a-7/output/output.tar.gz")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CloudError, match=r"output\.tar\.gz cannot be unpacked"):
        import_job(tracker, _job("a-7"), storage=storage, config=CONFIG)
    archive.write_bytes(whole)
    run_id = import_job(tracker, _job("a-7"), storage=storage, config=CONFIG)
    assert tracker.client.get_run(str(run_id)).info.run_name == "a-7"


def test_store_that_refuses_is_a_tracking_error(tmp_path: Path, tracker: Tracker, storage: FolderStorage) -> None:
    _leave_bundle(storage, tmp_path, "a-8")
    with pytest.raises(TrackingError):
        import_job(
            tracker, _job("a-8"), storage=storage, config=CONFIG, parent=RunRef("no-such-run", "no-such-experiment")
        )
