"""Training jobs of the local SageMaker: the container contract, statuses, errors, faults; real processes throughout."""

import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError
from local_jobs import (
    BUCKET,
    describe,
    fetch_tar,
    job_request,
    log_messages,
    make_bucket,
    make_client,
    make_wheel,
    put_source,
    read_log,
    run_script,
    wait_ended,
    wait_for_log,
    wait_until,
)

from sagemaker_jobs.local.errors import ServiceError
from sagemaker_jobs.local.service import LocalSageMaker, Settings
from sagemaker_jobs.local.shapes import check_answer

SLEEP = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"
SAVE = "import os\nopen(os.environ['SM_MODEL_DIR'] + '/model.txt', 'w').write('weights')\n"
KEEP_ON_SIGTERM = f"""
import signal, sys, time
def stop(*_):
    {SAVE.replace(chr(10), "; ")}
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
print('ready', flush=True)
time.sleep(60)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalSageMaker]:
    settings = Settings(stop_grace_s=0.3, num_parallel_jobs=2, checkpoint_interval_s=0.05, max_log_bytes=100_000)
    with LocalSageMaker(tmp_path / "server", settings=settings) as server:
        make_bucket(server)
        yield server


@pytest.fixture
def client(server: LocalSageMaker) -> Iterator[Any]:
    client = make_client(server)
    yield client
    client.close()


def _channel(name: str, uri: str, **source: str) -> dict[str, Any]:
    return {
        "ChannelName": name,
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri, **source}},
    }


def _put(server: LocalSageMaker, **files: str) -> None:
    for key, text in files.items():
        server.cloud.s3.put_object(Bucket=BUCKET, Key=key.replace("__", "/"), Body=text.encode())


def test_job_runs_a_script_with_everything_that_a_container_has(server: LocalSageMaker, client: Any) -> None:
    _put(server, data__train__a="A", data__train__sub__b="B", data__valid__c="C")
    script = """
