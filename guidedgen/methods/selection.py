"""Choosing among particles, shared by the methods that search."""

from __future__ import annotations

import torch
from torch import Tensor


def known(scores: Tensor) -> Tensor:
    """Scores with minus infinity for one that is not a number, which so never wins over one that is."""
    return torch.where(scores.isnan(), -torch.inf, scores)


def best(scores: Tensor) -> Tensor:
    """Index (b) of each sample's highest score (b n)."""
    return known(scores).argmax(1)


def top(scores: Tensor) -> Tensor:
    """Each sample's highest score (b); minus infinity where none is a number."""
    return known(scores).amax(1)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices (b k) of each sample's k highest scores (b n, k <= n), the highest first."""
    return known(scores).topk(k, 1).indices


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Particle index[i] of sample i: b n c h w -> b 1 c h w."""
    return take(x, index.unsqueeze(1))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Particles index[i] of sample i: b n c h w and b k -> b k c h w."""
    return x[torch.arange(len(x), device=x.device).unsqueeze(1), index]


def spread_over(x: Tensor, n: int) -> Tensor:
    """n particles: the first ones, or all of them again and again (b k c h w -> b n c h w)."""
    return x[:, torch.arange(n, device=x.device) % x.shape[1]]


def repeated(x: Tensor, k: int) -> Tensor:
    """Every particle k times, its copies side by side: b n c h w -> b (n k) c h w."""
    return x.repeat_interleave(k, 1)


def multinomial(scores: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Algorithm 3 of the CoDeX thesis: indices (b k) drawn with replacement with probabilities softmax(scores / temperature).

    `scores` b n, `uniform` b k in [0, 1). Scores are compared with the largest one first, so that no temperature overflows; a score
    that is not a number is never drawn, unless none is one.
    """
    values = known(scores.double())
    top = values.amax(1, keepdim=True)
    upto = (torch.where(values == top, 0.0, values - top) / temperature).softmax(1).cumsum(1)
    upto = upto / upto[:, -1:]  # its last value is 1 but for rounding
    return torch.searchsorted(upto, uniform.to(upto), right=True).clamp(max=scores.shape[1] - 1)
