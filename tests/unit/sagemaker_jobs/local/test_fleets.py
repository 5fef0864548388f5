"""Which process an invocation goes to."""

from pathlib import Path
from typing import Any, cast

import pytest

from sagemaker_jobs.local.errors import ConcurrencyExceeded
from sagemaker_jobs.local.fleets import Fleet, Traffic, Variant
from sagemaker_jobs.local.publishing import Publisher
from sagemaker_jobs.local.serving import Server


class _Server:
    """A process that is only counted."""

    def __init__(self, *, is_ready: bool = True) -> None:
        self.is_ready = is_ready
        self.num_running = 0

    def acquire(self) -> None:
        self.num_running += 1


def _fleet(name: str, weights: dict[str, float], *, num_servers: int = 1) -> Fleet:
    variants = {
        variant: Variant(variant, weight, "image", cast(list[Server], [_Server() for _ in range(num_servers)]), None)
        for variant, weight in weights.items()
    }
    return Fleet({"EndpointConfigName": name}, Path("none"), variants, cast(Publisher, None))


def _num_running(fleet: Fleet) -> dict[str, int]:
    return {name: sum(each.num_running for each in variant.servers) for name, variant in fleet.variants.items()}


def test_traffic_goes_to_variants_by_weight() -> None:
    fleet, traffic = _fleet("a", {"x": 3.0, "y": 1.0, "z": 0.0}), Traffic()
    traffic.settle(fleet)
    for _ in range(1000):
        traffic.acquire(None)
    counts = _num_running(fleet)
    # Five standard deviations of 1,000 draws at 3 in 4 are 68.
    assert 682 < counts["x"] < 818
    assert counts["z"] == 0
    assert sum(counts.values()) == 1000


def test_traffic_to_a_named_variant_ignores_weights() -> None:
    fleet, traffic = _fleet("a", {"x": 1.0, "y": 0.0}), Traffic()
    traffic.settle(fleet)
    for _ in range(5):
        traffic.acquire("y")
    assert _num_running(fleet) == {"x": 0, "y": 5}
    assert traffic.acquire("nobody") is None


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.1, 53, 147), (1.0, 1000, 1000)])
def test_split_traffic_gives_the_new_fleet_its_share(share: float, low: int, high: int) -> None:
    blue, green, traffic = _fleet("a", {"x": 1.0}), _fleet("b", {"x": 1.0}), Traffic()
    traffic.settle(blue)
    traffic.split(green, share)
    for _ in range(1000):
        traffic.acquire(None)
    assert low <= _num_running(green)["x"] <= high
    assert _num_running(blue)["x"] + _num_running(green)["x"] == 1000
    traffic.settle(blue)
    before = _num_running(green)
    traffic.acquire(None)
    assert _num_running(green) == before


def test_split_traffic_finds_a_variant_that_only_one_fleet_has() -> None:
    blue, green, traffic = _fleet("a", {"old": 1.0}), _fleet("b", {"new": 1.0}), Traffic()
    traffic.settle(blue)
    traffic.split(green, 0.5)
    for _ in range(10):
        traffic.acquire("old")
        traffic.acquire("new")
    assert (_num_running(blue), _num_running(green)) == ({"old": 10}, {"new": 10})


def test_variant_hands_out_the_ready_process_with_the_fewest_invocations() -> None:
    fleet = _fleet("a", {"x": 1.0}, num_servers=3)
    servers = cast(list[Any], fleet.variants["x"].servers)
    servers[1].is_ready = False
    for _ in range(4):
        fleet.variants["x"].acquire()
    assert [server.num_running for server in servers] == [2, 0, 2]
    for server in servers:
        server.is_ready = False
    assert fleet.variants["x"].acquire() is None


def test_serverless_variant_takes_no_more_than_its_concurrency() -> None:
    variant = _fleet("a", {"x": 1.0}).variants["x"]
    variant.serverless = {"MemorySizeInMB": 1024, "MaxConcurrency": 2}
    servers = [variant.acquire() for _ in range(2)]
    with pytest.raises(ConcurrencyExceeded, match="MaxConcurrency 2") as refused:
        variant.acquire()
    assert (refused.value.code, refused.value.status) == ("ThrottlingException", 429)
    cast(Any, servers[0]).num_running -= 1
    assert variant.acquire() is servers[0]