import json, os, pathlib, sys
root = pathlib.Path(os.environ["SM_INPUT_CONFIG_DIR"])
files = {p.name: json.loads(p.read_text()) for p in root.iterdir()}
train = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"])
found = sorted(p.relative_to(train).as_posix() for p in train.rglob("*") if p.is_file())
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.json").write_text(json.dumps({"args": sys.argv[1:], "files": files,
    "found": found, "sm": {k: v for k, v in os.environ.items() if k.startswith("SM_")}}))
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "plot.txt").write_text("plot")
print("accuracy=0.25"); print("accuracy=0.75;"); print("hello from stderr", file=sys.stderr)
"""
    request = job_request(
        "all-of-it", put_source(server, {"train.py": script}),
        hyperparameters={"lr": "0.1", "data.name": "dogs and more", "epochs": "3"},
        specification={"MetricDefinitions": [{"Name": "valid:accuracy", "Regex": "accuracy=([0-9.]+)"}]},
        InputDataConfig=[_channel("train", f"s3://{BUCKET}/data/train"), _channel("valid", f"s3://{BUCKET}/data/valid/")],
        Environment={"MINE": "/opt/ml/input", "OTHER": "/opt/mlx"},
    )  # fmt: skip
    arn = client.create_training_job(**request)["TrainingJobArn"]
    assert arn == "arn:aws:sagemaker:us-west-2:123456789012:training-job/all-of-it"
    job = wait_ended(server, "all-of-it")
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    uri = f"s3://{BUCKET}/output/all-of-it/output"
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == f"{uri}/model.tar.gz"
    seen = json.loads(fetch_tar(server, f"{uri}/model.tar.gz")["model.json"])
    assert seen["args"] == ["--data.name", "dogs and more", "--epochs", "3", "--lr", "0.1"]
    assert seen["found"] == ["a", "sub/b"]
    assert seen["files"]["hyperparameters.json"] == request["HyperParameters"]
    assert seen["files"]["resourceconfig.json"]["hosts"] == ["algo-1"]
    assert seen["files"]["inputdataconfig.json"]["valid"]["TrainingInputMode"] == "File"
    assert json.loads(seen["sm"]["SM_HPS"]) == {"lr": 0.1, "data.name": "dogs and more", "epochs": 3}
    assert seen["sm"]["SM_HP_EPOCHS"] == "3"
    assert json.loads(seen["sm"]["SM_CHANNELS"]) == ["train", "valid"]
    assert fetch_tar(server, f"{uri}/output.tar.gz") == {"plot.txt": b"plot"}
    (metric,) = job["FinalMetricDataList"]
    assert (metric["MetricName"], metric["Value"]) == ("valid:accuracy", 0.75)
    assert server.training.metric_values("all-of-it", "valid:accuracy") == [0.25, 0.75]
    data = server.cloud.cloudwatch.get_metric_statistics(
        Namespace="/aws/sagemaker/TrainingJobs", MetricName="valid:accuracy", Period=3600, Statistics=["Maximum"],
        Dimensions=[{"Name": "TrainingJobName", "Value": "all-of-it"}, {"Name": "Host", "Value": "algo-1"}],
        StartTime=time.time() - 600, EndTime=time.time() + 600,
    )  # fmt: skip
    assert [point["Maximum"] for point in data["Datapoints"]] == [0.75]
    assert {"accuracy=0.25", "accuracy=0.75;", "hello from stderr"} <= set(log_messages(server, "all-of-it"))
    statuses = [each["Status"] for each in job["SecondaryStatusTransitions"]]
    assert statuses == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    times = [(each["StartTime"], each["EndTime"]) for each in job["SecondaryStatusTransitions"]]
    assert times == sorted(times)
    assert job["CreationTime"] <= job["TrainingStartTime"] <= job["TrainingEndTime"]


def test_job_sees_no_environment_of_the_user(server: LocalSageMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "real")
    monkeypatch.setenv("AWS_PROFILE", "real")
    monkeypatch.setenv("MY_SECRET", "real")
    script = "import os\nprint('real' in os.environ.values(), os.environ['AWS_ENDPOINT_URL'], os.environ['HOME'])"
    run_script(server, "isolated", script)
    seen, url, home = read_log(server, "isolated").split()
    assert (seen, url) == ("False", server.url)
    assert Path(home).is_relative_to(server.root_dir)


def test_job_reaches_this_server_with_boto3(server: LocalSageMaker) -> None:
    script = "import boto3\nprint(boto3.client('sts').get_caller_identity()['Account'])\n"
    script += f"boto3.client('s3').put_object(Bucket='{BUCKET}', Key='from-job', Body=b'x')"
    assert run_script(server, "boto", script)["TrainingJobStatus"] == "Completed"
    assert server.cloud.keys(f"s3://{BUCKET}/from-job") == ["from-job"]


def test_container_entrypoint_runs_with_its_arguments(server: LocalSageMaker) -> None:
    _put(server, code__run__sh="echo $1 $(cat $2/x)", code__x="content")
    request = job_request(
        "entry", "", hyperparameters={},
        specification={
            "ContainerEntrypoint": ["/bin/sh", "/opt/ml/input/data/code/run/sh"],
            "ContainerArguments": ["first", "/opt/ml/input/data/code"],
        },
        InputDataConfig=[_channel("code", f"s3://{BUCKET}/code/")],
    )  # fmt: skip
    server.training.create_training_job(request)
    assert wait_ended(server, "entry")["TrainingJobStatus"] == "Completed"
    assert read_log(server, "entry") == "first content\n"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("raise ValueError('too few dogs')", r"AlgorithmError: .*ValueError: too few dogs, exit code: 1"),
        ("import os; os.kill(os.getpid(), 9)", r"AlgorithmError: .*, exit code: 137 \(SIGKILL\)"),
        ("import sys; sys.exit(42)", r"AlgorithmError: .*, exit code: 42"),
        (
            "import os\nopen(os.environ['SM_OUTPUT_FAILURE'], 'w').write('why' * 400_000)\nraise SystemExit(1)",
            r"AlgorithmError: (why)+w?, exit code: 1",
        ),
    ],
    ids=["exception", "kill-9", "exit-code", "failure-file-of-1-MB"],
)
def test_failed_job_says_why(server: LocalSageMaker, script: str, reason: str) -> None:
    job = run_script(server, "failing", script)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Failed", "Failed")
    assert re.fullmatch(reason, job["FailureReason"], re.DOTALL)
    assert len(job["FailureReason"]) <= 1024
    keys = server.cloud.keys(f"s3://{BUCKET}/output/failing")
    assert not [key for key in keys if key.endswith("model.tar.gz")]


def test_entrypoint_that_is_not_there_is_named(server: LocalSageMaker) -> None:
    request = job_request("nowhere", "", specification={"ContainerEntrypoint": ["no-such-program"]})
    server.training.create_training_job(request)
    reason = wait_ended(server, "nowhere")["FailureReason"]
    assert "no-such-program cannot be started: No such file or directory" in reason
    assert reason.endswith(", exit code: 127")


def test_uncompressed_output_lies_file_by_file(server: LocalSageMaker) -> None:
    script = SAVE + "open(os.environ['SM_OUTPUT_DATA_DIR'] + '/plot', 'w').write('p')"
    output = {"S3OutputPath": f"s3://{BUCKET}/output", "CompressionType": "NONE"}
    job = run_script(server, "loose", script, OutputDataConfig=output)
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{BUCKET}/output/loose/output/model/"
    prefix = "output/loose/output"
    assert server.cloud.keys(f"s3://{BUCKET}/{prefix}") == [f"{prefix}/data/plot", f"{prefix}/model/model.txt"]


def test_stopped_job_keeps_its_model(server: LocalSageMaker, client: Any) -> None:
    server.training.create_training_job(job_request("polite", put_source(server, {"train.py": KEEP_ON_SIGTERM})))
    wait_for_log(server, "polite", "ready")
    client.stop_training_job(TrainingJobName="polite")
    assert describe(server, "polite")["TrainingJobStatus"] in ("Stopping", "Stopped")
    job = wait_ended(server, "polite")
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert "Stopping" in [each["Status"] for each in job["SecondaryStatusTransitions"]]
    assert fetch_tar(server, job["ModelArtifacts"]["S3ModelArtifacts"]) == {"model.txt": b"weights"}
    with pytest.raises(ClientError, match="rejected because the training job is in status Stopped"):
        client.stop_training_job(TrainingJobName="polite")


def test_job_that_ignores_sigterm_is_killed_after_the_grace(server: LocalSageMaker) -> None:
    script = SAVE + "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SLEEP
    server.training.create_training_job(job_request("stubborn", put_source(server, {"train.py": script})))
    wait_for_log(server, "stubborn", "ready")
    start = time.monotonic()
    server.training.stop_training_job({"TrainingJobName": "stubborn"})
    job = wait_ended(server, "stubborn")
    assert time.monotonic() - start >= 0.3
    assert job["TrainingJobStatus"] == "Stopped"
    assert fetch_tar(server, job["ModelArtifacts"]["S3ModelArtifacts"]) == {"model.txt": b"weights"}


def test_children_of_a_job_go_with_it(server: LocalSageMaker) -> None:
    script = """
