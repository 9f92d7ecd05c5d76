"""The diffusion process: noise schedule and grid, the formulas between x_0, eps and v, and the step rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from guidedgen.process.grid import Grid, Point, Schedule


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network says of x_t in one call: x_t = alpha x_0 + sigma eps. Both are of x_t's shape and well-conditioned at every
    point: neither is computed from the other by a division by what may be 0 there.
    """

    x_0: Tensor
    eps: Tensor
    before: tuple[Tensor, Point] | None = None  # x_0 as it was predicted at the point before this one; multistep solvers use it

    def map(self, change: Callable[..., Tensor], *arguments: object) -> Prediction:
        """The same change of all of it, as in `prediction.map(take, index)`."""
        before = None if self.before is None else (change(self.before[0], *arguments), self.before[1])
        return Prediction(change(self.x_0, *arguments), change(self.eps, *arguments), before)

    def after(self, past: tuple[Prediction, Point] | None) -> Prediction:
        """The same, with what was predicted before it and where; None at a chain's start."""
        return self if past is None else dataclasses.replace(self, before=(past[0].x_0, past[1]))


class Scheduler(Protocol):
    """The noise grid and the step rule. Pure: no hidden state."""

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""

    @property
    def multistep(self) -> bool:
        """Whether a step also uses the prediction before the last one."""

    def grid(self, schedule: Schedule) -> Grid:
        """The points from the noisiest to the last. Raises BadValue where an option does not fit the schedule."""

    def transition(self, x_t: Tensor, prediction: Prediction, t: Point, s: Point) -> tuple[Tensor, float]:
        """Mean and standard deviation of x_s, given x_t (any shape) and what is predicted at t. The step is mean + std * noise."""


class Denoiser(Protocol):
    """x_0 and eps as they are predicted for a prompt, classifier-free guidance inside as one batched call."""

    @property
    def guidance_scale(self) -> float:
        """The model's w in u + w (c - u)."""

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Prediction:
        """b n c h w -> b n c h w; row i is conditioned on the i-th task. `guidance_scale` is the model's unless given: at 0 only
        the unconditional row is evaluated, at 1 only the conditional one.
        """

    def pair(self, x_t: Tensor, t: Point) -> tuple[Prediction, Prediction]:
        """Unconditional and conditional: always two rows per latent."""

    def scale_at(self, t: Point) -> float:
        """w at a point: 1 where the conditional row alone is evaluated."""

    def mixed(self, uncond: Prediction, cond: Prediction, t: Point) -> tuple[Prediction, Tensor]:
        """What `pair` gives as one prediction, as a call without a scale makes it, and the correction w (c - u) of its noise."""

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
