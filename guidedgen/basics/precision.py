"""Running a network in half precision without losing its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

DType = Literal["auto", "float32", "float16", "bfloat16"]


def settled(dtype: DType, device: torch.device | str) -> DType:
    """The dtype, "auto" being float32 on a CPU, where half precision is slow, and float16 elsewhere."""
    if dtype != "auto":
        return dtype
    return "float32" if torch.device(device).type == "cpu" else "float16"


def wide(x: Tensor) -> Tensor:
    """x in float32 where it has fewer bits: for exponentials, sums and lengths."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dtype_of(network: Any) -> torch.dtype:
    """The dtype of a network's matrices."""
    return next(weight for weight in network.parameters() if weight.ndim > 1).dtype


def full_dtype_of(network: Any) -> torch.dtype:
    """The dtype in which its inputs are prepared: its own, but float32 at least."""
    return torch.promote_types(dtype_of(network), torch.float32)


def rounded(network: Any, dtype: DType) -> Any:
    """The network with its weights in `dtype`, but for a CLIP's `logit_scale`: it is one number, and multiplies all scores."""
    scale = network.logit_scale.data if hasattr(network, "logit_scale") else None
    network = network.to(getattr(torch, dtype))
    if scale is not None:
        network.logit_scale.data = scale
    return network


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
