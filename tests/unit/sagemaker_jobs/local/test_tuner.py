from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tuningrequest import request

from sagemaker_jobs.local.errors import ValidationException
from sagemaker_jobs.local.shapes import check_request
from sagemaker_jobs.local.tuner import Outcome, Tuner, best_job, count
from sagemaker_jobs.local.tuningplan import parse_plan

Row = dict[str, Any]

ARN = "arn:aws:sagemaker:us-west-2:123456789012:hyper-parameter-tuning-job/tuning"


class InstantJobs:
    """Training jobs in memory: each emits one value of its curve a look, and completes with the last one."""

    def __init__(self, curve: Callable[[int], Sequence[float]], *, failing: Sequence[int] = ()) -> None:
        self._curve, self._failing = curve, failing
        self.requests: list[Row] = []
        self.most_running = 0
        self._jobs: dict[str, Row] = {}

    def create_training_job(self, params: Row, /, *, tuning_job_arn: str | None = None) -> Row:
        check_request("sagemaker", "CreateTrainingJob", params)
        assert tuning_job_arn == ARN
        number = len(self.requests)
        self.requests.append(params)
        self._jobs[params["TrainingJobName"]] = {"number": number, "status": "InProgress", "epochs": 0}
        running = sum(job["status"] == "InProgress" for job in self._jobs.values())
        self.most_running = max(self.most_running, running)
        return {"TrainingJobArn": f"arn:aws:sagemaker:us-west-2:123456789012:training-job/{params['TrainingJobName']}"}

    def describe_training_job(self, params: Row, /) -> Row:
        name = params["TrainingJobName"]
        if name not in self._jobs:
            raise ValidationException("Requested resource not found.")
        job = self._jobs[name]
        if job["status"] == "InProgress":
            self._advance(job)
        emitted = self.metric_values(name, "accuracy")
        metrics = [{"MetricName": "accuracy", "Value": emitted[-1]}] if emitted else []
        reason = {"FailureReason": job["reason"]} if "reason" in job else {}
        return {
            "CreationTime": 1.0, "TrainingStartTime": 2.0, "TrainingJobStatus": job["status"],
            "FinalMetricDataList": metrics, **reason,
        }  # fmt: skip

    def stop_training_job(self, params: Row, /) -> Row:
        job = self._jobs[params["TrainingJobName"]]
        if job["status"] != "InProgress":
            raise ValidationException(f"The job is {job['status']}.")
        job["status"] = "Stopped"
        return {}

    def metric_values(self, job_name: str, metric_name: str, /) -> Sequence[float]:
        assert metric_name == "accuracy"
        if job_name not in self._jobs:
            return []
        job = self._jobs[job_name]
        return list(self._curve(job["number"]))[: job["epochs"]]

    def forget(self, number: int) -> None:
        del self._jobs[self.requests[number]["TrainingJobName"]]

    def statuses(self) -> list[str]:
        return [job["status"] for job in self._jobs.values()]

    def _advance(self, job: Row) -> None:
        curve = self._curve(job["number"])
        if job["epochs"] < len(curve):
            job["epochs"] += 1
        elif job["number"] in self._failing:
            job.update(status="Failed", reason="AlgorithmError: exit code 1")
        else:
            job["status"] = "Completed"


def run(
    jobs: InstantJobs,
    config: Row | None = None,
    definition: Row | None = None,
    *,
    clock: Callable[[], float] = lambda: 100.0,
    stop_at: int | None = None,
) -> tuple[Outcome | None, Row]:
    """Steps until the end, or 200 times; the outcome and the record."""
    saved: list[Row] = []
    tuner = Tuner(parse_plan(request(config, definition)), jobs, arn=ARN, save=saved.append, clock=clock)
    for index in range(200):
        outcome = tuner.step(stop=stop_at is not None and index >= stop_at)
        if outcome is not None:
            return outcome, saved[-1]
    return None, saved[-1]


def limits(num_jobs: int, num_parallel: int) -> Row:
    return {"ResourceLimits": {"MaxNumberOfTrainingJobs": num_jobs, "MaxParallelTrainingJobs": num_parallel}}


def rising(number: int) -> list[float]:
    return [0.1 * number, 0.2 * number]


def test_tuner_runs_all_jobs_and_finds_the_best() -> None:
    jobs = InstantJobs(rising)
    outcome, record = run(jobs, limits(5, 2))

    assert outcome == "Completed"
    assert (len(jobs.requests), jobs.most_running) == (5, 2)
    assert record["TrainingJobStatusCounters"] == {
        "Completed": 5, "InProgress": 0, "RetryableError": 0, "NonRetryableError": 0, "Stopped": 0
    }  # fmt: skip
    assert record["ObjectiveStatusCounters"] == {"Succeeded": 5, "Pending": 0, "Failed": 0}
    best = record["BestTrainingJob"]
    assert best["TrainingJobName"] == jobs.requests[4]["TrainingJobName"]
    assert best["FinalHyperParameterTuningJobObjectiveMetric"] == {
        "Type": "Maximize", "MetricName": "accuracy", "Value": pytest.approx(0.8)
    }  # fmt: skip
    assert record["OverallBestTrainingJob"] == {**best, "TuningJobName": "tuning"}


