"""Which parents a tuning job may have, and what it learns from them."""

from typing import Any

import pytest
from tuningrequest import request

from sagemaker_jobs.local.errors import ResourceLimitExceeded, ValidationException
from sagemaker_jobs.local.shapes import check_request
from sagemaker_jobs.local.strategies import Prior, Strategy
from sagemaker_jobs.local.tuningplan import TuningPlan, parse_plan

Row = dict[str, Any]

LR = {"Name": "lr", "MinValue": "0.001", "MaxValue": "1"}
HYPERBAND = {"Strategy": "Hyperband", "StrategyConfig": {"HyperbandStrategyConfig": {"MaxResource": 9}}}
DEPTH = {"Name": "depth", "MinValue": "1", "MaxValue": "9"}


def _ranges(*continuous: Row, **more: Any) -> Row:
    return {"ParameterRanges": {"ContinuousParameterRanges": list(continuous), **more}}


def _job(lr: str, value: float | None, **tuned: str) -> Row:
    summary: Row = {
        "TrainingJobName": f"job-{lr}",
        "TunedHyperParameters": {"lr": lr, **tuned},
        "ObjectiveStatus": "Failed" if value is None else "Succeeded",
    }
    if value is not None:
        summary["FinalHyperParameterTuningJobObjectiveMetric"] = {"MetricName": "accuracy", "Value": value}
    return summary


def _parent(name: str, *jobs: Row, status: str = "Completed", made: Row | None = None) -> Row:
    return {
        **(made or request()), "HyperParameterTuningJobName": name, "HyperParameterTuningJobStatus": status,
        "Jobs": list(jobs),
    }  # fmt: skip


def _plan(
    *parents: Row, made: Row | None = None, names: list[str] | None = None, kind: str = "IdenticalDataAndAlgorithm"
) -> TuningPlan:
    others = {parent["HyperParameterTuningJobName"]: parent for parent in parents}
    named = [{"HyperParameterTuningJobName": name} for name in names or list(others)]
    params = {
        **(made or request({"Strategy": "Bayesian"})),
        "WarmStartConfig": {"ParentHyperParameterTuningJobs": named, "WarmStartType": kind},
    }
    check_request("sagemaker", "CreateHyperParameterTuningJob", params)
    return parse_plan(params, others=others)


def test_plan_learns_from_every_evaluated_job_of_every_parent() -> None:
    plan = _plan(_parent("a", _job("0.01", 0.9), _job("0.1", None)), _parent("b", _job("0.5", 0.2), status="Stopped"))
    assert [(prior.values["lr"], prior.objective) for prior in plan.search.prior] == [("0.01", 0.9), ("0.5", 0.2)]
    assert plan.parent_jobs is not None
    assert [job["TuningJobName"] for job in plan.parent_jobs] == ["a", "b"]


def test_search_starts_from_what_lies_within_its_ranges() -> None:
    narrow = request({"Strategy": "Bayesian", **_ranges({**LR, "MaxValue": "0.05"})})
    plan = _plan(_parent("a", _job("0.01", 0.9), _job("0.1", 0.8)), made=narrow, kind="TransferLearning")
    assert Strategy(plan.search).num_known == 1
    # Results on other data are no candidates.
    assert plan.parent_jobs is None


def test_static_value_of_a_parent_counts_where_it_is_tuned_now_and_the_other_way_round() -> None:
    depth = {"IntegerParameterRanges": [DEPTH]}
    tuned = request({"Strategy": "Bayesian", **_ranges(LR, **depth)}, {"StaticHyperParameters": {"epochs": "9"}})
    fixed = request({"Strategy": "Bayesian"}, {"StaticHyperParameters": {"epochs": "9", "depth": "4"}})
    plan = _plan(_parent("fixed", _job("0.01", 0.9), made=fixed), made=tuned)
    assert plan.search.prior[0].values["depth"] == "4"
    assert Strategy(plan.search).num_known == 1
    plan = _plan(_parent("tuned", _job("0.01", 0.9, depth="4"), _job("0.02", 0.8, depth="5"), made=tuned), made=fixed)
    assert [prior.values["lr"] for prior in plan.search.prior] == ["0.01"]


