"""The processes behind an endpoint config, and how an endpoint's traffic is spread over them."""

import logging
import random
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dogbreed_ml.errors import DogbreedError
from sagemaker_jobs.local.capture import Capture
from sagemaker_jobs.local.errors import ConcurrencyExceeded
from sagemaker_jobs.local.publishing import Outlet, Publisher
from sagemaker_jobs.local.serving import Server

logger = logging.getLogger(__name__)


class FleetError(DogbreedError):
    """A fleet that does not come up; the message is the endpoint's FailureReason."""


@dataclass(eq=False)
class Variant:
    """A production variant: one process for each of its instances, one in all where it is serverless."""

    name: str
    weight: float
    image: str
    servers: Sequence[Server]
    usage: Any
    capture: Capture | None = None
    outlets: Sequence[Outlet] = ()
    add_server: Callable[[], tuple[Server, Outlet]] | None = None
    """Plans one more process, and what publishes its output."""
    serverless: Mapping[str, Any] | None = None
    """Its ServerlessConfig."""

    def acquire(self) -> Server | None:
        """The ready process with the fewest invocations, announced to it; None where all are down.

        Raises ConcurrencyExceeded where a serverless variant answers its MaxConcurrency of requests.
        """
        if self.serverless and sum(each.num_running for each in self.servers) >= self.serverless["MaxConcurrency"]:
            raise ConcurrencyExceeded(
                f"Rate exceeded: variant {self.name} answers MaxConcurrency {self.serverless['MaxConcurrency']} "
                "requests already."
            )
        ready = [server for server in self.servers if server.is_ready]
        if not ready:
            return None
        server = min(ready, key=lambda each: each.num_running)
        server.acquire()
        return server


@dataclass(eq=False)
class Fleet:
    """All variants of one endpoint config for one endpoint."""

    config: Mapping[str, Any]
    folder: Path
    """The models' unpacked data; removed when the fleet stops."""
    variants: Mapping[str, Variant]
    publisher: Publisher
    _random: random.Random = field(default_factory=random.Random)

    def start(self, *, timeouts_s: Mapping[str, float]) -> None:
        """Returns when every process answers /ping; raises FleetError where one does not in its variant's time."""
        for variant in self.variants.values():
            self.publisher.add(*variant.outlets)
            for server in variant.servers:
                server.start()
        for variant in self.variants.values():
            for server in variant.servers:
                problem = server.wait_ready(timeouts_s[variant.name])
                if problem is not None:
                    raise FleetError(
                        f"The primary container for production variant {variant.name} did not pass the ping health "
                        f"check. Please check CloudWatch logs for this endpoint. ({problem})"
                    )

    def grow(self, config: Mapping[str, Any], *, timeouts_s: Mapping[str, float]) -> None:
        """Adds the processes that `config` has more, and waits for them; raises FleetError, and takes them back."""
        added: list[tuple[Variant, Server]] = []
        for wanted in config["ProductionVariants"]:
            variant = self.variants[wanted["VariantName"]]
            assert variant.add_server is not None
            for _ in range(int(wanted.get("InitialInstanceCount", 1)) - len(variant.servers)):
                server, outlet = variant.add_server()
                # Known before it runs, so that whoever stops the fleet stops it too.
                variant.servers, variant.outlets = [*variant.servers, server], [*variant.outlets, outlet]
                self.publisher.add(outlet)
                added.append((variant, server))
        for _, server in added:
            server.start()
        for variant, server in added:
            problem = server.wait_ready(timeouts_s[variant.name])
            if problem is not None:
                for other, each in added:
                    each.stop()
                    other.servers = [kept for kept in other.servers if kept is not each]
                raise FleetError(f"Variant {variant.name} could not be scaled: {problem}")

    def rescale(self, config: Mapping[str, Any]) -> list[Server]:
        """Takes on the weights and counts of `config`; the processes that nobody is sent to any more."""
        left: list[Server] = []
        for wanted in config["ProductionVariants"]:
            variant = self.variants[wanted["VariantName"]]
            count = int(wanted.get("InitialInstanceCount", 1))
            left += variant.servers[count:]
            variant.servers = variant.servers[:count]
            variant.weight, variant.serverless = wanted["InitialVariantWeight"], wanted.get("ServerlessConfig")
            variant.usage.num_instances = count
        self.config = config
        return left

    def choose(self) -> Variant:
        """A variant, by weight."""
        variants = list(self.variants.values())
        return self._random.choices(variants, weights=[variant.weight for variant in variants])[0]

    def stop(self, *, drain_s: float = 0.0) -> None:
        """Ends every process, after its invocations or `drain_s`; may be called again, and from several threads."""
        servers = [server for variant in self.variants.values() for server in variant.servers]
        with ThreadPoolExecutor(max_workers=max(1, len(servers))) as pool:
            list(pool.map(lambda server: server.stop(drain_s=drain_s), servers))
        for variant in self.variants.values():
            self.publisher.remove(*variant.outlets)
        shutil.rmtree(self.folder, ignore_errors=True)

    def describe(self, *, status: str | None = None, time_s: float = 0.0) -> list[dict[str, Any]]:
        """ProductionVariants as DescribeEndpoint has them; `status` is a VariantStatus."""
        described = []
        for variant in self.variants.values():
            image = {"SpecifiedImage": variant.image, "ResolvedImage": variant.image, "ResolutionTime": time_s}
            summary: dict[str, Any] = {
                "VariantName": variant.name,
                "DeployedImages": [image],
                "CurrentWeight": variant.weight,
                "DesiredWeight": variant.weight,
            }
            if variant.serverless:
                summary |= dict.fromkeys(("CurrentServerlessConfig", "DesiredServerlessConfig"), variant.serverless)
            else:
                summary |= dict.fromkeys(("CurrentInstanceCount", "DesiredInstanceCount"), len(variant.servers))
            if status is not None:
                summary["VariantStatus"] = [{"Status": status, "StartTime": time_s}]
            described.append(summary)
        return described


class Traffic:
    """Which fleet an invocation goes to: one, or two while an endpoint is updated."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fleet: Fleet | None = None
        self._new: Fleet | None = None
        self._share = 0.0
        self._random = random.Random()

    @property
    def fleet(self) -> Fleet | None:
        """The fleet that gets the traffic, or the larger part of it."""
        return self._fleet

    def settle(self, fleet: Fleet | None) -> None:
        """All traffic to one fleet."""
        with self._lock:
            self._fleet, self._new, self._share = fleet, None, 0.0

    def split(self, new: Fleet, share: float) -> None:
        """`share` in [0, 1] of the traffic to the new fleet, the rest to the one before."""
        with self._lock:
            self._new, self._share = new, share

    def rescale(self, fleet: Fleet, config: Mapping[str, Any]) -> list[Server]:
        """Between two invocations; the processes that are to be ended."""
        with self._lock:
            return fleet.rescale(config)

    def acquire(self, target: str | None) -> tuple[Variant, Server | None] | None:
        """A variant, by weight or by name, and a process that waits for the invocation; None for an unknown name.

        Under the lock: once traffic is shifted, no process of the fleet before gets another invocation.
        """
        with self._lock:
            fleets = [self._fleet, self._new]
            if self._new is not None and self._random.random() < self._share:
                fleets.reverse()
            for fleet in fleets:
                if fleet is not None and (target is None or target in fleet.variants):
                    variant = fleet.choose() if target is None else fleet.variants[target]
                    return variant, variant.acquire()
        return None
