"""IAM policy documents with no right that goes unused: of whoever runs the commands, and of the role that jobs run as.

Pure functions from a Scope to JSON documents; nothing here calls AWS.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sagemaker_jobs.policyscope import Scope

Document = dict[str, Any]
Statement = dict[str, Any]

RUN_ACTIONS = (
    "CreateExperiment", "CreateRun", "GetExperimentByName", "GetRun", "LogBatch", "LogInputs", "SearchExperiments",
    "SearchRuns", "UpdateRun",
)  # fmt: skip
"""What a job's live record asks of an MLflow that SageMaker manages; actions are named as MLflow's REST operations."""
MODEL_ACTIONS = (
    "CreateModelVersion", "CreateRegisteredModel", "FinalizeLoggedModel", "GetDownloadURIForModelVersionArtifacts",
    "GetLoggedModel", "GetMetricHistory", "GetModelVersion", "GetModelVersionByAlias", "GetRegisteredModel",
    "LogLoggedModelParams", "LogModel", "LogOutputs", "SearchLoggedModels", "SearchModelVersions", "SetModelVersionTag",
    "SetRegisteredModelAlias", "SetTag",
)  # fmt: skip
"""What the caller asks beside: models, the registry, runs brought home. LogModel is the right to CreateLoggedModel."""

OWN_TAG = "dogbreed:model"
"""On all that a deployment makes; leases.py writes it."""

_SERVICE = "sagemaker.amazonaws.com"
_AUTOSCALING = "sagemaker.application-autoscaling.amazonaws.com"
_JOBS = ("training-job", "hyper-parameter-tuning-job")
_ENDPOINTS = ("model", "endpoint-config", "endpoint")


def caller_policy(scope: Scope) -> Document:
    """What whoever runs train, tune, deploy, endpoints, rollback and delete needs."""
    statements = [
        _allow(
            "Jobs",
            [
                "sagemaker:AddTags",
                "sagemaker:CreateHyperParameterTuningJob",
                "sagemaker:CreateTrainingJob",
                "sagemaker:DescribeHyperParameterTuningJob",
                "sagemaker:DescribeTrainingJob",
                "sagemaker:ListTags",
                "sagemaker:ListTrainingJobsForHyperParameterTuningJob",
                "sagemaker:StopHyperParameterTuningJob",
                "sagemaker:StopTrainingJob",
            ],
            scope.named(*_JOBS),
        ),
        _allow(
            "Endpoints",
            [
                "sagemaker:AddTags",
                "sagemaker:CreateEndpoint",
                "sagemaker:CreateEndpointConfig",
                "sagemaker:CreateModel",
                "sagemaker:DeleteEndpoint",
                "sagemaker:DeleteEndpointConfig",
                "sagemaker:DeleteModel",
                "sagemaker:DescribeEndpoint",
                "sagemaker:DescribeEndpointConfig",
                "sagemaker:DescribeModel",
                "sagemaker:InvokeEndpoint",
                "sagemaker:InvokeEndpointAsync",
                "sagemaker:UpdateEndpoint",
                # Application Auto Scaling asks for it where an endpoint is registered.
                "sagemaker:UpdateEndpointWeightsAndCapacities",
            ],
            scope.named(*_ENDPOINTS),
        ),
        *_overview(scope),
        _allow(
            "PassTheRoleToSageMakerOnly",
            ["iam:PassRole"],
            [scope.role_arn],
            condition={"StringEquals": {"iam:PassedToService": _SERVICE}},
        ),
        *_storage(scope, is_owner=True),
        *_autoscaling(scope),
        _allow(
            "Alarms",
            ["cloudwatch:DeleteAlarms", "cloudwatch:DescribeAlarms", "cloudwatch:PutMetricAlarm",
             "cloudwatch:TagResource"],
            # The second are those that Application Auto Scaling makes.
            [scope.arn("cloudwatch", f"alarm:{maker}{scope.endpoint_prefix}*")
             for maker in ("", "TargetTracking-endpoint/")],
        ),
        _allow("Logs", ["logs:DescribeLogStreams", "logs:GetLogEvents"], _log_groups(scope)),
        _allow(
            "WhatTakesNoResource",
            ["cloudwatch:GetMetricStatistics", "pricing:GetProducts", "sagemaker:ListEndpointConfigs",
             "sagemaker:ListEndpoints", "sagemaker:ListModels"],
            ["*"],
        ),
    ]  # fmt: skip
    return _document(statements)


def tracking_policy(scope: Scope) -> Document | None:
    """What the same person needs of an MLflow that SageMaker manages; None where there is none.

    By itself, since the other would grow past what IAM takes as one managed policy.
    """
    statements = _tracking(scope, (*RUN_ACTIONS, *MODEL_ACTIONS))
    return _document(statements) if statements else None


def execution_role_policy(scope: Scope) -> Document:
    """What a training job's and an endpoint's containers need, and SageMaker on their behalf."""
    statements = [
        *_storage(scope, is_owner=False),
        _allow(
            "PullImages",
            ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            scope.repositories(),
        ),
        _allow("LogIntoRegistry", ["ecr:GetAuthorizationToken"], ["*"]),
        _allow(
            "WriteLogs",
            ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"],
            _log_groups(scope),
        ),
        _allow(
            "WriteMetrics",
            ["cloudwatch:PutMetricData"],
            ["*"],
            condition={"StringLike": {"cloudwatch:namespace": ["/aws/sagemaker/*", "AWS/SageMaker"]}},
        ),
    ]
    if scope.in_vpc:
        statements += _network(scope)
    statements += _tracking(scope, RUN_ACTIONS)
    return _document(statements)


def trust_policy(*, account_id: str | None = None) -> Document:
    """Who may take the execution role: SageMaker alone, with `account_id` only on that account's behalf."""
    statement: Statement = {"Effect": "Allow", "Principal": {"Service": _SERVICE}, "Action": "sts:AssumeRole"}
    if account_id is not None:
        statement["Condition"] = {"StringEquals": {"aws:SourceAccount": account_id}}
    return _document([statement])


