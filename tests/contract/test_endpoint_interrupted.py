"""Changes of an endpoint that nobody saw to their end, and what the next command makes of them."""

from dataclasses import replace
from typing import Any

import pytest
from endpointmodels import wait_for
from hostedversions import BUCKET, CONFIG, MODEL, Account, Project, interrupt
from iamrights import REGION

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import CloudError, ConfigError
from dogbreed_ml.registry import load_version
from sagemaker_jobs.client import LOCAL_ROLE, Aws
from sagemaker_jobs.endpoints import endpoint, removal, rollback
from sagemaker_jobs.endpoints.endpoint_request import Place, endpoint_plan
from sagemaker_jobs.endpoints.leases import Lease

pytestmark = pytest.mark.usefixtures("on_the_local_sagemaker")


def wait_for_service(served: Account, config_name: str) -> None:
    def look() -> Any:
        found = served.sagemaker.describe_endpoint(EndpointName="dogs")
        return found["EndpointStatus"], found["EndpointConfigName"]

    wait_for(look, lambda seen: seen == ("InService", config_name))


def test_update_that_a_second_command_sees_end_keeps_what_is_in_service(project: Project, served: Account) -> None:
    first = project.deploy(1)
    sent = project.deploy(2, no_wait=True)
    assert (sent.is_settled, sent.replaced_config) == (False, first.endpoint_config)
    wait_for_service(served, sent.endpoint_config)
    ended = project.deploy(2, drop_replaced=True)
    assert (ended.action, ended.replaced_config) == ("update", first.endpoint_config)
    made = served.names()
    assert (made["configs"], len(made["models"]), len(served.object_keys())) == ([ended.endpoint_config], 1, 1)
    assert project.version_of(served.invoke()) == 2
    assert served.tags()["dogbreed:version"] == "2"
    assert project.told() == [("deploy", 1, "done"), ("update", 2, "under way"), ("update", 2, "done")]
    with (
        Aws.open(CONFIG.sagemaker) as aws,
        pytest.raises(CloudError, match=f"{ended.endpoint_config} must not be deleted: dogs serves it"),
    ):
        removal.remove_replaced(aws, ended.endpoint_config)
    assert served.names() == made


def test_model_stays_while_another_endpoint_config_needs_it(served: Account) -> None:
    lease = Lease(endpoint="dogs", model=MODEL, version="1")
    place = Place(REGION, LOCAL_ROLE, f"s3://{BUCKET}/models/a/model.tar.gz", f"s3://{BUCKET}/endpoints")
    configs = [replace(CONFIG, hosting=replace(CONFIG.hosting, instance_count=count)) for count in (1, 2)]
    one, two = (endpoint_plan(each, lease=lease, place=place) for each in configs)
    with Aws.open(CONFIG.sagemaker) as aws:
        for plan in (one, two):
            endpoint.ensure_parts(aws, plan)
        removal.remove_replaced(aws, one.config_name)
    made = served.names()
    assert (made["configs"], made["models"]) == ([two.config_name], [two.model["ModelName"]])


