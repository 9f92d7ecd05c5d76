"""Views of pictures, by which these are scored: crops, as DOODL has them, and random copies, as Referee Can Play has them."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

import torch
from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.augment import Augmentations, Copies
from guidedgen.basics.noise import Noise

Reduction = Literal["mean", "best"]


class Views(Protocol):
    """So many views of every picture. A picture's reward is the mean, or the best, of theirs."""

    @property
    def count(self) -> int: ...

    @property
    def reduction(self) -> Reduction: ...

    def __call__(self, pictures: Tensor, own: Tensor, which: Tensor) -> Tensor:
        """k 3 H W, their rows (k) among all pictures, and which of their views (v) -> k v 3 h w, the first two axes as one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crops:
    """Square crops v of every picture. A box is (side, top, left): the side as a share of the picture's shorter one, top and left
    as shares of the space that is left; all crops are averaged to the size of the `smallest`.
    """

    boxes: Tensor  # b n v 3, in [0, 1]
    smallest: float
    reduction: Reduction

    @property
    def count(self) -> int:
        return self.boxes.shape[2]

    def __call__(self, pictures: Tensor, own: Tensor, which: Tensor) -> Tensor:
        return images.crop(pictures, self.boxes.flatten(0, 1)[own][:, which], self.smallest).flatten(0, 1)


def draw_crops(noise: Noise, pictures: int, *, count: int, power: float, smallest: float, reduction: Reduction) -> Crops | None:
    """New crops for so many pictures of every sample, or None where `count` is 0: DOODL's (salesforce/DOODL, doodl.py:166-188).

    They are squares whose side is U^power, scaled to between `smallest` and 1 of the picture's; all are averaged to the smallest.
    """
    if not count:
        return None
    numbers = noise.uniform(pictures * count * 3).unflatten(1, (pictures, count, 3))
    side = numbers[..., :1] ** power * (1 - smallest) + smallest
    return Crops(boxes=torch.cat([side, numbers[..., 1:]], -1), smallest=smallest, reduction=reduction)


class RandomCopies:
    """The next copies that `augmentations` draws from `noise`, of one picture a sample. Their number must not be 0."""

    reduction: Reduction = "mean"

    def __init__(self, augmentations: Augmentations, noise: Noise) -> None:
        self._augmentations, self._noise = augmentations, noise
        self._copies: Copies | None = None

    @property
    def count(self) -> int:
        return self._augmentations.count

    def __call__(self, pictures: Tensor, own: Tensor, which: Tensor) -> Tensor:
        self._copies = self._copies or self._augmentations.draw(self._noise, *pictures.shape[-2:])
        v = len(which)
        return self._copies(pictures.repeat_interleave(v, 0), own.repeat_interleave(v), which.repeat(len(own)))
