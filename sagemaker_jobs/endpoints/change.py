"""An endpoint's change to another endpoint config: sent and waited for, and no lease or scaling lost on the way."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from dogbreed_ml.deployments import EventRecord
from dogbreed_ml.errors import CloudError, DogbreedError
from sagemaker_jobs.client import Aws
from sagemaker_jobs.endpoints import endpoint as endpoints
from sagemaker_jobs.endpoints.guards import Scaling, put_scaling, read_scaling, remove_scaling
from sagemaker_jobs.endpoints.leases import NEVER, Lease

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Change:
    """SageMaker carries it out by itself once it is sent."""

    aws: Aws
    event: EventRecord
    arn: str
    """The endpoint's."""
    lease: Lease
    """The endpoint's tags before."""
    expires: str = ""
    """A new end of the lease, where one is asked for; it holds from now on, whoever waits."""
    _scaling: Scaling | None = field(default=None, init=False)
    """What was ended for the change's sake."""

    def send(self, request: Mapping[str, Any], *, serving: str) -> None:
        """UpdateEndpoint, from the endpoint config `serving`; where it is refused, all is as it was."""
        may_be_sent = False
        try:
            self._make_way(serving, request["EndpointConfigName"])
            self.write_end()
            may_be_sent = True
            with self._going_on(KeyboardInterrupt):
                endpoints.update(self.aws, request)
        except (KeyboardInterrupt, DogbreedError) as error:
            if isinstance(error, DogbreedError) or not may_be_sent:
                self.put_back()
            raise

    def write_end(self) -> None:
        if self.expires and self.expires != self.lease.expires:
            endpoints.write_lease(self.aws, self.arn, replace(self.lease, expires=self.expires))

    def wait(self, *, timeout_s: float) -> endpoints.Description:
        """The endpoint once the change has ended, or was rolled back."""
        with self._going_on(KeyboardInterrupt, DogbreedError):
            return endpoints.wait_settled(self.aws, self.lease.endpoint, timeout_s=timeout_s)

    def put_back(self) -> None:
        """Lease and scaling as they were; where that fails, the user knows."""
        try:
            if self.expires and self.expires != self.lease.expires:
                endpoints.write_lease(self.aws, self.arn, replace(self.lease, expires=self.lease.expires or NEVER))
            if self._scaling is not None:
                put_scaling(self.aws, self._scaling)
        except CloudError as error:
            logger.warning("The lease and the scaling of %s are not what they were: %s", self.lease.endpoint, error)

    def tell_unwaited(self) -> None:
        """What does not hold until somebody sees the end."""
        if self._scaling is not None:
            logger.warning("Nothing scales %s until the same command has seen the update's end.", self.lease.endpoint)

    def _make_way(self, serving: str, coming: str) -> None:
        """SageMaker refuses to change the instance type of what is scaled, and nothing else about it."""
        types = [_instance_type(self.aws, each) for each in (serving, coming)]
        if types[0] != types[1]:
            self._scaling = read_scaling(self.aws, self.lease.endpoint)
            remove_scaling(self.aws, self.lease.endpoint)

    @contextmanager
    def _going_on(self, *errors: type[BaseException]) -> Iterator[None]:
        name = self.lease.endpoint
        try:
            yield
        except endpoints.GoneError:
            raise
        except errors:
            self.event.note(left=f"{name}: the update goes on by itself")
            logger.warning("The update of %s goes on by itself; the same command waits for it again.", name)
            self.tell_unwaited()
            raise


def _instance_type(aws: Aws, config_name: str) -> str | None:
    """None for a serverless endpoint config, and for one that was deleted."""
    variants = (endpoints.describe_config(aws, config_name) or {}).get("ProductionVariants", ())
    return next((str(each["InstanceType"]) for each in variants if "InstanceType" in each), None)
