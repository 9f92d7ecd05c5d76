"""Where a chain stands: points of the noise schedule, and the grid of points a sampler walks through."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue


@dataclasses.dataclass(frozen=True)
class Point:
    """A time of the process, x_t = alpha x_0 + sigma eps with alpha^2 + sigma^2 = 1. `t` is what the network is told, 0 to 999."""

    t: float
    alpha: float
    sigma: float


Grid = tuple[Point, ...]  # from the noisiest to the last; S steps are S + 1 points


# How S steps are spread over the trained ones; names and rounding as in diffusers (Lin et al. 2024, table 2).
Spacing = Literal["leading", "trailing", "linspace"]
# The point after the last network call: SD's first trained noise level, or no noise at all.
End = Literal["first", "clean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The trained noise levels: the cumulative product of alpha at every trained step, in float64."""

    alphas_cumprod: Tensor

    @staticmethod
    def from_betas(start: float, end: float, steps: int, shape: str, *, zero_terminal_snr: bool = False) -> NoiseSchedule:
        """`shape` is diffusers' beta_schedule, "linear" or "scaled_linear". Raises ValueError for any other. `zero_terminal_snr`
        shifts and scales the square roots of alpha_bar so that the last is 0 and the first stays (Lin et al. 2024,
        arXiv:2305.08891, Algorithm 1).
        """
        if shape == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()
        elif shape == "linear":
            betas = torch.linspace(start, end, steps, dtype=torch.float64)
        else:
            raise ValueError(f"beta_schedule {shape!r}: only linear and scaled_linear are known")
        alphas = (1 - betas).cumprod(0).sqrt()
        if zero_terminal_snr:
            alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
            return NoiseSchedule(alphas_cumprod=alphas.square())
        return NoiseSchedule(alphas_cumprod=(1 - betas).cumprod(0))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def at(self, t: float) -> Point:
        """The point at time t; log(alpha_bar) is interpolated linearly between trained steps. ValueError outside 0 to steps - 1."""
        if not 0 <= t <= len(self) - 1:
            raise ValueError(f"t={t}: must be from 0 to {len(self) - 1}")
        low = min(int(t), len(self) - 2)
        a, b = self.alphas_cumprod[low : low + 2].log().tolist()
        log_alpha_bar = a + (t - low) * (b - a)
        return Point(float(t), math.exp(log_alpha_bar / 2), math.sqrt(-math.expm1(log_alpha_bar)))

    def when(self, ratio: float) -> Point:
        """The point at which sigma / alpha is `ratio`, infinity where alpha is 0: the inverse of `at`. Beyond the trained levels
        the network is given the nearest one's time, and alpha and sigma are still those of the ratio. ValueError below 0.
        """
        if not ratio >= 0:
            raise ValueError(f"ratio={ratio}: must be at least 0")
        if math.isinf(ratio):
            return Point(len(self) - 1.0, 0.0, 1.0)
        log_alpha_bar = -math.log1p(ratio**2)
        levels = -self.alphas_cumprod.log()  # rising
        low = min(max(int(torch.searchsorted(levels, -log_alpha_bar, right=True)) - 1, 0), len(self) - 2)
        a, b = levels[low : low + 2].tolist()
        t = low + (-log_alpha_bar - a) / (b - a)
        norm = math.hypot(1, ratio)
        return Point(min(max(t, 0.0), len(self) - 1.0), 1 / norm, ratio / norm)

    @property
    def ratios(self) -> Tensor:
        """sigma / alpha of the trained steps."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """That of a rectified flow, x = (1 - u) x_0 + u eps (Liu et al. 2023, arXiv:2209.03003): divided by the length of (1 - u, u) it
    is x_t = alpha x_0 + sigma eps. The network is given t = `steps` u.

    A grid's u are moved towards the noise by `shift`: u' = shift u / (1 + (shift - 1) u) (Esser et al. 2024, arXiv:2403.03206,
    Eq. 23); exp(mu) of a shift that depends on the picture's size. Before that they are evenly spaced from 1 to 1 / S (`even`, as
    in FLUX), or else to the shifted 1 / `steps`, as diffusers' FlowMatchEulerDiscreteScheduler has it of Stable Diffusion 3.
    """

    shift: float = 1.0
    even: bool = False
    steps: int = 1000

    def __len__(self) -> int:
        return self.steps

    def at(self, t: float) -> Point:
        """The point at time t. ValueError outside 0 to `steps`."""
        if not 0 <= t <= self.steps:
            raise ValueError(f"t={t}: must be from 0 to {self.steps}")
        u = t / self.steps
        length = math.hypot(1 - u, u)
        return Point(float(t), (1 - u) / length, u / length)

    def when(self, ratio: float) -> Point:
        """The point at which sigma / alpha is `ratio`, infinity where alpha is 0. ValueError where it is below 0."""
        if not ratio >= 0:
            raise ValueError(f"ratio={ratio}: must be at least 0")
        return self.at(self.steps * (1.0 if math.isinf(ratio) else ratio / (1 + ratio)))

    def grid(self, num_steps: int, shift: float | None = None) -> Grid:
        """S + 1 points, the last of them clean; `shift` is the schedule's unless given."""
        s = self.shift if shift is None else shift

        def shifted(u: float) -> float:
            return s * u / (1 + (s - 1) * u)

        last = 1 / num_steps if self.even else shifted(1 / self.steps)
        evenly = torch.linspace(1, last, num_steps, dtype=torch.float64).tolist() if num_steps > 1 else [1.0]
        return (*(self.at(self.steps * shifted(u)) for u in evenly), Point(0.0, 1.0, 0.0))


Schedule = NoiseSchedule | FlowSchedule


def timesteps(trained: int, num_steps: int, spacing: Spacing, offset: int = 0) -> list[int]:
    """S decreasing times of a process trained with `trained` steps; `offset` shifts the leading ones (SD: 1)."""
    if not 1 <= num_steps <= trained:
        raise BadValue("num_steps", num_steps, f"must be from 1 to {trained}")
    if spacing == "leading":
        times = [i * (trained // num_steps) + offset for i in reversed(range(num_steps))]
        if times[0] >= trained or times[-1] < 0:
            room = trained - 1 - (times[0] - offset)
            rule = f"times would run from {times[0]} to {times[-1]}, and must stay in 0 to {trained - 1}"
            raise BadValue("offset", offset, f"{rule}: with num_steps={num_steps} offset is from 0 to {room}")
        return times
    if spacing == "trailing":
        return [round(trained - i * trained / num_steps) - 1 for i in range(num_steps)]
    return torch.linspace(0, trained - 1, num_steps, dtype=torch.float64).round().long().flip(0).tolist()


def make_grid(schedule: NoiseSchedule, times: Sequence[int], end: End) -> Grid:
    """The points at these times and the end point."""
    last = schedule.at(0) if end == "first" else Point(0.0, 1.0, 0.0)
    return (*(schedule.at(t) for t in times), last)


def tail(grid: Grid, share: float) -> Grid:
    """The last steps of a grid, at least one: the chain from the reference noised to `share` (0 to 1) of its steps."""
    steps = len(grid) - 1
    return grid[steps - max(1, round(share * steps)) :]
