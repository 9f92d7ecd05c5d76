"""The step rules config chooses from, each with the grid it is used on."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.process import Prediction
from guidedgen.process.formulas import ddim_transition, ddpm_transition
from guidedgen.process.grid import End, Grid, NoiseSchedule, Point, Spacing, make_grid, timesteps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ddim:
    """DDIM. The defaults are SD's: leading steps shifted by one, ending at the first trained noise level."""

    num_steps: int = 50
    eta: float = 0.0
    spacing: Spacing = "leading"
    offset: int = 1
    end: End = "first"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise BadValue("num_steps", self.num_steps, "must be at least 1")
        if not 0 <= self.eta <= 1:
            raise BadValue("eta", self.eta, "must be from 0 to 1")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def grid(self, schedule: NoiseSchedule) -> Grid:
        return make_grid(schedule, timesteps(len(schedule), self.num_steps, self.spacing, self.offset), self.end)

    def transition(self, x_t: Tensor, prediction: Prediction, t: Point, s: Point) -> tuple[Tensor, float]:
        return ddim_transition(prediction, t, s, eta=self.eta)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ddpm:
    """Ancestral sampling, as CoDe uses it: trailing steps, the last one to no noise."""

    num_steps: int = 50
    spacing: Spacing = "trailing"
    offset: int = 0
    end: End = "clean"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise BadValue("num_steps", self.num_steps, "must be at least 1")

    @property
    def stochastic(self) -> bool:
        return True

    def grid(self, schedule: NoiseSchedule) -> Grid:
        return make_grid(schedule, timesteps(len(schedule), self.num_steps, self.spacing, self.offset), self.end)

    def transition(self, x_t: Tensor, prediction: Prediction, t: Point, s: Point) -> tuple[Tensor, float]:
        return ddpm_transition(x_t, prediction, t, s)
