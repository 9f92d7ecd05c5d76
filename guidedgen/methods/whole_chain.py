"""What the methods share that optimise by the reward of the finished picture, through the whole chain."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from guidedgen.basics.noise import Noise
from guidedgen.methods import Observer
from guidedgen.methods.problem import Crops, Problem


class Best:
    """The best picture so far of every sample."""

    def __init__(self) -> None:
        self.stalled = 0  # sightings since one was better

    def see(self, x_0: Tensor, rewards: Tensor) -> None:
        """x_0 b 1 c h w and its rewards b; one that is not a number is never better, one that is as good neither."""
        if not hasattr(self, "x_0"):
            self.x_0, self.rewards = x_0, torch.where(rewards.isnan(), -torch.inf, rewards)
            return
        better = rewards > self.rewards
        self.stalled = 0 if better.any() else self.stalled + 1
        self.x_0 = torch.where(better[:, None, None, None, None], x_0, self.x_0)
        self.rewards = torch.where(better, rewards, self.rewards)


def draw_crops(
    noise: Noise, pictures: int, *, count: int, power: float, smallest: float, reduction: Literal["mean", "best"]
) -> Crops | None:
    """New crops for so many pictures of every sample, or None where `count` is 0: DOODL's (salesforce/DOODL, doodl.py:166-188).

    They are squares whose side is U^power, scaled to between `smallest` and 1 of the picture's; all are averaged to the smallest.
    """
    if not count:
        return None
    numbers = noise.uniform(pictures * count * 3).unflatten(1, (pictures, count, 3))
    side = numbers[..., :1] ** power * (1 - smallest) + smallest
    return Crops(boxes=torch.cat([side, numbers[..., 1:]], -1), smallest=smallest, reduction=reduction)


def walked(problem: Problem, observe: Observer) -> None:
    """Tells the observer that the chain has been walked through once."""
    for i in range(len(problem.grid) - 1):
        observe("step", i, {})
