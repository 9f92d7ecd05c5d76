"""What the rooms exchange: tasks, samples, and the protocols that config swaps.

Shapes are written as in einops: `b` samples, `n` particles per sample, `c h w` latent channels and size, `H W` pixels,
`d` features. Latents inside a method are always `b n c h w`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from guidedgen.problem import Problem
    from guidedgen.process.chains import Chain, State
    from guidedgen.process.grid import Grid, NoiseSchedule, Point


def printable(text: str) -> str:
    """The text as one line that is safe on a terminal: line ends become spaces, and what a terminal would obey instead of showing
    it (control characters, marks that turn the direction, half surrogate pairs) is written as an escape sequence.
    """
    line = re.sub(r"\s*[\n\r]\s*", " ", text.strip("\r\n"))
    return "".join(letter if _shows(letter) else letter.encode("unicode_escape").decode() for letter in line)


def _shows(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) in ("Zs", "Cn", "Co") or letter in "\u200c\u200d"


class UsageError(Exception):
    """A wrong key, value or combination: one line that names the key, the value and the way out. Exit code 2."""

    def __str__(self) -> str:
        return printable(super().__str__())


class BadValue(ValueError):
    """An option's value breaks its rule; whoever knows the option's full key turns this into a UsageError."""

    def __init__(self, name: str, value: object, rule: str) -> None:
        super().__init__(f"{name}={value!r}: {rule}")
        self.name, self.value, self.rule = name, value, rule


def check_amounts(holder: object, *names: str) -> None:
    """Raises BadValue where an option of these names is below 0, infinite or not a number."""
    for name in names:
        if not 0 <= getattr(holder, name) < math.inf:
            raise BadValue(name, getattr(holder, name), "must be at least 0 and finite")


class Stopped(BaseException):
    """A signal asked the run to stop; what was finished is saved. Exit code 75."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to draw. `id` is unique in its dataset, stable under limits and order, and safe as a file name.

    `reference` is the file of an image that style rewards compare with and, where there is a `noise_ratio`, that the chain
    starts from: noised to that share of the chain (SDEdit, Meng et al. 2022), between 0 and 1. `original` is the file of the
    picture that the unguided model draws of the same sample: no dataset has it, the runner fills it in.
    """

    id: str
    prompt: str
    category: str = ""
    reference: str | None = None
    noise_ratio: float | None = None
    original: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One image to make: a task and the user-level seed of this image."""

    task: Task
    seed: int

    @property
    def name(self) -> str:
        """File name without suffix; unique in a run."""
        return f"{self.task.id}-{self.seed}"

    @property
    def image(self) -> str:
        """Where its picture lies in the run's folder."""
        return f"images/{self.name}.png"

    def beside(self, name: str) -> str:
        """Where another picture of it lies, which its method has kept beside that one under this name."""
        return f"images/{name}/{self.name}.png"


class Dataset(Protocol):
    """What is to be drawn."""

    def tasks(self) -> Sequence[Task]:
        """The tasks in their order. Raises BadValue where an option turns out to be wrong."""


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


@runtime_checkable
class Reward(Protocol):
    """Scores images; higher is better. It may have `networks`, the names of those that guide, and `reports`: further scorers
    that are reported beside it, by name; `check(tasks)`, which raises UsageError for tasks that it cannot score;
    `needs_original`, true where it compares with the tasks' originals, its score being NaN where a task has none; `flags`, true
    where its scores are a content filter's verdicts, 1 for what it flags and 0 for the rest; and `described`, what else its scores
    depend on, such as a parser's version.
    """

    differentiable: bool  # whether gradients reach the pixels

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1], one task per image -> b."""


class Clip(Protocol):
    """A CLIP. `name` tells which, so that a report can mark a metric that shares its network with the guidance."""

    name: str

    def encode_image(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b d of unit length, differentiable."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """-> b d of unit length."""


class Features(Protocol):
    """An image feature network for distances between sets."""

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b d."""


