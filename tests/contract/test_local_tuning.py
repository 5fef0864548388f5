"""Tuning jobs of the local SageMaker as a boto3 client sees them, with real training jobs under them."""

import io
import json
import os
import signal
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError
from tuningscript import BUCKET, tuning_request, upload_script

from sagemaker_jobs.local.service import LocalSageMaker, Settings
from sagemaker_jobs.local.shapes import check_answer
from sagemaker_jobs.local.tuner import ENDED

DEADLINE_S = 60.0
SETTINGS = Settings(num_parallel_jobs=4, stop_grace_s=1.0, environment={"PATH": os.environ["PATH"]})


class Tuning:
    """A client, with the waiting that each test needs."""

    def __init__(self, server: LocalSageMaker) -> None:
        self.server = server
        self.session = boto3.session.Session(
            aws_access_key_id="local", aws_secret_access_key="local", region_name="us-west-2"
        )
        self.client = self.session.client("sagemaker", endpoint_url=server.url)
        self.s3 = self.session.client("s3", endpoint_url=server.url)
        self.program = upload_script(self.s3)

    def create(self, name: str, **changes: Any) -> str:
        made = tuning_request(name, self.program, **changes)
        return str(self.client.create_hyper_parameter_tuning_job(**made)["HyperParameterTuningJobArn"])

    def describe(self, name: str) -> Any:
        return self.client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)

    def wait(self, name: str) -> Any:
        """The description once the tuning job has ended."""
        return self.until(name, lambda: self.describe(name)["HyperParameterTuningJobStatus"] in ENDED)

    def until(self, name: str, condition: Any) -> Any:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, self.describe(name)
            time.sleep(0.02)
        return self.describe(name)

    def jobs(self, name: str, **params: Any) -> list[Any]:
        pages = self.client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
            HyperParameterTuningJobName=name, **params
        )
        return [job for page in pages for job in page["TrainingJobSummaries"]]

    def close(self) -> None:
        self.client.close()
        self.s3.close()


@pytest.fixture(scope="module")
def tuning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuning]:
    with LocalSageMaker(tmp_path_factory.mktemp("sagemaker"), settings=SETTINGS) as server:
        tuning = Tuning(server)
        yield tuning
        tuning.close()


def tuned_lr(job: Any) -> float:
    return float(job["TunedHyperParameters"]["lr"])


def value(job: Any) -> float:
    return float(job["FinalHyperParameterTuningJobObjectiveMetric"]["Value"])


def refusal(call: Any, **params: Any) -> tuple[str, str]:
    with pytest.raises(ClientError) as caught:
        call(**params)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


