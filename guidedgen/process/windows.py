"""Parts of a chain, [start, end], as noise ratios: the share of the whole chain that is left at a step, itself included."""

from __future__ import annotations

from collections.abc import Sequence

from guidedgen.basics.errors import BadValue


def check_window(name: str, window: Sequence[float]) -> None:
    """Raises BadValue unless the window is [start, end] with 1 >= start >= end >= 0."""
    numbers = all(isinstance(edge, (int, float)) for edge in window)
    if len(window) != 2 or not numbers or not 1 >= window[0] >= window[1] >= 0:
        raise BadValue(name, list(window), "must be [start, end], noise ratios with 1 >= start >= end >= 0")


def within(noise_ratio: float, window: Sequence[float]) -> bool:
    """Whether a noise ratio lies in a window."""
    (start, end), rounding = window, 1e-9
    return end + rounding < noise_ratio <= start + rounding
