from typing import Any

import pytest
from tuningrequest import PROGRAM, request

from sagemaker_jobs.local.errors import ResourceLimitExceeded, ServiceError, ValidationException
from sagemaker_jobs.local.shapes import check_request
from sagemaker_jobs.local.stopping import Criteria
from sagemaker_jobs.local.tuningplan import TuningPlan, parse_plan

CHANNEL = {
    "ChannelName": "train",
    "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/train"}},
}
CATEGORICAL = {"CategoricalParameterRanges": [{"Name": "a", "Values": ["1", "2"]}, {"Name": "b", "Values": ["x", "y"]}]}


def plan(config: dict[str, Any] | None = None, definition: dict[str, Any] | None = None, **more: Any) -> TuningPlan:
    params = request(config, definition, **more)
    check_request("sagemaker", "CreateHyperParameterTuningJob", params)
    return parse_plan(params)


def test_plan_reads_the_search() -> None:
    given = plan({"RandomSeed": 7, "TrainingJobEarlyStoppingType": "Auto"})

    assert (given.search.strategy, given.search.maximize, given.search.seed) == ("Random", True, 7)
    assert (given.search.num_jobs, given.search.num_parallel, given.search.stops_early) == (6, 2, True)
    assert (given.metric_name, given.max_runtime_s) == ("accuracy", None)


def test_plan_without_a_seed_draws_one() -> None:
    assert len({plan().search.seed for _ in range(5)}) > 1


def test_plan_reads_the_completion_criteria() -> None:
    criteria = {
        "TargetObjectiveMetricValue": 0.9,
        "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 3},
        "ConvergenceDetected": {"CompleteOnConvergence": "Enabled"},
    }

    assert plan({"TuningJobCompletionCriteria": criteria}).criteria == Criteria(0.9, 3, True)


