"""The step rules config chooses from, each with the grid it is used on.

Of a rectified flow that is the model's own, with its shift: `spacing`, `offset` and `end` say how trained steps are chosen, of
which a flow has none. There Ddim and Euler are the flow's Euler steps, and Ddpm draws noise with them (eta = 1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.process import Prediction
from guidedgen.process.formulas import (
    consistency_transition,
    ddim_transition,
    ddpm_transition,
    dpm_solver_step,
    flow_sde_transition,
)  # fmt: skip
from guidedgen.process.grid import End, FlowSchedule, Grid, NoiseSchedule, Point, Schedule, Spacing, make_grid, timesteps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ddim:
    """DDIM. The defaults are SD's: leading steps shifted by one, ending at the first trained noise level."""

    num_steps: int = 50
    eta: float = 0.0
    spacing: Spacing = "leading"
    offset: int = 1
    end: End = "first"

    def __post_init__(self) -> None:
        _check_steps(self)
        if not 0 <= self.eta <= 1:
            raise BadValue("eta", self.eta, "must be from 0 to 1")

    multistep: ClassVar[bool] = False

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def grid(self, schedule: Schedule) -> Grid:
        if isinstance(schedule, FlowSchedule):
            return schedule.grid(self.num_steps)
        return make_grid(schedule, timesteps(len(schedule), self.num_steps, self.spacing, self.offset), self.end)

    def transition(self, x_t: Tensor, prediction: Prediction, t: Point, s: Point) -> tuple[Tensor, float]:
        return ddim_transition(prediction, t, s, eta=self.eta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ddpm:
    """Ancestral sampling, as CoDe uses it: trailing steps, the last one to no noise. `variance` is that of a step's noise, as by
    diffusers' variance_type fixed_small or fixed_large: the posterior's, or beta_t, which wants about all of the trained steps.
    """

    num_steps: int = 50
    spacing: Spacing = "trailing"
    offset: int = 0
    end: End = "clean"
    variance: Literal["small", "large"] = "small"

    def __post_init__(self) -> None:
        _check_steps(self)

    multistep: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True

    def grid(self, schedule: Schedule) -> Grid:
        if isinstance(schedule, FlowSchedule):
            return schedule.grid(self.num_steps)
        return make_grid(schedule, timesteps(len(schedule), self.num_steps, self.spacing, self.offset), self.end)

    def transition(self, x_t: Tensor, prediction: Prediction, t: Point, s: Point) -> tuple[Tensor, float]:
        return ddpm_transition(x_t, prediction, t, s, large=self.variance == "large")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler:
    """Euler's method in sigma / alpha, whose steps are DDIM's, as diffusers' EulerDiscreteScheduler has it: at trained times, or
    with `karras` at noise levels spaced by the power 7 between the first and the last of these (Karras et al. 2022,
    arXiv:2206.00364, Eq. 5). The last step goes to no noise, or to the `first` trained level (diffusers' sigma_min).
    """

    multistep: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False

    num_steps: int = 30
    spacing: Literal["leading", "trailing"] = "leading"
    offset: int = 1
    end: End = "clean"
    karras: bool = False

    def __post_init__(self) -> None:
        _check_steps(self)

    def grid(self, schedule: Schedule) -> Grid:
        if isinstance(schedule, FlowSchedule):
            if self.karras:
                raise BadValue("karras", True, "the model is a rectified flow, which has no such grid")
            return schedule.grid(self.num_steps)
        times = timesteps(len(schedule), self.num_steps, self.spacing, self.offset)
        if not self.karras:
            return make_grid(schedule, times, self.end)
        first, last = schedule.ratios[[times[0], times[-1]]].tolist()
        return (*(_point(schedule, ratio) for ratio in _karras(first, last, self.num_steps)), make_grid(schedule, (), self.end)[-1])

    def transition(self, x_t: Tensor, prediction: Prediction, t: Point, s: Point) -> tuple[Tensor, float]:
        return ddim_transition(prediction, t, s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DpmSolver:
    """DPM-Solver++(2M), as diffusers' DPMSolverMultistepScheduler has it by default: S times of S + 1 evenly spaced ones, the last
    of which is left out, or `karras` noise levels between the trained ones, for which the network is given the nearest trained
    times; of a flow, evenly spaced u moved by the schedule's shift, for which the network is given whole times, rounded down. The
    last step goes to no noise and is of first order.
    """

    multistep: ClassVar[bool] = True
    stochastic: ClassVar[bool] = False

    num_steps: int = 20
    spacing: Spacing = "linspace"
    offset: int = 0
    karras: bool = False

    def __post_init__(self) -> None:
        _check_steps(self)

    def grid(self, schedule: Schedule) -> Grid:
        clean = Point(0.0, 1.0, 0.0)
        if isinstance(schedule, FlowSchedule):
            if self.karras:
                raise BadValue("karras", True, "the model is a rectified flow, which has no such grid")
            return (*(self._point_of(schedule, i) for i in range(self.num_steps, 0, -1)), clean)
        if self.karras:
            first, last = schedule.ratios[[-1, 0]].tolist()
            return (*(_point(schedule, ratio, rounded=True) for ratio in _karras(first, last, self.num_steps)), clean)
        return make_grid(schedule, self._times(len(schedule)), "clean")

    def _point_of(self, flow: FlowSchedule, i: int) -> Point:
        """The i-th from the clean end, computed in diffusers' order: rounded down, an error of rounding would be one of a whole."""
        last, s = 1 / flow.steps, flow.shift
        u = 1 - (last if i == self.num_steps else i * ((last - 1) / self.num_steps) + 1)
        point = flow.at(s * u / (1 + (s - 1) * u) * flow.steps)
        return dataclasses.replace(point, t=float(int(point.t)))

    def _times(self, trained: int) -> Sequence[int]:
        if self.spacing == "trailing":
            return timesteps(trained, self.num_steps, "trailing")
        if self.num_steps >= trained:
            raise BadValue("num_steps", self.num_steps, f"must be below {trained}")
        return timesteps(trained, self.num_steps + 1, self.spacing, self.offset)[:-1]

    def transition(self, x_t: Tensor, prediction: Prediction, t: Point, s: Point) -> tuple[Tensor, float]:
        return dpm_solver_step(x_t, prediction, t, s), 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """A rectified flow by Euler's method, with another `shift` (null: the model's) or another noise: with `eta` each step draws
    noise as DDIM's do, which keeps the flow's marginals; with `sde` a it is Flow-GRPO's SDE of that strength (0.7 there).
    """

    multistep: ClassVar[bool] = False

    num_steps: int = 28
    shift: float | None = None
    eta: float = 0.0
    sde: float | None = None

    def __post_init__(self) -> None:
        _check_steps(self)
        if not 0 <= self.eta <= 1:
            raise BadValue("eta", self.eta, "must be from 0 to 1")
        for name in ("shift", "sde"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise BadValue(name, getattr(self, name), "must be above 0 and finite, or null")
        if self.sde is not None and self.eta:
            raise BadValue("sde", self.sde, "goes with eta=0")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0 or self.sde is not None

    def grid(self, schedule: Schedule) -> Grid:
        if not isinstance(schedule, FlowSchedule):
            raise BadValue("shift", self.shift, "the model is no rectified flow; use scheduler=ddim, ddpm, euler or dpm_solver")
        return schedule.grid(self.num_steps, self.shift)

    def transition(self, x_t: Tensor, prediction: Prediction, t: Point, s: Point) -> tuple[Tensor, float]:
        if self.sde is None:
            return ddim_transition(prediction, t, s, eta=self.eta)
        return flow_sde_transition(prediction, t, s, self.sde)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lcm:
    """Steps of a latent consistency model, as diffusers' LCMScheduler has them: each predicts the clean latent and noises it anew
    to the next point; the last one ends with it. S of the `original_steps` times that the model was distilled on (t = 19, 39, ...,
    999), evenly spaced from the noisiest; `scaling` is that of times in the weights of x_0 and x_t.
    """

    multistep: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True

    num_steps: int = 4
    original_steps: int = 50
    scaling: float = 10.0

    def __post_init__(self) -> None:
        _check_steps(self)
        if self.original_steps < 1:
            raise BadValue("original_steps", self.original_steps, "must be at least 1")
        if self.num_steps > self.original_steps:
            raise BadValue("num_steps", self.num_steps, f"must be at most original_steps={self.original_steps}")
        if not 0 < self.scaling < math.inf:
            raise BadValue("scaling", self.scaling, "must be above 0 and finite")

    def grid(self, schedule: Schedule) -> Grid:
        if isinstance(schedule, FlowSchedule):
            raise BadValue("original_steps", self.original_steps, "the model is a rectified flow; use scheduler=flow")
        if self.original_steps > len(schedule):
            raise BadValue("original_steps", self.original_steps, f"must be at most {len(schedule)}")
        skip = len(schedule) // self.original_steps
        chosen = [self.original_steps - i * self.original_steps // self.num_steps for i in range(self.num_steps)]
        return make_grid(schedule, [each * skip - 1 for each in chosen], "clean")

    def transition(self, x_t: Tensor, prediction: Prediction, t: Point, s: Point) -> tuple[Tensor, float]:
        return consistency_transition(x_t, prediction, t, s, self.scaling)


def _check_steps(scheduler: Ddim | Ddpm | Euler | DpmSolver | Flow | Lcm) -> None:
    if scheduler.num_steps < 1:
        raise BadValue("num_steps", scheduler.num_steps, "must be at least 1")


def _karras(first: float, last: float, count: int) -> list[float]:
    """Falling noise levels, sigma / alpha, evenly spaced in their seventh root."""
    a, b = first ** (1 / 7), last ** (1 / 7)
    return [(a + i / max(count - 1, 1) * (b - a)) ** 7 for i in range(count)]


def _point(schedule: NoiseSchedule, ratio: float, *, rounded: bool = False) -> Point:
    """The point of a noise level, whose time is interpolated in the level's logarithm, as diffusers does."""
    levels = schedule.ratios.log()
    low = min(max(int(torch.searchsorted(levels, math.log(ratio), right=True)) - 1, 0), len(schedule) - 2)
    a, b = levels[low : low + 2].tolist()
    t = min(max(low + (math.log(ratio) - a) / (b - a), low), low + 1)
    length = math.hypot(1, ratio)
    return Point(float(round(t)) if rounded else t, 1 / length, ratio / length)