def test_bayesian_tuning_job_trains_and_finds_the_best(tuning: Tuning) -> None:
    arn = tuning.create("bayes", jobs=5, config={"Strategy": "Bayesian"}, static={"epochs": "2"})
    description = tuning.wait("bayes")

    assert arn == description["HyperParameterTuningJobArn"]
    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"]["Completed"] == 5
    assert description["ObjectiveStatusCounters"] == {"Succeeded": 5, "Pending": 0, "Failed": 0}
    jobs = tuning.jobs("bayes")
    best = description["BestTrainingJob"]
    assert value(best) == max(value(job) for job in jobs)
    assert best["TrainingJobName"] == description["OverallBestTrainingJob"]["TrainingJobName"]
    # What the best one was told, what it made, and what it said agree.
    trained = tuning.client.describe_training_job(TrainingJobName=best["TrainingJobName"])
    assert trained["HyperParameters"]["lr"] == best["TunedHyperParameters"]["lr"]
    assert trained["HyperParameters"]["_tuning_objective_metric"] == "accuracy"
    assert trained["TuningJobArn"] == arn
    uri = trained["ModelArtifacts"]["S3ModelArtifacts"]
    archive = tuning.s3.get_object(Bucket=BUCKET, Key=uri.removeprefix(f"s3://{BUCKET}/"))["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile("lr.txt")
        assert member is not None
        assert float(member.read()) == tuned_lr(best)
    assert trained["FinalMetricDataList"][0]["Value"] == pytest.approx(value(best))


def test_description_is_what_was_asked_for(tuning: Tuning) -> None:
    tags = [{"Key": "run", "Value": "abc"}]
    made = tuning_request("echo", tuning.program, jobs=1, parallel=1) | {"Tags": tags}
    tuning.client.create_hyper_parameter_tuning_job(**made)
    running = tuning.server.tuning.describe_hyper_parameter_tuning_job({"HyperParameterTuningJobName": "echo"})
    check_answer("sagemaker", "DescribeHyperParameterTuningJob", running)
    description = tuning.wait("echo")

    check_answer(
        "sagemaker",
        "DescribeHyperParameterTuningJob",
        tuning.server.tuning.describe_hyper_parameter_tuning_job({"HyperParameterTuningJobName": "echo"}),
    )
    arn = description["HyperParameterTuningJobArn"]
    tuning.client.add_tags(ResourceArn=arn, Tags=[{"Key": "more", "Value": "1"}])
    assert tuning.client.list_tags(ResourceArn=arn)["Tags"] == [*tags, {"Key": "more", "Value": "1"}]
    assert tuning.client.list_tags(ResourceArn=tuning.jobs("echo")[0]["TrainingJobArn"])["Tags"] == tags
    assert description["HyperParameterTuningJobConfig"] == made["HyperParameterTuningJobConfig"]
    assert description["TrainingJobDefinition"] == made["TrainingJobDefinition"]
    assert description["HyperParameterTuningEndTime"] >= description["CreationTime"]
    assert description["ConsumedResources"]["RuntimeInSeconds"] >= 0


def test_parallel_jobs_run_side_by_side_and_no_more_than_that(tuning: Tuning) -> None:
    tuning.create("parallel", jobs=5, parallel=2, static={"pause": "0.3"})
    most = 0
    while tuning.describe("parallel")["HyperParameterTuningJobStatus"] not in ENDED:
        most = max(most, tuning.describe("parallel")["TrainingJobStatusCounters"]["InProgress"])

    spans = sorted((job["TrainingStartTime"], job["TrainingEndTime"]) for job in tuning.jobs("parallel"))
    assert most == 2
    assert any(start < end for (_, end), (start, _) in pairwise(spans))


def test_random_seed_gives_the_same_values_again(tuning: Tuning) -> None:
    for name in ("seed-a", "seed-b"):
        tuning.create(name, jobs=3, parallel=1, config={"RandomSeed": 11})
    values = []
    for name in ("seed-a", "seed-b"):
        tuning.wait(name)
        values.append([job["TunedHyperParameters"] for job in tuning.jobs(name)])

    assert values[0] == values[1]


def test_grid_tuning_job_tries_every_combination(tuning: Tuning) -> None:
    ranges = {
        "CategoricalParameterRanges": [
            {"Name": "lr", "Values": ["0.01", "0.1"]},
            {"Name": "name", "Values": ["a", "b"]},
        ]
    }
    grid = {"Strategy": "Grid", "ParameterRanges": ranges, "ResourceLimits": {"MaxParallelTrainingJobs": 2}}
    tuning.create("grid", config=grid)
    description = tuning.wait("grid")

    tried = {(job["TunedHyperParameters"]["lr"], job["TunedHyperParameters"]["name"]) for job in tuning.jobs("grid")}
    assert tried == {("0.01", "a"), ("0.01", "b"), ("0.1", "a"), ("0.1", "b")}
    assert tuned_lr(description["BestTrainingJob"]) == 0.01


def test_integer_and_categorical_ranges_reach_the_script(tuning: Tuning) -> None:
    ranges = {
        "IntegerParameterRanges": [{"Name": "epochs", "MinValue": "1", "MaxValue": "3", "ScalingType": "Linear"}],
        "ContinuousParameterRanges": [
            {"Name": "lr", "MinValue": "0.001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
        ],
        "CategoricalParameterRanges": [{"Name": "name", "Values": ["x y", '"quoted"']}],
    }
    tuning.create("ranges", jobs=3, config={"ParameterRanges": ranges, "Strategy": "Random"})
    description = tuning.wait("ranges")

    assert description["TrainingJobStatusCounters"]["Completed"] == 3
    for job in tuning.jobs("ranges"):
        assert job["TunedHyperParameters"]["epochs"] in ("1", "2", "3")
        assert 0.001 <= tuned_lr(job) <= 0.1


def test_failed_training_jobs_leave_the_others(tuning: Tuning) -> None:
    lrs = {"CategoricalParameterRanges": [{"Name": "lr", "Values": ["0.01", "0.1", "0.2"]}]}
    grid = {"Strategy": "Grid", "ParameterRanges": lrs, "ResourceLimits": {"MaxParallelTrainingJobs": 1}}
    tuning.create("some-fail", config=grid, static={"fail-above": "0.05"})
    description = tuning.wait("some-fail")

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert description["TrainingJobStatusCounters"]["NonRetryableError"] == 2
    assert description["ObjectiveStatusCounters"] == {"Succeeded": 1, "Pending": 0, "Failed": 2}
    failed = tuning.jobs("some-fail", StatusEquals="Failed")
    assert ["is too high" in job["FailureReason"] for job in failed] == [True, True]
    # They emitted values, but nobody may choose them.
    assert all("FinalHyperParameterTuningJobObjectiveMetric" not in job for job in failed)


def test_tuning_job_fails_when_every_training_job_fails(tuning: Tuning) -> None:
    tuning.create("all-fail", jobs=2, static={"fail-above": "0"})
    description = tuning.wait("all-fail")

    assert description["HyperParameterTuningJobStatus"] == "Failed"
    assert description["FailureReason"].startswith("All training jobs failed.")
    assert "BestTrainingJob" not in description


def test_tuning_job_fails_when_nothing_emits_the_objective(tuning: Tuning) -> None:
    tuning.create("silent", jobs=2, static={"quiet": "1"})
    description = tuning.wait("silent")

    assert description["HyperParameterTuningJobStatus"] == "Failed"
    assert description["FailureReason"].startswith("No objective metrics found after running 2 training jobs.")


def test_early_stopping_stops_a_job_that_lags_behind(tuning: Tuning) -> None:
    # RandomSeed 5 orders the grid so that the hopeless one is last: three jobs have set the standard by then.
    shift = {"CategoricalParameterRanges": [{"Name": "shift", "Values": ["0", "0.001", "0.002", "-0.99"]}]}
    made = tuning_request(
        "median",
        tuning.program,
        static={"epochs": "6"},
        config={
            "Strategy": "Grid", "ParameterRanges": shift, "TrainingJobEarlyStoppingType": "Auto", "RandomSeed": 5,
            "ResourceLimits": {"MaxParallelTrainingJobs": 1},
        },
    )  # fmt: skip
    tuning.client.create_hyper_parameter_tuning_job(**made)
    description = tuning.wait("median")
    order = [job["TunedHyperParameters"]["shift"] for job in tuning.jobs("median")]

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert order[-1] == "-0.99"
    stopped = tuning.jobs("median", StatusEquals="Stopped")
    assert [job["TunedHyperParameters"]["shift"] for job in stopped] == ["-0.99"]
    assert stopped[0]["ObjectiveStatus"] == "Succeeded"


def test_hyperband_stops_the_weak_early(tuning: Tuning) -> None:
    config = {
        "Strategy": "Hyperband",
        "StrategyConfig": {"HyperbandStrategyConfig": {"MinResource": 1, "MaxResource": 9}},
    }
    tuning.create("hyperband", jobs=9, parallel=4, config=config, static={"epochs": "9", "pause": "0.1"})
    description = tuning.wait("hyperband")

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    counters = description["TrainingJobStatusCounters"]
    assert counters["Stopped"] > 0
    assert counters["Stopped"] + counters["Completed"] == 9
    assert value(description["BestTrainingJob"]) == max(value(job) for job in tuning.jobs("hyperband"))


def test_target_completes_the_tuning_job_and_stops_what_runs(tuning: Tuning) -> None:
    criteria = {"TuningJobCompletionCriteria": {"TargetObjectiveMetricValue": 0.0}}
    tuning.create("target", jobs=30, parallel=2, config=criteria, static={"pause": "0.1"})
    description = tuning.wait("target")

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    assert sum(description["TrainingJobStatusCounters"].values()) < 6


def test_stop_ends_the_running_jobs_and_starts_no_more(tuning: Tuning) -> None:
    tuning.create("stopped", jobs=20, parallel=2, static={"epochs": "1000", "pause": "0.1"})
    tuning.until("stopped", lambda: len([job for job in tuning.jobs("stopped") if "TrainingStartTime" in job]) == 2)
    tuning.client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="stopped")

    assert tuning.describe("stopped")["HyperParameterTuningJobStatus"] in ("Stopping", "Stopped")
    description = tuning.wait("stopped")
    assert description["HyperParameterTuningJobStatus"] == "Stopped"
    assert description["TrainingJobStatusCounters"]["Stopped"] == 2
    for job in tuning.jobs("stopped"):
        trained = tuning.client.describe_training_job(TrainingJobName=job["TrainingJobName"])
        assert trained["TrainingJobStatus"] == "Stopped"
    code, message = refusal(tuning.client.stop_hyper_parameter_tuning_job, HyperParameterTuningJobName="stopped")
    assert (code, "in status Stopped" in message) == ("ValidationException", True)


def test_training_jobs_of_a_tuning_job_are_listed_sorted_and_in_pages(tuning: Tuning) -> None:
    lrs = {"CategoricalParameterRanges": [{"Name": "lr", "Values": ["0.01", "0.1", "1", "0.5"]}]}
    grid = {"Strategy": "Grid", "ParameterRanges": lrs, "ResourceLimits": {"MaxParallelTrainingJobs": 2}}
    tuning.create("listed", config=grid, static={"fail-above": "0.9"})
    tuning.wait("listed")

    best_first = tuning.jobs("listed", SortBy="FinalObjectiveMetricValue", SortOrder="Descending")
    # The failed one has no value, and is left out.
    assert [tuned_lr(job) for job in best_first] == [0.01, 0.1, 0.5]
    names = [job["TrainingJobName"] for job in tuning.jobs("listed")]
    assert names == sorted(names)
    assert [job["TrainingJobName"] for job in tuning.jobs("listed", SortOrder="Descending")] == names[::-1]
    created = [job["CreationTime"] for job in tuning.jobs("listed", SortBy="CreationTime")]
    assert created == sorted(created)
    statuses = [job["TrainingJobStatus"] for job in tuning.jobs("listed", SortBy="Status")]
    assert statuses == ["Completed"] * 3 + ["Failed"]
    assert len(tuning.jobs("listed", StatusEquals="Completed")) == 3
    paged = tuning.client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job").paginate(
        HyperParameterTuningJobName="listed", MaxResults=3
    )
    assert [[job["TrainingJobName"] for job in page["TrainingJobSummaries"]] for page in paged] == [
        names[:3],
        names[3:],
    ]
    answer = tuning.server.tuning.list_training_jobs_for_hyper_parameter_tuning_job(
        {"HyperParameterTuningJobName": "listed"}
    )
    check_answer("sagemaker", "ListTrainingJobsForHyperParameterTuningJob", answer)