def test_training_request_is_what_create_training_job_takes() -> None:
    definition = {
        "InputDataConfig": [CHANNEL],
        "EnableManagedSpotTraining": True,
        "CheckpointConfig": {"S3Uri": "s3://bucket/checkpoints/", "LocalPath": "/opt/ml/checkpoints"},
        "Environment": {"STAGE": "test"},
        "RetryStrategy": {"MaximumRetryAttempts": 2},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 90},
    }
    tags = [{"Key": "team", "Value": "dogs"}]
    made = plan(None, definition, Tags=tags).training_request("tuning-001-0123abcd", {"lr": "0.01"})

    check_request("sagemaker", "CreateTrainingJob", made)
    assert made["TrainingJobName"] == "tuning-001-0123abcd"
    assert made["HyperParameters"] == {**PROGRAM, "epochs": "9", "lr": "0.01", "_tuning_objective_metric": "accuracy"}
    assert made["CheckpointConfig"] == {
        "S3Uri": "s3://bucket/checkpoints/tuning-001-0123abcd",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert made["Tags"] == tags
    for name in ("InputDataConfig", "EnableManagedSpotTraining", "Environment", "RetryStrategy", "StoppingCondition"):
        assert made[name] == definition[name]


def test_flexible_resources_give_their_first_instance() -> None:
    instances = [
        {"InstanceType": kind, "InstanceCount": 1, "VolumeSizeInGB": 5} for kind in ("ml.c5.xlarge", "ml.m5.xlarge")
    ]
    flexible = {"InstanceConfigs": instances, "AllocationStrategy": "Prioritized"}
    made = plan(None, {"ResourceConfig": None, "HyperParameterTuningResourceConfig": flexible})

    assert made.training_request("job", {"lr": "0.1"})["ResourceConfig"] == instances[0]


def test_grid_runs_each_combination_without_being_told_how_many() -> None:
    grid = {"Strategy": "Grid", "ParameterRanges": CATEGORICAL, "ResourceLimits": {"MaxParallelTrainingJobs": 1}}

    assert plan(grid).search.num_jobs == 4


@pytest.mark.parametrize("name", ["epochs", "numepochs", "n-epochs", "n_epochs", "num_epochs"])
def test_hyperband_reads_its_resource_from_a_static_hyperparameter(name: str) -> None:
    assert plan({"Strategy": "Hyperband"}, {"StaticHyperParameters": {name: "27"}}).search.max_resource == 27


def test_hyperband_takes_the_resources_that_it_is_given() -> None:
    config = {"HyperbandStrategyConfig": {"MinResource": 2, "MaxResource": 18}}
    search = plan({"Strategy": "Hyperband", "StrategyConfig": config}).search

    assert (search.min_resource, search.max_resource) == (2, 18)


def test_limits_other_than_a_number_of_jobs_leave_the_quota() -> None:
    limits = {"MaxParallelTrainingJobs": 1}

    assert plan({"ResourceLimits": limits | {"MaxRuntimeInSeconds": 120}}).search.num_jobs == 750
    criteria = {"TuningJobCompletionCriteria": {"TargetObjectiveMetricValue": 0.0}}
    assert plan({"ResourceLimits": limits, **criteria}).search.num_jobs == 750


def algorithm(**metric: str) -> dict[str, Any]:
    """The default AlgorithmSpecification with another metric definition."""
    given = request()["TrainingJobDefinition"]["AlgorithmSpecification"]
    return {**given, "MetricDefinitions": [{"Name": "accuracy", **metric}]}


LIMITS = {"MaxNumberOfTrainingJobs": 6, "MaxParallelTrainingJobs": 2}


@pytest.mark.parametrize(
    ("config", "definition", "more", "message"),
    [
        ({}, {}, {"TrainingJobDefinitions": [{}]}, "TrainingJobDefinitions is not supported"),
        ({}, {}, {"Autotune": {"Mode": "Enabled"}}, "Autotune is not supported"),
        ({}, {"TuningObjective": {"Type": "Maximize"}}, {}, "TuningObjective goes with TrainingJobDefinitions"),
        ({}, {"HyperParameterRanges": CATEGORICAL}, {}, "HyperParameterRanges goes with TrainingJobDefinitions"),
        ({"HyperParameterTuningJobObjective": None}, {}, {}, "HyperParameterTuningJobObjective is required"),
        (
            {"HyperParameterTuningJobObjective": {"Type": "Maximize", "MetricName": "f1"}},
            {},
            {},
            r"objective metric f1 must be one of .*MetricDefinitions, which has \['accuracy'\]",
        ),
        ({"ParameterRanges": None}, {}, {}, "at least one range"),
        ({}, {"StaticHyperParameters": {"lr": "1"}}, {}, "static or has a range, not both: lr"),
        ({"Strategy": "Hyperband", "TrainingJobEarlyStoppingType": "Auto"}, {}, {}, "must be Off for the Hyperband"),
        ({"Strategy": "Hyperband"}, {"StaticHyperParameters": {"epochs": "many"}}, {}, "needs .*MaxResource"),
        (
            {"Strategy": "Hyperband", "StrategyConfig": {"HyperbandStrategyConfig": {"MinResource": 10}}},
            {},
            {},
            "got MinResource 10 and MaxResource 9",
        ),
        (
            {"StrategyConfig": {"HyperbandStrategyConfig": {"MaxResource": 9}}},
            {},
            {},
            "goes with Hyperband, not Random",
        ),
        ({"Strategy": "Grid"}, {}, {}, "categorical hyperparameters only; lr"),
        ({"Strategy": "Grid", "ParameterRanges": CATEGORICAL}, {}, {}, "number of combinations .* 4, .* got 6"),
        ({"ResourceLimits": {"MaxParallelTrainingJobs": 1}}, {}, {}, "must have MaxNumberOfTrainingJobs"),
        ({}, {"ResourceConfig": None}, {}, "one of ResourceConfig and HyperParameterTuningResourceConfig"),
        ({}, {"OutputDataConfig": {"S3OutputPath": "bucket"}}, {}, "outputDataConfig.s3OutputPath"),
        ({}, {"AlgorithmSpecification": algorithm(Regex="accuracy=(")}, {}, "Invalid regex 'accuracy=\\('"),
        ({}, {"AlgorithmSpecification": algorithm(Regex="accuracy")}, {}, "no capturing group"),
    ],
)
def test_wrong_requests_are_refused(
    config: dict[str, Any], definition: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationException, match=message):
        parse_plan(request(config, definition, **more))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (LIMITS | {"MaxNumberOfTrainingJobs": 751}, "'Maximum number of training jobs per .*' is 750, .* delta of 751"),
        (LIMITS | {"MaxParallelTrainingJobs": 101}, "'Maximum number of parallel training jobs .*' is 100"),
    ],
)
def test_quotas_are_those_of_aws(limits: dict[str, int], message: str) -> None:
    with pytest.raises(ResourceLimitExceeded, match=message):
        parse_plan(request({"ResourceLimits": limits}))


def test_definition_is_required() -> None:
    params = request()
    del params["TrainingJobDefinition"]

    with pytest.raises(ServiceError, match="TrainingJobDefinition is required"):
        parse_plan(params)
