"""The diffusion process: noise schedule and grid, the formulas between x_0, eps and v, and the step rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from guidedgen.process.grid import Grid, NoiseSchedule, Point


class Scheduler(Protocol):
    """The noise grid and the step rule. Pure: no hidden state."""

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""

    def grid(self, schedule: NoiseSchedule) -> Grid:
        """The points from the noisiest to the last."""

    def step(self, x_t: Tensor, eps: Tensor, t: Point, s: Point, noise: Tensor | None) -> Tensor:
        """x_s from x_t (any shape) and the noise predicted at t; `noise` is standard normal, unread if not stochastic."""


class Denoiser(Protocol):
    """eps_hat(x_t, t | prompt), classifier-free guidance inside as one batched call."""

    @property
    def guidance_scale(self) -> float:
        """The model's w in u + w (c - u)."""

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Tensor:
        """b n c h w -> b n c h w; row i is conditioned on the i-th task. `guidance_scale` is the model's unless given: at 0 only
        the unconditional row is evaluated, at 1 only the conditional one.
        """

    def pair(self, x_t: Tensor, t: Point) -> tuple[Tensor, Tensor]:
        """u and c, each b n c h w: always two rows per latent."""

    @property
    def conditioning(self) -> Tensor:
        """What the tasks' rows are conditioned on, b ...: text embeddings b l d."""

    def conditioned_on(self, conditioning: Tensor) -> Denoiser:
        """The same denoiser with other conditioning, of any floating type, in which it is differentiable."""

    def subset(self, rows: Sequence[int]) -> Denoiser:
        """The denoiser of some of the tasks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """Which of the model's parameters are tuned; see guidedgen.models.tuning."""

    what: Literal["weights", "attention", "adapter", "token"]
    rank: int  # of adapters
    token: str  # the new word
    num_vectors: int  # embeddings that it has
    initial: str | None  # the word that it begins as
    seed: int  # of what is drawn at first
