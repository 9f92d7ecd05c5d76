"""Choosing among particles, shared by the methods that search."""

from __future__ import annotations

import torch
from torch import Tensor


def best(scores: Tensor) -> Tensor:
    """Index (b) of each sample's highest score (b n); a score that is not a number never wins over one that is."""
    return torch.where(scores.isnan(), -torch.inf, scores).argmax(1)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Particle index[i] of sample i: b n c h w -> b 1 c h w."""
    return x[torch.arange(len(x), device=x.device), index].unsqueeze(1)
