"""Metrics of a generated set against a reference set: a feature network, and a distance between what it sees.

A caller runs `extract` once per feature network and set, then every metric on the same arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from guidedgen.basics import images
from guidedgen.metrics import frechet, kernel
from guidedgen.metrics.features import Array, as_pair
from guidedgen.zoo import Features


class SetMetric(Protocol):
    """A distance between two sets of images; lower is nearer."""

    @property
    def name(self) -> str:
        """What it is called in a report."""

    @property
    def features(self) -> Features:
        """The network whose outputs `__call__` takes; its name belongs next to every value."""

    def __call__(self, x: Array, y: Array) -> dict[str, float]:
        """Features of the generated (n d) and the reference set (m d) -> finite values by name; undefined ones are left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fid:
    """Fréchet distance, {"fid"}; nothing below 2 images a set."""

    features: Features
    name: str = "fid"

    def __call__(self, x: Array, y: Array) -> dict[str, float]:
        """Features n d, m d -> {"fid"}."""
        x, y = as_pair(x, y)
        return {"fid": frechet.frechet_distance(x, y)} if _both(x, y, 2) else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kid:
    """Unbiased kernel distance over the full sets, {"kid"}; nothing below 2 images a set."""

    features: Features
    name: str = "kid"

    def __call__(self, x: Array, y: Array) -> dict[str, float]:
        """Features n d, m d -> {"kid"}."""
        x, y = as_pair(x, y)
        return {"kid": kernel.kid(x, y)} if _both(x, y, 2) else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cmmd:
    """CLIP-MMD, {"cmmd", "cmmd_unbiased"}; the features are CLIP image embeddings of unit length.

    The unbiased value is left out below 2 images a set.
    """

    features: Features
    name: str = "cmmd"

    def __call__(self, x: Array, y: Array) -> dict[str, float]:
        """Embeddings n d, m d -> values. ValueError where they are not of unit length, for which the kernel's width is chosen."""
        x, y = as_pair(x, y)
        for embeddings in (x, y):
            if np.abs(np.linalg.norm(embeddings, axis=1) - 1).max(initial=0) > 1e-2:
                raise ValueError(f"{self.name}: expected embeddings of unit length from {self.features.name}")
        values = {"cmmd": kernel.cmmd(x, y)}
        if _both(x, y, 2):
            values["cmmd_unbiased"] = kernel.cmmd_unbiased(x, y)
        return values


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerPrompt:
    """A distance taken prompt by prompt and averaged over the prompts: {"NAME_per_prompt"} for each value that `metric` gives.

    The tables of the CoDeX thesis: the 10 images of each prompt against 10 unguided ones of the same prompt
    (maurya-goyal10/CoDe_ext, BoN/compute_scores.py, lines 371-411). Of so few images FID and biased CMMD are mostly bias, which is
    alike in all rows: only their difference to the row of the unguided model tells anything.
    """

    metric: SetMetric

    @property
    def name(self) -> str:
        """The metric's, with what is done with it."""
        return f"{self.metric.name}_per_prompt"

    @property
    def features(self) -> Features:
        """The metric's."""
        return self.metric.features

    def __call__(self, pairs: Sequence[tuple[Array, Array]]) -> dict[str, list[float]]:
        """Of each prompt, features of its generated (n d) and its reference images (m d) -> values by name, one per prompt.

        Prompts with fewer than 2 images on either side are left out.
        """
        found: dict[str, list[float]] = {}
        for x, y in pairs:
            for name, value in (self.metric(x, y) if _both(x, y, 2) else {}).items():
                found.setdefault(f"{name}_per_prompt", []).append(value)
        return found


def extract(features: Features, batches: Iterable[Tensor], *, device: torch.device | str | None = None) -> Array:
    """Features n d, float64, of batches of images (each b 3 H W in [0, 1]); without gradients, images moved to `device` if given.

    Batches may differ in size of images and in b. ValueError where there is no image, or the network does not return b d.
    """
    rows = []
    with torch.no_grad():
        for batch in batches:
            pixels = images.check(batch, "extract") if device is None else images.check(batch, "extract").to(device)
            output = features(pixels)
            if output.ndim != 2 or len(output) != len(batch):
                raise ValueError(f"{features.name}: expected features {len(batch)} d, got {tuple(output.shape)}")
            rows.append(output.cpu().double().numpy())  # moved first: not every device has float64
    if not rows:
        raise ValueError(f"{features.name}: no images to extract features from")
    return np.concatenate(rows)


def _both(x: Array, y: Array, count: int) -> bool:
    return min(len(x), len(y)) >= count