import subprocess, sys, os
a = subprocess.Popen(["sleep", "1000"])
b = subprocess.Popen(["sleep", "1000"], start_new_session=True)
c = subprocess.check_output(["sh", "-c", "setsid nohup sleep 1000 >/dev/null 2>&1 & echo $!"])
print(a.pid, b.pid, int(c))
"""
    assert run_script(server, "parent", script)["TrainingJobStatus"] == "Completed"
    pids = [int(pid) for pid in read_log(server, "parent").split()]
    assert len(pids) == 3
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    assert [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE] == []


def test_job_ends_after_its_longest_runtime(server: LocalSageMaker) -> None:
    job = run_script(server, "slow-one", SAVE + SLEEP, StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert fetch_tar(server, job["ModelArtifacts"]["S3ModelArtifacts"]) == {"model.txt": b"weights"}


def test_jobs_beyond_the_limit_wait_as_pending(server: LocalSageMaker) -> None:
    source = put_source(server, {"train.py": SLEEP})
    for name in ("first", "second", "third", "fourth"):
        server.training.create_training_job(job_request(name, source))
    assert [describe(server, name)["SecondaryStatus"] for name in ("third", "fourth")] == ["Pending", "Pending"]
    server.training.stop_training_job({"TrainingJobName": "fourth"})
    assert describe(server, "fourth")["TrainingJobStatus"] == "Stopped"
    server.training.stop_training_job({"TrainingJobName": "first"})
    wait_until(server, "third", lambda job: job["SecondaryStatus"] == "Training")
    assert describe(server, "second")["TrainingJobStatus"] == "InProgress"


def test_checkpoints_go_up_while_the_job_runs_and_come_back(server: LocalSageMaker) -> None:
    _put(server, kept__epoch="1", kept__deep__old="old")
    script = """
