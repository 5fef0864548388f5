"""Deployments to a SageMaker that runs on this machine: what is made, proven, recorded, taken back and removed.

The archives are light: what answers is a few lines, all else is as in AWS. tests/e2e has the real network.
"""

import json
import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from endpointmodels import wait_for
from hostedversions import (
    BUCKET,
    CONFIG,
    MODEL,
    Account,
    Project,
    interrupt,
    use_light_archives,
)
from plantedsecrets import assert_absent, plant

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import CloudError, ConfigError, DogbreedError, GateError
from dogbreed_ml.options import DeployOptions, EndpointsOptions
from dogbreed_ml.pipeline.history import list_history
from dogbreed_ml.registry import load_version
from sagemaker_jobs import pricing
from sagemaker_jobs.client import Aws
from sagemaker_jobs.endpoints import deployment, endpoint, endpointlist, removal, rollback, rollout
from sagemaker_jobs.endpoints.deployed import Deployed
from sagemaker_jobs.endpoints.endpoint_request import MAX_ENDPOINT_NAME
from sagemaker_jobs.endpoints.leases import Lease
from sagemaker_jobs.storage import Storage

FAILING_PNG = """
def transform_fn(model, body, content_type, accept):
    if content_type == "image/png":
        raise RuntimeError("worse than before")
    return model, "application/json"
"""
"""Passes the smoke test, which sends JPEG files."""
WRONG = """
def transform_fn(model, body, content_type, accept):
    return model.replace("Beagle", "Chow"), "application/json"
"""
DEAD = "raise OSError('no such weights')"


pytestmark = pytest.mark.usefixtures("on_the_local_sagemaker")


def test_version_is_deployed_updated_under_load_rolled_back_and_deleted(project: Project, served: Account) -> None:
    context = project.context
    with pytest.raises(GateError, match="version 4 must be measured before it is served"):
        project.deploy(4)
    assert not any(served.names().values())

    config = replace(CONFIG, hosting=replace(CONFIG.hosting, capture_percent=100, max_instance_count=2))
    first = project.deploy(1, config=config, expires="4h")
    assert (first.action, first.replaced_config) == ("deploy", None)
    assert first.smoke is not None
    assert first.smoke.startswith("passed: 2 example images as expected")
    assert project.version_of(served.invoke()) == 1
    tags = served.tags()
    assert (tags["dogbreed:model"], tags["dogbreed:version"], tags["dogbreed:commit"]) == (MODEL, "1", "1" * 40)
    assert tags["dogbreed:smoke"] == "passed"
    assert len(tags["dogbreed:run-id"]) == 32
    with served.callers(project.version_of, count=4, pause_s=0.005) as seen:
        wait_for(lambda: seen["1"], lambda count: count > 20)
        second = project.deploy(2, config=config)
        wait_for(lambda: seen["2"], lambda count: count > 20)
    assert set(seen) == {"1", "2"}
    assert (second.action, second.replaced_config) == ("update", first.endpoint_config)
    made = served.names()
    assert made["endpoints"] == ["dogs"]
    assert set(made["configs"]) == {first.endpoint_config, second.endpoint_config}
    assert len(made["models"]) == 2
    assert set(made["alarms"]) == {"dogs-5xx", "dogs-latency"}
    assert made["targets"] == ["endpoint/dogs/variant/AllTraffic"]
    assert served.tags()["dogbreed:expires"] == tags["dogbreed:expires"]

    (live,) = endpointlist.list_all(CONFIG, EndpointsOptions(), context=context).remote
    assert (live.lease.version, live.status, live.num_instances) == ("2", "InService", 1)
    assert live.usd_per_hour is None
    assert live.num_calls > sum(seen.values()) / 2

    back = rollback.rollback("dogs", CONFIG, context=context, reason="a rehearsal")
    assert (back.version, back.endpoint_config) == (1, first.endpoint_config)
    assert back.replaced_config == second.endpoint_config
    assert project.version_of(served.invoke()) == 1
    assert (served.tags()["dogbreed:version"], served.tags()["dogbreed:smoke"]) == ("1", "passed")
    with pytest.raises(ConfigError, match="rollback needs an endpoint config that dogs served before"):
        rollback.rollback("dogs", CONFIG, context=context)

    captured = wait_for(lambda: [key for key in served.object_keys() if "/capture/dogs/" in key], bool)
    (line, *_) = served.s3.get_object(Bucket=BUCKET, Key=captured[0])["Body"].read().splitlines()
    assert json.loads(line)["captureData"]["endpointInput"]["observedContentType"] == "image/jpeg"

    with pytest.raises(ConfigError, match="dogs is live: delete asks on a terminal, and there is none; give --yes"):
        removal.delete("dogs", CONFIG, context=context, confirm=None)
    with pytest.raises(DogbreedError, match="dogs stays: the answer was no") as refused:
        removal.delete("dogs", CONFIG, context=context, confirm=lambda question: "was called" not in question)
    # A wrong argument it is not.
    assert not isinstance(refused.value, ConfigError)
    removed = removal.delete("dogs", CONFIG, context=context, confirm=lambda _: True)
    assert sorted(removed.endpoint_configs) == sorted([first.endpoint_config, second.endpoint_config])
    assert len(removed.archives) == 2
    assert not any(served.names().values())
    assert all("/capture/" in key for key in served.object_keys())

    with project.tracker() as tracker:
        assert load_version(tracker, MODEL, 1).tags["serving.endpoint"] == "dogs"
        assert load_version(tracker, MODEL, 1).tags["serving.until"]
        assert load_version(tracker, MODEL, 2).tags["serving.until"]
    assert project.told() == [
        ("deploy", 1, "done"), ("update", 2, "done"), ("rollback", 1, "done"), ("delete", 1, "done"),
    ]  # fmt: skip
    shown = list_history(CONFIG, context=context).render()
    assert shown.index("update") < shown.index("rollback") < shown.index("delete")
    assert "a rehearsal" in shown


