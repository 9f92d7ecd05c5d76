"""Mixtures of isotropic Gaussians: denoisers that are exact, on which samplers and guidance have known answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from guidedgen.process import Prediction
from guidedgen.process.classifier_free import PlainlyGuided
from guidedgen.process.formulas import guided
from guidedgen.process.grid import Point


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianMixture:
    """x_0 ~ sum_k weights_k N(means_k, std^2 I); every method can run on it."""

    means: Tensor  # k c h w
    std: float
    weights: Tensor  # k, summing to 1

    def __call__(self, x_t: Tensor, t: Point) -> Prediction:
        """The exact E[x_0 | x_t] and E[eps | x_t], each b n c h w as x_t: each component's posterior mean, weighted by its
        responsibility, and Tweedie's formula.
        """
        off, responsibility, variance = self._split(x_t, t)
        x_0 = (responsibility * (self.means + t.alpha * self.std**2 / variance * off)).sum(2)
        return Prediction(x_0, t.sigma / variance * (responsibility * off).sum(2))

    def _split(self, x_t: Tensor, t: Point) -> tuple[Tensor, Tensor, float]:
        """Offsets from the components (b n k c h w), their responsibilities (b n k 1 1 1), and their variance."""
        variance = (t.alpha * self.std) ** 2 + t.sigma**2
        off = x_t.unsqueeze(2) - t.alpha * self.means
        responsibility = (self.weights.log() - off.flatten(3).square().sum(-1) / (2 * variance)).softmax(-1)
        return off, responsibility[..., None, None, None], variance

    def log_density(self, x_t: Tensor, t: Point) -> Tensor:
        """log p_t(x_t) (b n), of which -E[eps | x_t] / sigma is the gradient."""
        variance = (t.alpha * self.std) ** 2 + t.sigma**2
        off = (x_t.unsqueeze(2) - t.alpha * self.means).flatten(3)
        log_normal = -off.square().sum(-1) / (2 * variance) - off.shape[-1] / 2 * math.log(2 * math.pi * variance)
        return torch.logsumexp(self.weights.log() + log_normal, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianDenoiser(PlainlyGuided):
    """A denoiser of a mixture `cond`, guided away from `uncond`; at scale 1 it is exact. Each task's conditioning (b c h w)
    is a shift of all means of `cond`; without one the denoiser is the same for every task.
    """

    cond: GaussianMixture
    uncond: GaussianMixture
    guidance_scale: float = 1.0
    shift: Tensor | None = None

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Prediction:
        w = self.guidance_scale if guidance_scale is None else guidance_scale
        if w in (0, 1):
            return self._shifted(x_t, t) if w == 1 else self.uncond(x_t, t)
        return guided(*self.pair(x_t, t), w)

    def pair(self, x_t: Tensor, t: Point) -> tuple[Prediction, Prediction]:
        return self.uncond(x_t, t), self._shifted(x_t, t)

    @property
    def conditioning(self) -> Tensor:
        if self.shift is None:
            raise ValueError("this denoiser has no conditioning")
        return self.shift

    def conditioned_on(self, conditioning: Tensor) -> GaussianDenoiser:
        return dataclasses.replace(self, shift=conditioning)

    def subset(self, rows: Sequence[int]) -> GaussianDenoiser:
        return self if self.shift is None else dataclasses.replace(self, shift=self.shift[list(rows)])

    def _shifted(self, x_t: Tensor, t: Point) -> Prediction:
        if self.shift is None:
            return self.cond(x_t, t)
        shift = self.shift.unsqueeze(1)
        prediction = self.cond(x_t - t.alpha * shift, t)
        return Prediction(prediction.x_0 + shift, prediction.eps)
