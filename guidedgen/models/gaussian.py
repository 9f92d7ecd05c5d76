"""A mixture of isotropic Gaussians: a denoiser that is exact, on which samplers and guidance have known answers."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from guidedgen.process.grid import Point


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianMixture:
    """x_0 ~ sum_k weights_k N(means_k, std^2 I); every method can run on it."""

    means: Tensor  # k c h w
    std: float
    weights: Tensor  # k, summing to 1

    def __call__(self, x_t: Tensor, t: Point) -> Tensor:
        """The exact E[eps | x_t] (b n c h w -> b n c h w), from Tweedie's formula."""
        return (x_t - t.alpha * self.posterior_mean(x_t, t)) / t.sigma

    def posterior_mean(self, x_t: Tensor, t: Point) -> Tensor:
        """E[x_0 | x_t]: each component's posterior mean, weighted by its responsibility."""
        variance = (t.alpha * self.std) ** 2 + t.sigma**2
        off = x_t.unsqueeze(2) - t.alpha * self.means  # b n k c h w
        responsibility = (self.weights.log() - off.flatten(3).square().sum(-1) / (2 * variance)).softmax(-1)
        means = self.means + t.alpha * self.std**2 / variance * off
        return (responsibility[..., None, None, None] * means).sum(2)

    def log_density(self, x_t: Tensor, t: Point) -> Tensor:
        """log p_t(x_t) (b n), of which -E[eps | x_t] / sigma is the gradient."""
        variance = (t.alpha * self.std) ** 2 + t.sigma**2
        off = (x_t.unsqueeze(2) - t.alpha * self.means).flatten(3)
        log_normal = -off.square().sum(-1) / (2 * variance) - off.shape[-1] / 2 * math.log(2 * math.pi * variance)
        return torch.logsumexp(self.weights.log() + log_normal, -1)
