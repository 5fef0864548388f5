"""`dogbreed delete NAME` for SageMaker: the endpoint and all that was made for it; nothing is left to pay for."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.deployments import Action, EventRecord, mark_ended, recorded
from dogbreed_ml.errors import CloudError, ConfigError, DogbreedError, TrackingError
from sagemaker_jobs.client import Aws, translated
from sagemaker_jobs.endpoints import endpoint as endpoints
from sagemaker_jobs.endpoints.endpoint_request import SMOKE_SUFFIX, name_stem
from sagemaker_jobs.endpoints.guards import count_invocations, delete_alarms, remove_scaling
from sagemaker_jobs.endpoints.leases import Lease
from sagemaker_jobs.endpoints.store import opened_store
from sagemaker_jobs.storage import split_uri

if TYPE_CHECKING:
    from dogbreed_ml.tracking import Tracker

logger = logging.getLogger(__name__)

Confirm = Callable[[str], bool]
"""Asks a person a question that is answered by yes or no."""

_STORE_RETRY_S = 10.0
_OUR_MODEL = re.compile(r".+-v\d+-[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What is no more."""

    name: str
    had_endpoint: bool
    endpoint_configs: tuple[str, ...]
    models: tuple[str, ...]
    archives: tuple[str, ...]
    """Objects of S3."""
    alarms: tuple[str, ...]
    had_scaling: bool

    def to_dict(self) -> dict[str, Any]:
        return {"target": "sagemaker", "deleted": True, **asdict(self)}

    def render(self) -> str:
        parts = [
            (self.had_endpoint, f"the endpoint {self.name}"),
            (self.had_scaling, "its scaling"),
            (self.alarms, f"{len(self.alarms)} alarms"),
            (self.endpoint_configs, f"endpoint configs {', '.join(self.endpoint_configs)}"),
            (self.models, f"models {', '.join(self.models)}"),
            (self.archives, f"{', '.join(self.archives)}"),
        ]
        return f"deleted  {'; '.join(text for is_there, text in parts if is_there)}"


def is_configured(config: ExperimentConfig) -> bool:
    """Whether AWS may be asked: a region and credentials."""
    try:
        Aws.open(config.sagemaker).close()
    except ConfigError:
        return False
    return True


def delete(
    name: str, config: ExperimentConfig, *, context: Context, confirm: Confirm | None, yes: bool = False
) -> Removal:
    """Asks, then removes an endpoint of ours with its parts; ConfigError where there is nobody to ask.

    What was captured, and the log group, stay: they are data.
    """
    with Aws.open(config.sagemaker) as aws:
        found = endpoints.describe(aws, name)
        lease = endpoints.read_lease(aws, found["EndpointArn"]) if found else _lease_of_parts(aws, name)
        if lease is None:
            known = ", ".join(each["EndpointName"] for each in endpoints.list_all(aws, "list_endpoints", "Endpoints"))
            raise ConfigError(
                f"delete needs the name of an endpoint that this project deployed, got {name!r}; SageMaker has: "
                f"{known or 'none'}."
            )
        is_live = found is not None and found["EndpointStatus"] not in (endpoints.FAILED, endpoints.DELETING)
        if is_live and not yes:
            _ask(aws, name, lease, confirm)
        return remove(aws, lease, config, context=context, action="delete")


def remove(
    aws: Aws, lease: Lease, config: ExperimentConfig, *, context: Context, action: Action, why: str | None = None
) -> Removal:
    """Removes what `lease.endpoint` names, the dearest first, and records it; cut off, it says what may be left."""
    name = lease.endpoint
    with _recorded(action, lease, config, context=context, why=why) as (tracker, event):
        try:
            removal = _remove(aws, name, config)
        except (KeyboardInterrupt, DogbreedError):
            if event is not None:
                event.note(left=name)
            logger.warning(
                "Not all of %s is deleted, and it may cost money: `dogbreed delete %s --target sagemaker` goes on.",
                name,
                name,
            )
            raise
        if event is not None:
            event.note(endpoint_config=", ".join(removal.endpoint_configs) or None)
        if tracker is not None:
            mark_ended(tracker, lease.model, int(lease.version), endpoint=name)
    return removal


