"""How long an endpoint may live, and whose it is."""

from datetime import UTC, datetime, timedelta

import pytest

from dogbreed_ml.errors import ConfigError
from sagemaker_jobs.client import check
from sagemaker_jobs.endpoints.leases import Lease, parse_term, render_end

NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "term"),
    [("90m", timedelta(minutes=90)), ("4h", timedelta(hours=4)), ("1d12h", timedelta(days=1.5)), ("never", None)],
)
def test_term_is_read_as_people_write_it(text: str, term: timedelta | None) -> None:
    assert parse_term(text) == term


@pytest.mark.parametrize("text", ["4", "h", "tomorrow", "-4h", "0m", "4 h", "", "3651d", "99999999d", f"{'9' * 400}d"])
def test_term_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--expires must be"):
        parse_term(text)


def test_lease_ends_when_its_time_has_come() -> None:
    lease = Lease(endpoint="dogs", model="m", version="1", expires=render_end(timedelta(hours=4), now=NOW))
    assert lease.expires == "2026-11-21T14:00:00+00:00"
    assert not lease.is_over(NOW + timedelta(hours=3, minutes=59))
    assert lease.is_over(NOW + timedelta(hours=4))
    for forever in ("", render_end(None, now=NOW)):
        assert not Lease(endpoint="dogs", model="m", version="1", expires=forever).is_over(NOW + timedelta(days=9999))


@pytest.mark.parametrize(
    ("expires", "is_readable", "is_over"),
    [
        ("2026-11-21", True, True),
        ("2026-11-21 10:01", True, False),
        ("2026-11-21T12:00+03:00", True, True),
        ("next week", False, False),
        ("2026-11-31", False, False),
    ],
)
def test_end_that_somebody_wrote_by_hand_is_utc_or_none(expires: str, is_readable: bool, is_over: bool) -> None:
    lease = Lease(endpoint="dogs", model="m", version="1", expires=expires)
    assert (lease.is_readable, lease.is_over(NOW)) == (is_readable, is_over)


def test_tags_hold_only_what_aws_takes() -> None:
    tags = Lease(endpoint="dogs", model="m", version="1", deployed_by="o'brien" + 300 * "n").to_tags()
    assert tags["dogbreed:deployed-by"].startswith("o_brien")
    assert len(tags["dogbreed:deployed-by"]) == 256
    arn = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/dogs"
    check("AddTags", {"ResourceArn": arn, "Tags": [{"Key": key, "Value": tags[key]} for key in tags]})


def test_tags_of_others_are_no_lease() -> None:
    assert Lease.from_tags([{"Key": "dogbreed:experiment", "Value": "dogs"}]) is None
    assert Lease.from_tags([]) is None
