"""Running a network in half precision without losing its gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def run_in(dtype: torch.dtype, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """network(x) computed in `dtype` and returned in x's own, differentiable.

    In float16 numbers below 6e-8 are 0, and the gradient of a reward by a pixel or a latent is often that small. On its way back
    through the network it is therefore multiplied by a power of two that brings its largest element to between 1 and 2, and divided
    by it again behind: without rounding, the same as no scaling at all.
    """
    if dtype != torch.float16 or not (torch.is_grad_enabled() and x.requires_grad):
        return network(x.to(dtype)).to(x.dtype)
    factors: list[Tensor] = []

    def enlarge(gradient: Tensor) -> Tensor:
        largest = gradient.abs().max()
        exponent = torch.where((largest > 0) & largest.isfinite(), -torch.frexp(largest).exponent + 1, 0)
        factors.append(torch.ldexp(torch.ones_like(largest), exponent))
        return gradient * factors[-1]

    inside = x.view_as(x)  # the gradient by x itself may have other parts
    inside.register_hook(lambda gradient: gradient / factors.pop())
    outside = network(inside.to(dtype)).to(x.dtype)
    outside.register_hook(enlarge)
    return outside