import os, pathlib, time
folder = pathlib.Path(os.environ["SM_MODEL_DIR"]).parent / "checkpoints"
epoch = int((folder / "epoch").read_text()) + 1
(folder / "epoch").write_text(str(epoch)); (folder / "deep" / "new").write_text("new")
print("from", epoch, (folder / "deep" / "old").read_text(), flush=True)
while not (folder / "stop").exists(): time.sleep(0.01)
"""
    checkpoints = {"S3Uri": f"s3://{BUCKET}/kept"}
    source = put_source(server, {"train.py": script})
    server.training.create_training_job(job_request("resumed", source, CheckpointConfig=checkpoints))
    wait_for_log(server, "resumed", "from 2 old")
    deadline = time.monotonic() + 20
    while server.cloud.s3.get_object(Bucket=BUCKET, Key="kept/epoch")["Body"].read() != b"2":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert server.cloud.keys(f"s3://{BUCKET}/kept/") == ["kept/deep/new", "kept/deep/old", "kept/epoch"]
    server.training.stop_training_job({"TrainingJobName": "resumed"})
    wait_ended(server, "resumed")


def test_spot_job_is_interrupted_and_goes_on_from_its_checkpoint(server: LocalSageMaker, client: Any) -> None:
    script = """
import os, pathlib, sys, time
path = pathlib.Path(os.environ["SM_MODEL_DIR"]).parent / "checkpoints" / "epoch"
if path.exists():
    print("second life"); pathlib.Path(os.environ["SM_MODEL_DIR"], "epoch").write_text(path.read_text()); sys.exit()
path.write_text("7"); print("first life", flush=True); time.sleep(60)
"""
    request = job_request(
        "spot", put_source(server, {"train.py": script}), CheckpointConfig={"S3Uri": f"s3://{BUCKET}/spot"},
        EnableManagedSpotTraining=True, StoppingCondition={"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60},
    )  # fmt: skip
    server.training.create_training_job(request)
    wait_for_log(server, "spot", "first life")
    url = f"{server.url}/local/training-jobs/spot/interrupt"
    urllib.request.urlopen(url, data=b"", timeout=30).close()
    job = wait_ended(server, "spot")
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    statuses = [each["Status"] for each in job["SecondaryStatusTransitions"]]
    assert statuses[2:6] == ["Training", "Interrupted", "Restarting", "Downloading"]
    assert fetch_tar(server, job["ModelArtifacts"]["S3ModelArtifacts"]) == {"epoch": b"7"}
    with pytest.raises(ServiceError, match="spot cannot be interrupted"):
        server.training.interrupt("spot")


def test_manifest_and_shards_give_each_host_its_files(server: LocalSageMaker) -> None:
    _put(server, **{f"many__{n}": str(n) for n in range(5)}, other__x="x")
    manifest = [{"prefix": f"s3://{BUCKET}/many/"}, "1", "3"]
    _put(server, manifest__json=json.dumps(manifest))
    script = """
import json, os, pathlib
host = os.environ["SM_CURRENT_HOST"]
names = {c: sorted(os.listdir(os.environ["SM_CHANNEL_" + c.upper()])) for c in ("listed", "sharded", "whole")}
pathlib.Path(os.environ["SM_MODEL_DIR"], host).write_text(json.dumps(names))
"""
    job = run_script(
        server, "hosts", script,
        ResourceConfig={"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1},
        InputDataConfig=[
            _channel("listed", f"s3://{BUCKET}/manifest/json", S3DataType="ManifestFile"),
            _channel("sharded", f"s3://{BUCKET}/many", S3DataDistributionType="ShardedByS3Key"),
            {**_channel("whole", f"s3://{BUCKET}/other"), "InputMode": "FastFile"},
        ],
    )  # fmt: skip
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    files = fetch_tar(server, job["ModelArtifacts"]["S3ModelArtifacts"])
    seen = {host: json.loads(text) for host, text in files.items()}
    assert set(seen) == {"algo-1", "algo-2"}
    assert {tuple(names["listed"]) for names in seen.values()} == {("1", "3")}
    assert {tuple(names["whole"]) for names in seen.values()} == {("x",)}
    shards = [names["sharded"] for names in seen.values()]
    assert sorted(name for shard in shards for name in shard) == ["0", "1", "2", "3", "4"]
    assert all(shards)


def test_host_that_fails_ends_the_others(server: LocalSageMaker) -> None:
    script = "import os, sys, time\nif os.environ['SM_CURRENT_HOST'] == 'algo-2': sys.exit(5)\ntime.sleep(60)"
    resources = {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}
    job = run_script(server, "half", script, ResourceConfig=resources)
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"].endswith("exit code: 5")


def test_output_without_end_costs_neither_log_nor_memory(server: LocalSageMaker) -> None:
    script = """
