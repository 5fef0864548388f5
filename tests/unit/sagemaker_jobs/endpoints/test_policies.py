"""What `dogbreed deploy --print-policy` prints."""

import json

from dogbreed_ml.cloudconfig import SagemakerConfig
from dogbreed_ml.config import DataConfig, ExperimentConfig
from sagemaker_jobs.endpoints.policies import policies

ROLE = "arn:aws:iam::123456789012:role/sagemaker"


def test_policies_are_of_the_configs_bucket_role_and_names() -> None:
    account = SagemakerConfig(role_arn=ROLE, region="eu-west-1", bucket="kennel", kms_key_id="1234abcd-12ab-34cd")
    made = policies(ExperimentConfig(name="dogs", sagemaker=account))
    told = json.loads(made.render())
    assert told["placeholders"] == []
    assert set(told) == {"caller", "execution_role", "execution_role_trust", "placeholders"}
    text = json.dumps(told["caller"])
    for part in (ROLE, "arn:aws:s3:::kennel/dogbreed/*", "endpoint/dogs*", "key/1234abcd-12ab-34cd", "eu-west-1"):
        assert part in text


def test_policies_follow_data_elsewhere_the_roles_partition_and_the_image() -> None:
    role_arn = ROLE.replace("arn:aws:", "arn:aws-cn:")
    account = SagemakerConfig(role_arn=role_arn, region="cn-north-1", bucket="kennel", kms_key_id="1234abcd-12ab-34cd")
    data = DataConfig(source="s3", path="s3://other-kennel/dogs")
    made = policies(ExperimentConfig(name="dogs", sagemaker=account, data=data))
    for document in (made.caller, made.execution_role):
        text = json.dumps(document)
        assert "arn:aws-cn:s3:::other-kennel/dogs/*" in text
        assert '"arn:aws:' not in text
    # AWS's registry in China is another account's.
    assert "arn:aws-cn:ecr:cn-north-1:727897471807:repository/pytorch-inference" in json.dumps(made.execution_role)


def test_policies_without_a_config_say_what_stands_for_what() -> None:
    made = policies(ExperimentConfig(name="dogs"), endpoint="kennel")
    assert made.placeholders == ("sagemaker.role_arn", "sagemaker.region", "sagemaker.bucket")
    assert "endpoint/kennel*" in json.dumps(made.caller)


def test_caller_may_do_all_that_endpoints_need() -> None:
    statements = policies(ExperimentConfig(name="dogs")).caller["Statement"]
    allowed = {action for each in statements for action in each["Action"]}
    needed = {
        "sagemaker:CreateEndpoint", "sagemaker:UpdateEndpoint", "sagemaker:DeleteEndpoint", "sagemaker:AddTags",
        "sagemaker:ListTags", "sagemaker:ListEndpoints", "sagemaker:ListEndpointConfigs", "sagemaker:ListModels",
        "sagemaker:InvokeEndpoint", "sagemaker:InvokeEndpointAsync", "cloudwatch:PutMetricAlarm",
        "cloudwatch:TagResource", "cloudwatch:DescribeAlarms", "cloudwatch:DeleteAlarms",
        "cloudwatch:GetMetricStatistics", "application-autoscaling:RegisterScalableTarget", "iam:PassRole",
        "application-autoscaling:DeregisterScalableTarget", "application-autoscaling:PutScalingPolicy",
        "s3:PutObject", "s3:DeleteObject", "s3:PutBucketPolicy",
    }  # fmt: skip
    assert needed - allowed == set()
