"""What the methods share that look at finished pictures: whole chains from a latent, and the best picture so far."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from guidedgen.methods import Observer
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import known


class Best:
    """The best picture so far of every sample."""

    def __init__(self) -> None:
        self.stalled: int | Tensor = 0  # sightings since one was better; on the device, which nothing waits for unless it is read

    def see(self, x_0: Tensor, rewards: Tensor) -> None:
        """x_0 b 1 c h w and its rewards b; one that is not a number is never better, one that is as good neither."""
        if not hasattr(self, "x_0"):
            self.x_0, self.rewards = x_0, known(rewards)
            return
        better = rewards > self.rewards
        self.stalled = torch.where(better.any(), 0, self.stalled + 1)
        self.x_0 = torch.where(better[:, None, None, None, None], x_0, self.x_0)
        self.rewards = torch.where(better, rewards, self.rewards)


def finished(problem: Problem, x_t: Tensor, observe: Observer, start: int = 0) -> Tensor:
    """x_0 (b n c h w): the scheduler's chain from x_t at point `start` of the grid to its end. Every step draws fresh noise."""
    past = None
    for i, (t, s) in enumerate(pairwise(problem.grid[start:]), start):
        prediction = problem.denoise(x_t, t).after(past)
        x_t, past = problem.step(x_t, prediction, t, s), (prediction, t)
        observe("step", i, {})
    return x_t


def step_noises(problem: Problem) -> Sequence[Tensor]:
    """The noises (b 1 c h w) of all steps that the unguided chain would draw next; none where the sampler draws none."""
    steps = len(problem.grid) - 1 if problem.scheduler.stochastic else 0
    return [problem.noise.draw(1, problem.latent_shape) for _ in range(steps)]


def shortened(gradients: Sequence[Tensor], most: float | None) -> Sequence[Tensor]:
    """Gradients (b n c h w each) whose common length is at most so much, sample by sample, as torch's clip_grad_norm_ has it."""
    if most is None:
        return gradients
    length = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
    factor = (most / (length + 1e-6)).clamp(max=1)[:, None, None, None, None]
    return [factor * g for g in gradients]


def walked(problem: Problem, observe: Observer, x_0: Tensor) -> None:
    """Reports that the chain has been walked through once, to x_0 (b 1 c h w)."""
    last = len(problem.grid) - 2
    for i in range(last):
        observe("step", i, {})
    observe("step", last, {"x_0": x_0})
