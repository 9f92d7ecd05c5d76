"""Random copies of pictures that mean the same: turned, tilted, recoloured, partly erased and grained.

What a referee is shown instead of a picture itself, so that it is not fooled by what it alone takes for a good one (Liu et al.
2024, "Referee Can Play", arXiv:2402.16305, section 3.1). Kinds, order and sizes follow the released code (Pepper-lll/VLMinv,
blip2_sds.py): affine, perspective, colour, erasing, grain. Numbers are drawn from the samples' own streams; the operations are
kornia's. Two things differ: the two warps are composed and done as one, which blurs once instead of twice; and grained copies are
clamped, as rewards are given images in [0, 1], where the code hands what leaves the range to BLIP-2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics.errors import BadValue, check_amounts
from guidedgen.basics.noise import Noise

_NUMBERS = 27  # uniform numbers per copy
_PLAIN = (1.0, 1.0, 1.0, 0.0)  # colours that change nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copies:
    """What was drawn for v copies of b pictures of one size."""

    side: int | None  # that pictures are averaged to first, where they are larger
    warps: Tensor  # b v 3 3, from a picture's pixels (x, y) to its copy's
    colours: Tensor  # b v 4: brightness, contrast and saturation as factors, hue as a shift in turns
    erased: Tensor  # b v 4, px: left, top, right and bottom of what is black
    grain: Tensor  # b v 3 H W, or what stands for it, added at last

    @property
    def count(self) -> int:
        """v."""
        return self.warps.shape[1]

    def __call__(self, pictures: Tensor, samples: Tensor, copies: Tensor) -> Tensor:
        """Of k pictures (k 3 H W in [0, 1]), of the samples `samples` (k), the copies `copies` (k): k 3 H' W' in [0, 1]."""
        from kornia.enhance import adjust_contrast_with_mean_subtraction, adjust_hue, adjust_saturation_with_gray_subtraction
        from kornia.geometry.transform import warp_perspective

        x = averaged(pictures, self.side)
        height, width = x.shape[-2:]
        x = warp_perspective(x, self.warps[samples, copies].to(x), (height, width), padding_mode="zeros", align_corners=True)
        colours = self.colours[samples, copies].to(x)
        # Not the others: where channels tie, the way to hue and back has another gradient than none.
        (jittered,) = (colours != torch.tensor(_PLAIN).to(colours)).any(1).nonzero(as_tuple=True)
        if len(jittered):
            colours = colours[jittered]
            y = (x[jittered] * colours[:, 0, None, None, None]).clamp(0, 1)
            y = adjust_contrast_with_mean_subtraction(y, colours[:, 1])
            y = adjust_saturation_with_gray_subtraction(y, colours[:, 2])
            x = x.index_copy(0, jittered, adjust_hue(y, 2 * math.pi * colours[:, 3]))
        left, top, right, bottom = self.erased[samples, copies].to(x.device).T[..., None, None]
        down, across = torch.arange(height, device=x.device)[:, None], torch.arange(width, device=x.device)
        inside = (down >= top) & (down < bottom) & (across >= left) & (across < right)
        return (x.masked_fill(inside[:, None], 0) + self.grain[samples, copies].to(x)).clamp(0, 1)


def averaged(pictures: Tensor, side: int | None) -> Tensor:
    """k 3 H W, reduced to `side` where the shorter side is longer: half mean, half maximum of what falls together (ibid.)."""
    if side is None or min(pictures.shape[-2:]) <= side:
        return pictures
    return (F.adaptive_avg_pool2d(pictures, side) + F.adaptive_max_pool2d(pictures, side)) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentations:
    """`count` copies of every picture; 0: the picture itself. Off by default, as they change what a prompt can say (left and right,
    and what is there at all: the paper's A.3): `flip_odds` of mirrored copies, and `smallest_crop`, the side of random square
    crops as a share of the picture's (1: none).

    degrees, translate: of the affine map, +- so much, `translate` as a share of the side.
    perspective, perspective_odds: each corner moves inwards by up to half this share of the side.
    jitter, jitter_odds: of brightness, contrast and saturation, factors 1 +- so much, and of hue, +- so much of a turn.
    erased, erase_odds: share of the area that one black rectangle covers, its sides in a ratio of up to 3.3, the same in all copies
        of a picture unless same_erasing is false.
    copy_grain, grain: Gaussian noise, of a standard deviation of U(0, copy_grain) in each copy, and of `grain` in all.
    """

    count: int = 10
    side: int | None = 224
    degrees: float = 30.0
    translate: float = 0.1
    perspective: float = 0.2
    perspective_odds: float = 0.4
    jitter: float = 0.1
    jitter_odds: float = 0.5
    erased: Sequence[float] = (0.1, 0.4)
    erase_odds: float = 1.0
    same_erasing: bool = True
    copy_grain: float = 0.1
    grain: float = 0.2
    flip_odds: float = 0.0
    smallest_crop: float = 1.0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise BadValue("count", self.count, "must be at least 0")
        if self.side is not None and self.side < 1:
            raise BadValue("side", self.side, "must be at least 1")
        for name in ("perspective", "perspective_odds", "jitter", "jitter_odds", "erase_odds", "flip_odds"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadValue(name, getattr(self, name), "must be from 0 to 1")
        check_amounts(self, "degrees", "translate", "copy_grain", "grain")
        if not 0 < self.smallest_crop <= 1:
            raise BadValue("smallest_crop", self.smallest_crop, "must be above 0 and at most 1")
        if len(self.erased) != 2 or not 0 < self.erased[0] <= self.erased[1] < 1:
            raise BadValue("erased", list(self.erased), "must be [least, most], shares of the area with 0 < least <= most < 1")

    def draw(self, noise: Noise, height: int, width: int) -> Copies:
        """The next draw for b pictures of this size; `count` must not be 0."""
        if self.side is not None and min(height, width) > self.side:
            height = width = self.side
        u = noise.uniform(_NUMBERS * self.count).unflatten(1, (self.count, _NUMBERS)).cpu()
        return Copies(
            side=self.side,
            warps=self._warps(u[..., :16], height, width),
            colours=self._colours(u[..., 16:21]),
            erased=self._erased((u[:, :1] if self.same_erasing else u)[..., 21:26].expand(*u.shape[:2], 5), height, width),
            grain=self._grain(noise, u[..., 26], height, width),
        )

    def _warps(self, u: Tensor, height: int, width: int) -> Tensor:
        """b v 3 3 from numbers b v 16: crop, then flip, affine and perspective."""
        from kornia.geometry.transform import get_perspective_transform

        sides = torch.tensor([width, height], dtype=u.dtype)
        middle = (sides - 1) / 2
        share = self.smallest_crop + (1 - self.smallest_crop) * u[..., 0]
        corner = (1 - share[..., None]) * (sides - 1) * u[..., 1:3]
        flip = torch.where(u[..., 3] < self.flip_odds, -1.0, 1.0)
        angle = math.radians(self.degrees) * (2 * u[..., 4] - 1)
        shift = self.translate * sides * (2 * u[..., 5:7] - 1)
        turn = torch.stack([angle.cos() * flip, angle.sin(), -angle.sin() * flip, angle.cos()], -1).unflatten(-1, (2, 2))
        linear = turn / share[..., None, None]  # a crop is enlarged to the picture's size
        centre = corner + share[..., None] * middle  # of the crop, goes to the middle
        offset = middle + shift - (linear @ centre[..., None])[..., 0]
        affine = torch.eye(3, dtype=u.dtype).expand(*angle.shape, 3, 3).clone()
        affine[..., :2, :2], affine[..., :2, 2] = linear, offset

        corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=u.dtype) * (sides - 1)
        inwards = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=u.dtype)
        moved = corners + inwards * (self.perspective * sides / 2) * u[..., 8:16].unflatten(-1, (4, 2))
        moved = torch.where((u[..., 7] < self.perspective_odds)[..., None, None], moved, corners)
        tilt = get_perspective_transform(corners.expand_as(moved).flatten(0, 1), moved.flatten(0, 1)).unflatten(0, angle.shape)
        return tilt @ affine

    def _colours(self, u: Tensor) -> Tensor:
        """b v 4 from numbers b v 5."""
        change = self.jitter * (2 * u[..., 1:] - 1) * (u[..., :1] < self.jitter_odds)
        return change + torch.tensor(_PLAIN, dtype=u.dtype)

    def _erased(self, u: Tensor, height: int, width: int) -> Tensor:
        """b v 4 from numbers b v 5; the ratio of the sides is drawn below 1 or above it, evenly."""
        area = height * width * (self.erased[0] + (self.erased[1] - self.erased[0]) * u[..., 0])
        below, above = 0.3 + 0.7 * 2 * u[..., 1], 1 + 2.3 * (2 * u[..., 1] - 1)
        ratio = torch.where(u[..., 1] < 0.5, below, above)
        tall, wide = (area * ratio).sqrt().round().clamp(1, height), (area / ratio).sqrt().round().clamp(1, width)
        left, top = (u[..., 2] * (width - wide + 1)).floor(), (u[..., 3] * (height - tall + 1)).floor()
        return torch.stack([left, top, left + wide, top + tall], -1) * (u[..., 4:] < self.erase_odds)

    def _grain(self, noise: Noise, u: Tensor, height: int, width: int) -> Tensor:
        """b v 3 H W: both Gaussians at once."""
        scale = (self.grain**2 + (self.copy_grain * u) ** 2).sqrt()[..., None, None, None]
        if not scale.any():
            return scale
        drawn = noise.draw(self.count, (3, height, width))
        return scale.to(drawn) * drawn
