"""What stands under an endpoint's name before a deployment, and what that makes of the deployment."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dogbreed_ml.deployments import DeploymentEvent, list_events
from dogbreed_ml.errors import CloudError, ConfigError
from sagemaker_jobs.client import Aws
from sagemaker_jobs.endpoints import endpoint as endpoints
from sagemaker_jobs.endpoints.endpoint_request import EndpointPlan
from sagemaker_jobs.endpoints.leases import Lease
from sagemaker_jobs.endpoints.record import unfinished

if TYPE_CHECKING:
    from dogbreed_ml.tracking import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """An endpoint of ours that is there already, seen with what is to be deployed."""

    plan: EndpointPlan
    found: endpoints.Description
    lease: Lease
    """Its tags: what was last seen to its end."""
    earlier: DeploymentEvent | None
    """The change that was to bring the plan's endpoint config, where nobody saw its end."""

    @classmethod
    def of(cls, aws: Aws, tracker: "Tracker", plan: EndpointPlan) -> "Standing | None":
        """None where the name is free; raises CloudError for an endpoint that is not ours."""
        found = endpoints.describe(aws, plan.name)
        if found is None:
            return None
        lease = endpoints.read_lease(aws, found["EndpointArn"])
        if lease is None:
            raise CloudError(
                f"The endpoint {plan.name} must be one that this project deployed, and has none of its tags; give "
                f"another --endpoint."
            )
        events = list_events(tracker, plan.lease.model, endpoint=plan.name)
        return cls(plan=plan, found=found, lease=lease, earlier=unfinished(events, plan.config_name))

    @property
    def arn(self) -> str:
        return str(self.found["EndpointArn"])

    @property
    def config_name(self) -> str:
        return str(self.found["EndpointConfigName"])

    @property
    def is_in_service(self) -> bool:
        return bool(self.found["EndpointStatus"] == endpoints.IN_SERVICE)

    @property
    def num_instances(self) -> int | None:
        """As many as it is to have now; None for a serverless one, and before it has any."""
        counts = (each.get("DesiredInstanceCount") for each in self.found.get("ProductionVariants", ()))
        return next(counts, None)

    @property
    def has_plan(self) -> bool:
        """Whether its endpoint config is the plan's: SageMaker has nothing more to change."""
        return self.config_name == self.plan.config_name

    @property
    def is_same_version(self) -> bool:
        return self.lease.noted == self.plan.lease.noted

    @property
    def is_settled(self) -> bool:
        """Whether it serves this already, proven and recorded."""
        is_proven = self.has_plan and self.is_same_version and self.lease.is_proven
        return self.is_in_service and is_proven and self.earlier is None

    @property
    def is_first(self) -> bool:
        """Whether it is this plan's first endpoint, which an earlier command made and did not see proven."""
        is_deploy = not self.lease.is_proven if self.earlier is None else self.earlier.action == "deploy"
        return self.has_plan and self.is_same_version and is_deploy

    @property
    def replaced(self) -> str | None:
        """The endpoint config that the plan's replaces; None where nobody knows it any more."""
        if not self.has_plan:
            return self.config_name
        known = None if self.earlier is None else self.earlier.replaced_config
        return known if known != self.plan.config_name else None

    def require_changeable(self) -> None:
        """Raises CloudError where something else happens to it just now, ConfigError for a plan of another kind."""
        name, status = self.plan.name, self.found["EndpointStatus"]
        if self.is_in_service:
            before, after = _kind(self.found), _kind(self.plan.config)
            if before != after:
                raise ConfigError(
                    f"hosting.kind must be {before} for {name}, got {after}: SageMaker makes no endpoint another kind; "
                    f"give another --endpoint."
                )
            return
        if status == endpoints.FAILED:
            raise CloudError(
                f"The endpoint {name} has failed ({self.found.get('FailureReason', 'no reason given')}); `dogbreed "
                f"delete {name}` clears the place."
            )
        coming = self.config_name if status == endpoints.CREATING else endpoints.pending_config(self.found)
        if coming != self.plan.config_name:
            with_what = f" with {coming}" if coming else ""
            raise CloudError(f"The endpoint {name} is {status}{with_what} just now; try again when that has ended.")
        logger.info("%s is %s with this version already; going on from there", name, status)


def _kind(told: Mapping[str, Any]) -> str:
    """hosting.kind of an endpoint's description, or of an endpoint config."""
    if "AsyncInferenceConfig" in told:
        return "async"
    members = {member for variant in told.get("ProductionVariants", ()) for member in variant}
    return "serverless" if members & {"ServerlessConfig", "CurrentServerlessConfig"} else "realtime"