def _overview(scope: Scope) -> list[Statement]:
    """What is live under other names: `endpoints` shows all that this project deployed, and `delete` looks who else
    serves an archive. Whose a thing is, only its tags tell.
    """
    everything = [scope.arn("sagemaker", f"{kind}/*") for kind in _ENDPOINTS]
    reading = ["sagemaker:DescribeEndpoint", "sagemaker:DescribeEndpointConfig", "sagemaker:DescribeModel"]
    return [
        _allow("WhoseItIs", ["sagemaker:ListTags"], everything),
        _allow(
            "LookAtTheProjects",
            reading,
            everything,
            condition={"Null": {f"aws:ResourceTag/{OWN_TAG}": "false"}},
        ),
    ]


def _storage(scope: Scope, *, is_owner: bool) -> list[Statement]:
    """The bucket's prefix to read and write, for its owner to delete in too; other data to read; the key of both."""
    places = scope.places()
    objects = [f"arn:{scope.partition}:s3:::{bucket}/{prefix and f'{prefix}/'}*" for bucket, prefix in places]
    writing = ["s3:AbortMultipartUpload", "s3:GetObject", "s3:ListMultipartUploadParts", "s3:PutObject"]
    statements = [
        _allow("OwnObjects", [*writing, *(["s3:DeleteObject"] if is_owner else [])], objects[:1]),
        *([_allow("OthersObjects", ["s3:GetObject"], objects[1:])] if objects[1:] else []),
    ]
    for number, (bucket, prefix) in enumerate(places):
        # HeadBucket names no prefix, nor does the look for a key that is not there: with the condition, S3 would answer
        # 403 to whoever owns the bucket, where 404 is asked for.
        is_narrow = bool(prefix) and not (is_owner and number == 0)
        condition = {"StringLike": {"s3:prefix": [prefix, f"{prefix}/*"]}} if is_narrow else None
        bucket_arn = f"arn:{scope.partition}:s3:::{bucket}"
        statements.append(_allow(f"ListPlace{number}", ["s3:ListBucket"], [bucket_arn], condition=condition))
    if is_owner:
        statements.append(
            _allow(
                "MakeTheBucketEncrypted",
                ["s3:CreateBucket", "s3:PutBucketPolicy", "s3:PutBucketPublicAccessBlock",
                 "s3:PutEncryptionConfiguration"],
                [f"arn:{scope.partition}:s3:::{scope.bucket}"],
            )
        )  # fmt: skip
    return [*statements, *_key(scope)]


