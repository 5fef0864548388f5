"""What a request about models, endpoint configs and deployments is refused for, and what retaining keeps."""

from typing import Any

import pytest

from sagemaker_jobs.local import hosting
from sagemaker_jobs.local.errors import ValidationException

REGISTRY = "763104351884.dkr.ecr.us-west-2.amazonaws.com"
PYTORCH = f"{REGISTRY}/pytorch-inference:2.6.0-cpu-py312"
ROLE = "arn:aws:iam::123456789012:role/sagemaker"
CONTAINER: dict[str, Any] = {"Image": PYTORCH, "ModelDataUrl": "s3://models/a/model.tar.gz"}
MODEL: dict[str, Any] = {"ModelName": "a", "PrimaryContainer": CONTAINER, "ExecutionRoleArn": ROLE}
VARIANT: dict[str, Any] = {
    "VariantName": "blue", "ModelName": "a", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1,
}  # fmt: skip


def _serverless(**changes: int) -> dict[str, Any]:
    config = {"MemorySizeInMB": 2048, "MaxConcurrency": 2, **changes}
    return {"VariantName": "blue", "ModelName": "a", "ServerlessConfig": config}


SERVERLESS = _serverless()
CONFIG: dict[str, Any] = {"EndpointConfigName": "c", "ProductionVariants": [VARIANT]}


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (PYTORCH, "handlers"),
        (f"{REGISTRY}/mlflow-pyfunc:3.17.2", "mlflow"),
        (f"{REGISTRY}/team/mlflow-pyfunc@sha256:00", "mlflow"),
        ("localhost:5000/pytorch-inference", "handlers"),
    ],
)
def test_image_name_decides_how_a_model_is_served(image: str, kind: str) -> None:
    assert hosting.serving_kind(image) == kind


@pytest.mark.parametrize(
    "image", [f"{REGISTRY}/xgboost:1", f"{REGISTRY}/pytorch-training:2.6.0", "pytorch-inference/own"]
)
def test_image_that_is_not_known_is_an_error_that_names_those_that_are(image: str) -> None:
    with pytest.raises(ValidationException, match="pytorch-inference, mlflow-pyfunc"):
        hosting.serving_kind(image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PrimaryContainer": None}, "Exactly one of PrimaryContainer and Containers"),
        ({"Containers": [CONTAINER]}, "Exactly one of PrimaryContainer and Containers"),
        ({"PrimaryContainer": None, "Containers": [CONTAINER] * 2}, "inference pipelines"),
        ({"PrimaryContainer": {**CONTAINER, "Mode": "MultiModel"}}, "multi-model"),
        ({"PrimaryContainer": {**CONTAINER, "ModelPackageName": "p"}}, "PrimaryContainer.ModelPackageName"),
        ({"PrimaryContainer": {"ModelDataUrl": "s3://a/b"}}, "must specify an Image"),
        ({"PrimaryContainer": {"Image": PYTORCH}}, "Exactly one of ModelDataUrl and ModelDataSource"),
        ({"PrimaryContainer": {**CONTAINER, "ModelDataUrl": "https://a/b"}}, "s3://BUCKET/KEY"),
        ({"ExecutionRoleArn": None}, "ExecutionRoleArn"),
    ],
)
def test_model_that_cannot_be_served_is_refused(changes: dict[str, Any], message: str) -> None:
    hosting.check_model(MODEL)
    params = {name: value for name, value in {**MODEL, **changes}.items() if value is not None}
    with pytest.raises(ValidationException, match=message):
        hosting.check_model(params)