import sys
print("the beginning"); line = "x" * 99 + "\\n"
for _ in range(300): sys.stdout.write(line * 1000)
print("loss=0.5"); print("the end")
"""
    before = psutil.Process().memory_info().rss
    job = run_script(
        server, "chatty", script, specification={"MetricDefinitions": [{"Name": "loss", "Regex": "loss=(.*)"}]}
    )
    assert job["TrainingJobStatus"] == "Completed"
    assert job["FinalMetricDataList"][0]["Value"] == 0.5
    messages = log_messages(server, "chatty")
    assert messages[0] == "the beginning"
    assert messages[-1] == "the end"
    assert any("bytes of output are left out here" in message for message in messages)
    assert sum(map(len, messages)) < 400_000
    assert psutil.Process().memory_info().rss - before < 60 * 2**20


def test_job_that_prints_1_gb_completes(server: LocalSageMaker) -> None:
    script = "import sys\nblock = ('x' * 99 + '\\n') * 10_000\nfor _ in range(1000): sys.stdout.write(block)\n"
    before = psutil.Process().memory_info().rss
    assert run_script(server, "gigabyte", script)["TrainingJobStatus"] == "Completed"
    left_out = re.search(r"\[(\d+) bytes of output are left out here\]", read_log(server, "gigabyte"))
    assert left_out
    assert int(left_out[1]) > 0.99e9
    assert psutil.Process().memory_info().rss - before < 100 * 2**20


def test_line_without_end_is_cut_into_events(server: LocalSageMaker) -> None:
    run_script(server, "one-line", "import sys; sys.stdout.write('ä' * 60_000)")
    messages = log_messages(server, "one-line")
    assert "".join(messages).startswith("ä" * 30_000)


def test_slow_regex_is_given_up_and_the_job_goes_on(server: LocalSageMaker) -> None:
    definitions = [{"Name": "evil", "Regex": "(a+)+(a+)+(a+)+$b"}, {"Name": "good", "Regex": "good=([0-9]+)"}]
    job = run_script(
        server, "redos", "print('a' * 5000 + '!'); print('good=3')", specification={"MetricDefinitions": definitions}
    )
    assert job["TrainingJobStatus"] == "Completed"
    assert [each["Value"] for each in job["FinalMetricDataList"]] == [3.0]
    assert "metric evil takes too long" in read_log(server, "redos")


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"TrainingJobName": "-bad-"}, "ValidationException",
         r"1 validation error detected: Value '-bad-' at 'trainingJobName' failed to satisfy constraint: Member must "
         r"satisfy regular expression pattern: "),
        ({"TrainingJobName": "x" * 64}, "ValidationException", "Member must have length less than or equal to 63"),
        ({"RoleArn": "not-an-arn-but-long-enough"}, "ValidationException", "'roleArn' failed to satisfy constraint"),
        ({"ResourceConfig": {"InstanceType": "ml.huge", "InstanceCount": 1, "VolumeSizeInGB": 1}},
         "ValidationException", r"'resourceConfig.instanceType' .* enum value set: \[(ml\.\S+, ){8}\.\.\.\]"),
        ({"ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "KeepAlivePeriodInSeconds": 21601}},
         "ValidationException", "'resourceConfig.keepAlivePeriodInSeconds' .* value less than or equal to 21600"),
        ({"ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 99, "VolumeSizeInGB": 1}},
         "ResourceLimitExceeded", "request delta of 99 Instances"),
        ({"EnableManagedSpotTraining": True}, "ValidationException", "Invalid MaxWaitTimeInSeconds"),
        ({"specification": {"MetricDefinitions": [{"Name": "x", "Regex": "(["}]}}, "ValidationException",
         "Invalid regex '\\(\\[' of metric definition x"),
        ({"specification": {"MetricDefinitions": [{"Name": "x", "Regex": "loss"}]}}, "ValidationException",
         "no capturing group"),
        ({"specification": {"TrainingImage": "my/image"}}, "ValidationException", "Invalid image URI my/image"),
        ({"specification": {"TrainingInputMode": "Pipe"}}, "ValidationException", "Pipe is not supported"),
        ({"HyperParameters": {}}, "ValidationException", "runs no image"),
        ({"InputDataConfig": [_channel("a", "s3://b/c"), _channel("a", "s3://b/c")]}, "ValidationException",
         "more than once"),
        ({"InputDataConfig": [_channel("a", "s3://b/c", S3DataType="AugmentedManifestFile")]}, "ValidationException",
         "AugmentedManifestFile is not supported"),
        ({"CheckpointConfig": {"S3Uri": "s3://b/c", "LocalPath": "/data"}}, "ValidationException", "LocalPath /data"),
    ],
)  # fmt: skip
def test_wrong_request_is_refused_as_aws_does(
    server: LocalSageMaker, client: Any, changes: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(ClientError, match=message) as refused:
        client.create_training_job(**job_request("wrong", "s3://b/source.tar.gz", **changes))
    assert refused.value.response["Error"]["Code"] == code
    assert server.records.list("training-job") == []


def test_name_used_twice_is_in_use(server: LocalSageMaker, client: Any) -> None:
    run_script(server, "twice", "pass")
    with pytest.raises(client.exceptions.ResourceInUse, match="must be unique within an AWS account and region"):
        client.create_training_job(**job_request("twice", "s3://b/source.tar.gz"))


def test_name_that_is_not_there_is_not_found(client: Any) -> None:
    with pytest.raises(ClientError, match="Requested resource not found") as refused:
        client.describe_training_job(TrainingJobName="nobody")
    assert refused.value.response["Error"]["Code"] == "ValidationException"
    with pytest.raises(client.exceptions.ResourceNotFound):
        client.stop_training_job(TrainingJobName="nobody")


def test_web_page_runs_no_job(server: LocalSageMaker) -> None:
    headers = {"X-Amz-Target": "SageMaker.ListTrainingJobs", "Content-Type": "application/x-amz-json-1.1"}
    request = urllib.request.Request(server.url, data=b"{}", headers=headers)
    urllib.request.urlopen(request, timeout=30).close()
    request.add_header("Origin", "http://evil.example")
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(request, timeout=30)
    assert b"AccessDeniedException" in refused.value.read()
    refused.value.close()


@pytest.mark.parametrize(("body", "code"), [(b"not json", "Serialization"), (b"[]", "Serialization")])
def test_body_that_is_no_object_is_refused(server: LocalSageMaker, body: bytes, code: str) -> None:
    headers = {"X-Amz-Target": "SageMaker.ListTrainingJobs", "Content-Type": "application/x-amz-json-1.1"}
    request = urllib.request.Request(server.url, data=body, headers=headers)
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        urllib.request.urlopen(request, timeout=30)
    assert json.loads(refused.value.read())["__type"] == f"{code}Exception"
    refused.value.close()


def test_unsupported_operation_is_named(client: Any) -> None:
    with pytest.raises(ClientError, match="ListAutoMLJobs is not supported by the local SageMaker") as refused:
        client.list_auto_ml_jobs()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"other.py": "pass"}, r"ClientError: s3://.* has no train.py \(sagemaker_program\)"),
        ({"train.py": "pass", "../../evil.py": "pass"}, "ClientError: s3://.* is refused: .*outside"),
        ({"train.py": "pass", "{tmp_path}/evil.py": "pass"}, None),
    ],
    ids=["no-program", "tar-slip", "tar-absolute"],
)
def test_source_archive_stays_in_its_folder(
    server: LocalSageMaker, tmp_path: Path, files: dict[str, str], reason: str | None
) -> None:
    files = {name.format(tmp_path=tmp_path): code for name, code in files.items()}
    server.training.create_training_job(job_request("archive", put_source(server, files)))
    job = wait_ended(server, "archive")
    if reason is None:
        # tarfile takes the leading slash away.
        assert job["TrainingJobStatus"] == "Completed"
    else:
        assert re.match(reason, job["FailureReason"])
    assert not (tmp_path / "evil.py").exists()
    # os.walk and not rglob: the job's own folder may go away meanwhile.
    folders = [Path(folder) for folder, _, names in os.walk(server.root_dir) if "evil.py" in names]
    assert [folder for folder in folders if not folder.is_relative_to(server.root_dir / "jobs")] == []


def test_input_that_is_not_there_fails_the_job(server: LocalSageMaker) -> None:
    job = run_script(server, "no-input", "pass", InputDataConfig=[_channel("train", f"s3://{BUCKET}/nothing/")])
    assert job["TrainingJobStatus"] == "Failed"
    assert "No S3 objects found under S3 URL" in job["FailureReason"]
    job = run_script(server, "no-bucket", "pass", OutputDataConfig={"S3OutputPath": "s3://nobody/x"})
    assert job["FailureReason"].startswith("ClientError: s3://nobody/x/no-bucket/output/model.tar.gz cannot be written")


def test_requirements_are_installed_once_and_never_into_the_runner(server: LocalSageMaker) -> None:
    wheel = make_wheel("rarebreeds")
    script = "import rarebreeds\nprint(rarebreeds.NAME, rarebreeds.__file__)"
    files = {"train.py": script, "requirements.txt": "./rarebreeds-1.0-py3-none-any.whl\n"}
    source = put_source(server, {**files, "rarebreeds-1.0-py3-none-any.whl": wheel})
    for name in ("installs", "finds"):
        server.training.create_training_job(job_request(name, source))
        assert wait_ended(server, name)["TrainingJobStatus"] == "Completed", read_log(server, name)
    first, second = read_log(server, "installs"), read_log(server, "finds")
    assert "pip install" in first
    assert "pip install" not in second
    name, path = second.split()
    assert name == "Xolo"
    assert Path(path).is_relative_to(server.root_dir / "environments")
    with pytest.raises(ImportError):
        __import__("rarebreeds")


def test_requirements_that_cannot_be_installed_fail_the_job(server: LocalSageMaker) -> None:
    source = put_source(server, {"train.py": "pass", "requirements.txt": "./nowhere-1.0-py3-none-any.whl\n"})
    server.training.create_training_job(job_request("cannot", source))
    assert "requirements.txt cannot be installed" in wait_ended(server, "cannot")["FailureReason"]


def test_requirements_are_skipped_where_that_was_asked_for(tmp_path: Path) -> None:
    with LocalSageMaker(tmp_path / "server", settings=Settings(requirements="skip")) as server:
        make_bucket(server)
        source = put_source(server, {"train.py": "pass", "requirements.txt": "nowhere==1.0\n"})
        server.training.create_training_job(job_request("skips", source))
        assert wait_ended(server, "skips")["TrainingJobStatus"] == "Completed"
        assert read_log(server, "skips") == ""


def test_pip_in_a_job_reaches_no_other(server: LocalSageMaker) -> None:
    script = """