class Matcher(Protocol):
    """Says how well a text tells what an image shows (BLIP-2's Q-Former)."""

    name: str

    def __call__(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """b 3 H W in [0, 1], one text each -> losses, b each, differentiable: of matching, -log p(match), and of captioning, the
        label-smoothed cross-entropy per token.
        """


class Vqa(Protocol):
    """Answers yes/no questions about images."""

    name: str
    differentiable: bool  # whether gradients reach the pixels

    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """b 3 H W in [0, 1], one question each -> b, log-odds of yes against no: sigmoid of it is P(yes) / (P(yes) + P(no))."""


Box = tuple[float, float, float, float]  # left, top, right, bottom; as shares of the picture's width and height where detected
Detection = tuple[str, float, Box]  # label, confidence, box


class Detector(Protocol):
    """Finds things in pictures."""

    name: str

    def __call__(self, images: Tensor, labels: Sequence[Sequence[str]]) -> list[list[Detection] | None]:
        """b 3 H W in [0, 1] and what is looked for in each -> what is found in each, the most confident first; None of a picture
        that it knows nothing of.
        """


class GradientEngine(Protocol):
    """How a whole chain is differentiated; see guidedgen.gradients."""

    @property
    def exact(self) -> bool:
        """Whether it is the gradient of the numbers computed, or of the continuous flow they approximate."""

    def __call__(self, chain: Chain, state: State, params: Sequence[Tensor] = ()) -> State:
        """The chain's last state, differentiable in its first and in the `params` that its denoiser closes over."""


Observer = Callable[[str, int, Mapping[str, Any]], None]


def ignore(event: str, step: int, values: Mapping[str, Any]) -> None:
    """The observer that does not look."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method can only run with."""

    reward: bool = True
    gradient: bool = False  # a differentiable reward
    sampler: Literal["any", "stochastic", "deterministic"] = "any"  # a scheduler whose steps draw noise, or draw none
    noisy_end: bool = False  # a grid whose last point has noise
    # Whether the chain starts from the tasks' references, noised; "inverted": from their inversion, through all of the chain.
    reference: Literal["ignored", "optional", "required", "inverted"] = "optional"
    one_sample: bool = False  # a batch of one sample, because samples differ in what they cost
    chains: int = 1  # how often the chain is walked through; for the progress bar
    steps: int | None = None  # where it walks through none: how many of its own it takes


class Method(Protocol):
    """A guidance method."""

    @property
    def needs(self) -> Needs:
        """What it can only run with."""

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        """-> x_0: b c h w, one latent per sample.

        `observe(event, step, values)` is told about progress (the event "step"), about what is traced, and by the event "beside"
        of other latents, b c h w by name, whose pictures are kept beside those of x_0.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lessons:
    """What a method learns on: each of the tasks' prompts from `noises_per_prompt` noises, the first of seed `seed`. `target` is
    the template of the prompts that the originals are drawn of.
    """

    prompts: Dataset
    noises_per_prompt: int
    seed: int
    target: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """Which of the model's parameters are tuned; see guidedgen.models.tuning."""

    what: Literal["weights", "attention", "adapter", "token"]
    rank: int  # of adapters
    token: str  # the new word
    num_vectors: int  # embeddings that it has
    initial: str | None  # the word that it begins as
    seed: int  # of what is drawn at first


_Found = TypeVar("_Found")


class Pose(Protocol):
    """Lessons as problems, of as many of them at once as `batch_size` and the device's memory allow."""

    def __call__(self, places: Sequence[int], compute: Callable[[Problem], _Found]) -> Iterator[_Found]:
        """What `compute` finds in each part of the lessons at these places, in their order. It may be asked of lessons twice, so it
        has to change nothing.
        """


@runtime_checkable
class Learner(Protocol):
    """What a method has besides that first learns something that all its samples share."""

    @property
    def lessons(self) -> Lessons: ...

    @property
    def tuning(self) -> Tuning: ...

    @property
    def num_updates(self) -> int: ...

    def learn(
        self,
        pose: Pose,
        count: int,
        free: Sequence[Tensor],
        saved: Mapping[str, Any],
        save: Callable[[Mapping[str, Any]], None],
        observe: Observer = ignore,
    ) -> None:
        """Tunes `free` in place, on what is found in problems posed of some of the `count` samples. What it gives to `save` on the
        way is `saved` when it is called again after an interruption; else that is empty. It tells of every update ("learn").
        """
