"""What a deployment made of an endpoint, for people and for programs."""

from dataclasses import dataclass
from typing import Any

from sagemaker_jobs.endpoints.leases import Lease

UNKNOWN_PRICE = "unknown: neither AWS's Price List nor sagemaker.prices_path named a price"


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """An endpoint of SageMaker that serves a version."""

    lease: Lease
    action: str
    """deploy, update, or `none` where it served this already."""
    endpoint_config: str
    replaced_config: str | None
    smoke: str | None
    run_id: str | None
    """The event's run."""
    is_settled: bool = True
    """False where nobody waited for the end."""
    console_url: str | None = None
    price: str | None = None
    is_replaced_dropped: bool = False
    """Whether the endpoint config before was deleted, so that no rollback finds it."""

    def to_dict(self) -> dict[str, Any]:
        lease = self.lease
        return {
            "name": lease.endpoint,
            "target": "sagemaker",
            "action": self.action,
            "model": lease.model,
            "version": int(lease.version),
            "endpoint_config": self.endpoint_config,
            "replaced_config": self.replaced_config,
            "smoke": self.smoke,
            "expires": lease.expires or None,
            "is_settled": self.is_settled,
            "price": self.price,
            "url": self.console_url,
            "run_id": self.run_id,
        }

    def render(self) -> str:
        lease = self.lease
        verb = {"none": "serves already", "deploy": "serves", "update": "serves"}[self.action]
        lines = [f"{verb if self.is_settled else 'will serve'}  {lease.model} version {lease.version}"]
        lines += [f"endpoint {lease.endpoint} with {self.endpoint_config}"]
        if self.replaced_config:
            way_back = "deleted" if self.is_replaced_dropped else f"`dogbreed rollback --endpoint {lease.endpoint}`"
            lines.append(f"before   {self.replaced_config}: {way_back}")
        lines += [f"smoke    {self.smoke}"] * bool(self.smoke)
        price = self.price or UNKNOWN_PRICE
        lines += [f"cost     {price}; until it is deleted: `dogbreed delete {lease.endpoint}`"]
        lines += [f"until    {lease.expires}: then `dogbreed endpoints --reap` deletes it"] * bool(lease.expires_at)
        lines += [f"console  {self.console_url}"] * bool(self.console_url)
        return "\n".join(lines)