import os, subprocess, sys
subprocess.run(["pip", "install", "-q", "--no-index", "--disable-pip-version-check",
                os.path.dirname(os.path.abspath(__file__)) + "/rarebreeds-1.0-py3-none-any.whl"], check=True)
subprocess.run([sys.executable, "-c", "import rarebreeds; print(rarebreeds.NAME)"], check=True)
"""
    source = put_source(server, {"train.py": script, "rarebreeds-1.0-py3-none-any.whl": make_wheel("rarebreeds")})
    server.training.create_training_job(job_request("pips", source))
    assert wait_ended(server, "pips")["TrainingJobStatus"] == "Completed", read_log(server, "pips")
    assert "Xolo" in read_log(server, "pips")
    with pytest.raises(ImportError):
        __import__("rarebreeds")


def test_listing_filters_sorts_and_pages(server: LocalSageMaker, client: Any) -> None:
    source = put_source(server, {"train.py": "import sys; sys.exit(int(sys.argv[-1]))"})
    for number, name in enumerate(("dog-b", "dog-a", "cat-c")):
        server.training.create_training_job(job_request(name, source, hyperparameters={"x": str(number % 2)}))
        wait_ended(server, name)

    def names(**params: Any) -> list[str]:
        check_answer("sagemaker", "ListTrainingJobs", server.training.list_training_jobs(params))
        pages = client.get_paginator("list_training_jobs").paginate(**params)
        return [job["TrainingJobName"] for page in pages for job in page["TrainingJobSummaries"]]

    assert names() == ["dog-b", "dog-a", "cat-c"]
    assert names(SortBy="Name", SortOrder="Descending") == ["dog-b", "dog-a", "cat-c"]
    assert names(NameContains="DOG", MaxResults=1) == ["dog-b", "dog-a"]
    assert names(StatusEquals="Failed") == ["dog-a"]
    assert names(CreationTimeAfter=time.time() + 60) == []
    with pytest.raises(ClientError, match="Invalid pagination token"):
        client.list_training_jobs(NextToken="%%%")


def test_profiler_configuration_round_trips_and_is_updated(server: LocalSageMaker, client: Any) -> None:
    profiler = {"S3OutputPath": f"s3://{BUCKET}/profile", "ProfilingIntervalInMilliseconds": 500}
    image = "895741380848.dkr.ecr.us-west-2.amazonaws.com/sagemaker-debugger-rules:latest"
    rule = {
        "RuleConfigurationName": "ProfilerReport", "RuleEvaluatorImage": image,
        "RuleParameters": {"rule_to_invoke": "ProfilerReport"},
    }  # fmt: skip
    source = put_source(server, {"train.py": SLEEP})
    request = job_request("profiled", source, ProfilerConfig=profiler, ProfilerRuleConfigurations=[rule])
    client.create_training_job(**request)
    wait_for_log(server, "profiled", "ready")
    job = describe(server, "profiled")
    assert (job["ProfilerConfig"], job["ProfilerRuleConfigurations"]) == (profiler, [rule])
    assert job["ProfilingStatus"] == "Enabled"
    client.update_training_job(TrainingJobName="profiled", ProfilerConfig={"DisableProfiler": True})
    assert describe(server, "profiled")["ProfilingStatus"] == "Disabled"
    with pytest.raises(client.exceptions.ResourceInUse):
        client.delete_training_job(TrainingJobName="profiled")
    client.stop_training_job(TrainingJobName="profiled")
    wait_ended(server, "profiled")
    with pytest.raises(ClientError, match="only one InProgress can be updated"):
        client.update_training_job(TrainingJobName="profiled", ProfilerConfig={"DisableProfiler": False})
    client.delete_training_job(TrainingJobName="profiled")
    with pytest.raises(ClientError, match="Requested resource not found"):
        client.describe_training_job(TrainingJobName="profiled")


def test_tags_are_added_listed_and_deleted(server: LocalSageMaker, client: Any) -> None:
    tag, other = {"Key": "team", "Value": "dogs"}, {"Key": "cost", "Value": "none"}
    source = put_source(server, {"train.py": "pass"})
    arn = client.create_training_job(**job_request("Tagged", source, Tags=[tag]))["TrainingJobArn"]
    assert client.add_tags(ResourceArn=arn, Tags=[other, {**tag, "Value": "cats"}])["Tags"][0]["Value"] == "cats"
    client.delete_tags(ResourceArn=arn, TagKeys=["team"])
    assert client.list_tags(ResourceArn=arn)["Tags"] == [other]
    with pytest.raises(ClientError, match="Could not find .*nobody"):
        client.list_tags(ResourceArn=arn.replace("tagged", "nobody"))
    wait_ended(server, "Tagged")


def test_fifty_calls_at_once_are_all_answered(server: LocalSageMaker, client: Any) -> None:
    source = put_source(server, {"train.py": "pass"})

    def create(number: int) -> str:
        try:
            # Every name comes twice: one of each pair must be refused.
            client.create_training_job(**job_request(f"crowd-{number // 2}", source))
        except client.exceptions.ResourceInUse:
            return "in use"
        return "created"

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(create, range(50)))
    assert sorted(answers) == ["created"] * 25 + ["in use"] * 25
    for number in range(25):
        assert wait_ended(server, f"crowd-{number}")["TrainingJobStatus"] == "Completed"


def test_server_that_closes_ends_its_jobs_and_the_next_one_knows(tmp_path: Path) -> None:
    with LocalSageMaker(tmp_path / "server", settings=Settings(num_parallel_jobs=1)) as server:
        make_bucket(server)
        source = put_source(server, {"train.py": "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"})
        for name in ("running", "waiting"):
            server.training.create_training_job(job_request(name, source))
        wait_for_log(server, "running", "\n")
        pid = int(read_log(server, "running"))
    assert not psutil.pid_exists(pid)
    assert list((server.root_dir / "jobs").iterdir()) == []
    with LocalSageMaker(tmp_path / "server") as server:
        for name in ("running", "waiting"):
            job = describe(server, name)
            assert job["TrainingJobStatus"] == "Failed"
            assert "the local SageMaker ended" in job["FailureReason"]


def test_keeper_that_is_killed_takes_its_job_along(server: LocalSageMaker) -> None:
    script = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    server.training.create_training_job(job_request("orphan", put_source(server, {"train.py": script})))
    wait_for_log(server, "orphan", "\n")
    pid = int(read_log(server, "orphan"))
    os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
    assert wait_ended(server, "orphan")["TrainingJobStatus"] == "Failed"
    # Its parent is gone: where nobody else reaps, a zombie is what is left.
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