def _remove(aws: Aws, name: str, config: ExperimentConfig) -> Removal:
    had_scaling = remove_scaling(aws, name)
    had_endpoint = endpoints.delete(aws, name, timeout_s=config.hosting.timeout_s)
    _remove_smoke_endpoint(aws, name, config)
    alarms = delete_alarms(aws, name)
    configs, models, archives = _remove_parts(aws, name)
    return Removal(
        name=name,
        had_endpoint=had_endpoint,
        endpoint_configs=tuple(configs),
        models=tuple(models),
        archives=tuple(archives),
        alarms=tuple(alarms),
        had_scaling=had_scaling,
    )


def _ask(aws: Aws, name: str, lease: Lease, confirm: Confirm | None) -> None:
    if confirm is None:
        raise ConfigError(f"{name} is live: delete asks on a terminal, and there is none; give --yes.")
    now = datetime.now(UTC)
    day_ago = now - timedelta(days=1)
    num_calls = count_invocations(aws, name, start_s=day_ago.timestamp(), end_s=now.timestamp())
    question = (
        f"{name} serves {lease.model} version {lease.version} and was called {num_calls} times in the last 24 hours. "
        "Delete it?"
    )
    if not confirm(question):
        raise DogbreedError(f"{name} stays: the answer was no.")


@contextmanager
def _recorded(
    action: Action, lease: Lease, config: ExperimentConfig, *, context: Context, why: str | None
) -> "Iterator[tuple[Tracker | None, EventRecord | None]]":
    """A store that is away does not keep an endpoint alive: then there is no record, and a warning."""
    try:
        tracker = opened_store(config, context, retry_s=_STORE_RETRY_S)
    except TrackingError as error:
        logger.warning("The end of %s is not recorded: %s", lease.endpoint, error)
        yield None, None
        return
    with (
        tracker,
        recorded(tracker, action, target="sagemaker", endpoint=lease.endpoint, version=lease.noted, why=why) as event,
    ):
        yield tracker, event


def _remove_smoke_endpoint(aws: Aws, name: str, config: ExperimentConfig) -> None:
    # A smoke endpoint may be reaped itself, and has none; the name would be longer than SageMaker takes.
    if name.endswith(SMOKE_SUFFIX):
        return
    smoke_name = f"{name}{SMOKE_SUFFIX}"
    found = endpoints.describe(aws, smoke_name)
    if found is not None and endpoints.read_lease(aws, found["EndpointArn"]) is not None:
        endpoints.delete(aws, smoke_name, timeout_s=config.hosting.timeout_s)


def _remove_parts(aws: Aws, name: str) -> tuple[list[str], list[str], list[str]]:
    """Names of the endpoint configs and models, URIs of the archives."""
    configs = list(_own_configs(aws, name))
    for each in configs:
        endpoints.delete_part(aws, "DeleteEndpointConfig", {"EndpointConfigName": each})
    models = list(_own_models(aws, name))
    uris = {archive_uri(aws, each) for each in models}
    for each in models:
        endpoints.delete_part(aws, "DeleteModel", {"ModelName": each})
    archives = _remove_archives(aws, uris)
    return configs, models, archives


def _remove_archives(aws: Aws, uris: Iterable[str | None]) -> list[str]:
    """Those that no model needs any more."""
    unused = sorted({uri for uri in uris if uri is not None and not _is_used(aws, uri)})
    for uri in unused:
        bucket, key = split_uri(uri)
        with translated(f"delete {uri}"):
            aws.client("s3").delete_object(Bucket=bucket, Key=key)
    return unused


