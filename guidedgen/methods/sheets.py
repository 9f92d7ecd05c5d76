"""Sheets of pictures that show how samples come about: what the referee sees, and where it and distillation want to go."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.methods.problem import Problem
from guidedgen.methods.views import Views


class Sheets:
    """Collects pictures of a batch at some iterations, and puts those of each kind on one sheet a sample."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._kept: dict[str, list[Tensor]] = {}

    def picture(self, z: Tensor) -> None:
        """Adds the pictures of latents b 1 c h w to `evolution`."""
        self._kept.setdefault("evolution", []).append(self._problem.decode(z[:, 0]).clamp(0, 1))

    def copies(self, z: Tensor, views: Views) -> None:
        """Adds a row to `copies`: the views of the pictures of z, those with the highest rewards first."""
        problem, b, v = self._problem, len(z), views.count
        assert problem.reward is not None
        seen = views(problem.decode(z[:, 0]), torch.arange(b), torch.arange(v))
        tasks = [task for task in problem.tasks for _ in range(v)]
        size = problem.batch_size
        rewards = torch.cat([problem.reward(seen[i : i + size], tasks[i : i + size]) for i in range(0, len(seen), size)])
        order = rewards.unflatten(0, (b, v)).argsort(1, descending=True)
        rows = [torch.cat([*seen.unflatten(0, (b, v))[i, order[i]]], -1) for i in range(b)]
        self._kept.setdefault("copies", []).append(torch.stack(rows).clamp(0, 1))

    def gradients(self, z: Tensor, *gradients: Tensor) -> None:
        """Adds a column to `gradients`: the picture of z, and below it each gradient b 1 c h w, its first three channels around
        gray.
        """
        picture = self._problem.decode(z[:, 0]).clamp(0, 1)
        shown = [picture]
        for gradient in gradients:
            channels = gradient[:, 0, torch.arange(3) % gradient.shape[2]].to(picture.dtype)
            largest = channels.abs().flatten(1).amax(1).clamp(min=torch.finfo(channels.dtype).tiny)[:, None, None, None]
            shown.append(F.interpolate((1 + channels / largest) / 2, picture.shape[-2:], mode="nearest"))
        self._kept.setdefault("gradients", []).append(torch.cat(shown, -2))

    def finished(self) -> dict[str, Tensor]:
        """b 3 H W by kind: `copies` below each other, the others next to each other."""
        return {kind: torch.cat(parts, -2 if kind == "copies" else -1) for kind, parts in self._kept.items()}