def test_tuning_jobs_are_listed_by_name_status_and_time(tuning: Tuning) -> None:
    for name in ("books-b", "books-a"):
        tuning.create(name, jobs=1, parallel=1)
        tuning.wait(name)

    def names(**params: Any) -> list[str]:
        answer = tuning.client.list_hyper_parameter_tuning_jobs(NameContains="books", **params)
        return [job["HyperParameterTuningJobName"] for job in answer["HyperParameterTuningJobSummaries"]]

    assert names() == ["books-a", "books-b"]
    assert names(SortBy="CreationTime", SortOrder="Descending") == ["books-a", "books-b"]
    assert names(SortBy="CreationTime") == ["books-b", "books-a"]
    assert names(StatusEquals="InProgress") == []
    created = tuning.describe("books-b")["CreationTime"]
    # boto3 sends whole seconds.
    assert names(CreationTimeAfter=created + timedelta(minutes=1)) == []
    assert names(CreationTimeAfter=created - timedelta(minutes=1)) == ["books-a", "books-b"]
    check_answer("sagemaker", "ListHyperParameterTuningJobs", tuning.server.tuning.list_hyper_parameter_tuning_jobs({}))


def test_deleted_tuning_job_leaves_its_training_jobs(tuning: Tuning) -> None:
    tuning.create("deleted", jobs=1, parallel=1, static={"epochs": "1000", "pause": "0.1"})
    delete = tuning.client.delete_hyper_parameter_tuning_job
    code, message = refusal(delete, HyperParameterTuningJobName="deleted")
    assert (code, "stop it first" in message) == ("ValidationException", True)
    tuning.client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName="deleted")
    tuning.wait("deleted")
    (job,) = tuning.jobs("deleted")
    delete(HyperParameterTuningJobName="deleted")

    assert refusal(tuning.describe, name="deleted")[0] == "ResourceNotFound"
    assert tuning.client.describe_training_job(TrainingJobName=job["TrainingJobName"])
    tuning.create("deleted", jobs=1, parallel=1)
    assert tuning.wait("deleted")["HyperParameterTuningJobStatus"] == "Completed"