def remove_replaced(aws: Aws, config_name: str) -> None:
    """Deletes an endpoint config that is no longer in service, with what only it needed of models and archives.

    Raises CloudError, and deletes nothing, where an endpoint of ours serves it or is about to.
    """
    described = endpoints.describe_config(aws, config_name)
    lease = None if described is None else endpoints.read_lease(aws, described["EndpointConfigArn"])
    if described is None or lease is None:
        return
    serving = _serving(aws, config_name)
    if serving:
        raise CloudError(f"The endpoint config {config_name} must not be deleted: {', '.join(serving)} serves it.")
    endpoints.delete_part(aws, "DeleteEndpointConfig", {"EndpointConfigName": config_name})
    # More instances of one version are another endpoint config of the same model.
    needed = {
        model
        for each in _own_configs(aws, lease.endpoint)
        for model in _models_of(endpoints.describe_config(aws, each))
    }
    unused = [each for each in _models_of(described) if each not in needed]
    uris = [archive_uri(aws, each) for each in unused]
    for each in unused:
        endpoints.delete_part(aws, "DeleteModel", {"ModelName": each})
    _remove_archives(aws, uris)


def _serving(aws: Aws, config_name: str) -> list[str]:
    """The endpoints of ours that have the endpoint config, or get it."""
    ours = (
        each["EndpointName"]
        for each in endpoints.list_all(aws, "list_endpoints", "Endpoints")
        if endpoints.read_lease(aws, each["EndpointArn"]) is not None
    )
    found = [described for name in ours if (described := endpoints.describe(aws, name)) is not None]
    return [
        str(each["EndpointName"])
        for each in found
        if config_name in (each["EndpointConfigName"], endpoints.pending_config(each))
    ]


def _models_of(described: endpoints.Description | None) -> list[str]:
    return [str(each["ModelName"]) for each in (described or {}).get("ProductionVariants", ())]


def archive_uri(aws: Aws, model_name: str) -> str | None:
    """The model's archive in S3; None where the model is gone."""
    described = endpoints.describe_model(aws, model_name)
    uri = (described or {}).get("PrimaryContainer", {}).get("ModelDataUrl")
    return None if uri is None else str(uri)


def _is_used(aws: Aws, uri: str) -> bool:
    """Whether another model of ours is made from the archive: the same version may serve on two endpoints."""
    # Tags first: what is somebody else's may be listed, and not described.
    return any(
        archive_uri(aws, each["ModelName"]) == uri
        for each in endpoints.list_all(aws, "list_models", "Models")
        if _OUR_MODEL.fullmatch(each["ModelName"]) and endpoints.read_lease(aws, each["ModelArn"]) is not None
    )


def _own_configs(aws: Aws, name: str) -> Iterator[str]:
    listed = endpoints.list_all(aws, "list_endpoint_configs", "EndpointConfigs", NameContains=name_stem(name))
    yield from (each["EndpointConfigName"] for each in listed if _is_of(aws, each["EndpointConfigArn"], name))


def _own_models(aws: Aws, name: str) -> Iterator[str]:
    listed = endpoints.list_all(aws, "list_models", "Models", NameContains=name_stem(name))
    yield from (each["ModelName"] for each in listed if _is_of(aws, each["ModelArn"], name))


def _is_of(aws: Aws, arn: str, name: str) -> bool:
    lease = endpoints.read_lease(aws, arn)
    return lease is not None and lease.endpoint == name


def _lease_of_parts(aws: Aws, name: str) -> Lease | None:
    """What a deployment that ended before its endpoint left behind."""
    for each in _own_configs(aws, name):
        found = endpoints.describe_config(aws, each)
        if found is not None:
            return endpoints.read_lease(aws, found["EndpointConfigArn"])
    for each in _own_models(aws, name):
        found = endpoints.describe_model(aws, each)
        if found is not None:
            return endpoints.read_lease(aws, found["ModelArn"])
    return None
