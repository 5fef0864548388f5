"""A tuning job's jobs brought home whatever happens: failed, deleted and stopped ones, no network, no twice.

The jobs are tiny scripts that leave no record, so that a test takes a second: each becomes a run by what SageMaker
says of it.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from local_jobs import BUCKET, job_request, make_bucket, put_source

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.config import ExperimentConfig, FloatDimension, SearchConfig, TrackingConfig
from dogbreed_ml.errors import CloudError
from dogbreed_ml.searchdisplay import SearchDisplay
from dogbreed_ml.tracking import ChildRun, Run, Tracker
from sagemaker_jobs.client import Aws, Clock
from sagemaker_jobs.local.service import LocalSageMaker, Settings
from sagemaker_jobs.storage import Storage
from sagemaker_jobs.training.jobcontrol import ENDED
from sagemaker_jobs.training.launch import Launch, LaunchFile
from sagemaker_jobs.tuning.searchfollower import SearchFollower, TuningJobGoneError
from sagemaker_jobs.tuning.tuning_request import tuning_job_request
from sagemaker_jobs.tuning.tuningstatus import (
    describe_tuning_job,
    list_training_jobs,
    send_tuning_job,
    settle_tuning_job,
)

CONFIG = ExperimentConfig(
    name="faults",
    search=SearchConfig(
        engine="sagemaker",
        num_trials=3,
        sampler="random",
        pruner="none",
        space={"train.lr": FloatDimension(low=0.001, high=0.1, log=True)},
    ),
    sagemaker=SagemakerConfig(bucket=BUCKET),
    tracking=TrackingConfig(system_metrics=False),
)
OPTIMIST = 'print("epoch=0 train/loss=1 valid/accuracy_top1=0.5", flush=True)\n'
FAILING_ONCE = OPTIMIST + (
    "import os, sys\n"
    'if "-002-" in os.environ["TRAINING_JOB_NAME"]:\n'
    '    open(os.environ["SM_OUTPUT_DIR"] + "/failure", "w").write("ValueError: no such dog")\n'
    "    sys.exit(1)\n"
)
WAITING = OPTIMIST + "import time\ntime.sleep(60)\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSageMaker]:
    settings = Settings(requirements="skip", num_parallel_jobs=2, stop_grace_s=1)
    with LocalSageMaker(tmp_path_factory.mktemp("sagemaker"), settings=settings) as server:
        make_bucket(server)
        yield server


@pytest.fixture(scope="module")
def project_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests: making one takes two seconds."""
    return tmp_path_factory.mktemp("project")


@dataclass
class Bench:
    server: LocalSageMaker
    project_dir: Path
    name: str

    @property
    def launch_file(self) -> LaunchFile:
        return LaunchFile(self.project_dir / f"{self.name}.json")

    @contextmanager
    def aws(self, clock: Clock | None = None) -> Iterator[Aws]:
        with Aws.open(CONFIG.sagemaker, clock=clock) as aws:
            yield aws

    def request(self, script: str) -> dict[str, Any]:
        source_uri = put_source(self.server, {"train.py": script}, key=f"{self.name}.tar.gz")
        return tuning_job_request(CONFIG, name=self.name, training=job_request(self.name, source_uri))

    def send(self, script: str) -> None:
        with self.aws() as aws:
            send_tuning_job(aws, self.request(script), self.launch_file)

    @contextmanager
    def parent(self) -> Iterator[tuple[Tracker, Run]]:
        with Tracker.open(project_dir=self.project_dir, config=CONFIG.tracking) as tracker:
            found = tracker.find_tagged(tracker.experiment_id(CONFIG.name), "test", self.name)
            run_id = found[0].info.run_id if found else None
            with tracker.start_run(CONFIG.name, run_name=self.name, run_id=run_id, tags={"test": self.name}) as run:
                yield tracker, run

    def follow(self, clock: Clock | None = None) -> tuple[dict[int, Any], list[ChildRun]]:
        """The records of the trials, and the runs under the parent by name."""
        with self.aws(clock) as aws, self.parent() as (tracker, parent):
            storage = Storage(aws, BUCKET, "dogbreed")
            follower = SearchFollower(aws, self.name, CONFIG, tracker, parent, storage)
            follower.follow(SearchDisplay(CONFIG.search.metric, maximize=True, best=None))
            children = tracker.child_runs(parent.run_id)
        return follower.records, sorted(children, key=lambda each: each.tags["mlflow.runName"])

    def status(self) -> str | None:
        with self.aws() as aws:
            found = describe_tuning_job(aws, self.name)
        return None if found is None else str(found["HyperParameterTuningJobStatus"])

    def wait(self, holds: Callable[[dict[str, Any]], bool]) -> None:
        """Until it holds for the tuning job as its server has it."""

        def look() -> bool:
            named = {"HyperParameterTuningJobName": self.name}
            return holds(self.server.tuning.describe_hyper_parameter_tuning_job(named))

        assert self.server.records.wait_for(look, 60)

    def wait_ended(self) -> None:
        self.wait(lambda job: job["HyperParameterTuningJobStatus"] in ENDED)

    def job_names(self) -> list[str]:
        with self.aws() as aws:
            return [each["TrainingJobName"] for each in list_training_jobs(aws, self.name).values()]