def test_wrong_requests_get_the_errors_of_aws(tuning: Tuning) -> None:
    create = tuning.client.create_hyper_parameter_tuning_job
    tuning.create("taken", jobs=1, parallel=1)

    code, message = refusal(create, **tuning_request("taken", tuning.program))
    assert (code, "already exists" in message) == ("ResourceInUse", True)
    code, message = refusal(create, **tuning_request("a_b", tuning.program))
    assert code == "ValidationException"
    assert "'a_b' at 'hyperParameterTuningJobName' failed to satisfy constraint" in message
    code, message = refusal(create, **tuning_request("x" * 33, tuning.program))
    assert (code, "length less than or equal to 32" in message) == ("ValidationException", True)
    code, message = refusal(create, **tuning_request("enum", tuning.program, config={"Strategy": "Guess"}))
    assert (code, "enum value set" in message) == ("ValidationException", True)
    code, _ = refusal(create, **tuning_request("quota", tuning.program, jobs=10_000))
    assert code == "ResourceLimitExceeded"
    for call in (
        tuning.client.describe_hyper_parameter_tuning_job,
        tuning.client.stop_hyper_parameter_tuning_job,
        tuning.client.delete_hyper_parameter_tuning_job,
        tuning.client.list_training_jobs_for_hyper_parameter_tuning_job,
    ):
        assert refusal(call, HyperParameterTuningJobName="nobody")[0] == "ResourceNotFound"
    tuning.wait("taken")


