"""A function of the user's own as a reward, from Python (`guidedgen.guide`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.images import check
from guidedgen.basics.tasks import Task

Score = Callable[[Tensor, Sequence[str]], Tensor]
_GIVEN: dict[str, Score] = {}


def give(digest: str, function: Score) -> None:
    """From now on `Function` finds the function by this text."""
    _GIVEN[digest] = function


@dataclasses.dataclass(frozen=True, kw_only=True)
class Function:
    """Scores by `function(images, prompts)`: images b 3 H W in [0, 1] and their b prompts -> b scores, higher is better.

    `digest` stands for the function in a config; `give` says which it is.
    """

    digest: str

    differentiable = True
    networks = ()

    def __post_init__(self) -> None:
        if self.digest not in _GIVEN:
            raise BadValue("digest", self.digest, "no such function here: it is given in Python, by guidedgen.guide(reward=...)")

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] -> b. Raises UsageError where the function gives something else, or no gradient where one is needed."""
        check(images, "function")
        scores = _GIVEN[self.digest](images, [task.prompt for task in tasks])
        if not isinstance(scores, Tensor):
            scores = torch.as_tensor(scores, device=images.device)
        if scores.shape != (len(images),):
            raise UsageError(f"reward: the function gave scores of shape {list(scores.shape)} for {len(images)} images")
        if images.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
            raise UsageError(
                "reward: the function's scores have no gradient, and this method needs one; "
                'use torch operations on the images, or method="code" or "best_of_n"'
            )
        return scores.float()