def test_endpoint_that_an_earlier_command_made_is_never_taken_back(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sent = project.deploy(1, no_wait=True)
    wait_for_service(served, sent.endpoint_config)
    with monkeypatch.context() as patched:
        interrupt(patched, "dogs")
        with pytest.raises(KeyboardInterrupt):
            project.deploy(1)
    assert project.version_of(served.invoke()) == 1
    assert project.events()[-1].left == "dogs"
    assert "dogs may be live, and cost money: `dogbreed delete dogs" in caplog.text
    # Another version over one that nobody proved has callers to think of.
    second = project.deploy(2)
    assert (second.action, second.replaced_config) == ("update", sent.endpoint_config)
    assert project.version_of(served.invoke()) == 2
    assert project.told()[1:] == [("deploy", 1, "interrupted"), ("update", 2, "done")]


def scaling_of(served: Account) -> Any:
    """Limits and policies, without what differs from one registration to the next."""
    targets = served.scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    policies = served.scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    tracked = [each["TargetTrackingScalingPolicyConfiguration"] for each in policies]
    return [(each["MinCapacity"], each["MaxCapacity"]) for each in targets], tracked


def scaled(**hosting: Any) -> ExperimentConfig:
    return replace(CONFIG, hosting=replace(CONFIG.hosting, **{"max_instance_count": 3, **hosting}))


def test_update_that_nobody_waits_for_has_its_lease_and_its_scaling(project: Project, served: Account) -> None:
    project.deploy(1, config=scaled())
    scaling = scaling_of(served)
    served.server.faults.lose_answer("UpdateEndpoint")
    try:
        sent = project.deploy(2, config=scaled(), no_wait=True, expires="4h")
    finally:
        served.server.faults.clear()
    assert served.tags()["dogbreed:expires"] == sent.lease.expires != ""
    assert served.tags()["dogbreed:version"] == "1"
    assert scaling_of(served) == scaling
    wait_for_service(served, sent.endpoint_config)
    ended = project.deploy(2, config=scaled())
    assert ended.lease.expires == served.tags()["dogbreed:expires"] == sent.lease.expires
    assert served.tags()["dogbreed:version"] == "2"
    assert project.events()[-1].smoke == sent.smoke
    # What is live already gets the scaling that is asked for.
    assert project.deploy(2, config=scaled(max_instance_count=4)).action == "none"
    assert scaling_of(served)[0] == [(1, 4)]
    # ... and loses what is asked for no more, with the instance that it had added.
    more = [{"VariantName": "AllTraffic", "DesiredInstanceCount": 2}]
    served.sagemaker.update_endpoint_weights_and_capacities(EndpointName="dogs", DesiredWeightsAndCapacities=more)
    wait_for_service(served, sent.endpoint_config)
    assert project.deploy(2).action == "none"
    assert scaling_of(served)[0] == []
    (variant,) = served.sagemaker.describe_endpoint(EndpointName="dogs")["ProductionVariants"]
    assert (variant["DesiredInstanceCount"], variant["CurrentInstanceCount"]) == (1, 1)


def test_update_that_comes_to_nothing_leaves_lease_and_scaling_as_they_were(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = project.deploy(1, config=scaled(), expires="8h")
    scaling, tags = scaling_of(served), served.tags()
    other = scaled(instance_type="ml.m5.large", max_instance_count=9)
    seen: list[Any] = []

    def refuse(*_: Any) -> None:
        seen.append((scaling_of(served)[0], served.tags()["dogbreed:expires"] != tags["dogbreed:expires"]))
        raise CloudError("Could not update the endpoint dogs: no capacity.")

    # SageMaker's roll-back, without the minute that an alarm takes.
    for update, message in ((refuse, "no capacity"), (lambda *_: None, f"serves {first.endpoint_config} as before")):
        with monkeypatch.context() as patched:
            patched.setattr(endpoint, "update", update)
            with pytest.raises(CloudError, match=message):
                project.deploy(2, config=other, expires="1h")
        assert (scaling_of(served), served.tags()) == (scaling, tags)
    # SageMaker refuses another instance type for what is scaled; the lease is there before the update is.
    assert seen == [([], True)]
    with monkeypatch.context() as patched:
        interrupt(patched, "dogs")
        with pytest.raises(KeyboardInterrupt):
            project.deploy(2, config=other)
    assert "Nothing scales dogs until the same command has seen the update's end" in caplog.text
    project.deploy(2, config=other)
    assert scaling_of(served)[0] == [(1, 9)]
    with monkeypatch.context() as patched:
        patched.setattr(endpoint, "update", lambda *_: served.sagemaker.delete_endpoint(EndpointName="dogs"))
        with pytest.raises(CloudError, match="dogs was deleted meanwhile, by somebody else"):
            project.deploy(3, config=other)
    assert (project.events()[-1].outcome, project.events()[-1].left) == ("failed", None)


def test_rollback_that_was_cut_off_is_seen_to_its_end_and_not_followed_by_another(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (project.deploy(version).endpoint_config for version in (1, 2))
    with monkeypatch.context() as patched:
        interrupt(patched, "dogs")
        with pytest.raises(KeyboardInterrupt):
            rollback.rollback("dogs", CONFIG, context=project.context)
    assert project.events()[-1].left == "dogs: the update goes on by itself"
    assert "The update of dogs goes on by itself; the same command waits for it again" in caplog.text
    wait_for_service(served, first)
    assert served.tags()["dogbreed:version"] == "2"
    back = rollback.rollback("dogs", CONFIG, context=project.context)
    assert (back.version, back.endpoint_config) == (1, first)
    assert (back.replaced_version, back.replaced_config) == (2, second)
    assert project.version_of(served.invoke()) == 1
    assert served.tags()["dogbreed:version"] == "1"
    with project.tracker() as tracker:
        assert load_version(tracker, MODEL, 2).tags["serving.until"]
    assert project.told()[-2:] == [("rollback", 1, "interrupted"), ("rollback", 1, "done")]
    with pytest.raises(ConfigError, match="rollback needs an endpoint config that dogs served before"):
        rollback.rollback("dogs", CONFIG, context=project.context)


def test_removal_that_was_cut_off_goes_on_with_the_same_command(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ctrl_c(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    project.deploy(1)
    with monkeypatch.context() as patched:
        # DeleteEndpoint is sent; its end is waited for.
        patched.setattr(endpoint, "wait_until", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            removal.delete("dogs", CONFIG, context=project.context, confirm=lambda _: True)
    (deployed, cut_off) = project.events()
    assert (deployed.outcome, cut_off.action, cut_off.outcome, cut_off.left) == (
        "done",
        "delete",
        "interrupted",
        "dogs",
    )
    assert "Not all of dogs is deleted, and it may cost money: `dogbreed delete dogs" in caplog.text
    removal.delete("dogs", CONFIG, context=project.context, confirm=None)
    assert not any(served.names().values())
    assert served.object_keys() == []
    assert project.told()[-1] == ("delete", 1, "done")
