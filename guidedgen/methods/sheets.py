"""Sheets of pictures that show how samples come about: what the referee sees, and where it and distillation want to go."""

from __future__ import annotations

from collections.abc import Sequence

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

    def after(self, z: Tensor) -> None:
        """Adds the pictures of latents b 1 c h w to `evolution`."""
        self._kept.setdefault("evolution", []).append(self._problem.decode(z[:, 0]).clamp(0, 1))

    def before(self, z: Tensor, gradients: Sequence[Tensor], views: Views | None) -> None:
        """Adds a column to `gradients`, the pictures of z and below them each gradient b 1 c h w, its first three channels around
        gray; and a row to `copies`, the views of the pictures, those with the highest rewards first.
        """
        pictures = self._problem.decode(z[:, 0])
        self._gradients(pictures.clamp(0, 1), gradients)
        if views is not None:
            self._copies(pictures, views)

    def _copies(self, pictures: Tensor, views: Views) -> None:
        problem, b, v = self._problem, len(pictures), views.count
        assert problem.reward is not None
        seen = views(pictures, torch.arange(b), torch.arange(v))
        tasks = [task for task in problem.tasks for _ in range(v)]
        size = problem.batch_size
        rewards = torch.cat([problem.reward(seen[i : i + size], tasks[i : i + size]) for i in range(0, len(seen), size)])
        order = rewards.unflatten(0, (b, v)).argsort(1, descending=True)
        rows = [torch.cat([*seen.unflatten(0, (b, v))[i, order[i]]], -1) for i in range(b)]
        self._kept.setdefault("copies", []).append(torch.stack(rows).clamp(0, 1))

    def _gradients(self, pictures: Tensor, gradients: Sequence[Tensor]) -> None:
        shown = [pictures]
        for gradient in gradients:
            channels = gradient[:, 0, torch.arange(3) % gradient.shape[2]].to(pictures.dtype)
            largest = channels.abs().flatten(1).amax(1).clamp(min=torch.finfo(channels.dtype).tiny)[:, None, None, None]
            shown.append(F.interpolate((1 + channels / largest) / 2, pictures.shape[-2:], mode="nearest"))
        self._kept.setdefault("gradients", []).append(torch.cat(shown, -2))

    def finished(self) -> dict[str, Tensor]:
        """b 3 H W by kind: `copies` below each other, the others next to each other."""
        return {kind: torch.cat(parts, -2 if kind == "copies" else -1) for kind, parts in self._kept.items()}
