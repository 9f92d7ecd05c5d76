"""How pictures come about (`run.trace_images`): clean estimates at some steps, or after some updates, on one strip a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from guidedgen.methods.problem import Problem
from guidedgen.process import Denoiser, Prediction
from guidedgen.process.grid import Point


class Film:
    """Keeps the clean estimate of each sample's first particle at `count` of a method's steps, evenly spread, the last included.

    `steps` is how many steps a chain has, `chains` how often the method walks through it: where it does so several times, the
    estimate at the end of a chain is kept, which is the picture after an update.
    """

    def __init__(self, problem: Problem, count: int, steps: int, chains: int) -> None:
        self.problem = dataclasses.replace(problem, denoise=_Watched(problem.denoise, self))
        ends = [(chain + 1) * steps - 1 for chain in range(chains)] if chains > 1 else list(range(steps))
        self._chosen = {ends[round(i * (len(ends) - 1) / max(count - 1, 1))] for i in range(count)} if count > 1 else {ends[-1]}
        self._size, self._seen = len(problem), 0
        self._last: Tensor | None = None
        self._kept: list[Tensor] = []

    def see(self, x_0: Tensor) -> None:
        """An estimate b n c h w of the whole batch, or of some of its samples, which is left out."""
        if len(x_0) == self._size:
            self._last = x_0[:, 0].detach()

    def step(self, x_0: Tensor | None = None) -> None:
        """A step of the method is over; x_0 (b n c h w) is its estimate, where that is not the last one seen."""
        if x_0 is not None:
            self.see(x_0)
        if self._seen in self._chosen and self._last is not None:
            self._kept.append(self._last.float().cpu())
        self._seen += 1

    def latents(self) -> Sequence[Tensor]:
        """b c h w each, in the order of the steps."""
        return self._kept


@dataclasses.dataclass(frozen=True)
class _Watched:
    """A denoiser whose clean estimates a film sees."""

    inner: Denoiser
    film: Film

    @property
    def guidance_scale(self) -> float:
        return self.inner.guidance_scale

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Prediction:
        prediction = self.inner(x_t, t, guidance_scale)
        self.film.see(prediction.x_0)
        return prediction

    def pair(self, x_t: Tensor, t: Point) -> tuple[Prediction, Prediction]:
        uncond, cond = self.inner.pair(x_t, t)
        with torch.no_grad():
            self.film.see(self.mixed(uncond, cond, t)[0].x_0)
        return uncond, cond

    def scale_at(self, t: Point) -> float:
        return self.inner.scale_at(t)

    def mixed(self, uncond: Prediction, cond: Prediction, t: Point) -> tuple[Prediction, Tensor]:
        return self.inner.mixed(uncond, cond, t)

    @property
    def conditioning(self) -> Tensor:
        return self.inner.conditioning

    def conditioned_on(self, conditioning: Tensor) -> _Watched:
        return _Watched(self.inner.conditioned_on(conditioning), self.film)

    def subset(self, rows: Sequence[int]) -> Denoiser:
        return self.inner.subset(rows)
