"""One endpoint of SageMaker: made, described, updated, waited for and deleted, with what it is made of."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from dogbreed_ml.errors import CloudError
from sagemaker_jobs.client import Aws, cloud_error, is_absent, wait_until
from sagemaker_jobs.endpoints.endpoint_request import EndpointPlan
from sagemaker_jobs.endpoints.leases import Lease

logger = logging.getLogger(__name__)

Description = dict[str, Any]

IN_SERVICE, FAILED, CREATING, DELETING = "InService", "Failed", "Creating", "Deleting"
_UNDER_WAY = (CREATING, "Updating", "SystemUpdating", "RollingBack", DELETING)
_POLL_S, _LOCAL_POLL_S = 10.0, 0.2


class GoneError(CloudError):
    """An endpoint that was waited for is there no more."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The endpoint {name} was deleted meanwhile, by somebody else.")


def describe(aws: Aws, name: str) -> Description | None:
    """None where there is no endpoint of that name."""
    return _describe(aws, "endpoint", name)


def describe_config(aws: Aws, name: str) -> Description | None:
    return _describe(aws, "endpoint_config", name)


def describe_model(aws: Aws, name: str) -> Description | None:
    return _describe(aws, "model", name)


def ensure_parts(aws: Aws, plan: EndpointPlan, *, for_smoke: bool = False) -> None:
    """Model and endpoint config, made unless they are there; their names say what they hold."""
    config = plan.smoke_config if for_smoke else plan.config
    _ensure(aws, "CreateModel", plan.model, lambda: describe_model(aws, plan.model["ModelName"]))
    _ensure(aws, "CreateEndpointConfig", config, lambda: describe_config(aws, config["EndpointConfigName"]))


def create(aws: Aws, request: Mapping[str, Any]) -> bool:
    """Asks for a new endpoint, which is there at once and serves later; False where there is one already."""
    return _ensure(aws, "CreateEndpoint", request, lambda: describe(aws, request["EndpointName"]))


def update(aws: Aws, request: Mapping[str, Any]) -> None:
    """Asks for the change. Where the answer was lost, what happens to the endpoint tells that it was asked for."""
    name = request["EndpointName"]
    try:
        aws.create("UpdateEndpoint", request, doing=f"update the endpoint {name}")
    except CloudError as error:
        found = describe(aws, name) if isinstance(error.__cause__, BotoCoreError | ClientError) else None
        if found is None or found["EndpointStatus"] == IN_SERVICE:
            raise
        if pending_config(found) not in (None, request["EndpointConfigName"]):
            raise
        logger.debug("UpdateEndpoint was answered with an error, and was done: %s", error)


def wait_settled(aws: Aws, name: str, *, timeout_s: float) -> Description:
    """The description once the endpoint is neither made nor changed any more; CloudError where it is gone, or late."""
    shown = ""

    def look() -> Description:
        nonlocal shown
        found = describe(aws, name)
        if found is None:
            raise GoneError(name)
        progress = render_progress(found)
        if progress != shown:
            logger.info("%s: %s", name, progress)
            shown = progress
        return found

    return wait_until(
        look,
        lambda found: found["EndpointStatus"] not in _UNDER_WAY,
        what=f"The end of what is done to the endpoint {name}",
        timeout_s=timeout_s,
        interval_s=poll_s(aws),
        clock=aws.clock,
    )


def render_progress(description: Mapping[str, Any]) -> str:
    """Such as `Updating (Baking)`."""
    pending = description.get("PendingDeploymentSummary", {}).get("ProductionVariants", ())
    steps = {step["Status"] for variant in pending for step in variant.get("VariantStatus", ())}
    steps.discard(description["EndpointStatus"])
    shown = f" ({', '.join(sorted(steps))})" if steps else ""
    return f"{description['EndpointStatus']}{shown}"


def pending_config(description: Mapping[str, Any]) -> str | None:
    """The endpoint config that an update under way brings."""
    name = description.get("PendingDeploymentSummary", {}).get("EndpointConfigName")
    return None if name is None else str(name)


