"""The steps of DDIM and DDPM from x_t and a noise prediction, written out for plain loops to compare with."""

import math

from torch import Tensor

from guidedgen.process import Scheduler
from guidedgen.process.formulas import from_eps
from guidedgen.process.grid import Point


def _posterior_variance(t: Point, s: Point) -> float:
    return (s.sigma / t.sigma) ** 2 * (1 - (t.alpha / s.alpha) ** 2)


def ddim_step(x_t: Tensor, eps: Tensor, t: Point, s: Point, *, eta: float = 0.0, noise: Tensor | float = 0.0) -> Tensor:
    """Song et al. 2021, arXiv:2010.02502, Eq. 12."""
    std = eta * math.sqrt(_posterior_variance(t, s))
    return s.alpha * (x_t - t.sigma * eps) / t.alpha + math.sqrt(max(s.sigma**2 - std**2, 0.0)) * eps + std * noise


def ddpm_step(x_t: Tensor, eps: Tensor, t: Point, s: Point, *, noise: Tensor) -> Tensor:
    """Ho et al. 2020, arXiv:2006.11239, Eqs. 6 and 7."""
    ratio = t.alpha / s.alpha
    x_0 = (x_t - t.sigma * eps) / t.alpha
    mean = s.alpha * (1 - ratio**2) / t.sigma**2 * x_0 + ratio * (s.sigma / t.sigma) ** 2 * x_t
    return mean + math.sqrt(_posterior_variance(t, s)) * noise


def step(scheduler: Scheduler, x_t: Tensor, eps: Tensor, t: Point, s: Point, noise: Tensor | None) -> Tensor:
    """The step of a scheduler of the project's, from a noise prediction."""
    mean, std = scheduler.transition(x_t, from_eps(x_t, eps, t), t, s)
    return mean if noise is None else mean + std * noise
