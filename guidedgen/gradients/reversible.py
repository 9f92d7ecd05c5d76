"""EDICT backwards: states are reconstructed instead of stored, so that memory does not grow with the steps at all.

Every network call of the way back serves twice: its value undoes the update, its graph gives the gradient. That is 2 calls per step
forward, 2 again with a graph, and 2 backward passes, as with checkpointing. (The released DOODL never reconstructs anything: its
memcnn wrapper keeps its inputs, and its inverse is wrong for even numbers of steps.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from guidedgen.basics.errors import UsageError
from guidedgen.process.chains import Chain, EdictChain, State, walk
from guidedgen.process.grid import Point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reversible:
    """For EDICT chains alone; exact up to the round-off of undoing the steps, which needs float64 latents."""

    exact: ClassVar[bool] = True

    def __call__(self, chain: Chain, state: State, params: Sequence[Tensor] = ()) -> State:
        if not isinstance(chain, EdictChain):
            raise UsageError("method/gradients=reversible needs a chain that can be undone: method.process=edict")
        return _Undone.apply(chain, *state, *params)


class _Undone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chain: EdictChain, x: Tensor, y: Tensor, *params: Tensor) -> State:
        kind = x.device.type
        ctx.autocast = torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))
        state = walk(chain, (x, y))
        ctx.chain = chain
        ctx.save_for_backward(*state, *params)
        return state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *by_state: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *params = ctx.saved_tensors
        walk = _Walk(
            chain=ctx.chain, autocast=ctx.autocast, state=(x, y), gradients=by_state, params=params, by_params=[None] * len(params)
        )  # fmt: skip
        for i in reversed(range(len(ctx.chain))):
            walk.back(i)
        return (None, *walk.gradients, *walk.by_params)


@dataclasses.dataclass(kw_only=True)
class _Walk:
    """Where the way back stands: a state, and the gradients of the loss by it and by the parameters."""

    chain: EdictChain
    autocast: torch.autocast  # as it was on the way there
    state: State
    gradients: State
    params: Sequence[Tensor]
    by_params: list[Tensor | None]

    def back(self, i: int) -> None:
        """Over step i, from its end to its beginning."""
        chain, (t, s) = self.chain, self.chain.moves[i]
        a, b = chain.coefficients(t, s)
        first, second = chain.unmixed(self.state, i)
        gradients = self.gradients
        for _ in range(chain.mixings(i)):
            gradients = _unmixed_gradients(gradients, chain.mixing)
        by_first, by_second = chain.ordered(gradients, i)
        direction, vjp = self._call(first, t, b * by_second)
        second, by_first, by_second = (second - b * direction) / a, by_first + vjp, a * by_second
        direction, vjp = self._call(second, t, b * by_first)
        first, by_second, by_first = (first - b * direction) / a, by_second + vjp, a * by_first
        self.state, self.gradients = chain.ordered((first, second), i), chain.ordered((by_first, by_second), i)

    def _call(self, x: Tensor, t: Point, by_direction: Tensor) -> tuple[Tensor, Tensor]:
        """The direction at x, and the gradient by x of its product with `by_direction`; those by the parameters are added up."""
        wanted = [p for p in self.params if p.requires_grad]
        with torch.enable_grad(), self.autocast:
            x = x.detach().requires_grad_()
            direction = self.chain.direction(x, t)
        vjp, *by_params = torch.autograd.grad(direction, [x, *wanted], by_direction, allow_unused=True)
        sums = iter(by_params)
        for k, p in enumerate(self.params):
            if p.requires_grad and (extra := next(sums)) is not None:
                before = self.by_params[k]
                self.by_params[k] = extra if before is None else before + extra
        return direction.detach(), torch.zeros_like(x) if vjp is None else vjp


def _unmixed_gradients(by_state: State, p: float) -> State:
    """The gradients by what goes into `mix`, which is linear, given those by what comes out: its transpose."""
    by_x, by_y = by_state
    by_x = by_x + (1 - p) * by_y
    return p * by_x, p * by_y + (1 - p) * by_x