def test_same_deployment_again_changes_nothing_but_its_lease(project: Project, served: Account) -> None:
    project.deploy(1, expires="1h")
    before = served.tags()
    again = project.deploy(1)
    assert (again.action, again.run_id, again.lease.expires) == ("none", None, before["dogbreed:expires"])
    assert served.tags() == before
    project.deploy(1, expires="never")
    assert served.tags() == before | {"dogbreed:expires": "never"}
    assert project.told() == [("deploy", 1, "done")]


@pytest.mark.parametrize(
    ("code", "message", "outcome"),
    [
        pytest.param(
            WRONG, "smoke test failed: 2 of 2 example images: .* Beagle was expected", "smoke failed", id="wrong"
        ),
        pytest.param(DEAD, "did not come up: .* no such weights", "failed", id="dead"),
    ],
)
def test_first_endpoint_that_is_not_what_it_should_be_is_deleted(
    code: str, message: str, outcome: str, project: Project, served: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_light_archives(monkeypatch, v1=code)
    with pytest.raises(CloudError, match=message):
        project.deploy(1)
    assert served.names()["endpoints"] == []
    (event,) = project.events()
    assert (event.outcome, event.left) == (outcome, None)
    assert event.why
    with project.tracker() as tracker:
        assert "serving.endpoint" not in load_version(tracker, MODEL, 1).tags
    removed = removal.delete("dogs", CONFIG, context=project.context, confirm=None)
    assert not removed.had_endpoint
    assert not any(served.names().values())
    assert served.object_keys() == []


def test_update_that_fails_its_smoke_test_gets_no_traffic(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = project.deploy(1)
    use_light_archives(monkeypatch, v2=WRONG)
    with served.callers(project.version_of) as seen:
        with pytest.raises(CloudError, match="version 2: smoke test failed"):
            project.deploy(2)
        wait_for(lambda: seen["1"], lambda count: count > 3)
    assert set(seen) == {"1"}
    assert served.names()["endpoints"] == ["dogs"]
    assert served.sagemaker.describe_endpoint(EndpointName="dogs")["EndpointConfigName"] == first.endpoint_config
    assert served.tags()["dogbreed:version"] == "1"
    assert project.told() == [("deploy", 1, "done"), ("update", 2, "smoke failed")]


def test_version_that_fails_under_load_rolls_back_by_itself(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its errors are in CloudWatch for a minute, where they would trouble a test of the same name.
    name = "harried"
    config = replace(CONFIG, hosting=replace(CONFIG.hosting, bake_s=60, instance_count=2, canary_percent=50))
    first = project.deploy(1, config=config, endpoint=name)
    use_light_archives(monkeypatch, v2=FAILING_PNG)
    with served.callers(project.version_of, name=name, content_type="image/png") as seen:
        wait_for(lambda: seen["1"], lambda count: count > 3)
        with pytest.raises(CloudError, match=r"harried was rolled back and serves harried-v1-\w+ as before: .*-5xx"):
            project.deploy(2, config=config, endpoint=name)
        good = seen["1"]
        wait_for(lambda: seen["1"], lambda count: count > good + 10)
    assert set(seen) == {"1", "ModelError"}
    assert served.names()["endpoints"] == [name]
    assert served.tags(name)["dogbreed:version"] == "1"
    last = project.events()[-1]
    assert (last.action, last.outcome, last.replaced_config) == ("update", "rolled back", first.endpoint_config)
    assert "harried-5xx" in (last.why or "")
    with project.tracker() as tracker:
        assert not load_version(tracker, MODEL, 1).tags["serving.until"]
    # While the alarm rings, nothing is even begun.
    with pytest.raises(CloudError, match="harried-5xx must be silent before an update"):
        project.deploy(3, config=config, endpoint=name)
    assert project.told()[-1] == ("update", 3, "failed")


def test_first_endpoint_is_taken_back_by_ctrl_c(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt(patched, "dogs")
        with pytest.raises(KeyboardInterrupt):
            project.deploy(1)
    assert served.names()["endpoints"] == []
    assert [(each.outcome, each.left) for each in project.events()] == [("interrupted", None)]
    project.deploy(1)
    assert project.version_of(served.invoke()) == 1


def test_what_cannot_be_taken_back_is_told(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> bool:
        raise CloudError("Could not delete the endpoint dogs: ExpiredToken.")

    with monkeypatch.context() as patched:
        interrupt(patched, "dogs")
        patched.setattr(endpoint, "delete", refuse)
        with pytest.raises(KeyboardInterrupt):
            project.deploy(1)
    assert [(each.outcome, each.left) for each in project.events()] == [("interrupted", "dogs")]
    assert "dogs may be live, and cost money: `dogbreed delete dogs" in caplog.text
    # It comes up all the same; the same command finds it, and proves it.
    again = project.deploy(1)
    assert (again.action, bool(again.smoke)) == ("deploy", True)


def test_smoke_endpoint_is_gone_after_ctrl_c(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.deploy(1)
    with monkeypatch.context() as patched:
        interrupt(patched, "dogs-smoke")
        with pytest.raises(KeyboardInterrupt):
            project.deploy(2)
    assert served.names()["endpoints"] == ["dogs"]
    assert project.version_of(served.invoke()) == 1
    assert project.told()[-1] == ("update", 2, "interrupted")


def test_update_goes_on_after_ctrl_c_and_the_same_command_ends_it(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, hosting=replace(CONFIG.hosting, bake_s=2))
    first = project.deploy(1, config=config)
    with monkeypatch.context() as patched:
        interrupt(patched, "dogs")
        with pytest.raises(KeyboardInterrupt):
            project.deploy(2, config=config)
    event = project.events()[-1]
    assert (event.outcome, event.left) == ("interrupted", "dogs: the update goes on by itself")
    again = project.deploy(2, config=config)
    assert (again.action, again.replaced_config) == ("update", first.endpoint_config)
    assert served.tags()["dogbreed:version"] == "2"
    assert project.told()[-1] == ("update", 2, "done")
    assert rollback.rollback("dogs", config, context=project.context).version == 1


def test_endpoint_past_its_lease_is_reaped(project: Project, served: Account, caplog: pytest.LogCaptureFixture) -> None:
    project.deploy(1, expires="1s")
    project.deploy(2, endpoint="cats", expires="4h")
    # By hand, in AWS's console.
    arn = served.sagemaker.describe_endpoint(EndpointName="cats")["EndpointArn"]
    served.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "dogbreed:expires", "Value": "friday"}])
    wait_for(lambda: datetime.now(UTC), lambda now: now.isoformat() > served.tags()["dogbreed:expires"])
    shown = endpointlist.list_all(CONFIG, EndpointsOptions(target="sagemaker"), context=project.context)
    assert "(over)" in shown.render()
    unpriced = replace(CONFIG, sagemaker=replace(CONFIG.sagemaker, prices_path="nowhere.json"))
    with pytest.raises(ConfigError, match="sagemaker.prices_path must be a JSON file"):
        endpointlist.list_all(unpriced, EndpointsOptions(reap=True), context=project.context)
    assert set(served.names()["endpoints"]) == {"dogs", "cats"}
    caplog.set_level("INFO")
    reaped = endpointlist.list_all(CONFIG, EndpointsOptions(reap=True), context=project.context)
    assert "dogs, past its lease, is deleted" in caplog.text
    assert [each.name for each in reaped.reaped] == ["dogs"]
    assert [each.lease.endpoint for each in reaped.remote] == ["cats"]
    assert "deleted  the endpoint dogs" in reaped.render()
    assert "friday (unreadable)" in reaped.render()
    assert "The tag dogbreed:expires of cats must be a time such as" in caplog.text
    names = served.names()
    assert names["endpoints"] == ["cats"]
    assert all(each.startswith("cats-") for kind in names.values() for each in kind if each != "cats")
    last = project.events()[-1]
    assert (last.action, last.endpoint, last.outcome) == ("reap", "dogs", "done")
    assert (last.why or "").startswith("its lease ended 20")


def test_smoke_endpoint_that_is_reaped_has_no_smoke_endpoint_of_its_own(project: Project, served: Account) -> None:
    """SageMaker would refuse to describe a name that is longer than 63."""
    lease = Lease(endpoint=f"{'dogs'.ljust(MAX_ENDPOINT_NAME, 's')}-smoke", model=MODEL, version="1")
    with Aws.open(CONFIG.sagemaker) as aws:
        removed = removal.remove(aws, lease, CONFIG, context=project.context, action="reap")
    assert not removed.had_endpoint
    assert project.told() == [("reap", 1, "done")]


@pytest.mark.slow
def test_archive_stays_while_another_endpoint_is_made_from_it(project: Project, served: Account) -> None:
    """Small sibling: test_version_is_deployed_updated_under_load_rolled_back_and_deleted."""
    project.deploy(1)
    project.deploy(1, endpoint="cats")
    assert len(served.object_keys()) == 1
    assert removal.delete("dogs", CONFIG, context=project.context, confirm=None, yes=True).archives == ()
    assert project.version_of(served.invoke("cats")) == 1
    assert len(removal.delete("cats", CONFIG, context=project.context, confirm=None, yes=True).archives) == 1
    assert served.object_keys() == []


def test_endpoint_of_somebody_else_is_left_alone(project: Project, served: Account) -> None:
    deployed = project.deploy(1, endpoint="ours")
    served.sagemaker.create_endpoint(EndpointName="theirs", EndpointConfigName=deployed.endpoint_config)
    typo = replace(CONFIG, sagemaker=replace(CONFIG.sagemaker, bucket="typo"))
    with pytest.raises(CloudError, match="theirs must be one that this project deployed"):
        project.deploy(1, endpoint="theirs", config=typo)
    with pytest.raises(ConfigError, match="The endpoint ours must not be there yet"):
        project.deploy(2, endpoint="ours", config=typo, first=True)
    with pytest.raises(ConfigError, match="--endpoint must be letters, digits and inner hyphens"):
        project.deploy(1, endpoint="bad_name", config=typo)
    assert "typo" not in [each["Name"] for each in served.s3.list_buckets()["Buckets"]]
    assert project.told() == [("deploy", 1, "done")]
    with pytest.raises(ConfigError, match="got 'theirs'; SageMaker has: "):
        removal.delete("theirs", CONFIG, context=project.context, confirm=None, yes=True)
    remote = endpointlist.list_all(CONFIG, EndpointsOptions(target="sagemaker"), context=project.context).remote
    assert [each.lease.endpoint for each in remote] == ["ours"]
    served.sagemaker.create_endpoint(EndpointName="ours-smoke", EndpointConfigName=deployed.endpoint_config)
    with pytest.raises(CloudError, match="ours-smoke must be free for the smoke test, and is not this project's"):
        project.deploy(2, endpoint="ours")
    assert set(served.names()["endpoints"]) == {"ours", "theirs", "ours-smoke"}
    assert served.tags("ours")["dogbreed:version"] == "1"
    assert (project.events()[-1].outcome, project.events()[-1].left) == ("failed", None)


def test_rollback_of_an_endpoint_that_is_not_there_says_so(project: Project) -> None:
    with pytest.raises(ConfigError, match="rollback needs the name of an endpoint"):
        rollback.rollback("dogs", CONFIG, context=project.context)


@pytest.mark.parametrize(
    "kind",
    # Small sibling: the other kind.
    [pytest.param("serverless", marks=pytest.mark.slow), "async"],
)
def test_other_kinds_are_proven_too(kind: Any, project: Project, served: Account) -> None:
    config = replace(CONFIG, hosting=replace(CONFIG.hosting, kind=kind))
    deployed = project.deploy(1, config=config)
    assert (deployed.smoke or "").startswith("passed: 2 example images")
    updated = project.deploy(2, config=config)
    assert updated.action == "update"
    (live,) = endpointlist.list_all(CONFIG, EndpointsOptions(target="sagemaker"), context=project.context).remote
    assert live.num_instances == (None if kind == "serverless" else 1)
    made, told = served.names(), project.told()
    with pytest.raises(ConfigError, match=f"hosting.kind must be {kind} for dogs, got realtime: .*another --endpoint"):
        project.deploy(3)
    assert (served.names(), project.told()) == (made, told)
    removal.delete("dogs", config, context=project.context, confirm=None, yes=True)
    assert served.object_keys() == []


@pytest.mark.slow
def test_more_instances_of_one_version_are_an_update_that_may_be_taken_back(project: Project, served: Account) -> None:
    """The smoke test's endpoint config of one instance is the one in service, which must stay.

    Small sibling: test_version_is_deployed_updated_under_load_rolled_back_and_deleted.
    """
    one = project.deploy(1)
    two = project.deploy(1, config=replace(CONFIG, hosting=replace(CONFIG.hosting, instance_count=2)))
    assert two.replaced_config == one.endpoint_config
    assert set(served.names()["configs"]) == {one.endpoint_config, two.endpoint_config}
    assert rollback.rollback("dogs", CONFIG, context=project.context).endpoint_config == one.endpoint_config


@pytest.mark.slow
def test_endpoint_is_deleted_though_the_store_is_away(
    project: Project, served: Account, caplog: pytest.LogCaptureFixture
) -> None:
    """Small sibling: test_version_is_deployed_updated_under_load_rolled_back_and_deleted."""
    project.deploy(1)
    away = replace(project.context, environment={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    config = replace(CONFIG, tracking=replace(CONFIG.tracking, retry_s=1))
    removal.delete("dogs", config, context=away, confirm=None, yes=True)
    assert not any(served.names().values())
    assert "The end of dogs is not recorded" in caplog.text


def test_dry_run_shows_what_would_be_sent_and_asks_nobody(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    dry_run = dry_run_of(project, CONFIG)
    shown = dry_run.to_dict()
    assert set(shown["placeholders"]) == {"role_arn", "region"}
    assert shown["price"] is None
    assert "cost     unknown: neither AWS's Price List nor sagemaker.prices_path named a price" in dry_run.render()
    requests = shown["requests"]
    sent = {"CreateModel", "CreateEndpointConfig", "CreateEndpoint", "UpdateEndpoint", "PutMetricAlarm"}
    assert sent <= set(requests)
    assert requests["CreateModel"]["PrimaryContainer"]["ModelDataUrl"].startswith(f"s3://{BUCKET}/dogbreed/models/")
    assert requests["CreateModel"]["ExecutionRoleArn"] == shown["placeholders"]["role_arn"]
    prices = project.context.project_dir / "prices.json"
    prices.write_text('{"ml.c7i.xlarge": 0.25}', encoding="utf-8")
    priced = replace(CONFIG, sagemaker=replace(CONFIG.sagemaker, prices_path=str(prices)))
    assert dry_run_of(project, priced).to_dict()["price"] == "1 x ml.c7i.xlarge, each $0.25 an hour (prices.json)"
    assert not any(served.names().values())
    assert project.events() == []


def test_dry_run_asks_the_price_list_where_there_are_credentials(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    asked: list[str] = []

    def ask(aws: Aws, instance_type: str, component: str, region: str) -> float:
        asked.append(f"{component} {instance_type} in {region}")
        return 0.5

    monkeypatch.setattr(pricing, "_ask", ask)
    shown = dry_run_of(project, CONFIG).to_dict()
    assert asked == ["Hosting ml.c7i.xlarge in eu-west-1"]
    assert shown["price"].startswith("1 x ml.c7i.xlarge, each $0.5 an hour (AWS Price List, ")
    assert ".eu-west-1." in shown["requests"]["CreateModel"]["PrimaryContainer"]["Image"]
    assert set(shown["placeholders"]) == {"role_arn"}


def dry_run_of(project: Project, config: ExperimentConfig) -> deployment.DryRun:
    options = DeployOptions(target="sagemaker", version="1", dry_run=True, expires="2h")
    shown = deployment.deploy(config, options, context=project.context)
    assert isinstance(shown, deployment.DryRun)
    return shown


@pytest.mark.slow
def test_first_endpoint_may_be_asked_for_and_what_is_replaced_may_go(project: Project, served: Account) -> None:
    """Small sibling: tests/unit/sagemaker_jobs/test_deploy.py."""
    project.deploy(1, first=True)
    with pytest.raises(ConfigError, match="The endpoint dogs must not be there yet, and is"):
        project.deploy(2, first=True)
    second = project.deploy(2, drop_replaced=True)
    assert f"before   {second.replaced_config}: deleted" in second.render()
    assert served.names()["configs"] == [second.endpoint_config]
    assert len(served.object_keys()) == 1
    with pytest.raises(CloudError, match="which was deleted; deploy the version again"):
        rollback.rollback("dogs", CONFIG, context=project.context)


def test_prices_that_cannot_be_read_are_told_before_anything_is_sent(project: Project, served: Account) -> None:
    path = project.context.project_dir / "prices.json"
    path.write_text("ml.c7i.xlarge: 0.25", encoding="utf-8")
    with pytest.raises(ConfigError, match="sagemaker.prices_path must be a JSON file"):
        project.deploy(1, config=replace(CONFIG, sagemaker=replace(CONFIG.sagemaker, prices_path=str(path))))
    assert not any(served.names().values())
    assert project.events() == []


def test_clean_up_that_fails_does_not_hide_what_is_live(
    project: Project, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(told: rollout.Rollout) -> Deployed:
        return Deployed(
            lease=told.plan.lease, action="update", endpoint_config=told.plan.config_name, replaced_config="dogs-v1-0",
            smoke=None, run_id=None,
        )  # fmt: skip

    def refuse(_: Aws, config_name: str) -> None:
        raise CloudError(f"Could not delete {config_name}: AccessDenied.")

    monkeypatch.setattr(rollout.Rollout, "run", run)
    monkeypatch.setattr(deployment, "remove_replaced", refuse)
    deployed = project.deploy(2, drop_replaced=True)
    assert "before   dogs-v1-0: `dogbreed rollback --endpoint dogs`" in deployed.render()
    assert "dogs-v1-0 was replaced, and is still there: Could not delete dogs-v1-0" in caplog.text


def test_deployment_that_nobody_waits_for_is_proven_by_the_next_command(project: Project, served: Account) -> None:
    sent = project.deploy(1, no_wait=True)
    assert (sent.is_settled, sent.smoke) == (False, None)
    assert project.told() == [("deploy", 1, "under way")]
    proven = project.deploy(1)
    assert (proven.action, proven.is_settled) == ("deploy", True)
    assert (proven.smoke or "").startswith("passed")
    assert served.tags()["dogbreed:smoke"] == "passed"


@pytest.mark.slow
def test_rollback_to_a_version_that_nobody_proved_does_not_call_it_proven(project: Project, served: Account) -> None:
    """Small sibling: test_config_is_proven_by_the_smoke_test_that_it_passed."""
    unproven = project.deploy(1, no_wait=True)
    wait_for(lambda: served.sagemaker.describe_endpoint(EndpointName="dogs")["EndpointStatus"], "InService".__eq__)
    project.deploy(2)
    assert served.tags()["dogbreed:smoke"] == "passed"
    rollback.rollback("dogs", CONFIG, context=project.context, to=unproven.endpoint_config)
    assert served.tags()["dogbreed:smoke"] == "not done"
    proven = project.deploy(1)
    assert (proven.action, (proven.smoke or "")[:6]) == ("deploy", "passed")
    assert served.tags()["dogbreed:smoke"] == "passed"


def test_throttling_and_errors_of_s3_are_sat_out(project: Project, served: Account) -> None:
    faults = served.server.faults
    for operation in ("CreateModel", "CreateEndpoint", "DescribeEndpoint", "AddTags"):
        faults.throttle(operation, times=1)
    faults.fail_s3(times=1)
    try:
        assert project.deploy(1).action == "deploy"
    finally:
        faults.clear()
    assert served.names()["endpoints"] == ["dogs"]
    assert project.told() == [("deploy", 1, "done")]


def test_token_that_expires_leaves_nothing_that_nobody_knows_of(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wait = endpoint.wait_settled

    def expire(aws: Aws, name: str, **options: Any) -> Any:
        served.server.faults.expire_token()
        return wait(aws, name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(endpoint, "wait_settled", expire)
        try:
            with pytest.raises(CloudError, match="log in again .*the same command goes on"):
                project.deploy(1)
        finally:
            served.server.faults.clear()
    (event,) = project.events()
    assert (event.outcome, event.left) == ("failed", "dogs")
    assert "dogs may be live, and cost money" in caplog.text
    assert project.deploy(1).action == "deploy"
    assert served.names()["endpoints"] == ["dogs"]
    assert project.told()[-1] == ("deploy", 1, "done")


@pytest.mark.slow
def test_lost_network_and_lost_answers_are_sat_out(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small sibling: test_throttling_and_errors_of_s3_are_sat_out."""
    faults, wait = served.server.faults, endpoint.wait_settled

    def lose(aws: Aws, name: str, **options: Any) -> Any:
        faults.drop_connections()
        ending = threading.Timer(2, faults.clear)
        ending.start()
        try:
            return wait(aws, name, **options)
        finally:
            ending.join()

    faults.lose_answer("CreateEndpoint")
    with monkeypatch.context() as patched:
        patched.setattr(endpoint, "wait_settled", lose)
        assert project.deploy(1).action == "deploy"
    assert served.names()["endpoints"] == ["dogs"]
    assert project.told() == [("deploy", 1, "done")]


def test_endpoint_deleted_behind_our_back_is_told_and_may_be_made_again(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = endpoint.wait_settled

    def delete_first(aws: Aws, name: str, **options: Any) -> Any:
        wait(aws, name, **options)
        served.sagemaker.delete_endpoint(EndpointName=name)
        wait_for(served.names, lambda names: name not in names["endpoints"])
        return wait(aws, name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(endpoint, "wait_settled", delete_first)
        with pytest.raises(CloudError, match="dogs was deleted meanwhile, by somebody else"):
            project.deploy(1)
    assert [(each.outcome, each.left) for each in project.events()] == [("failed", None)]
    assert project.deploy(1).action == "deploy"


@pytest.mark.parametrize(
    ("place", "name"),
    [(Storage, "upload"), (endpoint, "create"), (rollout, "smoke_test")],
    ids=["upload", "create", "smoke"],
)
def test_ctrl_c_at_upload_creation_or_smoke_test_leaves_no_endpoint(
    place: Any, name: str, project: Project, served: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        project.deploy(1)
    assert served.names()["endpoints"] == []
    assert [(each.outcome, each.left) for each in project.events()] == [("interrupted", None)]


def test_no_secret_is_in_what_a_deployment_writes_sends_or_says(
    project: Project, served: Account, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plant(monkeypatch)
    deployed = project.deploy(1, expires="1h")
    updated = project.deploy(2)
    live = endpointlist.list_all(CONFIG, EndpointsOptions(target="sagemaker"), context=project.context)
    sagemaker = served.sagemaker
    described = [sagemaker.describe_endpoint(EndpointName="dogs")]
    described += [sagemaker.describe_model(ModelName=each) for each in served.names()["models"]]
    described += [sagemaker.describe_endpoint_config(EndpointConfigName=each) for each in served.names()["configs"]]
    arns = [
        value for each in described for key, value in each.items() if key.endswith("Arn") and ":sagemaker:" in value
    ]
    tags = [sagemaker.list_tags(ResourceArn=arn)["Tags"] for arn in arns]
    objects = [served.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in served.object_keys()]
    assert len(arns) == 5
    assert all(tags)
    assert len(objects) == 2
    shown = list_history(CONFIG, context=project.context).render()
    assert_absent(
        project.context.project_dir, described, tags, *objects, caplog.text, live.render(), live.to_dict(), shown,
        deployed.to_dict(), updated.render(),
    )  # fmt: skip