def test_model_source_is_an_archive_or_a_prefix() -> None:
    def source(data_type: str, compression: str) -> dict[str, Any]:
        s3 = {"S3Uri": "s3://a/b/", "S3DataType": data_type, "CompressionType": compression}
        return {"Image": PYTORCH, "ModelDataSource": {"S3DataSource": s3}}

    assert hosting.model_source(CONTAINER) == ("s3://models/a/model.tar.gz", True)
    assert hosting.model_source(source("S3Object", "Gzip")) == ("s3://a/b/", True)
    assert hosting.model_source(source("S3Prefix", "None")) == ("s3://a/b/", False)
    with pytest.raises(ValidationException, match="S3Prefix and CompressionType Gzip"):
        hosting.model_source(source("S3Prefix", "Gzip"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AsyncInferenceConfig": {"OutputConfig": {}}}, "must specify S3OutputPath"),
        ({"AsyncInferenceConfig": {"OutputConfig": {"S3OutputPath": "https://a/b"}}}, "must be s3://BUCKET/PREFIX"),
        (
            {"AsyncInferenceConfig": {"OutputConfig": {"NotificationConfig": {"SuccessTopic": "t"}}}},
            "NotificationConfig",
        ),
        ({"ShadowProductionVariants": [VARIANT]}, "ShadowProductionVariants"),
        ({"ProductionVariants": [VARIANT, VARIANT]}, "blue twice"),
        ({"ProductionVariants": [{**VARIANT, "ServerlessConfig": SERVERLESS["ServerlessConfig"]}]}, "not both"),
        ({"ProductionVariants": [SERVERLESS, {**VARIANT, "VariantName": "green"}]}, "one production variant"),
        (
            {"ProductionVariants": [SERVERLESS], "DataCaptureConfig": {"DestinationS3Uri": "s3://a"}},
            "DataCaptureConfig",
        ),
        ({"ProductionVariants": [_serverless(MemorySizeInMB=1500)]}, "multiple of 1024, got 1500"),
        ({"ProductionVariants": [_serverless(ProvisionedConcurrency=1)]}, "ProvisionedConcurrency"),
        ({"ProductionVariants": [{**VARIANT, "ModelName": "b"}]}, 'Could not find model "b"'),
        ({"ProductionVariants": [{"VariantName": "blue", "ModelName": "a"}]}, "must specify InstanceType"),
        ({"ProductionVariants": [{**VARIANT, "InitialVariantWeight": 0}]}, "weight above 0"),
        ({"DataCaptureConfig": {"DestinationS3Uri": "https://a/b"}}, "data capture to https://a/b"),
    ],
)
def test_endpoint_config_that_cannot_be_served_is_refused(changes: dict[str, Any], message: str) -> None:
    hosting.check_endpoint_config(CONFIG, ["a"])
    with pytest.raises(ValidationException, match=message):
        hosting.check_endpoint_config({**CONFIG, **changes}, ["a"])


def _policy(kind: str, size: dict[str, Any] | None = None) -> dict[str, Any]:
    member = "LinearStepSize" if kind == "LINEAR" else "CanarySize"
    routing = {"Type": kind, "WaitIntervalInSeconds": 0, **({member: size} if size else {})}
    return {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}}


@pytest.mark.parametrize(
    ("deployment", "message"),
    [
        (_policy("LINEAR"), "LinearStepSize must be specified"),
        (_policy("LINEAR", {"Type": "CAPACITY_PERCENT", "Value": 5}), "at least 10 and at most 50 percent, got 5"),
        ({"RollingUpdatePolicy": {"WaitIntervalInSeconds": 0}}, "RollingUpdatePolicy"),
        (_policy("CANARY"), "CanarySize must be specified"),
        (_policy("CANARY", {"Type": "CAPACITY_PERCENT", "Value": 51}), "at most 50 percent"),
        (_policy("CANARY", {"Type": "INSTANCE_COUNT", "Value": 4}), "below the 4 instances"),
    ],
)
def test_deployment_that_is_not_done_is_refused(deployment: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationException, match=message):
        hosting.check_deployment(deployment, 4)


