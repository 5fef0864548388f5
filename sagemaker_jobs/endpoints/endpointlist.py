"""`dogbreed endpoints`: what is live, here and on SageMaker, since when, at what cost, and what nobody called."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.context import Context
from dogbreed_ml.errors import CloudError, ConfigError
from dogbreed_ml.options import EndpointsOptions
from dogbreed_ml.pipeline.endpoints import EndpointList, list_endpoints
from dogbreed_ml.summaries import render_table
from sagemaker_jobs.client import Aws
from sagemaker_jobs.endpoints import endpoint as endpoints
from sagemaker_jobs.endpoints.guards import count_invocations
from sagemaker_jobs.endpoints.leases import Lease
from sagemaker_jobs.endpoints.removal import Removal, remove
from sagemaker_jobs.pricing import find_price, read_prices

logger = logging.getLogger(__name__)

_PATIENCE_S = 10.0
"""A list that shows the local endpoints alone is better than none, where no --target asks for SageMaker's."""


@dataclass(frozen=True, kw_only=True)
class LiveEndpoint:
    """An endpoint of SageMaker that this project deployed."""

    lease: Lease
    status: str
    since: str
    """ISO 8601, UTC: when what it serves was deployed."""
    endpoint_config: str
    num_instances: int | None
    """None for a serverless one."""
    usd_per_hour: float | None
    """Of all instances; None where nobody knows the price, and for a serverless one, which costs by request."""
    num_calls: int
    """In the last 24 hours."""

    def to_dict(self) -> dict[str, Any]:
        lease = self.lease
        return {
            "target": "sagemaker",
            "name": lease.endpoint,
            "status": self.status,
            "model": lease.model,
            "version": int(lease.version),
            "endpoint_config": self.endpoint_config,
            "since": self.since,
            "num_instances": self.num_instances,
            "usd_per_hour": self.usd_per_hour,
            "expires": lease.expires or None,
            "is_over": lease.is_over(datetime.now(UTC)),
            "num_calls": self.num_calls,
            "deployed_by": lease.deployed_by,
        }

    def row(self, now: datetime) -> tuple[str, ...]:
        lease = self.lease
        cost = "unknown" if self.usd_per_hour is None else f"${self.usd_per_hour:.3f}"
        note = " (over)" if lease.is_over(now) else "" if lease.is_readable else " (unreadable)"
        expires = f"{lease.expires or 'never'}{note}"
        called = str(self.num_calls) if self.num_calls else "0 (!)"
        model = f"{lease.model} {lease.version}"
        return (lease.endpoint, self.status, model, self.since, cost, expires, called, lease.deployed_by)


@dataclass(frozen=True)
class LiveEndpoints:
    """Everything that is live: this machine's endpoints, and SageMaker's."""

    local: EndpointList | None
    """None where only SageMaker's were asked for."""
    remote: Sequence[LiveEndpoint] = ()
    reaped: Sequence[Removal] = ()

    def to_dict(self) -> Any:
        shown = [*(self.local.to_dict() if self.local else ()), *(each.to_dict() for each in self.remote)]
        return {"endpoints": shown, "reaped": [each.to_dict() for each in self.reaped]} if self.reaped else shown

    def render(self) -> str:
        now = datetime.now(UTC)
        lines = [f"{each.render()} (past its lease)" for each in self.reaped]
        if self.local is not None and (self.local.endpoints or not self.remote):
            lines.append(self.local.render())
        if self.remote:
            heads = ("SAGEMAKER", "STATUS", "MODEL", "SINCE", "AN HOUR", "EXPIRES", "CALLS 24 H", "BY")
            lines += ["", *render_table(heads, [each.row(now) for each in self.remote])]
        elif self.local is None:
            lines.append("no endpoints on SageMaker; `dogbreed deploy --target sagemaker` makes one")
        return "\n".join(lines).lstrip("\n")