def test_one_of_many_calls_at_once_gets_the_name(tuning: Tuning) -> None:
    def create(_: int) -> str:
        try:
            tuning.create("contested", jobs=1, parallel=1)
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return "created"

    with ThreadPoolExecutor(max_workers=20) as pool:
        answers = list(pool.map(create, range(20)))

    assert sorted(set(answers)) == ["ResourceInUse", "created"]
    assert answers.count("created") == 1
    assert tuning.wait("contested")["TrainingJobStatusCounters"]["Completed"] == 1


def test_tuning_jobs_side_by_side_all_end(tuning: Tuning) -> None:
    names = [f"beside-{number}" for number in range(8)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(lambda name: tuning.create(name, jobs=2, parallel=2), names))

    for name in names:
        assert tuning.wait(name)["ObjectiveStatusCounters"] == {"Succeeded": 2, "Pending": 0, "Failed": 0}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("TrainingJobDefinitions", {"TrainingJobDefinitions": [tuning_request("any", {})["TrainingJobDefinition"]]}),
        ("Autotune", {"Autotune": {"Mode": "Enabled"}}),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tuning: Tuning, name: str, more: dict[str, Any]) -> None:
    made = tuning_request("unsupported", tuning.program) | more

    code, message = refusal(tuning.client.create_hyper_parameter_tuning_job, **made)
    assert code == "ValidationException"
    assert message.startswith(f"{name} is not supported")
    assert refusal(tuning.describe, name="unsupported")[0] == "ResourceNotFound"


def test_killed_training_job_leaves_the_tuning_job_going(tuning: Tuning) -> None:
    tuning.create("killed", jobs=2, parallel=1, static={"epochs": "5", "pause": "0.2"})
    tuning.until("killed", lambda: any(_script_processes()))
    for process in _script_processes():
        process.send_signal(signal.SIGKILL)
    description = tuning.wait("killed")

    assert description["HyperParameterTuningJobStatus"] == "Completed"
    counters = description["TrainingJobStatusCounters"]
    assert (counters["Completed"], counters["NonRetryableError"] + counters["RetryableError"]) == (1, 1)


