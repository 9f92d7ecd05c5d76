"""Rewards: one scorer, one file. Each returns one number per image, higher is better, for images in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from guidedgen.basics.tasks import Task


@runtime_checkable
class Reward(Protocol):
    """Scores images; higher is better. It may have `networks`, the names of those that guide, and `reports`: further scorers
    that are reported in addition to it, by name; `check(tasks)`, which raises UsageError for tasks that it cannot score;
    `needs_original`, true where it compares with the tasks' originals, its score being NaN where a task has none; `flags`, true
    where its scores are a content filter's verdicts, 1 for what it flags and 0 for the rest; and `described`, what else its scores
    depend on, such as a parser's version.
    """

    differentiable: bool  # whether gradients reach the pixels

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1], one task per image -> b."""
