"""A denoiser's probability flow, in variables in which it is not stiff (AdjointDPM, Pan et al. 2024, arXiv:2307.10711, Eq. 10):

    dy/dr = eps(alpha y, t(r)),   y = x / alpha,   r = sigma / alpha

The paper's rho and the two of its released code are this r, shifted and scaled: the trajectories are the same. Three things of the
code (adjoint/src/node_solver_noise.py) are not followed. It starts at y = r noise where the marginal of x_T has y = noise / alpha;
it decodes y_0 as it is, not alpha_0 y_0; and between the points of its grid it tells the network the time of the nearest one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from guidedgen.process.chains import DdimChain, State
from guidedgen.process.grid import NoiseSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowChain(DdimChain):
    """DDIM's chain, which is Euler's method for the flow on this grid, together with the flow itself, for other methods.

    `offsets[i]` is added to the state after step i, where there is one. The gradient of a loss by it is then that by the state.
    """

    schedule: NoiseSchedule
    offsets: Sequence[Tensor] = ()

    def step(self, state: State, i: int) -> State:
        (x,) = super().step(state, i)
        return (self.moved(x, i),)

    def moved(self, x: Tensor, i: int) -> Tensor:
        """The state after step i, with its offset."""
        return x + self.offsets[i] if i < len(self.offsets) else x

    def velocity(self, r: float, y: Tensor) -> Tensor:
        """dy/dr at any r: b n c h w. Solvers may look past the clean end, where it is as at r = 0."""
        point = self.schedule.when(max(r, 0.0))
        return self.denoise(point.alpha * y, point)
