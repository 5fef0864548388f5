from collections.abc import Iterator

import pytest

from dogbreed_ml import spans
from dogbreed_ml.spans import NO_SPANS, SpanTotals


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is one second further each time it is read."""
    ticks: Iterator[float] = iter(range(1000))
    monkeypatch.setattr(spans, "perf_counter", lambda: next(ticks))


def test_no_spans_record_nothing_and_nest() -> None:
    with NO_SPANS.span("outer"), NO_SPANS.span("inner"):
        pass


def test_no_spans_let_errors_through() -> None:
    with pytest.raises(KeyError), NO_SPANS.span("forward"):
        raise KeyError


@pytest.mark.usefixtures("_clock")
def test_totals_add_up_by_name() -> None:
    totals = SpanTotals()
    for name in ("forward", "backward", "forward"):
        with totals.span(name):
            pass
    assert totals.seconds == {"forward": 2, "backward": 1}


@pytest.mark.usefixtures("_clock")
def test_totals_count_a_span_that_raises() -> None:
    totals = SpanTotals()
    with pytest.raises(KeyError), totals.span("data"):
        raise KeyError
    assert totals.seconds == {"data": 1}


@pytest.mark.usefixtures("_clock")
def test_nested_spans_are_counted_each() -> None:
    totals = SpanTotals()
    with totals.span("outer"), totals.span("inner"):
        pass
    assert totals.seconds == {"inner": 1, "outer": 3}
