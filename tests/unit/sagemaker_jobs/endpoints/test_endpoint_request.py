"""What a deployment sends, against botocore's model and SageMaker's documented limits; nothing is sent."""

from dataclasses import replace
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from dogbreed_ml.cloudconfig import HostingConfig, SagemakerConfig
from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import ConfigError
from sagemaker_jobs.endpoints.endpoint_request import EndpointPlan, Place, endpoint_name, endpoint_plan
from sagemaker_jobs.endpoints.leases import Lease
from sagemaker_jobs.shapes import request_errors, unknown_members

ROLE = "arn:aws:iam::123456789012:role/sagemaker"
PLACE = Place("eu-west-1", ROLE, "s3://bucket/dogbreed/models/abc/model.tar.gz", "s3://bucket/dogbreed/endpoints")
LEASE = Lease(
    endpoint="dogs",
    model="dogs-resnet50",
    version="12",
    run_id="a" * 32,
    commit="b" * 40,
    deployed_by="Ann <ann@example.org>",
    deployed_at="2026-11-21T10:00:00+00:00",
    expires="2026-11-21T14:00:00+00:00",
)
NETWORK = SagemakerConfig(
    subnets=["subnet-1"], security_group_ids=["sg-1"], kms_key_id="0a1b2c3d-0a1b", tags={"team": "kennel & co"}
)
VARIANTS = {
    "default": HostingConfig(),
    "scaled": HostingConfig(instance_count=4, max_instance_count=8, canary_percent=30),
    "captured": HostingConfig(capture_percent=20, instance_count=2),
    "serverless": HostingConfig(kind="serverless"),
    "async": HostingConfig(kind="async", max_instance_count=3),
    "own image": HostingConfig(image_uri="123456789012.dkr.ecr.eu-west-1.amazonaws.com/pytorch-inference:mine"),
    "gpu": HostingConfig(instance_type="ml.g4dn.xlarge"),
}


def plan(hosting: HostingConfig, *, sagemaker: SagemakerConfig | None = None, lease: Lease = LEASE) -> EndpointPlan:
    config = ExperimentConfig(name="dogs", hosting=hosting, sagemaker=sagemaker or SagemakerConfig())
    return endpoint_plan(config, lease=lease, place=PLACE)


