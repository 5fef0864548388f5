"""`dogbreed train --on sagemaker` against the local SageMaker: the whole chain, and everything that cuts it off."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from iamrights import allowed_by_the_policy
from local_jobs import make_client, write_source
from mlflow_server import MlflowServer
from plantedsecrets import API_TOKEN, assert_absent, plant

from dogbreed_ml.checkpoint import load_checkpoint
from dogbreed_ml.config import ExperimentConfig, TrackingConfig, flatten, to_dict, with_values
from dogbreed_ml.context import Context
from dogbreed_ml.errors import CloudError, ConfigError
from dogbreed_ml.pipeline.train import train
from dogbreed_ml.progress import NO_PROGRESS, Advance, Progress
from dogbreed_ml.summaries import TrainSummary
from dogbreed_ml.tracking import Tracker
from sagemaker_jobs.client import PATIENCE_S, Aws, Clock
from sagemaker_jobs.local.service import LocalSageMaker, Settings
from sagemaker_jobs.storage import Storage
from sagemaker_jobs.training import importing, jobinputs, training_job
from sagemaker_jobs.training.jobcontrol import JobGoneError, describe_job
from sagemaker_jobs.training.joboutputs import IncompleteJobError, fetch_checkpoint, log_rule_output
from sagemaker_jobs.training.launch import LAUNCHES_DIR

WAITS = "import time\nprint('waiting', flush=True)\ntime.sleep(120)\n"
PRINTS = "import sys, time\nfor n in range(3):\n    print('line', n, flush=True)\n    time.sleep(0.3)\nsys.exit(1)\n"
FAILS = (
    "import os, pathlib, sys\nprint('epoch=0 train/loss=0.5', flush=True)\n"
    "pathlib.Path(os.environ['SM_OUTPUT_DIR'], 'failure').write_text('ValueError: no dog in sight')\nsys.exit(1)\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSageMaker]:
    settings = Settings(stop_grace_s=0.3, requirements="skip")
    with LocalSageMaker(tmp_path_factory.mktemp("training-job"), settings=settings) as server:
        yield server


@pytest.fixture
def sagemaker(server: LocalSageMaker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """boto3's own way to the server, and a client to look behind the command's back."""
    for name, value in server.client_environment().items():
        monkeypatch.setenv(name, value)
    with closing(make_client(server)) as client:
        yield client
    server.faults.clear()


@pytest.fixture(scope="module")
def drawn_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


@dataclass
class Tick:
    """A clock whose sleep takes no time to speak of, and now and then does something."""

    on_sleep: Callable[[int], None] = lambda _: None
    elapsed_s: float = 0.0
    num_sleeps: int = 0

    def sleep(self, seconds: float) -> None:
        self.num_sleeps += 1
        self.elapsed_s += seconds
        time.sleep(min(seconds, 0.05))
        self.on_sleep(self.num_sleeps)

    def clock(self) -> Clock:
        return Clock(now=lambda: self.elapsed_s, sleep=self.sleep)


@dataclass
class Project:
    """A folder in which commands are given."""

    dir: Path
    config: ExperimentConfig
    questions: list[str] = field(default_factory=list)

    def train(
        self,
        *,
        on_sleep: Callable[[int], None] = lambda _: None,
        answer: bool | None = None,
        patience_s: float = PATIENCE_S,
        progress: Progress = NO_PROGRESS,
        environment: dict[str, str] | None = None,
    ) -> TrainSummary:
        def ask(text: str) -> bool:
            self.questions.append(text)
            return bool(answer)

        aws = Aws.open(self.config.sagemaker, clock=Tick(on_sleep).clock(), patience_s=patience_s)
        return training_job.train(
            self.config,
            context=Context(
                self.dir,
                environment=environment or {},
                argv=("dogbreed", "train", "--on", "sagemaker"),
                progress=progress,
            ),
            question=None if answer is None else ask,
            aws=aws,
        )

    def handed_run(self) -> str:
        """A run as `mlflow run` makes it."""
        with Tracker.open(project_dir=self.dir, config=TrackingConfig(system_metrics=False)) as tracker:
            run = tracker.client.create_run(tracker.experiment_id(self.config.name), run_name="handed")
            return str(run.info.run_id)

    def runs(self) -> list[Any]:
        with Tracker.attach(f"sqlite:///{self.dir / 'mlflow.db'}", config=TrackingConfig()) as tracker:
            return tracker.search_runs(self.config.name, "")

    def records(self) -> list[Path]:
        return list((self.dir / LAUNCHES_DIR).glob("*.json"))


@pytest.fixture
def project(tmp_path: Path, drawn_dir: Path, empty_store: Path, request: pytest.FixtureRequest) -> Project:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    values = {
        "name": f"dogs-{zlib.crc32(request.node.name.encode())}",
        "data.dir": str(drawn_dir),
        "data.num_breeds": 2,
        "data.num_per_breed": 8,
        "data.image_size": 64,
        "train.num_epochs": 2,
        "model.weights": "random",
        "features.backend": "torch-fp32",
        "tracking.system_metrics": False,
        "sagemaker.instance_type": "ml.m5.xlarge",
    }
    return Project(tmp_path, with_values(ExperimentConfig(), values))


@pytest.fixture(autouse=True)
def _policy_allows_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with allowed_by_the_policy(monkeypatch, project.config):
        yield


@pytest.fixture
def job_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a small script in the place of the job's own code: what is tested is its caller."""

    def use(script: str) -> None:
        def build(config: ExperimentConfig, splits: object, target: Path, **_: object) -> Path:
            return write_source(target, script)

        monkeypatch.setattr(jobinputs, "build_source", build)

    return use


