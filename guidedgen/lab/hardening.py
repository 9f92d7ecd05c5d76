"""Adversarial pictures to train a network on: adversarial training (Madry et al. 2018,
"Towards Deep Learning Models Resistant to Adversarial Attacks", section 2.1) against changes of a bounded L2 norm.

A network of the lab's size that has seen clean scenes alone accepts noise when pictures are optimised under it. One
trained so has gradients that point at what people see (Tsipras et al. 2019, "Robustness May Be at Odds with Accuracy", section
3.1), good enough to draw by (Santurkar et al. 2019, "Image Synthesis with a Single (Robust) Classifier").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from diffusers import AutoencoderKL


def attacked(images: Tensor, losses: Callable[[Tensor], Tensor], radius: Tensor, steps: int = 2) -> Tensor:
    """The images (b 3 H W in [-1, 1]) after `steps` steps that raise each one's loss (b 3 H W -> b), changed by at most its
    `radius` (b), the L2 norm over channels and pixels. A step is 1.5 radius / steps long. No gradient reaches the result; the
    network's parameters must not require gradients, which would be computed for nothing.
    """
    radius = radius[:, None, None, None]
    change = torch.zeros_like(images)
    for _ in range(steps):
        change.requires_grad_(True)
        (gradient,) = torch.autograd.grad(losses((images + change).clamp(-1, 1)).sum(), change)
        change = change.detach() + 1.5 * radius / steps * gradient / _norm(gradient)
        change = change * (radius / _norm(change)).clamp(max=1)
    return (images + change).clamp(-1, 1)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(1e-12)


@torch.no_grad()
def nothings(vae: AutoencoderKL, count: int, generator: torch.Generator) -> Tensor:
    """Pictures of nothing, as an inversion starts from: noise of deviations from 0.3 to 1.5, decoded; count 3 64 64 in [-1, 1]."""
    parts = []
    for left in range(count, 0, -64):
        scale = 0.3 + 1.2 * torch.rand(min(left, 64), 1, 1, 1, generator=generator)
        noise = scale * torch.randn(len(scale), 4, 16, 16, generator=generator)
        parts.append(vae.decode((noise / vae.config.scaling_factor).to(vae.device)).sample.float().clamp(-1, 1).cpu())
    return torch.cat(parts)
