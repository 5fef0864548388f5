"""`dogbreed rollback --endpoint NAME`: back to the endpoint config before, as the recorded events know it."""

from dataclasses import dataclass, replace
from typing import Any

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.deployments import list_events, mark_ended, mark_live, recorded, utc_now
from dogbreed_ml.errors import CloudError, ConfigError
from dogbreed_ml.provenance import user_name
from sagemaker_jobs.client import Aws
from sagemaker_jobs.endpoints import endpoint as endpoints
from sagemaker_jobs.endpoints.leases import Lease
from sagemaker_jobs.endpoints.record import previous_config
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

    `to` names another endpoint config than the one before. Raises ConfigError where there is nothing to go back to.
    """
    from dogbreed_ml.registry import load_version

    with opened_store(config, context) as tracker, Aws.open(config.sagemaker) as aws:
        found, lease = _live(aws, name)
        current = str(found["EndpointConfigName"])
        target = to or previous_config(list_events(tracker, lease.model, endpoint=name), current)
        if target is None:
            raise ConfigError(
                f"rollback needs an endpoint config that {name} served before {current}, and this tracking store knows "
                "of none; deploy the version that you want."
            )
        back = _lease_of_config(aws, name, target)
        version = load_version(tracker, back.model, int(back.version))
        with recorded(tracker, "rollback", target="sagemaker", endpoint=name, version=version, why=reason) as event:
            event.note(endpoint_config=target, replaced_config=current, backend=BACKEND)
            endpoints.update(aws, _update_request(aws, name, target))
            settled = endpoints.wait_settled(aws, name, timeout_s=config.hosting.timeout_s)
            if settled["EndpointStatus"] != endpoints.IN_SERVICE or settled["EndpointConfigName"] != target:
                raise CloudError(
                    f"{name} could not go back to {target} and serves {settled['EndpointConfigName']}: "
                    f"{settled.get('FailureReason', settled['EndpointStatus'])}"
                )
            since = utc_now()
            told = replace(
                back.proven(), expires=lease.expires, deployed_at=since, deployed_by=user_name(), endpoint=name
            )
            endpoints.write_lease(aws, found["EndpointArn"], told)
            mark_live(tracker, version, endpoint=name, backend=BACKEND, since=since)
            if lease.version != back.version:
                mark_ended(tracker, lease.model, int(lease.version), endpoint=name)
            return RolledBack(
                name=name,
                model=back.model,
                version=int(back.version),
                endpoint_config=target,
                replaced_version=int(lease.version),
                replaced_config=current,
                run_id=event.run_id,
            )


def _live(aws: Aws, name: str) -> tuple[endpoints.Description, Lease]:
    found = endpoints.describe(aws, name)
    lease = None if found is None else endpoints.read_lease(aws, found["EndpointArn"])
    if found is None or lease is None:
        raise ConfigError(f"rollback needs the name of an endpoint that this project deployed, got {name!r}.")
    if found["EndpointStatus"] != endpoints.IN_SERVICE:
        raise CloudError(f"The endpoint {name} is {endpoints.render_progress(found)}; roll back when it is in service.")
    return found, lease


def _lease_of_config(aws: Aws, name: str, config_name: str) -> Lease:
    described = endpoints.describe_config(aws, config_name)
    lease = None if described is None else endpoints.read_lease(aws, described["EndpointConfigArn"])
    if lease is None:
        raise CloudError(
            f"{name} cannot go back to the endpoint config {config_name}, which was deleted; deploy the version again."
        )
    return lease


def _update_request(aws: Aws, name: str, config_name: str) -> dict[str, Any]:
    request: dict[str, Any] = {"EndpointName": name, "EndpointConfigName": config_name}
    described = endpoints.describe_config(aws, config_name) or {}
    if any("ServerlessConfig" in each for each in described.get("ProductionVariants", ())):
        return request
    routing = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}
    return {
        **request,
        # The instances that answer today's load stay as many.
        "RetainAllVariantProperties": True,
        "ExcludeRetainedVariantProperties": [
            {"VariantPropertyType": "DesiredWeight"},
            {"VariantPropertyType": "DataCaptureConfig"},
        ],
        "DeploymentConfig": {
            "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": 0}
        },
    }
