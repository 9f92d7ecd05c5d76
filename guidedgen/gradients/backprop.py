"""Plain backpropagation: keeps the activations of every step. The oracle of the other engines, and the fastest where it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from guidedgen.process.chains import Chain, State, walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backprop:
    """One forward; memory grows with the steps."""

    exact: ClassVar[bool] = True

    def __call__(self, chain: Chain, state: State, params: Sequence[Tensor] = ()) -> State:
        return walk(chain, state)
