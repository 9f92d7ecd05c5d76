"""Checks feature arrays before statistics are computed from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def as_features(x: npt.ArrayLike, name: str = "features", *, at_least: int = 1) -> Array:
    """Features n d as float64. Raises ValueError where they are not a finite n d array of `at_least` rows."""
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name}: expected features n d, got shape {array.shape}")
    if len(array) < at_least:
        raise ValueError(f"{name}: needs at least {at_least} sample{'s' if at_least > 1 else ''}, got {len(array)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: features hold NaN or infinity")
    return array


def as_pair(x: npt.ArrayLike, y: npt.ArrayLike, *, at_least: int = 1) -> tuple[Array, Array]:
    """Features n d and m d as float64; ValueError as in `as_features`, and where the widths differ."""
    x, y = as_features(x, "x", at_least=at_least), as_features(y, "y", at_least=at_least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of two sets differ in width: {x.shape[1]} and {y.shape[1]}")
    return x, y
