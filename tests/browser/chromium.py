"""Debian's Chromium without a window, cut off from everything but one address."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Browser, Page, Route, ViewportSize, sync_playwright

VIEWPORT: ViewportSize = {"width": 1400, "height": 900}
TIMEOUT_MS = 30_000
"""How long one step may take; a busy machine needs seconds for a page of MLflow's UI."""

_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Below the pages' own requests, which are blocked one by one: no other host name has an address.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@dataclass(frozen=True)
class Visit:
    """One page in a fresh profile, and what it asked of other hosts (all of it was blocked)."""

    page: Page
    outside: list[str] = field(default_factory=list)


def find_chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def launch_chromium(executable_path: str) -> Iterator[Browser]:
    """Starts Chromium with a user data folder of its own, removed at the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable_path, args=list(_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, *, allowed_url: str, viewport: ViewportSize = VIEWPORT) -> Iterator[Visit]:
    """Opens a page that reaches only addresses that start with `allowed_url`."""
    context = browser.new_context(viewport=viewport, service_workers="block")
    context.set_default_timeout(TIMEOUT_MS)
    visit = Visit(context.new_page())

    def route(request: Route) -> None:
        url = request.request.url
        if url.startswith((allowed_url, "data:", "blob:")):
            request.continue_()
        else:
            visit.outside.append(url)
            request.abort()

    context.route("**/*", route)
    try:
        yield visit
    finally:
        context.close()


def wait_until(holds: Callable[[], bool], *, page: Page, what: str) -> None:
    """For what playwright's own expectations cannot say; raises AssertionError when TIMEOUT_MS are over."""
    deadline = time.monotonic() + TIMEOUT_MS / 1000
    while not holds():
        assert time.monotonic() < deadline, f"The page never showed {what}."
        page.wait_for_timeout(50)
