"""The tags by which an endpoint says whose it is, which version it serves, and until when it may live."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta

from dogbreed_ml.config import ExperimentConfig
from dogbreed_ml.errors import ConfigError

PREFIX = "dogbreed:"
"""Of our tags' keys."""

NEVER = "never"
PASSED = "passed"
NOT_DONE = "not done"

_MAX_VALUE = 256
_REFUSED = re.compile(r"[^\w\s.:/=+\-@]")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MAX_TERM_S = 3650 * 86400
_TERM = re.compile(r"(?:\d+(?:\.\d+)?[smhdw])+")


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Who put what where; each field is a tag of endpoint, endpoint config and model. Empty means unknown."""

    endpoint: str
    model: str
    """The registered model."""
    version: str
    run_id: str = ""
    """The MLflow run that made the version."""
    commit: str = ""
    deployed_by: str = ""
    deployed_at: str = ""
    """ISO 8601, UTC."""
    smoke: str = ""
    """PASSED, once the smoke test has; NOT_DONE of a version that came back without one."""
    expires: str = ""
    """ISO 8601, UTC; empty or `never` for no end."""

    def to_tags(self) -> dict[str, str]:
        """What AWS refuses in a value becomes `_`."""
        values = {f"{PREFIX}{each.name.replace('_', '-')}": getattr(self, each.name) for each in fields(self)}
        return {key: _allowed(value) for key, value in values.items() if value}

    def to_request(self, config: ExperimentConfig) -> list[dict[str, str]]:
        """Tags as a Create operation takes them, the config's included."""
        tags = {**config.sagemaker.tags, f"{PREFIX}experiment": config.name, **self.to_tags()}
        return [{"Key": key, "Value": _allowed(value)} for key, value in tags.items()]

    @classmethod
    def from_tags(cls, tags: Sequence[Mapping[str, str]]) -> "Lease | None":
        """None for what this project did not put there."""
        values = {tag["Key"]: tag["Value"] for tag in tags}
        told = {each.name: values.get(f"{PREFIX}{each.name.replace('_', '-')}", "") for each in fields(cls)}
        if not (told["endpoint"] and told["model"] and told["version"].isdecimal()):
            return None
        return cls(**told)

    @property
    def noted(self) -> "Noted":
        """The version, as an event's record takes it."""
        return Noted(self.model, int(self.version))

    @property
    def expires_at(self) -> datetime | None:
        """A time without a zone is UTC; None for no end, and for one that nobody can read."""
        try:
            at = datetime.fromisoformat(self.expires)
        except ValueError:
            return None
        return at if at.tzinfo else at.replace(tzinfo=UTC)

    @property
    def is_readable(self) -> bool:
        """Tags may be edited by hand."""
        return self.expires in ("", NEVER) or self.expires_at is not None

    def is_over(self, now: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    @property
    def is_proven(self) -> bool:
        return self.smoke == PASSED

    def proven(self) -> "Lease":
        return replace(self, smoke=PASSED)


@dataclass(frozen=True)
class Noted:
    """A version of a registered model by its tags, without asking the registry."""

    name: str
    version: int


def parse_term(text: str) -> timedelta | None:
    """4h, 90m, 1d12h; None for `never`. Raises ConfigError."""
    if text == NEVER:
        return None
    if not _TERM.fullmatch(text):
        raise ConfigError(f"--expires must be a time such as 90m, 4h or 2d12h, or never, got {text!r}.")
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([smhdw])", text))
    if not 0 < seconds <= _MAX_TERM_S:
        raise ConfigError(f"--expires must be more than nothing and at most 3650d, or never, got {text!r}.")
    return timedelta(seconds=seconds)


def render_end(term: timedelta | None, *, now: datetime) -> str:
    """The tag's value for a lease that begins now."""
    return NEVER if term is None else (now + term).astimezone(UTC).isoformat(timespec="seconds")


def _allowed(value: str) -> str:
    return _REFUSED.sub("_", value)[:_MAX_VALUE]
