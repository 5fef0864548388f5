"""Policy documents: valid for IAM, and no wider than what is used."""

import fnmatch
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import boto3
import pytest
from iamrights import Right, Rights
from moto import mock_aws

from dogbreed_ml.errors import ConfigError
from sagemaker_jobs.endpoints.leases import Lease
from sagemaker_jobs.iam import (
    MODEL_ACTIONS,
    OWN_TAG,
    RUN_ACTIONS,
    Document,
    caller_policy,
    execution_role_policy,
    tracking_policy,
    trust_policy,
)
from sagemaker_jobs.policyscope import Scope

KEY = "arn:aws:kms:us-west-2:123456789012:key/1234abcd-12ab-34cd"
NARROW = Scope(
    account_id="123456789012",
    region="us-west-2",
    bucket="kennel-bucket",
    prefix="dogbreed",
    job_prefixes=("Dogs-120-train-", "Dogs-120-features-"),
    search_prefix="Dogs-1-tune-",
    endpoint_prefix="Dogs-120",
    version_prefix="Dogs-1",
    role_arn="arn:aws:iam::123456789012:role/dogbreed/sagemaker",
    image_uris=(
        "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:2.6-gpu-py312",
        "763104351884.dkr.ecr.us-west-2.amazonaws.com/pytorch-inference:2.6-cpu-py312",
    ),
)
FULL = replace(
    NARROW,
    data_uris=("s3://other-kennel/dogs/", "s3://third-kennel"),
    kms_key_arn=KEY,
    in_vpc=True,
    tracking_server_arn="arn:aws:sagemaker:us-west-2:123456789012:mlflow-tracking-server/kennel",
)

TAKE_NO_RESOURCE = {
    "application-autoscaling:DescribeScalableTargets": "lists every target of the service",
    "application-autoscaling:DescribeScalingPolicies": "lists every policy of the service",
    "cloudwatch:GetMetricStatistics": "metrics are no resources",
    "cloudwatch:PutMetricData": "metrics are no resources; a condition names the namespaces",
    "ec2:DescribeDhcpOptions": "EC2's Describe operations list, and take no resource",
    "ec2:DescribeNetworkInterfaces": "likewise",
    "ec2:DescribeSecurityGroups": "likewise",
    "ec2:DescribeSubnets": "likewise",
    "ec2:DescribeVpcs": "likewise",
    "ecr:GetAuthorizationToken": "a token is for the whole registry",
    "pricing:GetProducts": "the price list is the same for everybody",
    "sagemaker:ListEndpointConfigs": "lists every endpoint config of the account",
    "sagemaker:ListEndpoints": "lists every endpoint of the account",
    "sagemaker:ListModels": "lists every model of the account",
}
"""As AWS's service authorization reference has it: an ARN given for one of them would allow nothing."""


def policies() -> list[tuple[str, Document]]:
    tracking = tracking_policy(FULL)
    assert tracking is not None
    others = [
        (f"{name} of {scope_name}", build(scope))
        for name, build in (("caller", caller_policy), ("role", execution_role_policy))
        for scope_name, scope in (("narrow", NARROW), ("full", FULL))
    ]
    return [("tracking of full", tracking), *others]


def allowed(document: Document, action: str) -> Iterator[dict[str, Any]]:
    return (statement for statement in document["Statement"] if action in statement["Action"])


def covers(document: Document, action: str, resource: str) -> bool:
    """Whether a statement allows it, conditions aside."""
    return any(
        fnmatch.fnmatchcase(resource, pattern)
        for statement in allowed(document, action)
        for pattern in statement["Resource"]
    )


@mock_aws
@pytest.mark.parametrize(("name", "document"), policies(), ids=[name for name, _ in policies()])
def test_policy_is_valid_and_fits_into_a_managed_policy(name: str, document: Document) -> None:
    compact = json.dumps(document, separators=(",", ":"))
    answer = boto3.client("iam").create_policy(PolicyName="kennel", PolicyDocument=compact)
    assert answer["Policy"]["PolicyName"] == "kennel"
    assert len(compact) <= 6144
    sids = [statement["Sid"] for statement in document["Statement"]]
    assert len(set(sids)) == len(sids)


