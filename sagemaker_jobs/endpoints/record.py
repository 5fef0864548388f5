"""What the recorded events say of an endpoint: what it served before, what was proven, which change has no end."""

from collections.abc import Sequence

from dogbreed_ml.deployments import DeploymentEvent
from sagemaker_jobs.endpoints.leases import PASSED


def previous_config(events: Sequence[DeploymentEvent], current: str) -> str | None:
    """The endpoint config before the one in service; None where no event tells of one.

    A rollback takes back what came after its target, so that two of them go two versions back, not there and back.
    """
    served: list[str] = []
    for event in events:
        if not event.is_done:
            continue
        if event.action in ("deploy", "delete", "reap"):
            served = []
        if event.action == "rollback" and event.endpoint_config in served:
            del served[_last(served, event.endpoint_config) + 1 :]
        elif event.action in ("deploy", "update", "rollback") and event.endpoint_config:
            served.append(event.endpoint_config)
    if current in served:
        served = served[: _last(served, current)]
    return served[-1] if served else None


def is_proven(events: Sequence[DeploymentEvent], config_name: str) -> bool:
    """Whether an endpoint config has passed a smoke test, as far as the events tell."""
    return any(each.endpoint_config == config_name and (each.smoke or "").startswith(PASSED) for each in events)


def unfinished(events: Sequence[DeploymentEvent], config_name: str | None) -> DeploymentEvent | None:
    """The change that was to bring the endpoint config, and was cut off, or that nobody waited for.

    SageMaker ends it by itself. What was tried since, and failed, does not matter; what was done since does.
    """
    for event in reversed(events):
        if event.is_done:
            return None
        if config_name is not None and event.endpoint_config == config_name:
            return event
    return None


def _last(names: Sequence[str], name: str) -> int:
    return len(names) - 1 - names[::-1].index(name)
