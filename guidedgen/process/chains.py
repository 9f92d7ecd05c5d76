"""Whole chains: deterministic maps from the state at a grid's first point to that at its last, step by step.

A state is a tuple of latents, each b n c h w. Where a grid ends at its last time (leading steps without offset, as EDICT's), the
last step goes nowhere: it is left out, and its network calls with it. Of EDICT's last step the mixing is left, which costs nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from guidedgen.process import Denoiser, Scheduler
from guidedgen.process.formulas import ddim_step
from guidedgen.process.grid import Grid, Point

State = tuple[Tensor, ...]


class Chain(Protocol):
    """What a gradient engine differentiates."""

    def __len__(self) -> int:
        """Steps."""

    def start(self, x_t: Tensor) -> State:
        """The state that begins at x_t."""

    def step(self, state: State, i: int) -> State:
        """The state after step i."""


def walk(chain: Chain, state: State) -> State:
    """The state at the chain's end."""
    for i in range(len(chain)):
        state = chain.step(state, i)
    return state


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridChain:
    """A chain that a denoiser takes along a grid."""

    denoise: Denoiser
    grid: Grid

    @functools.cached_property
    def moves(self) -> Sequence[tuple[Point, Point]]:
        """The steps of the grid that go somewhere."""
        return [(t, s) for t, s in pairwise(self.grid) if (t.alpha, t.sigma) != (s.alpha, s.sigma)]

    def __len__(self) -> int:
        return len(self.moves)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DdimChain(GridChain):
    """DDIM without noise, one denoiser call per step: Euler's method for dy/dr = eps, y = x / alpha, r = sigma / alpha."""

    def start(self, x_t: Tensor) -> State:
        return (x_t,)

    def step(self, state: State, i: int) -> State:
        (x,), (t, s) = state, self.moves[i]
        return (ddim_step(self.denoise(x, t), t, s),)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerChain:
    """A scheduler's own steps along a grid, of which none is left out, with given noises, so that chains that draw noise are
    deterministic maps too, of x_T and of these noises. A multistep solver's state holds what was predicted last.
    """

    denoise: Denoiser
    scheduler: Scheduler
    grid: Grid
    noises: Sequence[Tensor] = ()  # one of every step, where the scheduler draws any

    def __len__(self) -> int:
        return len(self.grid) - 1

    def start(self, x_t: Tensor) -> State:
        return (x_t, x_t) if self.scheduler.multistep else (x_t,)

    def step(self, state: State, i: int) -> State:
        t, s = self.grid[i], self.grid[i + 1]
        x, *before = state
        prediction = self.denoise(x, t)
        if before and i > 0:
            prediction = dataclasses.replace(prediction, before=(before[0], self.grid[i - 1]))
        mean, std = self.scheduler.transition(x, prediction, t, s)
        x_s = mean + std * self.noises[i] if self.scheduler.stochastic else mean
        return (x_s, prediction.x_0) if before else (x_s,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdictChain(GridChain):
    """EDICT (Wallace et al. 2023, arXiv:2211.12446, Eqs. 12 to 15; DOODL, Eqs. 5 and 6): two latents that are each denoised by what
    the network says of the other, so that every step can be undone. Two denoiser calls per step.

        x <- a x + b eps(y);  y <- a y + b eps(x);  x <- p x + (1-p) y;  y <- p y + (1-p) x

    with a = alpha_s / alpha_t and b = sigma_s - a sigma_t. Where a chain begins at alpha = 0, as those of flows do, the same is
    done with Euler's step of the flow instead, `by_velocity`: eps - x_0 for eps, with a = n_s / n_t, n = alpha + sigma, and b as
    before. On one latent both steps are DDIM's. `alternate` swaps the roles of x and y in the first two of odd steps,
    as the released code of EDICT and DOODL does (salesforce/DOODL, doodl.py, lines 60-71) and neither paper says. The last step
    mixes once more for one that is left out behind it, as the released code does (of 50 steps on the lab that moves x by 3 %).

    Undoing divides by p, so round-off grows by 1 / p a step: latents should be float64, whatever the network computes in.
    """

    mixing: float = 0.93
    alternate: bool = False
    by_velocity: bool = False

    def start(self, x_t: Tensor) -> State:
        return (x_t, x_t)

    def step(self, state: State, i: int) -> State:
        (t, s), (first, second) = self.moves[i], self.ordered(state, i)
        a, b = self.coefficients(t, s)
        first = a * first + b * self.direction(second, t)
        second = a * second + b * self.direction(first, t)
        state = self.ordered((first, second), i)
        for _ in range(self.mixings(i)):
            state = mix(state, self.mixing)
        return state

    def unstep(self, state: State, i: int) -> State:
        """The state before step i."""
        (t, s), (first, second) = self.moves[i], self.unmixed(state, i)
        a, b = self.coefficients(t, s)
        second = (second - b * self.direction(first, t)) / a
        first = (first - b * self.direction(second, t)) / a
        return self.ordered((first, second), i)

    def coefficients(self, t: Point, s: Point) -> tuple[float, float]:
        """a and b of the step x_s = a x_t + b direction."""
        a = (s.alpha + s.sigma) / (t.alpha + t.sigma) if self.by_velocity else s.alpha / t.alpha
        return a, s.sigma - a * t.sigma

    def direction(self, x: Tensor, t: Point) -> Tensor:
        """eps as it is predicted for x, or the velocity eps - x_0."""
        prediction = self.denoise(x, t)
        return prediction.eps - prediction.x_0 if self.by_velocity else prediction.eps

    def mixings(self, i: int) -> int:
        """How often step i mixes: once, and the last one for those left out as well."""
        return len(self.grid) - len(self) if i == len(self) - 1 else 1

    def unmixed(self, state: State, i: int) -> State:
        """The state before step i mixed it, in the order in which the step treats it."""
        for _ in range(self.mixings(i)):
            state = unmix(state, self.mixing)
        return self.ordered(state, i)

    def ordered(self, state: State, i: int) -> State:
        """x and y in the order in which step i treats them; its own inverse."""
        x, y = state
        return (y, x) if self.alternate and i % 2 else (x, y)


def mix(state: State, p: float) -> State:
    """EDICT's averaging of its two latents."""
    x, y = state
    x = p * x + (1 - p) * y
    return x, p * y + (1 - p) * x


def unmix(state: State, p: float) -> State:
    """The two latents before `mix`."""
    x, y = state
    y = (y - (1 - p) * x) / p
    return (x - (1 - p) * y) / p, y