@mock_aws
@pytest.mark.parametrize("account_id", [None, "123456789012"])
def test_trust_policy_lets_sagemaker_alone_take_the_role(account_id: str | None) -> None:
    document = trust_policy(account_id=account_id)
    iam = boto3.client("iam")
    role = iam.create_role(RoleName="kennel", AssumeRolePolicyDocument=json.dumps(document))["Role"]
    assert role["AssumeRolePolicyDocument"] == document
    (statement,) = document["Statement"]
    assert statement["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert ("Condition" in statement) == (account_id is not None)


@pytest.mark.parametrize(("name", "document"), policies(), ids=[name for name, _ in policies()])
def test_no_action_is_a_pattern_and_only_what_takes_no_resource_is_allowed_on_all(
    name: str, document: Document
) -> None:
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        assert not [action for action in statement["Action"] if "*" in action or "?" in action]
        if "*" in statement["Resource"]:
            assert set(statement["Action"]) <= set(TAKE_NO_RESOURCE)
        else:
            assert not set(statement["Action"]) & set(TAKE_NO_RESOURCE)
            assert all(resource.startswith("arn:aws:") for resource in statement["Resource"])


def test_every_exception_is_used() -> None:
    actions = {action for _, document in policies() for each in document["Statement"] for action in each["Action"]}
    assert set(TAKE_NO_RESOURCE) <= actions


@pytest.mark.parametrize("scope", [NARROW, FULL])
def test_caller_reaches_its_own_names_and_places_and_no_others(scope: Scope) -> None:
    document = caller_policy(scope)
    own, others = "arn:aws:sagemaker:us-west-2:123456789012:", "arn:aws:sagemaker:us-west-2:210987654321:"
    # SageMaker's ARNs have names in lower case, whatever the name was.
    assert covers(document, "sagemaker:CreateTrainingJob", f"{own}training-job/dogs-120-train-2026")
    assert not covers(document, "sagemaker:CreateTrainingJob", f"{own}training-job/cats-train-2026")
    assert not covers(document, "sagemaker:CreateTrainingJob", f"{others}training-job/dogs-120-train-2026")
    # A tuning job names its training jobs after itself.
    assert covers(document, "sagemaker:DescribeTrainingJob", f"{own}training-job/dogs-1-tune-2026-001-1f2e3d4c")
    assert covers(document, "sagemaker:CreateHyperParameterTuningJob", f"{own}hyper-parameter-tuning-job/dogs-1-tune-2")
    assert not covers(document, "sagemaker:StopHyperParameterTuningJob", f"{own}hyper-parameter-tuning-job/dogs-120")
    assert covers(document, "sagemaker:CreateModel", f"{own}model/dogs-1-v2-1f2e3d4c")
    assert covers(document, "sagemaker:DeleteEndpoint", f"{own}endpoint/dogs-120")
    assert not covers(document, "sagemaker:DeleteEndpoint", f"{own}endpoint/kennel")
    assert covers(document, "s3:PutObject", "arn:aws:s3:::kennel-bucket/dogbreed/model.tar.gz")
    assert not covers(document, "s3:PutObject", "arn:aws:s3:::kennel-bucket/dogbreed-other/model.tar.gz")
    assert not covers(document, "s3:PutObject", "arn:aws:s3:::other-kennel/dogs/1.jpg")
    assert covers(document, "s3:GetObject", "arn:aws:s3:::other-kennel/dogs/1.jpg") == (scope is FULL)
    (passing,) = allowed(document, "iam:PassRole")
    assert passing["Resource"] == [scope.role_arn]
    assert passing["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}


@pytest.mark.parametrize("scope", [NARROW, FULL])
def test_role_pulls_images_and_writes_output_and_neither_deletes_nor_starts_anything(scope: Scope) -> None:
    document = execution_role_policy(scope)
    actions = {action for statement in document["Statement"] for action in statement["Action"]}
    assert not {action for action in actions if action.startswith(("sagemaker:", "iam:", "s3:Delete"))}
    images = "arn:aws:ecr:us-west-2:763104351884:repository/"
    assert covers(document, "ecr:BatchGetImage", f"{images}pytorch-inference")
    assert not covers(document, "ecr:BatchGetImage", f"{images}tensorflow-inference")
    assert covers(document, "s3:PutObject", "arn:aws:s3:::kennel-bucket/dogbreed/output/model.tar.gz")
    logs = "arn:aws:logs:us-west-2:123456789012:log-group:/aws/sagemaker/"
    assert covers(document, "logs:PutLogEvents", f"{logs}TrainingJobs:log-stream:dogs-120/algo-1")
    assert not covers(document, "logs:PutLogEvents", f"{logs}Endpoints/kennel:log-stream:x")
    assert ("kms:Decrypt" in actions, "ec2:CreateNetworkInterface" in actions) == ((scope is FULL),) * 2
    assert ("sagemaker-mlflow:LogBatch" in actions) == (scope is FULL)
    # The model is the caller's to log, and to register.
    assert not {"sagemaker-mlflow:LogModel", "sagemaker-mlflow:CreateModelVersion"} & actions


def test_images_are_pulled_from_their_own_accounts_and_repositories() -> None:
    uris = (
        "123456789012.dkr.ecr.us-west-2.amazonaws.com/kennel/trainer:mine",
        f"210987654321.dkr.ecr.us-east-1.amazonaws.com/server@sha256:{'0' * 64}",
        "727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/pytorch-inference:2.6",
    )
    (pulling,) = allowed(execution_role_policy(replace(NARROW, image_uris=uris)), "ecr:BatchGetImage")
    assert pulling["Resource"] == [
        "arn:aws:ecr:us-west-2:123456789012:repository/kennel/trainer",
        "arn:aws:ecr:us-east-1:210987654321:repository/server",
        "arn:aws:ecr:cn-north-1:727897471807:repository/pytorch-inference",
    ]


def test_caller_of_a_managed_mlflow_may_log_and_register() -> None:
    server, document = FULL.tracking_server_arn, tracking_policy(FULL)
    assert server is not None
    assert document is not None
    needed = {Right(f"sagemaker-mlflow:{action}", server) for action in (*RUN_ACTIONS, *MODEL_ACTIONS)}
    assert Rights(needed).missing_from(document) == []
    assert tracking_policy(NARROW) is None
    writing = {Right(f"sagemaker-mlflow:{action}", server) for action in RUN_ACTIONS}
    assert Rights(writing).missing_from(execution_role_policy(FULL)) == []


def test_no_right_is_given_that_nothing_asks_for() -> None:
    actions = {action for _, document in policies() for each in document["Statement"] for action in each["Action"]}
    assert not actions & {"application-autoscaling:DeleteScalingPolicy", "logs:FilterLogEvents"}


def test_whole_bucket_is_listed_where_no_prefix_narrows_it() -> None:
    document = caller_policy(replace(NARROW, prefix=""))
    (listing,) = allowed(document, "s3:ListBucket")
    assert "Condition" not in listing
    (narrow,) = allowed(execution_role_policy(NARROW), "s3:ListBucket")
    assert narrow["Condition"] == {"StringLike": {"s3:prefix": ["dogbreed", "dogbreed/*"]}}


def test_owner_may_ask_whether_bucket_and_keys_are_there_and_whose_others_endpoints_are() -> None:
    others = "arn:aws:sagemaker:us-west-2:123456789012:endpoint/cats"
    needed = {
        # HeadBucket tells of no prefix.
        Right("s3:ListBucket", "arn:aws:s3:::kennel-bucket"),
        Right("sagemaker:ListTags", others),
        Right("sagemaker:DescribeEndpoint", others),
    }
    assert Rights(needed).missing_from(caller_policy(NARROW)) == []
    (reading,) = (each for each in caller_policy(NARROW)["Statement"] if each["Sid"] == "LookAtTheProjects")
    assert reading["Condition"] == {"Null": {"aws:ResourceTag/dogbreed:model": "false"}}
    assert set(Lease(endpoint="cats", model="m", version="1").to_tags()) > {OWN_TAG}
    # None of it is allowed to the role, nor may the caller change what others have.
    assert len(Rights(needed).missing_from(execution_role_policy(NARROW))) == 3
    assert Rights({Right("sagemaker:DeleteEndpoint", others)}).missing_from(caller_policy(NARROW))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("account_id", "12345"), ("account_id", "*"), ("region", "*"), ("bucket", "ken*"), ("prefix", "*"),
        ("prefix", "dogs/"), ("search_prefix", ""), ("search_prefix", "*"), ("endpoint_prefix", "dogs*"),
        ("version_prefix", "*"), ("job_prefixes", ("",)), ("job_prefixes", ("dogs*",)), ("role_arn", "*"),
        ("role_arn", "arn:aws:iam::123456789012:role/*"), ("kms_key_arn", "arn:aws:kms:us-west-2:123456789012:key/*"),
        ("data_uris", ("s3://*",)), ("data_uris", ("s3://kennel/*",)), ("tracking_server_arn", "https://host"),
        ("image_uris", ("*",)), ("image_uris", ("docker.io/library/python",)),
        ("image_uris", ("123456789012.dkr.ecr.us-west-2.amazonaws.com/*",)),
    ],
)  # fmt: skip
def test_what_would_widen_a_policy_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{field} of a policy must "):
        replace(NARROW, **{field: value})