@pytest.mark.parametrize(
    ("deployment", "shares"),
    [
        (_policy("ALL_AT_ONCE"), [1.0]),
        (_policy("CANARY", {"Type": "CAPACITY_PERCENT", "Value": 10}), [0.1, 1.0]),
        (_policy("CANARY", {"Type": "INSTANCE_COUNT", "Value": 1}), [0.25, 1.0]),
        (_policy("LINEAR", {"Type": "INSTANCE_COUNT", "Value": 1}), [0.25, 0.5, 0.75, 1.0]),
        (_policy("LINEAR", {"Type": "CAPACITY_PERCENT", "Value": 40}), [0.4, 0.8, 1.0]),
        (_policy("LINEAR", {"Type": "CAPACITY_PERCENT", "Value": 10}), [each / 10 for each in range(1, 11)]),
    ],
)
def test_traffic_is_shifted_by_shares_of_the_new_fleet(deployment: dict[str, Any], shares: list[float]) -> None:
    hosting.check_deployment(deployment, 4)
    routing = deployment["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert hosting.traffic_shares(routing, 4) == pytest.approx(shares)


def test_desired_weights_and_counts_change_the_variants_that_they_name() -> None:
    config = {"ProductionVariants": [VARIANT, {**VARIANT, "VariantName": "green", "InitialVariantWeight": 2.0}]}
    desired = [{"VariantName": "blue", "DesiredInstanceCount": 3}, {"VariantName": "green", "DesiredWeight": 5}]
    blue, green = hosting.rescaled(config, desired)["ProductionVariants"]
    assert (blue["InitialInstanceCount"], green["InitialVariantWeight"]) == (3, 5.0)
    assert green["InitialInstanceCount"] == 1
    serverless = {"ProductionVariants": [SERVERLESS]}
    update = [{"VariantName": "blue", "ServerlessUpdateConfig": {"MaxConcurrency": 9}}]
    (changed,) = hosting.rescaled(serverless, update)["ProductionVariants"]
    assert changed["ServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 9}


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        (VARIANT, {"VariantName": "red"}, "no variants red; it has blue"),
        (VARIANT, {"VariantName": "blue", "DesiredWeight": 0}, "weight above 0"),
        (VARIANT, {"VariantName": "blue", "DesiredInstanceCount": 0}, "at least 1"),
        (SERVERLESS, {"VariantName": "blue", "DesiredInstanceCount": 2}, "not for serverless"),
        (VARIANT, {"VariantName": "blue", "ServerlessUpdateConfig": {"MaxConcurrency": 1}}, "blue is not serverless"),
    ],
)
def test_desired_weights_and_counts_that_cannot_be_had_are_refused(
    variant: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationException, match=message):
        hosting.rescaled({"ProductionVariants": [variant]}, [change])


def test_update_to_another_kind_of_endpoint_is_refused() -> None:
    kinds = {
        "real-time": CONFIG,
        "serverless": {"ProductionVariants": [SERVERLESS]},
        "asynchronous": {**CONFIG, "AsyncInferenceConfig": {}},
    }
    for before, current in kinds.items():
        hosting.check_update(current, current)
        for after in kinds.keys() - {before}:
            with pytest.raises(ValidationException, match=f"A {before} endpoint cannot be updated to a {after} one"):
                hosting.check_update(kinds[after], current)


def test_retained_properties_are_those_of_variants_that_stay() -> None:
    capture = {"DestinationS3Uri": "s3://a/b"}
    old = {**VARIANT, "InitialInstanceCount": 3, "InitialVariantWeight": 5.0}
    current = {"ProductionVariants": [old], "DataCaptureConfig": capture}
    new = {"ProductionVariants": [{**VARIANT, "ModelName": "b"}, {**VARIANT, "VariantName": "green"}]}
    result = hosting.retained(new, current, excluded=["DesiredWeight"])
    assert result["ProductionVariants"] == [
        {**VARIANT, "ModelName": "b", "InitialInstanceCount": 3},
        {**VARIANT, "VariantName": "green"},
    ]
    assert result["DataCaptureConfig"] == capture
    assert "DataCaptureConfig" not in hosting.retained(new, current, excluded=["DataCaptureConfig"])
