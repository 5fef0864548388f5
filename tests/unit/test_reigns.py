"""Who was champion when: several reigns of one version, moves by other means, and clocks that disagree."""

from datetime import UTC, datetime, timedelta

import pytest
from fakeregistry import build_tracker

from dogbreed_ml.errors import GateError
from dogbreed_ml.provenance import user_name
from dogbreed_ml.registry import CHAMPION, find_alias, load_version, move_alias, register_challenger
from dogbreed_ml.reigns import TAG_PREFIX, Ground, begin_reign, list_reigns, return_to
from dogbreed_ml.tracking import Tracker

START = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


@pytest.fixture
def tracker() -> Tracker:
    """Three versions of `dogs`, none of them champion."""
    tracker = build_tracker()
    for number in (1, 2, 3):
        register_challenger(tracker, "dogs", model_uri=f"models:/m-{number}", run_id=f"r{number}")
    return tracker


def _crown(
    tracker: Tracker, number: int, *, hours: float, ground: Ground = "passed", reason: str | None = None
) -> None:
    champion = find_alias(tracker, "dogs", CHAMPION)
    begin_reign(
        tracker,
        load_version(tracker, "dogs", number),
        ground,
        replaces=champion.version if champion else None,
        reason=reason,
        run_id=f"gate{number}",
        figures={"accuracy_top1": number / 10},
        now=START + timedelta(hours=hours),
    )


def test_reigns_follow_each_other(tracker: Tracker) -> None:
    _crown(tracker, 1, hours=0)
    _crown(tracker, 3, hours=2, ground="forced", reason="the fair is tomorrow")
    first, second = list_reigns(tracker, "dogs")
    assert (first.version, first.since, first.until) == (1, START, START + timedelta(hours=2))
    assert (second.version, second.ground, second.until) == (3, "forced", None)
    assert (second.reason, second.run_id, second.by) == ("the fair is tomorrow", "gate3", user_name())
    assert second.figures == {"accuracy_top1": 0.3}
    champion = find_alias(tracker, "dogs", CHAMPION)
    assert champion is not None
    assert champion.version == 3


def test_version_may_reign_several_times(tracker: Tracker) -> None:
    _crown(tracker, 1, hours=0)
    _crown(tracker, 2, hours=1)
    reign, replaced = return_to(tracker, "dogs", 1, reason="2 takes pugs for boxers")
    assert (reign.ground, replaced) == ("returned", 2)
    # What it showed when it was measured stands beside its return.
    assert (reign.run_id, reign.figures) == ("gate1", {"accuracy_top1": 0.1})
    _crown(tracker, 2, hours=1_000_000)
    reigns = list_reigns(tracker, "dogs")
    assert [each.version for each in reigns] == [1, 2, 1, 2]
    assert [each.until for each in reigns] == [*(each.since for each in reigns[1:]), None]
    assert sum(tag.startswith(TAG_PREFIX) for tag in load_version(tracker, "dogs", 1).tags) == 2


def test_champion_moved_by_other_means_is_told(tracker: Tracker) -> None:
    _crown(tracker, 1, hours=0)
    move_alias(tracker, load_version(tracker, "dogs", 2), CHAMPION)
    last = list_reigns(tracker, "dogs")[-1]
    assert (last.version, last.ground, last.since, last.by) == (2, "outside", None, None)


def test_clock_behind_does_not_reorder_reigns(tracker: Tracker) -> None:
    _crown(tracker, 1, hours=5)
    _crown(tracker, 2, hours=0)
    first, second = list_reigns(tracker, "dogs")
    assert (first.version, second.version) == (1, 2)
    assert first.until == second.since == START + timedelta(hours=5, microseconds=1)


def test_reign_begins_only_over_the_champion_that_was_measured(tracker: Tracker) -> None:
    _crown(tracker, 1, hours=0)
    with pytest.raises(GateError, match="no champion was measured against, but champion version 1 is"):
        begin_reign(tracker, load_version(tracker, "dogs", 2), "passed", replaces=None)
    assert [each.version for each in list_reigns(tracker, "dogs")] == [1]


@pytest.mark.parametrize(
    ("number", "message"), [(3, "those are 1, got 3; `promote --version 3` measures"), (2, "champion already")]
)
def test_only_an_earlier_champion_comes_back(tracker: Tracker, number: int, message: str) -> None:
    _crown(tracker, 1, hours=0)
    _crown(tracker, 2, hours=1)
    with pytest.raises(GateError, match=message):
        return_to(tracker, "dogs", number, reason=None)
    assert len(list_reigns(tracker, "dogs")) == 2


def test_without_champions_nothing_comes_back_and_nothing_is_listed(tracker: Tracker) -> None:
    assert list_reigns(tracker, "dogs") == []
    with pytest.raises(GateError, match="there is none, got 1"):
        return_to(tracker, "dogs", 1, reason=None)


def test_reign_is_plain_json(tracker: Tracker) -> None:
    _crown(tracker, 1, hours=0)
    assert list_reigns(tracker, "dogs")[0].to_dict() == {
        "version": 1,
        "ground": "passed",
        "since": "2026-11-21T10:00:00+00:00",
        "until": None,
        "by": user_name(),
        "reason": None,
        "run_id": "gate1",
        "figures": {"accuracy_top1": 0.1},
    }
