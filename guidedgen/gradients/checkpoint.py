"""Checkpointing, step by step: keeps one state per step and computes each step again on the way back (Chen et al. 2016,
arXiv:1604.06174). Exact, with one step's activations in memory; the default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from guidedgen.basics.errors import BadValue
from guidedgen.gradients.memory import saved_bytes
from guidedgen.process.chains import Chain, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """`memory_gb` (1e9 bytes) is what may be kept for the way back: the states, and the activations of as many of the last steps as
    it holds, which are then not computed twice. They are gone before the first of the others is computed again. One step's are held
    in any case, also where that is more. What a step needs is measured by an extra forward of it.
    """

    exact: ClassVar[bool] = True

    memory_gb: float = 0.0

    def __post_init__(self) -> None:
        if not self.memory_gb >= 0:
            raise BadValue("memory_gb", self.memory_gb, "must be at least 0")

    def __call__(self, chain: Chain, state: State, params: Sequence[Tensor] = ()) -> State:
        again = len(chain) - self._kept(chain, state, params)
        for i in range(len(chain)):
            if i < again:
                # The networks draw no random numbers, so there is no generator state to restore. Stopping early would save next to
                # nothing, and break off the last network call of a step before its rows are counted.
                state = checkpoint(chain.step, state, i, use_reentrant=False, preserve_rng_state=False, early_stop=False)
            else:
                state = chain.step(state, i)
        return state

    def _kept(self, chain: Chain, state: State, params: Sequence[Tensor]) -> int:
        """How many steps' activations fit."""
        differentiated = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*state, *params))
        if not self.memory_gb or not len(chain) or not differentiated:
            return 0
        # All states but perhaps the first require gradients, so that is what is measured.
        first = tuple(x.detach().requires_grad_() for x in state)
        needed = saved_bytes(lambda: chain.step(first, 0))
        available = self.memory_gb * 1e9 - len(chain) * sum(x.nbytes for x in state)
        return int(min(len(chain), max(0, available) / max(needed, 1)))