def _script_processes() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            # The keeper names the script too; its child is the one that runs it.
            if "train.py" in " ".join(child.cmdline()) and "keeper.py" not in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_tuning_job_that_runs_when_the_server_ends_is_failed_for_the_next_one(tmp_path: Path) -> None:
    with LocalSageMaker(tmp_path, settings=SETTINGS) as server:
        first = Tuning(server)
        first.create("cut", jobs=9, parallel=2, static={"epochs": "1000", "pause": "0.1"})
        first.until("cut", lambda: any(_script_processes()))
        first.close()
    record = json.loads((tmp_path / "records" / "hyper-parameter-tuning-job" / "cut.json").read_text())
    assert record["HyperParameterTuningJobStatus"] == "Failed"
    assert not _script_processes()
    # As kill -9 of the server leaves it.
    for changed in ("HyperParameterTuningEndTime", "FailureReason"):
        del record[changed]
    record["HyperParameterTuningJobStatus"] = "InProgress"
    record["Jobs"][0].update(TrainingJobStatus="InProgress", ObjectiveStatus="Pending")
    (tmp_path / "records" / "hyper-parameter-tuning-job" / "cut.json").write_text(json.dumps(record))
    with LocalSageMaker(tmp_path, settings=SETTINGS) as server:
        second = Tuning(server)
        description = second.describe("cut")
        jobs = second.jobs("cut")
        second.close()

    assert description["HyperParameterTuningJobStatus"] == "Failed"
    assert "server" in description["FailureReason"] or "SageMaker ended" in description["FailureReason"]
    assert description["TrainingJobStatusCounters"]["InProgress"] == 0
    assert {job["TrainingJobStatus"] for job in jobs} == {"Failed"}


def _warm(kind: str, *parents: str) -> dict[str, Any]:
    named = [{"HyperParameterTuningJobName": name} for name in parents]
    return {"WarmStartConfig": {"ParentHyperParameterTuningJobs": named, "WarmStartType": kind}}


def test_warm_start_goes_on_from_its_parents(tuning: Tuning) -> None:
    create = tuning.client.create_hyper_parameter_tuning_job
    # The parent of four sees the best value, which one more job is most unlikely to beat.
    lrs = {"CategoricalParameterRanges": [{"Name": "lr", "Values": ["0.01", "0.1", "1"]}]}
    config = {"Strategy": "Random", "ParameterRanges": lrs}
    tuning.create("parent", jobs=4, parallel=2, config=config)
    refused = tuning_request("child", tuning.program, jobs=1, parallel=1, config=config)
    code, message = refusal(create, **refused, **_warm("IdenticalDataAndAlgorithm", "parent"))
    assert (code, "a parent must be Completed, Failed or Stopped" in message) == ("ValidationException", True)
    parent = tuning.wait("parent")
    bayesian = tuning_request(
        "child", tuning.program, jobs=1, parallel=1, config={**config, "Strategy": "Bayesian"}, static={}
    )
    create(**bayesian, **_warm("IdenticalDataAndAlgorithm", "parent"))
    child = tuning.wait("child")

    assert child["WarmStartConfig"] == _warm("IdenticalDataAndAlgorithm", "parent")["WarmStartConfig"]
    best = max((parent["BestTrainingJob"], child["BestTrainingJob"]), key=value)
    overall = child["OverallBestTrainingJob"]
    assert (overall["TrainingJobName"], value(overall)) == (best["TrainingJobName"], value(best))
    assert overall["TuningJobName"] == ("parent" if best == parent["BestTrainingJob"] else "child")
    answer = tuning.server.tuning.describe_hyper_parameter_tuning_job({"HyperParameterTuningJobName": "child"})
    check_answer("sagemaker", "DescribeHyperParameterTuningJob", answer)
    # Other ranges, in part the parents' own.
    moved = {"CategoricalParameterRanges": [{"Name": "lr", "Values": ["0.01", "0.02"]}]}
    made = tuning_request(
        "moved", tuning.program, jobs=1, parallel=1, config={"Strategy": "Bayesian", "ParameterRanges": moved}
    )
    create(**made, **_warm("TransferLearning", "parent", "child"))
    assert "OverallBestTrainingJob" not in tuning.wait("moved")
