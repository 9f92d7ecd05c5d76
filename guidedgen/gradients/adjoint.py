"""The continuous adjoint (Chen et al. 2018, arXiv:1806.07366), by torchdiffeq: AdjointDPM's gradients (arXiv:2307.10711, Eq. 11).

The flow is solved without a graph, then a second one backwards for the loss's gradient. It is the gradient of the continuous flow,
which differs from that of the picture that was computed by O(1/T): 27 % at 20 steps of a small random UNet, 6 % at 100.

Calls of the network with T steps: euler T and, on the way back, T that are differentiated; midpoint 2T and 2T; rk4 4T and 4T;
explicit_adams T + 6 (from T = 2 on; its first two steps are rk4's) and 4T; dopri5 as many as its tolerances take. Offsets of the
chain cost none.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.process.chains import Chain, State
from guidedgen.process.flow import OdeChain
from guidedgen.process.grid import Point

# torchdiffeq's names.
Solver = Literal["euler", "midpoint", "rk4", "explicit_adams", "dopri5"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adjoint:
    """For OdeChains alone. All solvers but dopri5 step along the chain's grid, whose states are kept for the way back; with euler
    the chain's own picture comes out. Times between those of the grid are interpolated, never rounded.

    explicit_adams is of order 4 (as in the paper, section 3.4) where steps are equal in the chain's variable: torchdiffeq's
    coefficients are those of equal steps. A FlowChain's steps in r shrink towards the end on grids of times: there its error falls
    as euler's does and is a few times less, but with few steps and strong guidance many times more. Midpoint is better at equal
    cost. Offsets move its states, not what it remembers of the steps before.

    dopri5 ignores the points between the grid's ends: it takes the steps that keep its estimate of the error below `rtol` |y| +
    `atol`, forth and back, and samples one by one, so that none depends on the others. The estimate of the first, longest steps
    can be far off at 1e-4 and above, which is all that a float16 network resolves.
    """

    exact: ClassVar[bool] = False

    solver: Solver = "euler"
    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            if not getattr(self, name) > 0:
                raise BadValue(name, getattr(self, name), "must be above 0")

    def __call__(self, chain: Chain, state: State, params: Sequence[Tensor] = ()) -> State:
        if not isinstance(chain, OdeChain):
            raise UsageError("method/gradients=adjoint needs a chain that is a flow: method.process=ddim, or method=adjoint_dpm")
        (x,) = state
        if not len(chain):
            return state
        if self.solver == "dopri5" and len(x) > 1:
            alone = [self(_sample(chain, i), (x[i : i + 1],), params)[0] for i in range(len(x))]
            return (torch.cat(alone),)
        points = [chain.moves[0][0], *(s for _, s in chain.moves)]
        if not chain.offsets or self.solver == "explicit_adams":
            return (self._solved(chain, x, points, params),)
        chain, whole = dataclasses.replace(chain, offsets=()), chain
        for i in range(len(chain)):
            x = whole.moved(self._solved(chain, x, points[i : i + 2], params), i)
        return (x,)

    def _solved(self, chain: OdeChain, x: Tensor, points: Sequence[Point], params: Sequence[Tensor]) -> Tensor:
        """The state at the last of the points, given that at the first; with offsets, the points are all of the chain's."""
        from torchdiffeq import odeint_adjoint

        velocity, moved = _with_autocast(chain.velocity, x), _added(chain, 0)
        # Also where states are kept.
        grid = torch.tensor([chain.variable(point) for point in points], dtype=torch.float64, device=x.device)
        options: dict[str, Any] = {}
        back: dict[str, Any] = {}
        if self.solver == "dopri5":
            grid = grid[[0, -1]]
            # Not to step over the end and interpolate. The way back has -u for its time: u falls, so torchdiffeq turned it around.
            # The integrals for `params` choose no steps (Kidger et al. 2021, arXiv:2009.09457): they hold other samples' rows too.
            options, back = {"step_t": grid[1:]}, {"step_t": -grid[:1], "norm": "seminorm"}
        elif self.solver == "explicit_adams":
            options = back = {"max_order": 5}  # torchdiffeq counts one more than Adams' order
            if chain.offsets:
                # Times at the ends of a step are asked for a rounding error inside of it, so that they identify the step.
                options = back = {**options, "perturb": True}
                velocity, moved = _along(chain, velocity, grid.to(x.dtype).tolist()), _added(chain, len(chain))
                params = [*(p for p in params if all(p is not offset for offset in chain.offsets)), *chain.offsets]
        y = odeint_adjoint(
            velocity, x / chain.scale(points[0]), grid, method=self.solver, rtol=self.rtol, atol=self.atol,
            options=options, adjoint_options=back, adjoint_params=tuple(params),
        )  # fmt: skip
        return chain.scale(points[-1]) * (y[-1] + moved)


def _along(
    chain: OdeChain, velocity: Callable[[Tensor, Tensor], Tensor], grid: Sequence[float]
) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity of y less what the offsets have added to it so far, in which there are no jumps.

    Between two points of the falling grid it depends in the same way on y and on each offset before them. So in any solver the
    gradient by such an offset changes there by as much as the adjoint state, and in the end is what that was behind the offset.
    """

    def call(u: Tensor, y: Tensor) -> Tensor:
        passed = bisect.bisect_left(grid, -float(u.detach()), key=lambda point: -point)  # how many points are above u
        return velocity(u, y + _added(chain, passed - 1))

    return call


def _added(chain: OdeChain, count: int) -> Tensor | float:
    """What the offsets after the first `count` steps add to y."""
    return sum(offset / chain.scale(s) for offset, (_, s) in zip(chain.offsets, chain.moves[: max(count, 0)], strict=False))


def _sample(chain: OdeChain, i: int) -> OdeChain:
    """The chain of sample i alone."""
    offsets = [offset[i : i + 1] for offset in chain.offsets]
    return dataclasses.replace(chain, denoise=chain.denoise.subset([i]), offsets=offsets)


def _with_autocast(velocity: Callable[[float, Tensor], Tensor], x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The velocity as torchdiffeq calls it, under the autocast of now: the way back runs outside of it."""
    kind = x.device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def call(u: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(kind, dtype=dtype, enabled=enabled):
            return velocity(float(u.detach()), y).to(y.dtype)

    return call
