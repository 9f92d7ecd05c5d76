"""Figures as they are shown, and the published ones by our names for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

OWN_NAMES = {"t_clip": "clip_score", "i_gram": "style_clip_rn50"}  # what we call them, by what the tables do


def number(value: float | None) -> str:
    """Four significant digits, all of a large number; empty for None, NaN and infinities."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def published(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Published figures by our names for them; seconds per sample from minutes."""
    found = {name: value for name, value in metrics.get("published", {}).items() if name not in ("source", "quoted")}
    if "minutes" in found:
        found["seconds"] = 60 * found.pop("minutes")
    names = {**{name: name for name in found}, "reward": str(metrics.get("reward")), **OWN_NAMES}
    return {names[name]: value for name, value in found.items()}
