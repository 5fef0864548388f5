"""What `dogbreed deploy --print-policy` prints."""

import json
from datetime import UTC, datetime

import pytest
from iamrights import REGION, Right, Rights, rights_of

from dogbreed_ml.cloudconfig import HostingConfig, SagemakerConfig
from dogbreed_ml.config import DataConfig, ExperimentConfig
from dogbreed_ml.errors import ConfigError
from sagemaker_jobs.endpoints.endpoint_request import Place, endpoint_name, endpoint_plan
from sagemaker_jobs.endpoints.leases import Lease
from sagemaker_jobs.endpoints.policies import policies
from sagemaker_jobs.training.launch import job_name

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


@pytest.mark.parametrize("name", ["dogs", "quickstart", "a-long-name-" * 3 + "and-longer-x"])
def test_caller_may_have_jobs_and_endpoints_where_a_long_name_gives_way(name: str) -> None:
    config = ExperimentConfig(name=name, sagemaker=SagemakerConfig(role_arn=ROLE, region=REGION, bucket="kennel"))
    needed = Rights()
    for verb in ("train", "features"):
        job = {"TrainingJobName": job_name(config, verb, key="0a1b2c3d", at=datetime.now(UTC))}
        for operation in ("CreateTrainingJob", "DescribeTrainingJob", "StopTrainingJob"):
            needed.needed.update(rights_of("sagemaker", operation, job))
    search = {"HyperParameterTuningJobName": job_name(config, "tune", key="0a1b2c3d", at=datetime.now(UTC))}
    for operation in ("Create{}", "Describe{}", "Stop{}", "ListTrainingJobsFor{}"):
        needed.needed.update(rights_of("sagemaker", operation.format("HyperParameterTuningJob"), search))
    of_search = {"TrainingJobName": f"{search['HyperParameterTuningJobName']}-001-1f2e3d4c"}
    needed.needed.update(rights_of("sagemaker", "DescribeTrainingJob", of_search))

    lease = Lease(endpoint=endpoint_name(config.registered_model_name), model=config.registered_model_name, version="1")
    plan = endpoint_plan(config, lease=lease, place=Place(REGION, ROLE, "s3://kennel/m.tar.gz", "s3://kennel/out"))
    shown = plan.to_dict()
    for operation in ("CreateModel", "CreateEndpointConfig", "CreateEndpoint", "UpdateEndpoint"):
        needed.needed.update(rights_of("sagemaker", operation, shown[operation]))
    for alarm in plan.alarms:
        needed.needed.update(rights_of("cloudwatch", "PutMetricAlarm", alarm))
    assert needed.missing_from(policies(config).caller) == []
    assert len(needed.needed) > 15


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


def test_policies_follow_both_own_images_and_a_managed_mlflow() -> None:
    account = SagemakerConfig(
        role_arn=ROLE, region=REGION, image_uri="123456789012.dkr.ecr.us-west-2.amazonaws.com/trainer:mine"
    )
    hosting = HostingConfig(image_uri="210987654321.dkr.ecr.us-west-2.amazonaws.com/server:mine")
    tracking_uri = "arn:aws:sagemaker:us-west-2:123456789012:mlflow-app/app-kennel"
    configs = [ExperimentConfig(name="dogs", sagemaker=account, hosting=each) for each in (hosting, HostingConfig())]
    both, trains = (policies(each, tracking_uri=tracking_uri) for each in configs)
    pulled = [
        [resource for resource in statement["Resource"] if ":ecr:" in resource]
        for made in (both, trains)
        for statement in made.execution_role["Statement"]
        if statement["Sid"] == "PullImages"
    ]
    own = "arn:aws:ecr:us-west-2:123456789012:repository/trainer"
    assert pulled == [
        [own, "arn:aws:ecr:us-west-2:210987654321:repository/server"],
        [own, "arn:aws:ecr:us-west-2:763104351884:repository/pytorch-inference"],
    ]
    assert both.caller_tracking is not None
    assert json.loads(both.render())["caller_tracking"] == both.caller_tracking
    for document in (both.caller_tracking, both.execution_role):
        assert Rights({Right("sagemaker-mlflow:LogBatch", tracking_uri)}).missing_from(document) == []
    assert "sagemaker-mlflow" not in policies(configs[0], tracking_uri="http://127.0.0.1:5000").render()


@pytest.mark.parametrize(("region", "partition"), [("eu-west-1", "aws"), ("cn-north-1", "aws-cn")])
def test_policies_are_of_the_region_that_commands_take(
    region: str, partition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    made = policies(ExperimentConfig(name="dogs"))
    assert made.placeholders == ("sagemaker.role_arn", "sagemaker.bucket")
    text = json.dumps(made.caller)
    assert f"arn:{partition}:sagemaker:{region}:000000000000:endpoint/dogs*" in text
    assert f"arn:{partition}:iam::000000000000:role/PLACEHOLDER" in text
    assert "us-east-1" not in text


def test_policies_of_no_region_are_refused() -> None:
    with pytest.raises(ConfigError, match="sagemaker.region must be one of AWS's, got 'moon-east-1'"):
        policies(ExperimentConfig(name="dogs", sagemaker=SagemakerConfig(region="moon-east-1")))


def test_policies_without_a_config_say_what_stands_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
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
