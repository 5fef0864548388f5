"""What a config section checks its values with: a rule that does not hold raises ConfigError, rule and value."""

import difflib
import math

from dogbreed_ml.errors import ConfigError


def require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ConfigError(f"{rule}, got {value!r}.")


def require_number(name: str, value: float, *, low: float, high: float = math.inf, low_open: bool = False) -> None:
    """Refuses NaN too: each comparison with it is false."""
    above = value > low if low_open else value >= low
    bound = f"above {low}" if low_open else f"at least {low}"
    limit = "" if high == math.inf else f" and at most {high}"
    require(above and value <= high and value != math.inf, f"{name} must be {bound}{limit}", value)


def require_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    require(value in choices, f"{name} must be one of {', '.join(map(str, choices))}", value)


def nearest(name: str, known: list[str]) -> str:
    """Renders the end of a message: `; did you mean NAME?` for the closest known name, or a full stop."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else "."
