"""Named spans of time, recorded only where a recorder is passed in.

The training loop marks its phases with `with spans.span("forward"):`. With `NO_SPANS`, the default, a mark
costs one method call. A profiler passes a recorder of its own.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol


class Spans(Protocol):
    """Whatever records spans."""

    def span(self, name: str) -> AbstractContextManager[None]:
        """Marks the body of a with statement as one span of that name."""


class _NoSpans:
    _null = nullcontext()

    def span(self, name: str) -> AbstractContextManager[None]:
        return self._null


NO_SPANS: Spans = _NoSpans()


@dataclass
class SpanTotals:
    """Adds up the seconds spent under each name; stages of a pipeline are timed with it."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start
