"""Which version was champion when, and why: written as tags of the versions, read from the registry alone.

Each time that a version becomes champion it gets one tag more, `champion.since.<UTC time>`; nothing is ever changed
or removed, so that a version may come back, and a reign ends where the next begins.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from dogbreed_ml.errors import GateError
from dogbreed_ml.provenance import user_name
from dogbreed_ml.registry import (
    CHAMPION,
    ModelVersion,
    find_alias,
    list_versions,
    load_version,
    move_alias,
    set_version_tags,
)
from dogbreed_ml.tracking import Tracker

Ground = Literal["passed", "forced", "returned", "outside"]
"""Why a version became champion: the gate passed it, --force, `promote --to`; or the alias was moved by other means."""

TAG_PREFIX = "champion.since."

_TIME_FORMAT = "%Y%m%dT%H%M%S.%fZ"


@dataclass(frozen=True)
class Reign:
    """One version's time as champion."""

    version: int
    ground: Ground
    since: datetime | None
    """UTC; None for `outside`: the registry does not keep when an alias moved."""
    until: datetime | None = None
    """UTC; None for the champion of now, and where the next reign's beginning is not known."""
    by: str | None = None
    reason: str | None = None
    run_id: str | None = None
    """The run that measured it."""
    figures: Mapping[str, float] | None = None
    """What it showed then."""

    def to_dict(self) -> dict[str, Any]:
        since, until = (each and each.isoformat() for each in (self.since, self.until))
        return vars(self) | {"since": since, "until": until, "figures": dict(self.figures or {})}


def begin_reign(
    tracker: Tracker,
    version: ModelVersion,
    ground: Ground,
    *,
    replaces: int | None,
    reason: str | None = None,
    run_id: str | None = None,
    figures: Mapping[str, float] | None = None,
    now: datetime | None = None,
) -> Reign:
    """Makes a version champion, and writes down who did so and why.

    `replaces` is the champion that was measured against; GateError where another has become champion since.
    """
    champion = find_alias(tracker, version.name, CHAMPION)
    number = None if champion is None else champion.version
    if number != replaces:
        raise GateError(
            f"{_render_champion(replaces)} was measured against, but {_render_champion(number)} is champion by now; "
            f"promote again to measure against it."
        )
    since = now or datetime.now(UTC)
    starts = [each.since for each in list_reigns(tracker, version.name) if each.since is not None]
    # Another machine's clock may be ahead; the order of reigns is theirs, not the clocks'.
    since = max(since, max(starts) + timedelta(microseconds=1)) if starts else since
    reign = Reign(
        version.version, ground, since, by=user_name(), reason=reason, run_id=run_id, figures=dict(figures or {})
    )
    # The record first: a champion without one would look moved by hand.
    set_version_tags(tracker, version, {f"{TAG_PREFIX}{since.strftime(_TIME_FORMAT)}": _render_record(reign)})
    move_alias(tracker, version, CHAMPION)
    return reign


def list_reigns(tracker: Tracker, name: str) -> list[Reign]:
    """All reigns, oldest first; the last is of the champion of now, where there is one."""
    versions = list_versions(tracker, name)
    found = {since: reign for version in versions for since, reign in _recorded(version).items()}
    begun = {since: found[since] for since in sorted(found)}
    ends = [*begun, None][1:]
    reigns = [replace(reign, until=until) for reign, until in zip(begun.values(), ends, strict=True)]
    champion = find_alias(tracker, name, CHAMPION) if versions else None
    if champion is not None and (not reigns or reigns[-1].version != champion.version):
        reigns.append(Reign(champion.version, "outside", None))
    return reigns


def return_to(tracker: Tracker, name: str, number: int, *, reason: str | None) -> tuple[Reign, int | None]:
    """Makes an earlier champion champion again; the new reign and whom it replaces. GateError for any other version."""
    reigns = list_reigns(tracker, name)
    current = find_alias(tracker, name, CHAMPION)
    earlier = sorted({each.version for each in reigns if current is None or each.version != current.version})
    if current is not None and current.version == number:
        raise GateError(f"Version {number} of {name} is champion already.")
    if number not in earlier:
        known = f"those are {', '.join(map(str, earlier))}" if earlier else "there is none"
        raise GateError(
            f"`promote --to` goes back to an earlier champion of {name}, and {known}, got {number}; "
            f"`promote --version {number}` measures it."
        )
    last = next(each for each in reversed(reigns) if each.version == number)
    replaced = None if current is None else current.version
    reign = begin_reign(
        tracker,
        load_version(tracker, name, number),
        "returned",
        replaces=replaced,
        reason=reason,
        run_id=last.run_id,
        figures=last.figures,
    )
    return reign, replaced


def _render_champion(number: int | None) -> str:
    return "no champion" if number is None else f"champion version {number}"


def _render_record(reign: Reign) -> str:
    fields = {"ground": reign.ground, "by": reign.by, "reason": reign.reason, "run_id": reign.run_id}
    return json.dumps(fields | {"figures": dict(reign.figures or {})})


def _recorded(version: ModelVersion) -> dict[datetime, Reign]:
    """A version's reigns by their beginning."""
    reigns = {}
    for tag, value in version.tags.items():
        if tag.startswith(TAG_PREFIX):
            since = datetime.strptime(tag.removeprefix(TAG_PREFIX), _TIME_FORMAT).replace(tzinfo=UTC)
            reigns[since] = Reign(version.version, since=since, **json.loads(value))
    return reigns
