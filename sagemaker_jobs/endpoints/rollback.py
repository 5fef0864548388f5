"""`dogbreed rollback --endpoint NAME`: back to the endpoint config before, as the recorded events know it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.deployments import DeploymentEvent, list_events, mark_ended, mark_live, recorded, utc_now
from dogbreed_ml.errors import CloudError, ConfigError
from dogbreed_ml.provenance import user_name
from sagemaker_jobs.client import Aws
from sagemaker_jobs.endpoints import endpoint as endpoints
from sagemaker_jobs.endpoints.change import Change
from sagemaker_jobs.endpoints.guard_requests import AS_MANY_INSTANCES
from sagemaker_jobs.endpoints.leases import NOT_DONE, PASSED, Lease
from sagemaker_jobs.endpoints.record import is_proven, previous_config, unfinished
from sagemaker_jobs.endpoints.rollout import BACKEND
from sagemaker_jobs.endpoints.store import opened_store


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """An endpoint that serves again what it served before."""

    name: str
    model: str
    version: int
    endpoint_config: str
    replaced_version: int
    replaced_config: str
    run_id: str

    def to_dict(self) -> dict[str, Any]:
        return {"target": "sagemaker", **vars(self)}

    def render(self) -> str:
        return (
            f"{self.name} serves {self.model} version {self.version} ({self.endpoint_config}) again, in place of "
            f"version {self.replaced_version} ({self.replaced_config})"
        )


def rollback(
    name: str, config: ExperimentConfig, *, context: Context, reason: str | None = None, to: str | None = None
) -> RolledBack:
    """Shifts all traffic at once, without alarms: they may ring because of what is to go.

    `to` names another endpoint config than the one before. A rollback that was cut off is seen to its end first, not
    followed by another. Raises ConfigError where there is nothing to go back to.
    """
    from dogbreed_ml.registry import load_version

    with opened_store(config, context) as tracker, Aws.open(config.sagemaker) as aws:
        found, lease = _ours(aws, name)
        events = list_events(tracker, lease.model, endpoint=name)
        begun = _begun(events, found, to=to)
        target, replaced = _pair(events, found, begun=begun, to=to)
        back = _lease_of_config(aws, name, target)
        # The endpoint's tags know nothing of a change that nobody saw end.
        left = _find_lease(aws, replaced) or lease
        version = load_version(tracker, back.model, int(back.version))
        with recorded(tracker, "rollback", target="sagemaker", endpoint=name, version=version, why=reason) as event:
            event.note(endpoint_config=target, replaced_config=replaced, backend=BACKEND)
            change = Change(aws=aws, event=event, arn=found["EndpointArn"], lease=lease)
            if begun is None:
                change.send(_update_request(aws, name, target), serving=replaced)
            settled = change.wait(timeout_s=config.hosting.timeout_s)
            change.put_back()
            if settled["EndpointStatus"] != endpoints.IN_SERVICE or settled["EndpointConfigName"] != target:
                raise CloudError(
                    f"{name} could not go back to {target} and serves {settled['EndpointConfigName']}: "
                    f"{settled.get('FailureReason', settled['EndpointStatus'])}"
                )
            since = utc_now()
            told = replace(
                back,
                endpoint=name,
                # Where it was not, the next `deploy` of the version is its smoke test.
                smoke=PASSED if is_proven(events, target) else NOT_DONE,
                expires=lease.expires,
                deployed_at=since,
                deployed_by=user_name(),
            )
            endpoints.write_lease(aws, found["EndpointArn"], told)
            mark_live(tracker, version, endpoint=name, backend=BACKEND, since=since)
            if left.noted != back.noted:
                mark_ended(tracker, left.model, int(left.version), endpoint=name)
            return RolledBack(
                name=name,
                model=back.model,
                version=int(back.version),
                endpoint_config=target,
                replaced_version=int(left.version),
                replaced_config=replaced,
                run_id=event.run_id,
            )


def _ours(aws: Aws, name: str) -> tuple[endpoints.Description, Lease]:
    found = endpoints.describe(aws, name)
    lease = None if found is None else endpoints.read_lease(aws, found["EndpointArn"])
    if found is None or lease is None:
        raise ConfigError(f"rollback needs the name of an endpoint that this project deployed, got {name!r}.")
    return found, lease


def _begun(
    events: Sequence[DeploymentEvent], found: endpoints.Description, *, to: str | None
) -> DeploymentEvent | None:
    """The rollback that SageMaker ends, or has ended, by itself: nobody saw its end. None where there is none."""
    is_still = found["EndpointStatus"] != endpoints.IN_SERVICE
    coming = endpoints.pending_config(found) if is_still else str(found["EndpointConfigName"])
    event = unfinished(events, coming)
    if event is not None and event.action == "rollback" and to in (None, coming):
        return event
    if is_still:
        raise CloudError(
            f"The endpoint {found['EndpointName']} is {endpoints.render_progress(found)}; roll back when it is in "
            "service."
        )
    return None


def _pair(
    events: Sequence[DeploymentEvent], found: endpoints.Description, *, begun: DeploymentEvent | None, to: str | None
) -> tuple[str, str]:
    """The endpoint config to go back to, and the one that goes."""
    name, current = found["EndpointName"], str(found["EndpointConfigName"])
    if begun is not None and begun.endpoint_config is not None:
        return begun.endpoint_config, begun.replaced_config or current
    target = to or previous_config(events, current)
    if target is None:
        raise ConfigError(
            f"rollback needs an endpoint config that {name} served before {current}, and this tracking store knows "
            "of none; deploy the version that you want."
        )
    return target, current


def _lease_of_config(aws: Aws, name: str, config_name: str) -> Lease:
    lease = _find_lease(aws, config_name)
    if lease is None:
        raise CloudError(
            f"{name} cannot go back to the endpoint config {config_name}, which was deleted; deploy the version again."
        )
    return lease


def _find_lease(aws: Aws, config_name: str) -> Lease | None:
    """Which version an endpoint config is of; None where it was deleted."""
    described = endpoints.describe_config(aws, config_name)
    return None if described is None else endpoints.read_lease(aws, described["EndpointConfigArn"])


def _update_request(aws: Aws, name: str, config_name: str) -> dict[str, Any]:
    request: dict[str, Any] = {"EndpointName": name, "EndpointConfigName": config_name}
    described = endpoints.describe_config(aws, config_name) or {}
    if any("ServerlessConfig" in each for each in described.get("ProductionVariants", ())):
        return request
    routing = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}
    return {
        **request,
        # The instances that answer today's load stay as many.
        **AS_MANY_INSTANCES,
        "DeploymentConfig": {
            "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": 0}
        },
    }