def list_all(config: ExperimentConfig, options: EndpointsOptions, *, context: Context) -> LiveEndpoints:
    """With --reap, what is past its lease is deleted first. SageMaker is asked where AWS is configured.

    Raises CloudError where SageMaker was asked for, or was to be reaped, and does not answer.
    """
    local = None if options.target == "sagemaker" else list_endpoints(context=context)
    if options.target == "local":
        return LiveEndpoints(local)
    # Before anything is deleted.
    read_prices(config.sagemaker, project_dir=context.project_dir)
    must_answer = options.target == "sagemaker" or options.reap
    try:
        aws = Aws.open(config.sagemaker) if must_answer else Aws.open(config.sagemaker, patience_s=_PATIENCE_S)
    except ConfigError:
        if must_answer:
            raise
        return LiveEndpoints(local)
    with aws:
        try:
            reaped = reap(aws, config, context=context) if options.reap else []
            remote = _described(aws, config, context)
        except CloudError as error:
            if must_answer:
                raise
            logger.warning("The endpoints of SageMaker are not shown: %s", error)
            return LiveEndpoints(local)
    for each in remote:
        if not each.num_calls:
            logger.warning("Nobody called %s in the last 24 hours.", each.lease.endpoint)
        if not each.lease.is_readable:
            logger.warning(
                "The tag dogbreed:expires of %s must be a time such as 2026-12-01T18:00+00:00, or never, got %r: --reap"
                " lets it live.",
                each.lease.endpoint,
                each.lease.expires,
            )
    return LiveEndpoints(local, remote, reaped)


def reap(aws: Aws, config: ExperimentConfig, *, context: Context) -> list[Removal]:
    """Deletes every endpoint of ours that is past its lease, and records each.

    One that cannot be deleted keeps none of the others alive; CloudError names it at the end.
    """
    now = datetime.now(UTC)
    reaped: list[Removal] = []
    failures: list[CloudError] = []
    for lease in (lease for _, lease in _ours(aws) if lease.is_over(now)):
        try:
            why = f"its lease ended {lease.expires}"
            reaped.append(remove(aws, lease, config, context=context, action="reap", why=why))
            # At once: what comes after may fail, and the answer with it.
            logger.info("%s, past its lease, is deleted", lease.endpoint)
        except CloudError as error:
            logger.warning("%s is past its lease and may be live, and cost money: %s", lease.endpoint, error)
            failures.append(error)
    if failures:
        raise failures[0]
    return reaped


def _ours(aws: Aws) -> list[tuple[endpoints.Description, Lease]]:
    found = []
    for summary in endpoints.list_all(aws, "list_endpoints", "Endpoints"):
        lease = endpoints.read_lease(aws, summary["EndpointArn"])
        if lease is not None:
            found.append((summary, lease))
    return sorted(found, key=lambda each: each[1].endpoint)


def _described(aws: Aws, config: ExperimentConfig, context: Context) -> list[LiveEndpoint]:
    now = datetime.now(UTC)
    live = []
    for summary, lease in _ours(aws):
        described = endpoints.describe(aws, summary["EndpointName"])
        # It may have been deleted since it was listed.
        if described is None:
            continue
        (instance_type, count) = _instances(aws, described)
        price = None
        if instance_type is not None:
            price = find_price(
                config.sagemaker,
                instance_type=instance_type,
                component="Hosting",
                region=aws.region,
                project_dir=context.project_dir,
                aws=None if aws.is_local else aws,
                today=date.today(),
            )
        day_ago = (now - timedelta(days=1)).timestamp()
        live.append(
            LiveEndpoint(
                lease=lease,
                status=endpoints.render_progress(described),
                since=lease.deployed_at or described["CreationTime"].astimezone(UTC).isoformat(timespec="seconds"),
                endpoint_config=described["EndpointConfigName"],
                num_instances=count,
                usd_per_hour=None if price is None or count is None else price.usd_per_hour * count,
                num_calls=count_invocations(aws, lease.endpoint, start_s=day_ago, end_s=now.timestamp() + 60),
            )
        )
    return live


def _instances(aws: Aws, described: endpoints.Description) -> tuple[str | None, int | None]:
    """Type and number; neither for a serverless endpoint."""
    config = endpoints.describe_config(aws, described["EndpointConfigName"]) or {}
    variants = config.get("ProductionVariants", [{}])
    current = [each.get("CurrentInstanceCount") for each in described.get("ProductionVariants", ())]
    counts = [each for each in current if each is not None] or [variants[0].get("InitialInstanceCount", 0)]
    return variants[0].get("InstanceType"), sum(counts) if "InstanceType" in variants[0] else None