def delete(aws: Aws, name: str, *, timeout_s: float) -> bool:
    """Deletes an endpoint and waits until it is gone; whether there was one.

    SageMaker does not delete what it is about to make or change: that is waited for first.
    """
    found = describe(aws, name)
    if found is None:
        return False
    if found["EndpointStatus"] != DELETING:
        _send_deletion(aws, found, timeout_s=timeout_s)
    wait_until(
        lambda: describe(aws, name),
        lambda seen: seen is None,
        what=f"The end of the endpoint {name}",
        timeout_s=timeout_s,
        interval_s=poll_s(aws),
        clock=aws.clock,
    )
    return True


def _send_deletion(aws: Aws, found: Description, *, timeout_s: float) -> None:
    name = found["EndpointName"]
    try:
        aws.create("DeleteEndpoint", {"EndpointName": name}, doing=f"delete the endpoint {name}")
    except CloudError as error:
        if "in-progress" not in str(error):
            raise
        logger.info("%s is %s, and can be deleted only after that", name, found["EndpointStatus"])
        wait_settled(aws, name, timeout_s=timeout_s)
        aws.create("DeleteEndpoint", {"EndpointName": name}, doing=f"delete the endpoint {name}")


def delete_part(aws: Aws, operation: str, request: Mapping[str, str]) -> None:
    """DeleteModel or DeleteEndpointConfig; what is gone already is no error."""
    try:
        aws.create(operation, request, doing=f"delete {' '.join(request.values())}")
    except CloudError as error:
        if not isinstance(error.__cause__, ClientError) or not is_absent(error.__cause__):
            raise


def read_lease(aws: Aws, arn: str) -> Lease | None:
    """Whose a resource is, by its tags; None for what this project did not make."""
    answer = aws.ask(lambda: aws.client("sagemaker").list_tags(ResourceArn=arn, MaxResults=50), doing=f"read {arn}")
    return Lease.from_tags(answer["Tags"])


def write_lease(aws: Aws, arn: str, lease: Lease) -> None:
    tags = [{"Key": key, "Value": value} for key, value in lease.to_tags().items()]
    aws.create("AddTags", {"ResourceArn": arn, "Tags": tags}, doing=f"tag {lease.endpoint}")


def list_all(aws: Aws, operation: str, member: str, **conditions: Any) -> Iterator[Description]:
    """Every summary that a List operation has, such as `list_endpoints`, `Endpoints`."""
    pages = aws.client("sagemaker").get_paginator(operation)
    found: list[Description] = aws.ask(
        lambda: [each for page in pages.paginate(**conditions) for each in page[member]],
        doing=operation.replace("_", " "),
    )
    yield from found


def poll_s(aws: Aws) -> float:
    return _LOCAL_POLL_S if aws.is_local else _POLL_S


def _describe(aws: Aws, kind: str, name: str) -> Description | None:
    parameter = {"endpoint": "EndpointName", "endpoint_config": "EndpointConfigName", "model": "ModelName"}[kind]
    method = getattr(aws.client("sagemaker"), f"describe_{kind}")

    def ask() -> Description | None:
        try:
            answer: Description = method(**{parameter: name})
        except ClientError as error:
            if is_absent(error):
                return None
            raise
        return answer

    return aws.ask(ask, doing=f"describe {kind.replace('_', ' ')} {name}")


def _ensure(aws: Aws, operation: str, request: Mapping[str, Any], look: Callable[[], Description | None]) -> bool:
    """Makes what is not there; whether it did. Where the answer was lost, what is there afterwards tells so."""
    if look() is not None:
        return False
    try:
        aws.create(operation, request, doing=f"make {operation.removeprefix('Create')} {next(iter(request.values()))}")
    except CloudError as error:
        if not isinstance(error.__cause__, BotoCoreError | ClientError) or look() is None:
            raise
        logger.debug("%s was answered with an error, and was done: %s", operation, cloud_error(error.__cause__, "ask"))
    return True
