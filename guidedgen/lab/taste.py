"""The lab's taste: a formula for how pleasing a picture is, computed from its pixels.

    rating = 1 + 9 (0.40 balance + 0.25 contrast + 0.20 harmony + 0.15 fill)

An aesthetic head learns it from noisy ratings; the formula itself is the oracle that distinguishes a picture that has become better
from one that has fooled the head. What stands out is measured against the background, the median colour of the border.

    balance   1 - d / 0.4: how near the centre of what stands out is to the middle (d in picture widths, at least 0)
    contrast  how far what stands out differs in luminance from the background, up to 0.5
    harmony   |sum of chroma e^{2 i hue}| / sum of chroma: 1 where all hues are equal or opposite (complementary), after
              Matsuda's hue templates of types i and I (Cohen-Or et al. 2006, "Color harmonization")
    fill      exp(-(log2(covered share / 0.2))^2 / 2): a fifth of the picture covered is best
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taste:
    """The four terms of the rating, each b in [0, 1]."""

    balance: Tensor
    contrast: Tensor
    harmony: Tensor
    fill: Tensor

    @property
    def rating(self) -> Tensor:
        """b in [1, 10]."""
        return 1 + 9 * (0.40 * self.balance + 0.25 * self.contrast + 0.20 * self.harmony + 0.15 * self.fill)


def rate(images: Tensor) -> Tensor:
    """Ratings (b) in [1, 10] of images (b 3 H W) in [0, 1]."""
    return assess(images).rating


def assess(images: Tensor) -> Taste:
    """The terms of the rating of images (b 3 H W) in [0, 1]."""
    _, _, height, width = images.shape
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], -1)
    background = border.median(-1).values[:, :, None, None]
    salience = ((images - background).abs().amax(1) - 0.12).clamp(0, 0.2) / 0.2  # b H W: soft mask of what stands out
    mass = salience.sum((1, 2)).clamp(min=1e-6)

    x = (torch.arange(width, device=images.device) + 0.5) / width - 0.5
    y = (torch.arange(height, device=images.device) + 0.5) / height - 0.5
    off = torch.hypot((salience.sum(1) * x).sum(1) / mass, (salience.sum(2) * y).sum(1) / mass)
    something = (mass / (height * width) > 0.005).to(images.dtype)  # an empty picture has neither balance nor harmony

    luma = torch.einsum("bchw,c->bhw", images - background, _LUMA.to(images))
    contrast = ((luma.abs() * salience).sum((1, 2)) / mass / 0.5).clamp(0, 1)

    red, green, blue = images.unbind(1)
    alpha, beta = red - 0.5 * (green + blue), math.sqrt(0.75) * (green - blue)  # hue angle and chroma of the colour hexagon
    chroma, hue = torch.hypot(alpha, beta) * salience, torch.atan2(beta, alpha)
    total = chroma.sum((1, 2)).clamp(min=1e-6)
    resultant = torch.hypot((chroma * (2 * hue).cos()).sum((1, 2)), (chroma * (2 * hue).sin()).sum((1, 2)))

    covered = (mass / (height * width)).clamp(min=1e-4)
    return Taste(
        balance=(1 - off / 0.4).clamp(0, 1) * something,
        contrast=contrast * something,
        harmony=(resultant / total).clamp(0, 1) * something,
        fill=torch.exp(-(torch.log2(covered / 0.2).square()) / 2),
    )
