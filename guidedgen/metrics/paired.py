"""How far apart two runs of the same samples are, picture by picture: a solver's error against a fine solution at equal noise."""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor

from guidedgen.metrics.features import Array, as_pair
from guidedgen.zoo import Features


class Pixels:
    """The images themselves as features."""

    name = "pixels"

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b d."""
        return images.flatten(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rmse:
    """Root mean square of the difference between each image and the one at the same index of the reference set, averaged over the
    images, {"rmse"}; of pixels it is from 0 to 1, and below about 0.001 it is that of rounding to bytes.

    For a reference that is a run of the same tasks and seeds, which come in the same order; nothing where the sizes differ.
    """

    features: Features = dataclasses.field(default_factory=Pixels)
    name: str = "rmse"
    paired = True  # images of equal index belong together

    def __call__(self, x: Array, y: Array) -> dict[str, float]:
        """Features n d, n d -> {"rmse"}."""
        x, y = as_pair(x, y)
        return {"rmse": float(np.sqrt(np.square(x - y).mean(1)).mean())} if len(x) == len(y) else {}
