"""What is seen of a plot on a canvas, which has no elements to ask for."""

from io import BytesIO

import numpy as np
from PIL import Image
from playwright.sync_api import FloatRect, Locator

from .chromium import wait_until

_COLOURED = 24
"""Least difference between a pixel's largest and smallest channel, of 255; axes, ticks and their texts are grey."""
_MARGIN = 4
"""Pixels beside an axis that are left out."""


def wait_for_lines(plot: Locator) -> None:
    """Waits for coloured lines from the first axis of plotly's parallel coordinates to the last, without a gap."""
    wait_until(lambda: _coloured_share(plot) > 0.99, page=plot.page, what="lines from axis to axis")


def _coloured_share(plot: Locator) -> float:
    """Share in [0, 1] of the columns of pixels between the first and the last axis that hold colour."""
    plot.scroll_into_view_if_needed()
    shot = Image.open(BytesIO(plot.screenshot())).convert("RGB")
    # A title is centred on its axis.
    titles, frame = plot.locator(".axis-title"), _box(plot)
    left, right = (round(_centre(title) - frame["x"]) for title in (titles.first, titles.last))
    strip = np.asarray(shot).astype(int)[:, left + _MARGIN : right - _MARGIN]
    coloured = strip.max(axis=2) - strip.min(axis=2) >= _COLOURED
    return float(coloured.any(axis=0).mean())


def _centre(element: Locator) -> float:
    box = _box(element)
    return box["x"] + box["width"] / 2


def _box(element: Locator) -> FloatRect:
    box = element.bounding_box()
    assert box is not None, "The element is not drawn."
    return box
