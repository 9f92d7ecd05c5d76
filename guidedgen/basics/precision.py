"""Running a network in half precision without losing its gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def run_in(dtype: torch.dtype, network: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
    """network(x, *others) computed in `dtype` and returned in x's own, differentiable in all of these; but not, in float16, in
    what else the network closes over. All have k rows, which the network treats each by itself.

    In float16 numbers below 6e-8 are 0, and the gradient of a reward by a pixel or a latent is often that small. On its way back
    through the network each row's is therefore multiplied by a power of two that brings its largest element to between 1 and 2,
    and divided by it again behind: without rounding, the same as no scaling at all. Rows differ in size, and one may be broken.
    """
    wanted = torch.is_grad_enabled() and any(value.requires_grad for value in (x, *others))
    if dtype != torch.float16 or not wanted:
        return network(x.to(dtype), *(value.to(dtype) for value in others)).to(x.dtype)
    factors: list[Tensor] = []

    def by_row(gradient: Tensor) -> Tensor:
        return factors[0].view(-1, *(1,) * (gradient.ndim - 1))

    def enlarge(gradient: Tensor) -> Tensor:
        largest = gradient.abs().flatten(1).amax(1) if gradient.ndim > 1 else gradient.abs()
        exponents = torch.where((largest > 0) & largest.isfinite(), -torch.frexp(largest).exponent + 1, 0)
        factors[:] = [torch.ldexp(torch.ones_like(largest), exponents)]
        return gradient * by_row(gradient)

    def inside(value: Tensor) -> Tensor:
        if not value.requires_grad:
            return value.to(dtype)
        own = value.view_as(value)  # the gradient by the value itself may have other parts
        own.register_hook(lambda gradient: gradient / by_row(gradient))
        return own.to(dtype)

    outside = network(*map(inside, (x, *others))).to(x.dtype)
    outside.register_hook(enlarge)
    return outside
