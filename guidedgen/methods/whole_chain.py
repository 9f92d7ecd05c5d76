"""What the methods share that optimise by the reward of the finished picture, through the whole chain."""

from __future__ import annotations

import torch
from torch import Tensor

from guidedgen.methods import Observer
from guidedgen.methods.problem import Problem


class Best:
    """The best picture so far of every sample."""

    def __init__(self) -> None:
        self.stalled: int | Tensor = 0  # sightings since one was better; on the device, which nothing waits for unless it is read

    def see(self, x_0: Tensor, rewards: Tensor) -> None:
        """x_0 b 1 c h w and its rewards b; one that is not a number is never better, one that is as good neither."""
        if not hasattr(self, "x_0"):
            self.x_0, self.rewards = x_0, torch.where(rewards.isnan(), -torch.inf, rewards)
            return
        better = rewards > self.rewards
        self.stalled = torch.where(better.any(), 0, self.stalled + 1)
        self.x_0 = torch.where(better[:, None, None, None, None], x_0, self.x_0)
        self.rewards = torch.where(better, rewards, self.rewards)


def walked(problem: Problem, observe: Observer, x_0: Tensor) -> None:
    """Reports that the chain has been walked through once, to x_0 (b 1 c h w)."""
    last = len(problem.grid) - 2
    for i in range(last):
        observe("step", i, {})
    observe("step", last, {"x_0": x_0})