def jobs_of(client: Any, project: Project) -> list[dict[str, Any]]:
    found = client.list_training_jobs(NameContains=project.config.name)["TrainingJobSummaries"]
    return [client.describe_training_job(TrainingJobName=each["TrainingJobName"]) for each in found]


def objects_of(server: LocalSageMaker, prefix: str) -> list[bytes]:
    """The content of whatever lies below an s3:// URI, but for models, which are large."""
    bucket = prefix.removeprefix("s3://").partition("/")[0]
    keys = [key for key in server.cloud.keys(prefix) if not key.endswith("model.tar.gz")]
    assert any("/code/" in key for key in keys)
    return [server.cloud.s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys]


def interrupt_at(num_sleeps: int) -> Callable[[int], None]:
    def on_sleep(so_far: int) -> None:
        if so_far == num_sleeps:
            raise KeyboardInterrupt

    return on_sleep


def wait_ended(client: Any, name: str) -> None:
    while client.describe_training_job(TrainingJobName=name)["TrainingJobStatus"] not in ("Stopped", "Failed"):
        time.sleep(0.02)


def test_training_on_sagemaker_ends_as_a_local_one_does(
    project: Project,
    server: LocalSageMaker,
    sagemaker: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole chain: upload, job, its log here, its run, its model, its summary; and no secret in any of them."""
    caplog.set_level(logging.INFO)
    plant(monkeypatch)
    secret = {"sagemaker.environment": {"KENNEL_API_TOKEN": API_TOKEN}}
    project = replace(project, config=with_values(project.config, secret))
    summary = project.train()

    (job,) = jobs_of(sagemaker, project)
    (run,) = project.runs()
    assert job["TrainingJobStatus"] == "Completed"
    assert (run.info.run_id, run.info.status) == (summary.run_id, "FINISHED")
    assert run.data.tags["sagemaker.training_job"] == job["TrainingJobName"]
    assert summary.num_epochs == 2
    assert summary.test["accuracy_top1"] == run.data.metrics["test/accuracy_top1"]
    assert summary.valid["accuracy_top1"] == run.data.metrics["valid/accuracy_top1"]
    low, high = summary.test_top1_interval
    assert low <= summary.test["accuracy_top1"] <= high
    assert [f"models:/{each.model_id}" for each in run.outputs.model_outputs] == [summary.model_uri]
    # SageMaker read the same figures from the lines that were shown here.
    told = [line for line in caplog.messages if "epoch=1 " in line]
    assert len(told) == 1
    final = {each["MetricName"]: each["Value"] for each in job["FinalMetricDataList"]}
    for name in ("train/loss", "valid/loss", "valid/accuracy_top1"):
        assert final[name] == pytest.approx(run.data.metrics[name], rel=1e-4)
    assert any(line.startswith("Training: ") for line in caplog.messages)
    assert summary.run_id in summary.render()
    assert project.records() == []
    # SageMaker's own member is where the variable belongs; it is nowhere else.
    assert job.pop("Environment") == {"KENNEL_API_TOKEN": API_TOKEN}
    prefix = job["OutputDataConfig"]["S3OutputPath"].rpartition("/")[0]
    assert_absent(job, sagemaker.list_tags(ResourceArn=job["TrainingJobArn"]), caplog.text, summary.render())
    assert_absent(project.dir / "mlflow.db", *objects_of(server, prefix))
    with Aws.open(project.config.sagemaker) as aws:
        storage = Storage.open(aws, project.config.sagemaker)
        checkpoint = load_checkpoint(fetch_checkpoint(job, storage, project.dir))
    assert_absent(to_dict(checkpoint.config))


def test_failed_job_ends_the_command_with_its_reason_and_a_failed_run(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    job_runs(FAILS)
    with pytest.raises(CloudError, match="no dog in sight"):
        project.train()

    (run,) = project.runs()
    assert run.info.status == "FAILED"
    assert "no dog in sight" in run.data.tags["failure.cause"]
    assert project.records() == []
    # What failed is not taken up again: the same command starts anew.
    with pytest.raises(CloudError, match="no dog in sight"):
        project.train()
    assert len(jobs_of(sagemaker, project)) == len(project.runs()) == 2


def test_completed_job_that_left_nothing_is_told_of_once(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    job_runs("print('done', flush=True)\n")
    for _ in range(2):
        with pytest.raises(IncompleteJobError):
            project.train()
        assert project.records() == []

    runs = project.runs()
    assert {run.info.status for run in runs} == {"FAILED"}
    assert {run.data.tags["failure.cause"] for run in runs} == {"the job completed and left no record in its output"}
    assert len(jobs_of(sagemaker, project)) == len(runs) == 2


def test_errors_of_s3_are_sat_out_before_the_job_and_after_it(
    project: Project, server: LocalSageMaker, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    def fail(so_far: int) -> None:
        if so_far == 1:
            server.faults.fail_s3(times=2)

    job_runs(FAILS)
    server.faults.fail_s3(times=2, code="InternalError")
    with pytest.raises(CloudError, match="no dog in sight"):
        project.train(on_sleep=fail)

    assert server.faults.hits()["fail_s3"] == 4
    (run,) = project.runs()
    assert (run.info.status, project.records()) == ("FAILED", [])
    assert len(jobs_of(sagemaker, project)) == 1


def test_ctrl_c_during_the_import_leaves_a_whole_record(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = importing.import_job
    num_calls = 0

    def interrupted(*arguments: Any, **named: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        run_id = imported(*arguments, **named)
        if num_calls == 1:
            raise KeyboardInterrupt
        return run_id

    job_runs(FAILS)
    monkeypatch.setattr(training_job, "import_job", interrupted)
    with pytest.raises(KeyboardInterrupt):
        project.train(answer=True)

    assert num_calls == 2
    (run,) = project.runs()
    assert "no dog in sight" in run.data.tags["failure.cause"]
    assert (project.questions, project.records()) == ([], [])
    assert len(jobs_of(sagemaker, project)) == 1


def test_the_same_command_given_twice_at_once_shares_one_job(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    def fail(_: int) -> str:
        with pytest.raises(CloudError, match="no dog in sight") as caught:
            project.train()
        return str(caught.value)

    job_runs(FAILS)
    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(fail, range(2)))

    (run,) = project.runs()
    assert all(run.info.run_id in each for each in told)
    assert len(jobs_of(sagemaker, project)) == 1
    assert project.records() == []


@pytest.mark.slow
def test_two_processes_with_the_same_command_share_one_job(
    project: Project, sagemaker: Any, server: LocalSageMaker
) -> None:
    values = {name: value for name, value in flatten(project.config).items() if not name.startswith("search.space")}
    script = Path(__file__).parents[1] / "train_process.py"
    command = [sys.executable, str(script), json.dumps(values), FAILS]
    environment = {**os.environ, "PYTHONPATH": str(Path(training_job.__file__).parents[2])}
    processes = [
        subprocess.Popen(command, cwd=project.dir, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0], told
    assert all("no dog in sight" in each for each in told)
    (job,) = jobs_of(sagemaker, project)
    (run,) = project.runs()
    assert all(run.info.run_id in each for each in told)
    assert run.data.tags["sagemaker.training_job"] == job["TrainingJobName"]
    assert project.records() == []


def test_run_that_mlflow_run_handed_over_points_to_the_jobs(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    job_runs(FAILS)
    handed_run_id = project.handed_run()
    with pytest.raises(CloudError, match="no dog in sight"):
        project.train(environment={"MLFLOW_RUN_ID": handed_run_id})

    runs = {run.info.run_id: run for run in project.runs()}
    handed = runs.pop(handed_run_id)
    (job_run,) = runs.values()
    assert handed.info.status == "FINISHED"
    assert handed.data.tags["dogbreed.resumed"] == job_run.info.run_id


def test_log_lines_come_once_and_with_their_host_where_there_are_several(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    job_runs(PRINTS)
    several = replace(project, config=with_values(project.config, {"sagemaker.instance_count": 2}))
    with pytest.raises(CloudError):
        several.train()

    told = [line for line in caplog.messages if re.fullmatch(r"algo-\d+: line \d", line)]
    assert sorted(told) == [f"algo-{host}: line {n}" for host in (1, 2) for n in range(3)]


def test_rule_output_of_sagemaker_is_fetched_to_the_run(
    project: Project, server: LocalSageMaker, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    job_runs(FAILS)
    with pytest.raises(CloudError):
        project.train()
    (job,), (run,) = jobs_of(sagemaker, project), project.runs()
    bucket, _, key = job["OutputDataConfig"]["S3OutputPath"].removeprefix("s3://").partition("/")
    report = f"{key}/{job['TrainingJobName']}/rule-output/ProfilerReport/profiler-output/profiler-report.html"
    server.cloud.s3.put_object(Bucket=bucket, Key=report, Body=b"<html>judged</html>")

    tracker = Tracker.attach(f"sqlite:///{project.dir / 'mlflow.db'}", config=TrackingConfig())
    with tracker, Aws.open(project.config.sagemaker) as aws:
        log_rule_output(tracker, run.info.run_id, job, storage=Storage.open(aws, project.config.sagemaker))
        folder = tracker.fetch_artifacts(run.info.run_id, "profiler/rule-output", project.dir)
    assert (folder / "ProfilerReport/profiler-output/profiler-report.html").read_text() == "<html>judged</html>"


@pytest.mark.slow
def test_sagemakers_rules_judge_a_job_and_their_reports_come_home(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    job_runs(FAILS)
    judged = replace(project, config=with_values(project.config, {"profile.sagemaker_rules": True}))
    with pytest.raises(CloudError, match="no dog in sight"):
        judged.train()

    (run,) = judged.runs()
    assert run.data.tags["sagemaker.rule.ProfilerReport"] in ("NoIssuesFound", "IssuesFound")
    with Tracker.attach(f"sqlite:///{project.dir / 'mlflow.db'}", config=TrackingConfig()) as tracker:
        folder = tracker.fetch_artifacts(run.info.run_id, "profiler/rule-output", project.dir)
    assert list(folder.rglob("profiler-report.html"))


def test_ctrl_c_without_a_terminal_leaves_the_job_and_the_same_command_comes_back_to_it(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    job_runs(WAITS)
    with pytest.raises(KeyboardInterrupt):
        project.train(on_sleep=interrupt_at(3))

    (job,) = jobs_of(sagemaker, project)
    name = job["TrainingJobName"]
    assert job["TrainingJobStatus"] == "InProgress"
    told = caplog.messages[-1]
    assert f"{name} goes on and is paid for" in told
    assert "dogbreed train --on sagemaker" in told
    assert f"stop-training-job --region us-west-2 --training-job-name {name}" in told

    sagemaker.stop_training_job(TrainingJobName=name)
    with pytest.raises(CloudError, match="it was stopped"):
        project.train()
    assert any("was started before" in line for line in caplog.messages)
    assert [each["TrainingJobName"] for each in jobs_of(sagemaker, project)] == [name]
    (run,) = project.runs()
    assert run.info.status == "KILLED"


@pytest.mark.parametrize("stops", [True, False])
def test_ctrl_c_at_a_terminal_asks_whether_to_stop_the_job(
    stops: bool, project: Project, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    job_runs(WAITS)
    with pytest.raises(KeyboardInterrupt):
        project.train(on_sleep=interrupt_at(3), answer=stops)

    (job,) = jobs_of(sagemaker, project)
    assert len(project.questions) == 1
    assert job["TrainingJobName"] in project.questions[0]
    if stops:
        assert job["TrainingJobStatus"] == "Stopped"
        assert [run.info.status for run in project.runs()] == ["KILLED"]
        assert project.records() == []
    else:
        assert job["TrainingJobStatus"] == "InProgress"
        assert len(project.records()) == 1
        sagemaker.stop_training_job(TrainingJobName=job["TrainingJobName"])


def test_sigterm_asks_nobody_and_leaves_the_job(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    def terminate(so_far: int) -> None:
        if so_far == 2:
            # As the command line's handler has it.
            raise KeyboardInterrupt("SIGTERM")

    job_runs(WAITS)
    with pytest.raises(KeyboardInterrupt):
        project.train(on_sleep=terminate, answer=True)

    (job,) = jobs_of(sagemaker, project)
    assert job["TrainingJobStatus"] == "InProgress"
    assert project.questions == []
    sagemaker.stop_training_job(TrainingJobName=job["TrainingJobName"])


def test_ctrl_c_during_the_upload_starts_nothing(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    class Interrupting:
        @contextmanager
        def track(self, description: str, total: int, unit: str) -> Iterator[Advance]:
            def advance(_: int) -> None:
                raise KeyboardInterrupt

            yield advance if description.startswith("uploading") else (lambda _: None)

    job_runs(WAITS)
    with pytest.raises(KeyboardInterrupt):
        project.train(progress=Interrupting(), answer=True)

    assert "No training job was started." in caplog.messages
    assert jobs_of(sagemaker, project) == project.runs() == []
    assert project.records() == []
    assert project.questions == []


def test_ctrl_c_while_the_job_is_being_created_finds_it_all_the_same(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Aws.create

    def create_and_interrupt(self: Aws, *arguments: Any, **named: Any) -> Any:
        create(self, *arguments, **named)
        raise KeyboardInterrupt

    job_runs(WAITS)
    monkeypatch.setattr(Aws, "create", create_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        project.train(answer=True)

    assert [job["TrainingJobStatus"] for job in jobs_of(sagemaker, project)] == ["Stopped"]
    assert [run.info.status for run in project.runs()] == ["KILLED"]
    assert len(project.questions) == 1


def test_ctrl_c_before_the_request_arrived_is_followed_by_one_job_of_that_name(
    project: Project,
    sagemaker: Any,
    job_runs: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    job_runs(FAILS)
    with monkeypatch.context() as patched:
        patched.setattr(Aws, "create", interrupt)
        with pytest.raises(KeyboardInterrupt):
            project.train(answer=True)
    assert "may go on, and is paid for then" in caplog.messages[-1]
    assert not jobs_of(sagemaker, project)
    assert not project.questions
    (record,) = project.records()
    name = json.loads(record.read_text())["name"]

    with pytest.raises(CloudError, match="no dog in sight"):
        project.train()
    assert [job["TrainingJobName"] for job in jobs_of(sagemaker, project)] == [name]
    assert project.records() == []


def test_lost_answer_to_create_starts_no_second_job(
    project: Project, server: LocalSageMaker, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    job_runs(FAILS)
    server.faults.lose_answer("CreateTrainingJob")
    with pytest.raises(CloudError, match="no dog in sight"):
        project.train()

    assert len(jobs_of(sagemaker, project)) == len(project.runs()) == 1


def test_throttled_create_is_sent_again_and_starts_one_job(
    project: Project, server: LocalSageMaker, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    job_runs(FAILS)
    server.faults.throttle("CreateTrainingJob", times=20)
    with pytest.raises(CloudError, match="ThrottlingException"):
        project.train(patience_s=1)
    assert jobs_of(sagemaker, project) == project.runs() == []
    # An answer to an earlier try of the request may have been lost.
    assert len(project.records()) == 1

    server.faults.clear()
    server.faults.throttle("CreateTrainingJob")
    server.faults.throttle("DescribeTrainingJob")
    with pytest.raises(CloudError, match="no dog in sight"):
        project.train()
    assert len(jobs_of(sagemaker, project)) == len(project.runs()) == 1


def test_expired_token_says_so_and_the_same_command_goes_on_with_the_job(
    project: Project,
    server: LocalSageMaker,
    sagemaker: Any,
    job_runs: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    job_runs(WAITS)

    def expire(so_far: int) -> None:
        if so_far == 2:
            server.faults.expire_token()

    with pytest.raises(CloudError, match="log in again"):
        project.train(on_sleep=expire)
    server.faults.clear()
    (job,) = jobs_of(sagemaker, project)
    assert job["TrainingJobStatus"] == "InProgress"
    assert len(project.records()) == 1
    assert f"{job['TrainingJobName']} goes on and is paid for" in caplog.messages[-1]

    sagemaker.stop_training_job(TrainingJobName=job["TrainingJobName"])
    with pytest.raises(CloudError, match="it was stopped"):
        project.train()
    assert len(jobs_of(sagemaker, project)) == len(project.runs()) == 1


def test_network_lost_for_30_s_is_waited_out(
    project: Project, server: LocalSageMaker, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    job_runs(WAITS)
    lost_at: list[float] = []
    tick = Tick()

    def lose(so_far: int) -> None:
        if so_far == 2:
            server.faults.drop_connections()
            lost_at.append(tick.elapsed_s)
        elif lost_at and tick.elapsed_s - lost_at[0] > 30:
            lost_at.clear()
            server.faults.clear()
            (job,) = jobs_of(sagemaker, project)
            sagemaker.stop_training_job(TrainingJobName=job["TrainingJobName"])

    tick.on_sleep = lose
    # A little less patient, boto3 tries twice by itself, and not eight times with its own pauses between.
    aws = Aws.open(project.config.sagemaker, clock=tick.clock(), patience_s=PATIENCE_S - 1)
    with pytest.raises(CloudError, match="it was stopped"):
        training_job.train(project.config, context=Context(project.dir), aws=aws)

    assert tick.elapsed_s > 30
    assert len(jobs_of(sagemaker, project)) == len(project.runs()) == 1


def test_job_deleted_behind_our_back_ends_as_a_failed_run(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None]
) -> None:
    job_runs(FAILS)

    def delete(so_far: int) -> None:
        for job in jobs_of(sagemaker, project):
            if job["TrainingJobStatus"] == "Failed":
                sagemaker.delete_training_job(TrainingJobName=job["TrainingJobName"])
            elif so_far == 1:
                # Looked at before it has ended, gone at the next look.
                wait_ended(sagemaker, job["TrainingJobName"])
                sagemaker.delete_training_job(TrainingJobName=job["TrainingJobName"])

    with pytest.raises(JobGoneError, match="was deleted"):
        project.train(on_sleep=delete)

    (run,) = project.runs()
    assert (run.info.status, run.data.tags["failure.cause"]) == ("FAILED", "The job was deleted.")
    assert project.records() == []


def test_job_deleted_between_two_commands_ends_as_a_failed_run(
    project: Project, sagemaker: Any, job_runs: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_runs(WAITS)
    with pytest.raises(KeyboardInterrupt):
        project.train(on_sleep=interrupt_at(2))
    (job,) = jobs_of(sagemaker, project)
    sagemaker.stop_training_job(TrainingJobName=job["TrainingJobName"])
    wait_ended(sagemaker, job["TrainingJobName"])
    sagemaker.delete_training_job(TrainingJobName=job["TrainingJobName"])

    monkeypatch.setattr(Aws, "partition", "aws-cn")
    with pytest.raises(JobGoneError, match="was deleted"):
        project.train()

    (run,) = project.runs()
    assert run.info.status == "FAILED"
    # Nobody can say any more what its ARN was: it follows from the region.
    assert run.data.tags["sagemaker.training_job_arn"].startswith("arn:aws-cn:sagemaker:us-west-2:123456789012:")
    assert jobs_of(sagemaker, project) == []
    assert project.records() == []


@pytest.mark.slow
def test_training_on_photographs_in_s3_gives_what_one_on_the_same_files_here_gives(
    project: Project, server: LocalSageMaker, sagemaker: Any, photographs_dir: Path, weights_path: Path
) -> None:
    """Nothing of the data passes through this machine: the job splits what it finds, and finds the same splits."""
    breeds = sorted(path for path in (photographs_dir / "dogs").iterdir() if path.is_dir())[:3]
    photographs = [path for breed in breeds for path in sorted(breed.glob("*.jpg"))[:20]]
    for path in photographs:
        copy = project.dir / "kennel" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    values = {"data.image_size": 96, "model.weights": str(weights_path), "model.resnet_version": "1"}
    at_home = {"data.source": "folder", "data.path": str(project.dir / "kennel")}
    here = replace(project, config=with_values(project.config, values | at_home))
    local = train(here.config, context=Context(here.dir))

    place = {"LocationConstraint": "us-west-2"}
    server.cloud.s3.create_bucket(Bucket="kennel-photographs", CreateBucketConfiguration=place)
    for path in photographs:
        key = f"dogs/{path.parent.name}/{path.name}"
        server.cloud.s3.put_object(Bucket="kennel-photographs", Key=key, Body=path.read_bytes())
    in_s3 = {"data.source": "s3", "data.path": "s3://kennel-photographs/dogs/"}
    given = replace(here, config=with_values(here.config, in_s3)).train()

    assert given.num_epochs == local.num_epochs
    # The job's back end may be another: bf16 for fp32.
    assert given.test["loss"] == pytest.approx(local.test["loss"], abs=0.05)
    runs = {run.info.run_id: run for run in here.runs()}
    one, other = runs[local.run_id], runs[given.run_id]
    assert data_of(one) == data_of(other)
    assert own_keys(one.data.metrics) == own_keys(other.data.metrics)
    assert one.data.params.keys() == other.data.params.keys()


@pytest.mark.slow
def test_training_with_a_tracking_server_is_one_live_run(
    project: Project, sagemaker: Any, tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> None:
    """The job writes to the server itself; what comes home is its model, and what SageMaker says of it."""
    mlflow_server = MlflowServer(tmp_path_factory.mktemp("mlflow"), empty_store=empty_store)
    mlflow_server.start()
    try:
        summary = project.train(environment={"MLFLOW_TRACKING_URI": mlflow_server.url})
        with Tracker.attach(mlflow_server.url, config=TrackingConfig()) as tracker:
            (run,) = tracker.search_runs(project.config.name, "")
    finally:
        mlflow_server.stop()

    assert (run.info.run_id, run.info.status) == (summary.run_id, "FINISHED")
    assert run.data.tags["sagemaker.record"] == "live"
    assert run.data.metrics["sagemaker/training_s"] > 0
    assert summary.url is not None
    assert summary.run_id in summary.url
    (job,) = jobs_of(sagemaker, project)
    assert job["Environment"] == {"DOGBREED_TRACKING_URI": mlflow_server.url}


def data_of(run: Any) -> set[str]:
    return {each.dataset.digest for each in run.inputs.dataset_inputs}


def own_keys(metrics: dict[str, float]) -> set[str]:
    """Without what SageMaker says of the job; and stages differ in where they happen, not in what they come to."""
    return {name for name in metrics if not name.startswith(("sagemaker/", "seconds/"))}


def test_training_on_aws_needs_a_role(project: Project, sagemaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Aws, "is_local", False)
    with pytest.raises(ConfigError, match="sagemaker.role_arn"):
        project.train()
    assert jobs_of(sagemaker, project) == project.runs() == []


def test_refused_training_makes_no_bucket_no_run_and_no_job(
    project: Project, sagemaker: Any, server: LocalSageMaker
) -> None:
    mistaken = {"sagemaker.bucket": "kennel-of-a-typo", "sagemaker.instance_type": "ml.nope.xlarge"}
    project = replace(project, config=with_values(project.config, mistaken))
    with pytest.raises(ConfigError, match=r"ml\.nope\.xlarge"):
        project.train()

    assert "kennel-of-a-typo" not in [each["Name"] for each in server.cloud.s3.list_buckets()["Buckets"]]
    assert jobs_of(sagemaker, project) == project.runs() == project.records() == []


def test_describe_of_an_unknown_job_is_none(project: Project, sagemaker: Any) -> None:
    with Aws.open(ExperimentConfig().sagemaker) as aws:
        assert describe_job(aws, f"{project.config.name}-train-unknown") is None