def _key(scope: Scope) -> list[Statement]:
    """The key of bucket and volumes; SageMaker takes it for a volume by a grant that the caller or the role makes."""
    if scope.kms_key_arn is None:
        return []
    using = ["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey"]
    for_aws = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
    return [
        _allow("UseTheKey", using, [scope.kms_key_arn]),
        _allow("LetSageMakerUseTheKey", ["kms:CreateGrant"], [scope.kms_key_arn], condition=for_aws),
    ]


def _tracking(scope: Scope, actions: Sequence[str]) -> list[Statement]:
    """An MLflow that SageMaker manages; which bucket its artifacts lie in, only its own settings tell."""
    if scope.tracking_server_arn is None:
        return []
    return [_allow("Runs", [f"sagemaker-mlflow:{action}" for action in actions], [scope.tracking_server_arn])]


def _autoscaling(scope: Scope) -> list[Statement]:
    of_sagemaker = {"StringEquals": {"application-autoscaling:service-namespace": "sagemaker"}}
    return [
        _allow(
            "Autoscaling",
            ["application-autoscaling:DeregisterScalableTarget", "application-autoscaling:PutScalingPolicy",
             "application-autoscaling:RegisterScalableTarget"],
            [scope.arn("application-autoscaling", "scalable-target/*")],
            condition=of_sagemaker,
        ),
        _allow(
            "LookAtAutoscaling",
            ["application-autoscaling:DescribeScalableTargets", "application-autoscaling:DescribeScalingPolicies"],
            ["*"],
        ),
        _allow(
            "AutoscalingsOwnRole",
            ["iam:CreateServiceLinkedRole"],
            [f"arn:{scope.partition}:iam::{scope.account_id}:role/aws-service-role/{_AUTOSCALING}/*"],
            condition={"StringEquals": {"iam:AWSServiceName": _AUTOSCALING}},
        ),
    ]  # fmt: skip


def _network(scope: Scope) -> list[Statement]:
    """SageMaker's network interfaces in the user's VPC."""
    return [
        _allow(
            "NetworkInterfaces",
            ["ec2:CreateNetworkInterface", "ec2:CreateNetworkInterfacePermission", "ec2:DeleteNetworkInterface",
             "ec2:DeleteNetworkInterfacePermission"],
            [scope.arn("ec2", f"{kind}/*") for kind in ("network-interface", "security-group", "subnet")],
        ),
        _allow(
            "LookAtTheNetwork",
            ["ec2:DescribeDhcpOptions", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSecurityGroups",
             "ec2:DescribeSubnets", "ec2:DescribeVpcs"],
            ["*"],
        ),
    ]  # fmt: skip


def _log_groups(scope: Scope) -> list[str]:
    """Of all training jobs, which AWS keeps in one group, and of the endpoints of the name."""
    groups = ["TrainingJobs", f"Endpoints/{scope.endpoint_prefix}*"]
    return [scope.arn("logs", f"log-group:/aws/sagemaker/{group}{ending}") for group in groups for ending in ("", ":*")]


def _allow(
    sid: str, actions: Sequence[str], resources: Sequence[str], *, condition: Mapping[str, Any] | None = None
) -> Statement:
    statement: Statement = {"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": list(resources)}
    return statement if condition is None else {**statement, "Condition": dict(condition)}


def _document(statements: Sequence[Statement]) -> Document:
    return {"Version": "2012-10-17", "Statement": list(statements)}
