"""One paper, one file. A method is a frozen dataclass of its options that maps a Problem to x_0; `needs` says what it needs.

Costs are per sample, for T steps. `rows` are denoiser rows: latents that pass the denoiser, two per step with classifier-free
guidance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from guidedgen.basics.tasks import Dataset
    from guidedgen.methods.problem import Problem
    from guidedgen.process import Tuning


Observer = Callable[[str, int, Mapping[str, Any]], None]


def ignore(event: str, step: int, values: Mapping[str, Any]) -> None:
    """An observer that does nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method can only run with."""

    reward: bool = True
    gradient: bool = False  # a differentiable reward
    sampler: Literal["any", "stochastic", "deterministic"] = "any"  # a scheduler whose steps draw noise, or draw none
    noisy_end: bool = False  # a grid whose last point has noise
    signal_at_start: bool = False  # a grid whose first point is not all noise (alpha above 0)
    prompted: bool = False  # a model that is conditioned on prompts
    flow: bool = False  # predictions with x_t = alpha x_0 + sigma eps: of a model that does not clip x_0
    # Whether the chain starts from the tasks' references, noised; "inverted": from their inversion, through all of the chain.
    reference: Literal["ignored", "optional", "required", "inverted"] = "optional"
    one_sample: bool = False  # a batch of one sample, because samples differ in what they cost
    prompt: str = "{prompt}"  # what the model reads; rewards and metrics read the prompt itself
    chains: int = 1  # how often the chain is walked through; for the progress bar
    steps: int | None = None  # where it walks through none: how many of its own it takes


class Method(Protocol):
    """A guidance method."""

    @property
    def needs(self) -> Needs:
        """What it can only run with."""

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        """-> x_0: b c h w, one latent per sample.

        `observe(event, step, values)` is called with progress (the event "step", whose value "x_0", b n c h w, is
        a clean estimate, where the last that the denoiser gave is not), with values to trace, and by the event
        "extra_images" with other latents, b c h w by name, whose pictures are stored in addition to those of x_0, and judged; by
        "sheets" with pictures, b 3 H W in [0, 1] by name, that show how it went: they are stored as they are.
        """


@runtime_checkable
class StepGuide(Protocol):
    """What a method has in addition if it follows gradients at some of the chain's steps."""

    def guides(self, i: int, steps: int, noise_ratio: float) -> bool:
        """Whether it does at step i of so many, where this share of the whole chain is left, the step included."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lessons:
    """What a method learns on: each prompt of `prompts` with `noises_per_prompt` noises, the first of seed `seed`. `target` is
    the template for the prompts of the original images, with which rewards compare.
    """

    prompts: Dataset
    noises_per_prompt: int
    seed: int
    target: str


_Found = TypeVar("_Found")


class MakeProblems(Protocol):
    """Makes problems of lessons: of as many at once as `batch_size` and the device's memory allow."""

    def __call__(self, indices: Sequence[int], compute: Callable[[Problem], _Found]) -> Iterator[_Found]:
        """What `compute` returns for each part of the lessons at these indices, in their order. It may be called twice for the same
        lessons, so it must not change anything.
        """


@runtime_checkable
class Learner(Protocol):
    """What a method has in addition if it first learns something that all its samples share."""

    @property
    def lessons(self) -> Lessons: ...

    @property
    def tuning(self) -> Tuning: ...

    @property
    def num_updates(self) -> int: ...

    def learn(
        self,
        make_problems: MakeProblems,
        count: int,
        free: Sequence[Tensor],
        saved: Mapping[str, Any],
        save: Callable[[Mapping[str, Any]], None],
        observe: Observer = ignore,
    ) -> None:
        """Tunes `free` in place, on problems made of some of the `count` lessons. The state that it passes to `save` is given back
        as `saved` when it is called again after an interruption; `saved` is empty otherwise. It calls `observe` with the event
        "learn" for every update.
        """