def test_tuner_hands_each_job_its_values() -> None:
    jobs = InstantJobs(rising)
    _, record = run(jobs, limits(3, 1))

    for number, (made, summary) in enumerate(zip(jobs.requests, record["Jobs"], strict=True)):
        assert made["TrainingJobName"].startswith(f"tuning-{number + 1:03d}-")
        assert summary["TunedHyperParameters"] == {"lr": made["HyperParameters"]["lr"]}
        assert made["HyperParameters"]["epochs"] == "9"
        assert made["HyperParameters"]["_tuning_objective_metric"] == "accuracy"
        assert summary["TrainingStartTime"] == 2.0


def test_tuner_minimizes_where_it_is_asked_to() -> None:
    objective = {"HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "accuracy"}}
    jobs = InstantJobs(lambda number: [1.0 + abs(number - 2)])
    _, record = run(jobs, limits(5, 1) | objective)

    assert record["BestTrainingJob"]["TrainingJobName"] == jobs.requests[2]["TrainingJobName"]


def test_failed_jobs_do_not_end_the_tuning_job() -> None:
    outcome, record = run(InstantJobs(rising, failing=(0, 1, 4)), limits(5, 2))

    assert outcome == "Completed"
    assert record["TrainingJobStatusCounters"]["NonRetryableError"] == 3
    assert record["ObjectiveStatusCounters"] == {"Succeeded": 2, "Pending": 0, "Failed": 3}
    # Job 4 had the highest value before it failed.
    assert record["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == pytest.approx(0.6)


def test_tuning_job_fails_when_all_its_jobs_do() -> None:
    outcome, record = run(InstantJobs(rising, failing=range(3)), limits(3, 3))

    assert outcome == "Failed"
    assert record["FailureReason"].startswith("All training jobs failed.")
    assert "BestTrainingJob" not in record


def test_tuning_job_fails_when_no_job_emits_the_metric() -> None:
    outcome, record = run(InstantJobs(lambda _: []), limits(3, 1))

    assert outcome == "Failed"
    assert record["FailureReason"].startswith("No objective metrics found after running 3 training jobs.")
    assert record["ObjectiveStatusCounters"]["Failed"] == 3


def test_stop_stops_the_running_jobs_and_launches_no_more() -> None:
    jobs = InstantJobs(lambda _: [0.5] * 50)
    outcome, record = run(jobs, limits(9, 2), stop_at=3)

    assert outcome == "Stopped"
    assert jobs.statuses() == ["Stopped", "Stopped"]
    assert record["TrainingJobStatusCounters"]["Stopped"] == 2
    assert record["ObjectiveStatusCounters"]["Succeeded"] == 2


def test_reached_target_completes_the_tuning_job() -> None:
    jobs = InstantJobs(lambda number: [0.2 * number] * (1 if number < 5 else 60))
    criteria = {"TuningJobCompletionCriteria": {"TargetObjectiveMetricValue": 0.79}}
    outcome, record = run(jobs, limits(9, 2) | criteria)

    assert outcome == "Completed"
    assert record["TrainingJobStatusCounters"]["Completed"] == 5
    # One was running beside the one that reached it.
    assert record["TrainingJobStatusCounters"]["Stopped"] == 1
    assert len(jobs.requests) == 6


def test_no_improvement_completes_the_tuning_job() -> None:
    criteria = {
        "TuningJobCompletionCriteria": {"BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 3}}
    }
    outcome, record = run(InstantJobs(lambda _: [0.5]), limits(9, 1) | criteria)

    assert (outcome, len(record["Jobs"])) == ("Completed", 4)
    assert record["TuningJobCompletionDetails"] == {"NumberOfTrainingJobsObjectiveNotImproving": 3}


def test_convergence_is_reported_and_completes_only_where_asked_to() -> None:
    enabled = {"TuningJobCompletionCriteria": {"ConvergenceDetected": {"CompleteOnConvergence": "Enabled"}}}
    outcome, record = run(InstantJobs(lambda _: [0.5]), limits(15, 1) | enabled)
    whole, details = run(InstantJobs(lambda _: [0.5]), limits(15, 1))

    assert (outcome, len(record["Jobs"])) == ("Completed", 11)
    assert (whole, len(details["Jobs"])) == ("Completed", 15)
    assert details["TuningJobCompletionDetails"]["ConvergenceDetectedTime"] == 100.0


def test_max_runtime_completes_the_tuning_job() -> None:
    now = iter(range(1000))
    runtime = {"ResourceLimits": {"MaxParallelTrainingJobs": 1, "MaxRuntimeInSeconds": 120}}
    outcome, record = run(InstantJobs(lambda _: [0.5] * 20), runtime, clock=lambda: float(next(now)))

    assert outcome == "Completed"
    assert record["TrainingJobStatusCounters"]["Stopped"] == 1
    assert record["TrainingJobStatusCounters"]["Completed"] >= 1


def test_early_stopping_stops_a_job_below_the_median() -> None:
    jobs = InstantJobs(lambda number: [0.9 if number < 3 else 0.1] * 8)
    outcome, record = run(jobs, limits(4, 1) | {"TrainingJobEarlyStoppingType": "Auto"})
    _, without = run(InstantJobs(lambda number: [0.9 if number < 3 else 0.1] * 8), limits(4, 1))

    assert outcome == "Completed"
    assert jobs.statuses() == ["Completed", "Completed", "Completed", "Stopped"]
    assert record["Jobs"][3]["ObjectiveStatus"] == "Succeeded"
    assert without["TrainingJobStatusCounters"]["Completed"] == 4


def test_hyperband_stops_jobs_and_finds_the_best() -> None:
    config = {"Strategy": "Hyperband", "StrategyConfig": {"HyperbandStrategyConfig": {"MaxResource": 9}}}
    jobs = InstantJobs(lambda number: [1.0 - 0.05 * number] * 9)
    outcome, record = run(jobs, limits(18, 9) | config)

    assert outcome == "Completed"
    assert record["TrainingJobStatusCounters"]["Stopped"] > 0
    assert record["BestTrainingJob"]["TrainingJobName"] == jobs.requests[0]["TrainingJobName"]
    assert jobs.statuses()[0] == "Completed"


def test_grid_runs_every_combination() -> None:
    ranges = {
        "CategoricalParameterRanges": [{"Name": "a", "Values": ["1", "2"]}, {"Name": "b", "Values": ["x", "y", "z"]}]
    }
    grid = {
        "Strategy": "Grid", "ParameterRanges": ranges, "ResourceLimits": {"MaxParallelTrainingJobs": 4}
    }  # fmt: skip
    outcome, record = run(InstantJobs(rising), grid)

    assert outcome == "Completed"
    tried = {(job["TunedHyperParameters"]["a"], job["TunedHyperParameters"]["b"]) for job in record["Jobs"]}
    assert (len(tried), len(record["Jobs"])) == (6, 6)


def test_refused_training_job_fails_the_tuning_job() -> None:
    class Refusing(InstantJobs):
        def create_training_job(self, params: Row, /, *, tuning_job_arn: str | None = None) -> Row:
            if len(self.requests) == 2:
                raise ValidationException("No such image.")
            return super().create_training_job(params, tuning_job_arn=tuning_job_arn)

    jobs = Refusing(lambda _: [0.5] * 50)
    outcome, record = run(jobs, limits(9, 4))

    assert outcome == "Failed"
    assert "was refused: ValidationException: No such image." in record["FailureReason"]
    assert jobs.statuses() == ["Stopped", "Stopped"]


def test_job_that_is_deleted_while_it_runs_counts_as_failed() -> None:
    class Vanishing(InstantJobs):
        def describe_training_job(self, params: Row, /) -> Row:
            if len(self.requests) == 2 and len(self._jobs) == 2:
                self.forget(1)
            return super().describe_training_job(params)

    outcome, record = run(Vanishing(rising), limits(2, 2))

    assert outcome == "Completed"
    assert record["Jobs"][1]["TrainingJobStatus"] == "Failed"
    assert "The job is gone" in record["Jobs"][1]["FailureReason"]


def summary(status: str, objective: str, value: float | None = None, reason: str | None = None) -> Row:
    metric = {"FinalHyperParameterTuningJobObjectiveMetric": {"MetricName": "m", "Value": value}} if value else {}
    failure = {"FailureReason": reason} if reason else {}
    return {"TrainingJobStatus": status, "ObjectiveStatus": objective, **metric, **failure}


def test_counters_tell_errors_apart() -> None:
    counters = count(
        [
            summary("Failed", "Failed", reason="InternalServerError: the disk is full"),
            summary("Failed", "Failed", reason="AlgorithmError: exit code 1"),
            summary("Stopping", "Pending"),
            summary("InProgress", "Pending"),
            summary("Stopped", "Succeeded", 0.5),
        ]
    )

    assert counters["TrainingJobStatusCounters"] == {
        "Completed": 0, "InProgress": 2, "RetryableError": 1, "NonRetryableError": 1, "Stopped": 1
    }  # fmt: skip
    assert counters["ObjectiveStatusCounters"] == {"Succeeded": 1, "Pending": 2, "Failed": 2}


def test_best_job_is_the_first_of_the_best() -> None:
    summaries = [
        summary("Completed", "Succeeded", 0.5),
        summary("Stopped", "Succeeded", 0.9),
        summary("Completed", "Succeeded", 0.9),
        summary("Failed", "Failed"),
    ]

    assert best_job(summaries, maximize=True) is summaries[1]
    assert best_job(summaries, maximize=False) is summaries[0]
    assert best_job([summaries[3]], maximize=True) is None
