"""Profiled training jobs of the local SageMaker: recording, reports and statuses through boto3."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError
from local_jobs import BUCKET, describe, job_request, make_bucket, make_client, put_source, wait_ended, wait_for_log

from sagemaker_jobs.local.records import Records
from sagemaker_jobs.local.service import LocalSageMaker, Settings

IMAGE = "895741380848.dkr.ecr.us-west-2.amazonaws.com/sagemaker-debugger-rules:latest"
PROFILE = f"s3://{BUCKET}/profile"
STEPS = """
import json, os, pathlib, time
start_us = time.time_ns() // 1000
time.sleep(0.6)
events = [{"name": "process_name", "ph": "M", "pid": 0, "args": {"start_time_since_epoch_in_micros": start_us}},
          {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "Step:ModeKeys.TRAIN"}}]
for step, ms in enumerate([10] * 20 + [200] * 2 + [10] * 20):
    ts = 10_000 * step
    events.append({"name": "Step:ModeKeys.TRAIN", "pid": 1, "ph": "X", "ts": ts, "dur": ms * 1000,
                   "args": {"step_num": str(step)}})
folder = pathlib.Path(os.environ["SM_OUTPUT_DIR"], "profiler", "framework", "pevents", time.strftime("%Y%m%d%H"))
folder.mkdir(parents=True)
(folder / f"{start_us + 600_000:016d}_{os.getpid()}-algo-1_model_timeline.json").write_text(json.dumps(events))
(folder / "elsewhere.json").symlink_to("/etc/hostname")
os.mkfifo(folder / "endless.json")
"""
SLEEP = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalSageMaker]:
    with LocalSageMaker(tmp_path / "server", settings=Settings(stop_grace_s=0.3, num_parallel_jobs=2)) as server:
        make_bucket(server)
        yield server


@pytest.fixture
def client(server: LocalSageMaker) -> Iterator[Any]:
    client = make_client(server)
    yield client
    client.close()


def _rule(name: str, **parameters: str) -> dict[str, Any]:
    return {"RuleConfigurationName": name, "RuleEvaluatorImage": IMAGE, "RuleParameters": parameters}


def _create(server: LocalSageMaker, client: Any, name: str, script: str, **members: Any) -> None:
    members = {"ProfilerConfig": {"S3OutputPath": PROFILE, "ProfilingIntervalInMilliseconds": 100}, **members}
    client.create_training_job(**job_request(name, put_source(server, {"train.py": script}), **members))


def _statuses(client: Any, name: str) -> dict[str, dict[str, Any]]:
    job = client.describe_training_job(TrainingJobName=name)
    return {each["RuleConfigurationName"]: each for each in job["ProfilerRuleEvaluationStatuses"]}


def _wait_judged(server: LocalSageMaker, client: Any, name: str) -> dict[str, dict[str, Any]]:
    def is_judged() -> bool:
        statuses = describe(server, name)["ProfilerRuleEvaluationStatuses"]
        return all(each["RuleEvaluationStatus"] != "InProgress" for each in statuses)

    assert server.records.wait_for(is_judged, 30.0)
    return _statuses(client, name)


def _read(server: LocalSageMaker, key: str) -> str:
    content: bytes = server.cloud.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    return content.decode()


def test_job_is_profiled_and_its_rules_are_judged(server: LocalSageMaker, client: Any) -> None:
    rules = [
        _rule("ProfilerReport-1", rule_to_invoke="ProfilerReport", StepOutlier_stddev="50"),
        _rule("outliers", rule_to_invoke="StepOutlier", stddev="3", n_outliers="1"),
        _rule("mine", rule_to_invoke="MyRule"),
    ]
    debug = [_rule("loss", rule_to_invoke="LossNotDecreasing")]
    _create(server, client, "seen", STEPS, ProfilerRuleConfigurations=rules, DebugRuleConfigurations=debug)
    assert {each["RuleEvaluationStatus"] for each in _statuses(client, "seen").values()} == {"InProgress"}
    job = wait_ended(server, "seen")
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    statuses = _wait_judged(server, client, "seen")
    assert statuses["outliers"]["RuleEvaluationStatus"] == "IssuesFound"
    assert statuses["outliers"]["StatusDetails"].startswith("StepOutlier: ")
    assert statuses["outliers"]["LastModifiedTime"].timestamp() >= job["TrainingEndTime"] - 1
    assert statuses["mine"]["RuleEvaluationStatus"] == "Error"
    assert "got 'MyRule'" in statuses["mine"]["StatusDetails"]

    keys = [key.removeprefix("profile/seen/") for key in server.cloud.keys(f"{PROFILE}/seen/")]
    system = [key for key in keys if key.startswith("profiler-output/system/incremental/")]
    samples = [json.loads(line) for key in system for line in _read(server, f"profile/seen/{key}").splitlines()]
    assert {"CPUUtilization", "MemoryUsedPercent"} <= {each["Dimension"] for each in samples}
    assert {each["NodeId"] for each in samples} == {"algo-1"}
    # Figures of the process that samples say nothing of the job.
    assert "ProcessMemoryMiB" not in {each["Dimension"] for each in samples}
    (timeline,) = [key for key in keys if key.startswith("profiler-output/framework/pevents/")]
    assert timeline.endswith("-algo-1_model_timeline.json")

    report_dir = "rule-output/ProfilerReport-1/profiler-output"
    assert "<title>" in _read(server, f"profile/seen/{report_dir}/profiler-report.html")
    outliers = json.loads(_read(server, f"profile/seen/{report_dir}/profiler-reports/StepOutlier.json"))
    assert outliers["RuleTriggered"] == 0
    assert "stddev:50" in outliers["RuleParameters"].splitlines()
    single_dir = "rule-output/outliers/profiler-output"
    outliers = json.loads(_read(server, f"profile/seen/{single_dir}/profiler-reports/StepOutlier.json"))
    assert outliers["RuleTriggered"] == 2
    assert [key for key in keys if key.startswith("rule-output/mine")] == []
    assert list((server.root_dir / "profiles").iterdir()) == []

    (tensors,) = client.describe_training_job(TrainingJobName="seen")["DebugRuleEvaluationStatuses"]
    assert (tensors["RuleEvaluationStatus"], "no tensors" in tensors["StatusDetails"]) == ("Stopped", True)


def test_each_host_has_its_samples_and_a_bucket_that_is_not_there_is_named(server: LocalSageMaker, client: Any) -> None:
    two = {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 10}
    _create(server, client, "two", "import time; time.sleep(0.2)", ResourceConfig=two)
    rules = [_rule("report", rule_to_invoke="ProfilerReport")]
    away = {"S3OutputPath": "s3://no-such-bucket/profile"}
    _create(server, client, "lost", "pass", ProfilerConfig=away, ProfilerRuleConfigurations=rules)
    assert wait_ended(server, "lost")["TrainingJobStatus"] == "Completed"
    status = _wait_judged(server, client, "lost")["report"]
    assert status["RuleEvaluationStatus"] == "Error"
    assert "no-such-bucket" in status["StatusDetails"]
    wait_ended(server, "two")
    deadline = time.monotonic() + 20
    while len(keys := server.cloud.keys(f"{PROFILE}/two/profiler-output/system/")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {key.rsplit(".", 2)[1] for key in keys} == {"algo-1", "algo-2"}


def test_profiler_that_is_switched_off_stops_sampling_and_rules(server: LocalSageMaker, client: Any) -> None:
    rules = [_rule("report", rule_to_invoke="ProfilerReport")]
    _create(server, client, "off", SLEEP, ProfilerRuleConfigurations=rules)
    wait_for_log(server, "off", "ready")
    client.update_training_job(TrainingJobName="off", ProfilerConfig={"DisableProfiler": True})
    assert _statuses(client, "off")["report"]["RuleEvaluationStatus"] == "Stopped"
    deadline = time.monotonic() + 20
    while _samplers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _samplers() == []
    client.stop_training_job(TrainingJobName="off")
    wait_ended(server, "off")
    assert _statuses(client, "off")["report"]["RuleEvaluationStatus"] == "Stopped"


def test_server_that_closes_ends_its_samplers_and_says_so(tmp_path: Path) -> None:
    rules = [_rule("report", rule_to_invoke="ProfilerReport")]
    with LocalSageMaker(tmp_path / "server") as server:
        make_bucket(server)
        client = make_client(server)
        _create(server, client, "running", SLEEP, ProfilerRuleConfigurations=rules)
        wait_for_log(server, "running", "ready")
        client.close()
    assert _samplers() == []
    with LocalSageMaker(tmp_path / "server") as server:
        (status,) = describe(server, "running")["ProfilerRuleEvaluationStatuses"]
    assert status["RuleEvaluationStatus"] == "Stopped"
    assert "the local SageMaker ended" in status["StatusDetails"]


def test_rules_that_a_killed_server_left_in_progress_are_stopped(tmp_path: Path) -> None:
    with LocalSageMaker(tmp_path / "server") as server:
        make_bucket(server)
        server.training.create_training_job(job_request("ended", put_source(server, {"train.py": "pass"})))
        wait_ended(server, "ended")
    in_progress = {"RuleConfigurationName": "report", "RuleEvaluationStatus": "InProgress", "LastModifiedTime": 1.0}
    rules = {
        "ProfilerRuleConfigurations": [_rule("report", rule_to_invoke="ProfilerReport")],
        "ProfilerRuleEvaluationStatuses": [in_progress],
    }
    Records(tmp_path / "server" / "records").update("training-job", "ended", rules)
    with LocalSageMaker(tmp_path / "server") as server:
        (status,) = describe(server, "ended")["ProfilerRuleEvaluationStatuses"]
    assert status["RuleEvaluationStatus"] == "Stopped"
    assert "the local SageMaker ended" in status["StatusDetails"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"S3OutputPath": "https://bucket/profile"}, "s3OutputPath must be an s3:// URI"),
        ({"S3OutputPath": PROFILE, "ProfilingIntervalInMilliseconds": 0}, "must be one of 100, 200, 500"),
    ],
)
def test_wrong_profiler_configuration_is_refused(
    server: LocalSageMaker, client: Any, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ClientError, match=message):
        _create(server, client, "wrong", "pass", ProfilerConfig=config)
    assert client.list_training_jobs()["TrainingJobSummaries"] == []


def _samplers() -> list[int]:
    """Processes of this test's server that sample."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "sagemaker_jobs.local.rulejudge" in child.cmdline():
                found.append(child.pid)
        except psutil.Error:
            continue
    return found