@pytest.fixture
def bench(
    server: LocalSageMaker, project_dir: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    for name, value in server.client_environment().items():
        monkeypatch.setenv(name, value)
    yield Bench(server, project_dir, f"faults-{abs(hash(request.node.name)) % 10**8}")
    server.faults.clear()


def jumping(after_30_s: Any) -> Clock:
    """A clock whose pauses take no time, with something that happens once half a minute of them is over."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        if now >= 30:
            after_30_s()

    return Clock(now=lambda: now, sleep=sleep)


def test_failed_and_deleted_jobs_become_runs_with_their_cause_once(bench: Bench) -> None:
    bench.send(FAILING_ONCE)
    bench.wait_ended()
    deleted = bench.job_names()[2]
    bench.server.training.delete_training_job({"TrainingJobName": deleted})

    records, children = bench.follow()
    assert sorted(records) == [0, 1, 2]
    assert "ValueError: no such dog" in str(records[1].cause)
    assert [child.tags["mlflow.runName"] for child in children] == ["trial-0000", "trial-0001", "trial-0002"]
    assert [child.tags["sagemaker.training_job"] for child in children] == bench.job_names()
    assert "no such dog" in children[1].tags["failure.cause"]
    assert float(children[1].params["train.lr"]) == records[1].values["train.lr"]
    assert {child.status for child in children} == {"FAILED"}
    again, same = bench.follow()
    assert again == records
    assert [child.run_id for child in same] == [child.run_id for child in children]


def test_lost_answer_and_throttling_start_one_tuning_job(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.server.faults.throttle("DescribeHyperParameterTuningJob", times=2)
    bench.server.faults.throttle("CreateHyperParameterTuningJob", times=2)
    bench.server.faults.lose_answer("CreateHyperParameterTuningJob")
    bench.server.faults.lose_answer("ListTrainingJobsForHyperParameterTuningJob")
    bench.send(OPTIMIST)
    assert bench.launch_file.load() == Launch(bench.name, "us-west-2", is_created=True)
    assert f"the answer was lost, the tuning job {bench.name} is there" in caplog.text
    bench.wait_ended()
    bench.server.faults.fail_s3(times=2, code="InternalError")
    records, children = bench.follow()
    assert len(records) == len(children) == len(bench.job_names()) == 3


@pytest.mark.slow
def test_network_lost_for_half_a_minute_loses_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.send(OPTIMIST)
    bench.server.faults.drop_connections()
    records, children = bench.follow(jumping(bench.server.faults.clear))
    assert len(records) == len(children) == 3
    assert "AWS does not answer" in caplog.text


def test_expired_token_says_so_and_the_next_command_goes_on(bench: Bench) -> None:
    bench.send(OPTIMIST)
    bench.server.faults.expire_token()
    with pytest.raises(CloudError, match="log in again"):
        bench.follow()
    bench.server.faults.clear()
    records, children = bench.follow()
    assert len(records) == len(children) == 3


def test_refused_request_leaves_no_record(bench: Bench) -> None:
    request = bench.request(OPTIMIST)
    request["TrainingJobDefinition"]["OutputDataConfig"]["S3OutputPath"] = "s3://nobodys-bucket/output"
    request["HyperParameterTuningJobConfig"]["Strategy"] = "Grid"
    with bench.aws() as aws, pytest.raises(CloudError, match="categorical"):
        send_tuning_job(aws, request, bench.launch_file)
    assert bench.launch_file.load() is None
    assert bench.status() is None


def test_deleted_tuning_job_is_told_of(bench: Bench) -> None:
    bench.send(OPTIMIST)
    bench.wait_ended()
    bench.server.tuning.delete_hyper_parameter_tuning_job({"HyperParameterTuningJobName": bench.name})
    with pytest.raises(TuningJobGoneError, match="was deleted"):
        bench.follow()
    with Tracker.open(project_dir=bench.project_dir, config=CONFIG.tracking) as tracker:
        (run,) = tracker.find_tagged(tracker.experiment_id(CONFIG.name), "test", bench.name)
    assert run.info.status == "FAILED"
    assert "was deleted" in run.data.tags["failure.cause"]


def test_stopped_after_a_question_comes_home_as_interrupted(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.send(WAITING)
    bench.wait(lambda job: job["TrainingJobStatusCounters"]["InProgress"] > 0)
    with bench.aws() as aws:
        settle = {"command": "dogbreed tune"}
        assert not settle_tuning_job(aws, bench.name, question=None, **settle)
        assert bench.status() == "InProgress"
        assert "goes on and is paid for" in caplog.text
        assert "stop-hyper-parameter-tuning-job" in caplog.text
        assert settle_tuning_job(aws, bench.name, question=lambda _: True, **settle)
    assert bench.status() == "Stopped"
    records, children = bench.follow()
    assert records == {}
    assert {child.tags["trial.state"] for child in children} == {"INTERRUPTED"}
    assert {child.status for child in children} == {"KILLED"}
    assert bench.launch_file.load() is not None


def test_interrupt_before_the_request_arrived_leaves_its_name(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.launch_file.save(Launch(bench.name, "us-west-2"))
    with bench.aws() as aws:
        assert not settle_tuning_job(aws, bench.name, question=lambda _: True, command="dogbreed tune")
    assert bench.launch_file.load() == Launch(bench.name, "us-west-2")
    assert f"The tuning job {bench.name} may go on, and is paid for then" in caplog.text