def test_warm_search_suggests_near_the_best_of_its_parents_from_the_first_job_on() -> None:
    prior = tuple(Prior({"lr": repr(10 ** (-3 + 0.2 * step))}, -abs(step - 5)) for step in range(15))
    cold, warm = (_plan(_parent("a")).search for _ in range(2))
    warm = type(warm)(**{**vars(warm), "prior": prior, "seed": 1})

    def distance(value: str) -> float:
        return abs(float(value) - 0.01)

    first = [Strategy(type(warm)(**{**vars(warm), "seed": seed})).suggest() for seed in range(20)]
    blind = [Strategy(type(cold)(**{**vars(cold), "seed": seed})).suggest() for seed in range(20)]
    assert {suggestion.number for suggestion in first} == {0}
    assert sum(distance(each.values["lr"]) for each in first) < sum(distance(each.values["lr"]) for each in blind) / 2


@pytest.mark.parametrize(
    ("parent", "made", "message"),
    [
        (_parent("a", status="InProgress"), None, "a is in status InProgress; a parent must be"),
        (_parent("b"), None, "can't find a tuning job with the name of a"),
        (
            _parent(
                "a", made=request({"HyperParameterTuningJobObjective": {"Type": "Minimize", "MetricName": "loss"}})
            ),
            None,
            "must be that of the parent tuning job a, Minimize loss, got Maximize accuracy",
        ),
        (
            _parent("a", made=request({"ParameterRanges": {"IntegerParameterRanges": [{**LR, "MinValue": "1"}]}})),
            None,
            "tunable hyperparameter lr must be that of the parent tuning job a, integer, got continuous",
        ),
        (_parent("a", made=request(None, {"StaticHyperParameters": {}})), None, "The set of tunable plus static"),
        (_parent("a"), request(HYPERBAND), "goes with the strategies Bayesian and Random, not Hyperband"),
        (
            _parent("a"),
            request({"Strategy": "Random"}, {"Environment": {"STAGE": "test"}}),
            r"Only the following fields in TrainingJobDefinition are allowed to change: \[algorithmSpecification, ",
        ),
    ],
)
def test_wrong_parent_is_refused(parent: Row, made: Row | None, message: str) -> None:
    with pytest.raises(ValidationException, match=message):
        _plan(parent, made=made, names=["a"], kind="TransferLearning")


def test_identical_data_and_algorithm_are_just_that() -> None:
    channel = {"ChannelName": "train", "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://b/x"}}}
    other_data = request({"Strategy": "Bayesian"}, {"InputDataConfig": [channel]})
    other_image = request({"Strategy": "Bayesian"})
    specification = other_image["TrainingJobDefinition"]["AlgorithmSpecification"]
    specification["TrainingImage"] = specification["TrainingImage"].replace("image:1", "image:2")
    for made, message in ((other_data, "are allowed to change"), (other_image, "training image must be that of")):
        assert _plan(_parent("a"), made=made, kind="TransferLearning").search.num_jobs == 6
        with pytest.raises(ValidationException, match=message):
            _plan(_parent("a"), made=made)


def test_code_of_the_sdk_may_be_uploaded_anew() -> None:
    def made(uri: str) -> Row:
        source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}
        channel = {"ChannelName": "code", "DataSource": source}
        return dict(request({"Strategy": "Bayesian"}, {"InputDataConfig": [channel]}))

    assert _plan(_parent("a", made=made("s3://b/one")), made=made("s3://b/two")).search.num_jobs == 6


def test_parents_are_named_once_and_count_against_the_limit() -> None:
    with pytest.raises(ValidationException, match="differ from each other, got a, a"):
        _plan(_parent("a"), names=["a", "a"])
    with pytest.raises(ResourceLimitExceeded, match="request delta of 751"):
        _plan(_parent("a", *[_job("0.1", 0.5)] * 745))
