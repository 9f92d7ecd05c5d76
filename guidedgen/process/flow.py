"""A denoiser's probability flow, as chains that say which ODE they are Euler's method for, so that other solvers can have it too.

AdjointDPM (Pan et al. 2024, arXiv:2307.10711) has it twice. In time it is Eq. 4, with f = d log alpha / dt and, the variance being
preserved, g^2 = -2 f:

    dx/dt = f x + g^2 / (2 sigma) eps(x, t) = f (x - eps(x, t) / sigma)

and in variables in which the linear part is solved exactly and nothing is stiff, Eq. 10:

    dy/dr = eps(alpha y, t(r)),   y = x / alpha,   r = sigma / alpha

The paper's rho and the two of its released code are this r, shifted and scaled: the trajectories are the same. Three things of the
code (adjoint/src/node_solver_noise.py) are not followed. It starts at y = r noise where the marginal of x_T has y = noise / alpha;
it decodes y_0 as it is, not alpha_0 y_0; and between the points of its grid it tells the network the time of the nearest one.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence

from torch import Tensor

from guidedgen.process import Denoiser
from guidedgen.process.chains import GridChain, State
from guidedgen.process.formulas import ddim_step
from guidedgen.process.grid import Grid, Point, Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class OdeChain(GridChain, abc.ABC):
    """Euler's method along the grid for dy/du = velocity(u, y), y = x / scale: one denoiser call per step. u falls along the grid.

    `offsets[i]` is added to the state after step i, where there is one. The gradient of a loss by it is then that by the state.
    """

    schedule: Schedule
    offsets: Sequence[Tensor] = ()

    @abc.abstractmethod
    def variable(self, point: Point) -> float:
        """u at a point of the grid."""

    @abc.abstractmethod
    def scale(self, point: Point) -> float:
        """x / y at a point of the grid."""

    @abc.abstractmethod
    def velocity(self, u: float, y: Tensor) -> Tensor:
        """dy/du at any u: b n c h w. Solvers may look a little past the grid's ends."""

    @abc.abstractmethod
    def euler(self, x: Tensor, t: Point, s: Point) -> Tensor:
        """x at s by one step of Euler's method from t."""

    def start(self, x_t: Tensor) -> State:
        return (x_t,)

    def step(self, state: State, i: int) -> State:
        (x,) = state
        return (self.moved(self.euler(x, *self.moves[i]), i),)

    def moved(self, x: Tensor, i: int) -> Tensor:
        """The state after step i, with its offset."""
        return x + self.offsets[i] if i < len(self.offsets) else x


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowChain(OdeChain):
    """Eq. 10, whose Euler steps are DDIM's."""

    def variable(self, point: Point) -> float:
        return point.sigma / point.alpha

    def scale(self, point: Point) -> float:
        return point.alpha

    def velocity(self, u: float, y: Tensor) -> Tensor:
        """Past the clean end it is as at r = 0."""
        point = self.schedule.when(max(u, 0.0))
        return self.denoise(point.alpha * y, point).eps

    def euler(self, x: Tensor, t: Point, s: Point) -> Tensor:
        return ddim_step(self.denoise(x, t), t, s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VelocityChain(OdeChain):
    """The same flow in variables that are finite where alpha is 0, those of rectified flows:

        dy/du = eps(n y, t(u)) - x_0(n y, t(u)),   y = x / n,   u = sigma / n,   n = alpha + sigma

    Its Euler steps are DDIM's too.
    """

    def variable(self, point: Point) -> float:
        return point.sigma / (point.alpha + point.sigma)

    def scale(self, point: Point) -> float:
        return point.alpha + point.sigma

    def velocity(self, u: float, y: Tensor) -> Tensor:
        """Past its ends it is as at them."""
        u = min(max(u, 0.0), 1.0)
        point = self.schedule.when(u / (1 - u) if u < 1 else math.inf)
        prediction = self.denoise(self.scale(point) * y, point)
        return prediction.eps - prediction.x_0

    def euler(self, x: Tensor, t: Point, s: Point) -> Tensor:
        return ddim_step(self.denoise(x, t), t, s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MidpointChain:
    """The midpoint rule for another chain's ODE, along its grid: second order, two denoiser calls per step."""

    ode: OdeChain

    def __len__(self) -> int:
        return len(self.ode)

    def start(self, x_t: Tensor) -> State:
        return (x_t,)

    def step(self, state: State, i: int) -> State:
        (x,), (t, s) = state, self.ode.moves[i]
        u, y = self.ode.variable(t), x / self.ode.scale(t)
        h = self.ode.variable(s) - u
        middle = y + h / 2 * self.ode.velocity(u, y)
        return (self.ode.scale(s) * (y + h * self.ode.velocity(u + h / 2, middle)),)


def flow_of(denoise: Denoiser, grid: Grid, schedule: Schedule) -> FlowChain | VelocityChain:
    """The chain whose Euler steps are DDIM's: Eq. 10, but where it would begin at y = x / 0."""
    return (FlowChain if grid[0].alpha > 0 else VelocityChain)(denoise=denoise, grid=grid, schedule=schedule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeChain(OdeChain):
    """Eq. 4, in units of trained steps; its grid may not end clean, where eps / sigma is infinite.

    Between trained times alpha is NoiseSchedule.at's, whose logarithm is linear there. Its slope f would jump at the trained times
    and cost solvers their order, so it is the mean slope of the unit of time around t, which moves alpha by about one part in 10^6.
    """

    def __post_init__(self) -> None:
        if not self.grid[-1].sigma > 0:
            raise ValueError("the flow in time is infinitely fast where no noise is left")

    def variable(self, point: Point) -> float:
        return point.t

    def scale(self, point: Point) -> float:
        del point
        return 1.0

    def velocity(self, u: float, y: Tensor) -> Tensor:
        """Before the first and after the last trained time it is as at that."""
        last = len(self.schedule) - 1.0
        point = self.schedule.at(min(max(u, 0.0), last))
        before, after = self.schedule.at(max(point.t - 0.5, 0.0)), self.schedule.at(min(point.t + 0.5, last))
        f = math.log(after.alpha / before.alpha) / (after.t - before.t)
        return f * (y - self.denoise(y, point).eps / point.sigma)

    def euler(self, x: Tensor, t: Point, s: Point) -> Tensor:
        return x + (s.t - t.t) * self.velocity(t.t, x)
