"""Each variant of the request against botocore's model, with SageMaker's documented limits."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import torch

from dogbreed_ml.config import ExperimentConfig, with_values
from dogbreed_ml.errors import ConfigError
from dogbreed_ml.evaluation import compute_metrics
from dogbreed_ml.ruleparameters import TENSOR_RULES
from dogbreed_ml.train import EpochResult
from sagemaker_jobs.images import image_uri, newest_pair
from sagemaker_jobs.shapes import request_errors, unknown_members
from sagemaker_jobs.training.jobinputs import JobInputs
from sagemaker_jobs.training.launch import job_name
from sagemaker_jobs.training.metrics import metric_definitions
from sagemaker_jobs.training.training_request import training_job_request, warn_of_instances

ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"
CHANNEL = {
    "ChannelName": "train",
    "DataSource": {"S3DataSource": {"S3DataType": "ManifestFile", "S3Uri": "s3://bucket/manifests/a.json"}},
    "InputMode": "FastFile",
}
INPUTS = JobInputs("s3://bucket/code/a.tar.gz", (CHANNEL,), "s3://bucket/jobs", {"DOGBREED_EXPERIMENT_ID": "1"})


def configured(**values: Any) -> ExperimentConfig:
    return with_values(ExperimentConfig(), {key.replace("__", "."): value for key, value in values.items()})


def build(name: str = "dogs-1", inputs: JobInputs = INPUTS, **values: Any) -> dict[str, Any]:
    return training_job_request(configured(**values), name=name, inputs=inputs, role_arn=ROLE, region="us-west-2")


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "cpu": {"sagemaker__instance_type": "ml.m5.xlarge"},
    "spot": {"sagemaker__spot": True, "sagemaker__max_wait_s": 20_000},
    "several instances": {"sagemaker__instance_count": 2, "sagemaker__encrypt_traffic": True},
    "warm pool": {"sagemaker__keep_alive_s": 21600},
    "vpc": {"sagemaker__subnets": ["subnet-0a1b2c3d"], "sagemaker__security_group_ids": ["sg-0a1b2c3d"]},
    "kms": {"sagemaker__kms_key_id": "arn:aws:kms:us-west-2:123456789012:key/0a1b2c3d-0a1b"},
    "tags": {"sagemaker__tags": {"team": "kennel", "cost-center": "42"}},
    "environment": {"sagemaker__environment": {"NCCL_DEBUG": "INFO"}},
    "rules": {"profile__sagemaker_rules": True, "profile__rules": {"StepOutlier_stddev": 2}},
    "tensor rules": {
        "profile__sagemaker_rules": True,
        "profile__debugger": True,
        "profile__rules": {"VanishingGradient_threshold": 1e-6},
    },
    "patience": {"train__patience": 3},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_request_is_what_botocores_model_allows(variant: str) -> None:
    request = build(**VARIANTS[variant])

    assert request_errors("sagemaker", "CreateTrainingJob", request) == []
    assert unknown_members("sagemaker", "CreateTrainingJob", request) == []
    assert len(request["HyperParameters"]) <= 100
    assert all(len(value) <= 2500 for value in request["HyperParameters"].values())
    assert len(request["AlgorithmSpecification"]["MetricDefinitions"]) <= 40
    assert len(request.get("ProfilerRuleConfigurations", ())) <= 20
    assert len(request.get("DebugRuleConfigurations", ())) <= 20
    assert len(request["Tags"]) <= 50


def test_training_request_asks_for_spot_capacity_with_checkpoints_of_its_own() -> None:
    request = build("dogs-7", sagemaker__spot=True, sagemaker__max_runtime_s=600)

    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 1200}
    assert request["CheckpointConfig"] == {"S3Uri": "s3://bucket/jobs/dogs-7/checkpoints"}
    assert "CheckpointConfig" not in build()


def test_training_request_starts_several_instances_by_torchrun() -> None:
    several, one = build(sagemaker__instance_count=3, train__batch_size=33), build()

    assert several["ResourceConfig"]["InstanceCount"] == 3
    assert several["HyperParameters"]["sagemaker_torch_distributed_enabled"] == "true"
    assert "sagemaker_torch_distributed_enabled" not in one["HyperParameters"]


def test_training_request_passes_network_keys_and_warm_pool_through() -> None:
    request = build(
        sagemaker__instance_type="ml.m5.xlarge",
        sagemaker__keep_alive_s=900,
        sagemaker__kms_key_id="0a1b2c3d-0a1b",
        sagemaker__subnets=["subnet-1"],
        sagemaker__security_group_ids=["sg-1"],
        sagemaker__encrypt_traffic=True,
        sagemaker__tags={"team": "kennel"},
    )

    assert request["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 900
    assert request["ResourceConfig"]["VolumeKmsKeyId"] == request["OutputDataConfig"]["KmsKeyId"] == "0a1b2c3d-0a1b"
    assert request["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert request["EnableInterContainerTrafficEncryption"] is True
    assert {"Key": "team", "Value": "kennel"} in request["Tags"]


@pytest.mark.parametrize(
    ("instance_type", "is_local"),
    [
        ("ml.g4dn.xlarge", True), ("ml.g5.2xlarge", True), ("ml.g6e.xlarge", True), ("ml.g7e.2xlarge", True),
        ("ml.p3dn.24xlarge", True), ("ml.p4d.24xlarge", True), ("ml.p4de.24xlarge", True), ("ml.p5.4xlarge", True),
        ("ml.p5en.48xlarge", True), ("ml.p6-b200.48xlarge", True), ("ml.trn1n.32xlarge", True),
        ("ml.r5d.large", True), ("ml.m5.xlarge", False), ("ml.c5n.xlarge", False), ("ml.p3.2xlarge", False),
        ("ml.m7i-flex.large", False),
    ],
)  # fmt: skip
def test_training_request_asks_for_no_volume_key_where_the_instance_brings_its_disk(
    instance_type: str, is_local: bool, caplog: pytest.LogCaptureFixture
) -> None:
    values: dict[str, Any] = {"sagemaker__kms_key_id": "0a1b2c3d-0a1b", "sagemaker__instance_type": instance_type}
    request = build(**values, sagemaker__image_uri="mine")
    warn_of_instances(configured(**values), region="us-west-2")

    assert ("VolumeKmsKeyId" in request["ResourceConfig"]) is not is_local
    assert request["OutputDataConfig"]["KmsKeyId"] == "0a1b2c3d-0a1b"
    told = f"{instance_type} encrypts its own disks in hardware and takes no key for them"
    assert any(told in line for line in caplog.messages) is is_local


def test_training_request_has_sagemakers_rules_only_where_asked_for() -> None:
    plain, judged = build(), build(profile__sagemaker_rules=True, profile__interval_ms=300.0)

    assert "ProfilerConfig" not in plain
    assert "ProfilerRuleConfigurations" not in plain
    assert judged["ProfilerConfig"]["ProfilingIntervalInMilliseconds"] == 500
    rules = [each["RuleConfigurationName"] for each in judged["ProfilerRuleConfigurations"]]
    assert rules[0] == "ProfilerReport"
    assert {"LowGPUUtilization", "IOBottleneck", "StepOutlier", "Dataloader"} < set(rules)
    assert len(rules) == len(set(rules))


def test_training_request_has_sagemakers_tensor_rules_over_what_the_debugger_saves() -> None:
    judged = build(**VARIANTS["tensor rules"], profile__save_interval=7)

    assert "DebugRuleConfigurations" not in build(**VARIANTS["rules"])
    assert "DebugHookConfig" not in build(profile__debugger=True)
    rules = {each["RuleConfigurationName"]: each["RuleParameters"] for each in judged["DebugRuleConfigurations"]}
    assert set(rules) == set(TENSOR_RULES)
    assert rules["VanishingGradient"] == {"rule_to_invoke": "VanishingGradient", "threshold": "1e-06"}
    hook = judged["DebugHookConfig"]
    assert hook["LocalPath"] == "/opt/ml/output/tensors"
    saved = {each["CollectionName"]: each["CollectionParameters"] for each in hook["CollectionConfigurations"]}
    assert saved["gradients"] == {"save_interval": "7"}
    assert any("relu" in given.get("include_regex", "") for given in saved.values())


def test_training_request_shows_the_training_and_no_path_of_this_machine() -> None:
    shown = build(train__lr=0.25, train__optimizer="sgd", model__weights="/home/somebody/weights.pth")[
        "HyperParameters"
    ]

    assert shown["train.lr"] == "0.25"
    assert shown["train.optimizer"] == "sgd"
    assert shown["sagemaker_submit_directory"] == "s3://bucket/code/a.tar.gz"
    assert not any("somebody" in value for value in shown.values())


def test_training_request_takes_the_users_image_instead_of_awss() -> None:
    image = "123456789012.dkr.ecr.us-west-2.amazonaws.com/dogs:1"

    assert build(sagemaker__image_uri=image)["AlgorithmSpecification"]["TrainingImage"] == image


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"sagemaker__instance_type": "ml.dog.xlarge", "sagemaker__image_uri": "a/b:1"}, "instanceType"),
        ({"sagemaker__subnets": ["a subnet"], "sagemaker__security_group_ids": ["sg-1"]}, "vpcConfig"),
        ({"sagemaker__kms_key_id": "not a key"}, "sagemaker.kms_key_id must be a key's id"),
        ({"sagemaker__kms_key_id": "alias/dogs"}, "sagemaker.kms_key_id must be a key's id"),
        ({"sagemaker__environment": {"A": "x" * 2000}}, "environment"),
        (
            {"sagemaker__instance_count": 2, "profile__debugger": True, "profile__stop_on": ["DeadRelu"]},
            "profile.stop_on must be empty with sagemaker.instance_count 2",
        ),
        (
            {"sagemaker__instance_count": 3, "train__batch_size": 32},
            r"train\.batch_size must be a multiple of the 3 processes that share each batch on 3 x ml\.g4dn\.xlarge",
        ),
        (
            {"sagemaker__instance_count": 2, "sagemaker__instance_type": "ml.g5.48xlarge", "train__batch_size": 24},
            "a multiple of the 16 processes",
        ),
        ({"sagemaker__tags": {f"tag{n}": "x" for n in range(60)}}, "sagemaker.tags"),
    ],
)
def test_training_request_refuses_what_sagemaker_would(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build(**values)


@pytest.mark.parametrize(
    ("instance_type", "count", "is_told"),
    [
        ("ml.g4dn.12xlarge", 1, True),
        ("ml.g4dn.12xlarge", 2, False),
        ("ml.g4dn.xlarge", 1, False),
        ("ml.m5.large", 1, False),
    ],
)
def test_gpus_that_would_be_paid_for_to_idle_are_told_of(
    instance_type: str, count: int, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(sagemaker__instance_type=instance_type, sagemaker__instance_count=count)
    warn_of_instances(config, region="us-west-2")
    assert any("has 4 GPUs, and a training on one instance uses one" in line for line in caplog.messages) is is_told
    alone = build(sagemaker__instance_type=instance_type, sagemaker__instance_count=count)["HyperParameters"]
    assert ("sagemaker_torch_distributed_enabled" in alone) is (count > 1)


def test_training_request_refuses_a_name_that_sagemaker_would() -> None:
    with pytest.raises(ConfigError, match="trainingJobName"):
        build("x" * 64)


def test_hyperparameters_over_sagemakers_limits_are_refused_before_anything_is_sent() -> None:
    from sagemaker_jobs.training.training_request import check_hyperparameters

    check_hyperparameters({f"name{n}": "x" * 2500 for n in range(100)})
    with pytest.raises(ConfigError, match="2500 characters"):
        check_hyperparameters({"data.classes": "x" * 2501})
    with pytest.raises(ConfigError, match="100 hyperparameters"):
        check_hyperparameters({f"name{n}": "x" for n in range(101)})


def test_metric_definitions_read_every_figure_of_the_real_epoch_line() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 7), torch.arange(40) % 7
    figures = {"train/loss": 1.25e-7, "train/lr": 1e-05}
    figures |= {f"valid/{name}": value for name, value in compute_metrics(logits, labels).items()}
    line = EpochResult(3, 120, figures, 1.0, True).render()

    read = {}
    for definition in metric_definitions():
        assert len(definition["Regex"]) <= 500
        found = re.findall(definition["Regex"], line)
        assert len(found) == 1, definition
        read[definition["Name"]] = float(found[0])

    assert read == pytest.approx(figures, rel=1e-5)


def test_image_is_the_newest_pair_with_cuda_where_the_instance_has_a_gpu() -> None:
    version, python = newest_pair()

    gpu = image_uri("training", instance_type="ml.g5.xlarge", region="eu-central-1")
    cpu = image_uri("inference", instance_type="ml.c7i.xlarge", region="eu-central-1")
    assert gpu.endswith(f".dkr.ecr.eu-central-1.amazonaws.com/pytorch-training:{version}-gpu-{python}")
    assert cpu.endswith(f".dkr.ecr.eu-central-1.amazonaws.com/pytorch-inference:{version}-cpu-{python}")
    with pytest.raises(ConfigError, match="sagemaker.image_uri"):
        image_uri("training", instance_type="ml.g5.xlarge", region="mars-north-1")


@pytest.mark.parametrize("name", ["dogs", "a" * 48, "dog-breeds-of-the-world"])
def test_job_name_fits_sagemaker_whatever_the_experiment_is_called(name: str) -> None:
    config = replace(ExperimentConfig(), name=name)
    at = datetime(2026, 11, 21, 11, 36, 49, tzinfo=UTC)
    made = job_name(config, "train", key="0a1b2c3d4e5f", at=at)

    assert len(made) <= 63
    assert made.startswith(name[:16])
    assert build(made)["TrainingJobName"] == made