@pytest.mark.parametrize("hosting", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("sagemaker", [SagemakerConfig(), NETWORK], ids=["plain", "network"])
def test_requests_fit_the_services_models(hosting: HostingConfig, sagemaker: SagemakerConfig) -> None:
    if hosting.kind == "serverless":
        sagemaker = replace(sagemaker, subnets=[], security_group_ids=[])
    made = plan(hosting, sagemaker=sagemaker)
    requests = {
        "CreateModel": [made.model],
        "CreateEndpointConfig": [made.config, made.smoke_config],
        "CreateEndpoint": [made.endpoint],
        "UpdateEndpoint": [made.update],
    }
    for operation, sent in requests.items():
        for request in sent:
            assert request_errors("sagemaker", operation, request) == []
            assert unknown_members("sagemaker", operation, request) == []
    for alarm in made.alarms:
        assert _mistakes("cloudwatch", "PutMetricAlarm", alarm) == ""
    if made.scaling is not None:
        target, policy = made.scaling
        assert _mistakes("application-autoscaling", "RegisterScalableTarget", target) == ""
        assert _mistakes("application-autoscaling", "PutScalingPolicy", policy) == ""


def _mistakes(service: str, operation: str, request: dict[str, Any]) -> str:
    model = botocore.session.Session().get_service_model(service)
    report: str = ParamValidator().validate(request, model.operation_model(operation).input_shape).generate_report()
    return report


def test_model_runs_awss_own_image_with_the_archives_code() -> None:
    made = plan(VARIANTS["default"])
    container = made.model["PrimaryContainer"]
    assert container["Image"].startswith("763104351884.dkr.ecr.eu-west-1.amazonaws.com/pytorch-inference:")
    assert "-cpu-" in container["Image"]
    assert "-gpu-" in plan(VARIANTS["gpu"]).model["PrimaryContainer"]["Image"]
    assert container["ModelDataUrl"] == PLACE.archive_uri
    assert container["Environment"]["SAGEMAKER_PROGRAM"] == "inference.py"
    assert plan(VARIANTS["own image"]).model["PrimaryContainer"]["Image"].endswith(":mine")
    assert plan(VARIANTS["default"], sagemaker=NETWORK).model["VpcConfig"]["Subnets"] == ["subnet-1"]


def test_tags_lead_back_to_run_version_and_commit() -> None:
    made = plan(VARIANTS["default"], sagemaker=NETWORK)
    for request in (made.model, made.config, made.endpoint):
        tags = {each["Key"]: each["Value"] for each in request["Tags"]}
        assert (tags["dogbreed:run-id"], tags["dogbreed:version"]) == ("a" * 32, "12")
        assert tags["dogbreed:commit"] == "b" * 40
        assert tags["dogbreed:expires"] == LEASE.expires
        assert tags["team"] == "kennel _ co"
        assert tags["dogbreed:deployed-by"] == "Ann _ann@example.org_"
        assert Lease.from_tags(request["Tags"]) == replace(LEASE, deployed_by="Ann _ann@example.org_")


def test_names_hold_what_they_name() -> None:
    made = plan(VARIANTS["default"])
    assert made.config_name.startswith("dogs-v12-")
    later = replace(LEASE, deployed_at="2026-11-22T10:00:00+00:00", deployed_by="bob", expires="", smoke="passed")
    assert plan(VARIANTS["default"], lease=later).config_name == made.config_name
    others = [plan(hosting).config_name for name, hosting in VARIANTS.items() if name != "default"]
    assert len({made.config_name, *others}) == len(VARIANTS)
    assert made.smoke_config == made.config
    # Of one instance without capture, which is what the default says.
    assert plan(VARIANTS["captured"]).smoke_config == made.config
    long = plan(VARIANTS["default"], lease=replace(LEASE, endpoint="d" * 57, version="123456"))
    assert max(len(long.config_name), len(long.model["ModelName"])) <= 63
    assert endpoint_name("my_dogs..2-resnet50") == "my-dogs-2-resnet50"
    assert len(endpoint_name("d" * 100)) == 57


@pytest.mark.parametrize("name", ["dogs_1", "-dogs", "dogs-", "d" * 58, "dogs-smoke", ""])
def test_endpoint_name_that_sagemaker_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--endpoint must be letters, digits and inner hyphens"):
        plan(VARIANTS["default"], lease=replace(LEASE, endpoint=name))


@pytest.mark.parametrize(("count", "percent", "size"), [(2, 10, 1), (2, 50, 1), (10, 30, 3), (3, 50, 1)])
def test_canary_is_at_most_half_of_the_instances(count: int, percent: int, size: int) -> None:
    deployment = plan(HostingConfig(instance_count=count, canary_percent=percent)).update["DeploymentConfig"]
    routing = deployment["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert routing["CanarySize"] == {"Type": "INSTANCE_COUNT", "Value": size}
    assert size * 2 <= count
    alarms = [each["AlarmName"] for each in deployment["AutoRollbackConfiguration"]["Alarms"]]
    assert alarms == ["dogs-latency", "dogs-5xx"]


def test_one_instance_cannot_be_split_and_is_watched_all_the_same() -> None:
    deployment = plan(HostingConfig(bake_s=120)).update["DeploymentConfig"]
    policy = deployment["BlueGreenUpdatePolicy"]
    assert policy["TrafficRoutingConfiguration"]["Type"] == "ALL_AT_ONCE"
    assert policy["TerminationWaitInSeconds"] == 120
    assert deployment["AutoRollbackConfiguration"]["Alarms"]
    unguarded = plan(VARIANTS["serverless"])
    assert "DeploymentConfig" not in unguarded.update
    assert unguarded.alarms == ()


def test_alarms_watch_the_variant_in_sagemakers_units() -> None:
    latency, errors = plan(HostingConfig(max_latency_ms=250, max_errors=3)).alarms
    assert (latency["MetricName"], latency["Threshold"], latency["Statistic"]) == ("ModelLatency", 250_000, "Average")
    assert (errors["MetricName"], errors["Threshold"], errors["Statistic"]) == ("Invocation5XXErrors", 3.0, "Sum")
    for alarm in (latency, errors):
        assert {each["Name"]: each["Value"] for each in alarm["Dimensions"]} == {
            "EndpointName": "dogs",
            "VariantName": plan(HostingConfig()).config["ProductionVariants"][0]["VariantName"],
        }


@pytest.mark.parametrize(
    ("hosting", "message"),
    [
        (HostingConfig(kind="serverless", capture_percent=5), "hosting.capture_percent must be 0 with .* serverless"),
        (HostingConfig(kind="async", capture_percent=5), "hosting.capture_percent must be 0 with .* async"),
        (HostingConfig(kind="serverless", max_instance_count=2), "hosting.max_instance_count must not be set with"),
    ],
)
def test_what_sagemaker_does_not_offer_is_refused(hosting: HostingConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(hosting)
