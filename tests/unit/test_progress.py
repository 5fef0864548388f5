import io
import logging

import pytest
from rich.console import Console

from dogbreed_ml.progress import NO_PROGRESS, TerminalProgress


class _Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _off_terminal(clock: _Clock) -> TerminalProgress:
    return TerminalProgress(console=Console(file=io.StringIO(), force_terminal=False), clock=clock)


def test_no_progress_takes_every_advance() -> None:
    with NO_PROGRESS.track("scan", 3, "images") as advance:
        advance(1)
        advance(2)


def test_terminal_progress_without_terminal_logs_start_every_ten_seconds_and_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = _Clock()
    with caplog.at_level(logging.INFO), _off_terminal(clock).track("scan", 100, "images") as advance:
        for _ in range(5):
            clock.now += 4
            advance(20)
    assert caplog.messages == [
        "scan: 100 images",
        "scan: 60 images of 100 images, 5 images/s, 8 s left",
        "scan: 100 images of 100 images in 20.0 s, 5 images/s",
    ]


def test_terminal_progress_renders_bytes_for_people(caplog: pytest.LogCaptureFixture) -> None:
    clock = _Clock()
    with caplog.at_level(logging.INFO), _off_terminal(clock).track("download", 3_000_000, "bytes") as advance:
        clock.now += 1
        advance(3_000_000)
    assert caplog.messages[-1] == "download: 3.0 MB of 3.0 MB in 1.0 s, 3.0 MB/s"


def test_terminal_progress_of_unknown_total_logs_what_is_done(caplog: pytest.LogCaptureFixture) -> None:
    clock = _Clock()
    with caplog.at_level(logging.INFO), _off_terminal(clock).track("list", 0, "files") as advance:
        clock.now += 2
        advance(8)
    assert caplog.messages == ["list: started", "list: 8 files in 2.0 s, 4 files/s"]


def test_terminal_progress_logs_the_end_of_a_stage_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    progress = _off_terminal(_Clock())
    with caplog.at_level(logging.INFO), pytest.raises(RuntimeError), progress.track("scan", 4, "images"):
        raise RuntimeError
    assert caplog.messages[-1].startswith("scan: 0 images of 4 images in")


def test_terminal_progress_on_a_terminal_shows_a_bar_for_each_stage() -> None:
    output = io.StringIO()
    progress = TerminalProgress(console=Console(file=output, force_terminal=True, width=120))
    with progress.track("scan", 10, "images") as advance, progress.track("download", 0, "bytes") as more:
        advance(10)
        more(2_000)
    shown = output.getvalue()
    assert "10 images of 10 images" in shown
    assert "images/s" in shown
    assert "2.0 kB" in shown


def test_terminal_progress_writes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress()
    progress.console.print("here")
    assert capsys.readouterr() == ("", "here\n")
