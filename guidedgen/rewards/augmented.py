"""A reward of random copies of an image, which shows whether the image alone fools it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from guidedgen.basics.augment import Augmentations
from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.rewards.inputs import check_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmented:
    """The mean of a reward over an image's copies: minus the augmented loss of "Referee Can Play" (arXiv:2402.16305), Table 2.

    The copies of a task's images are always the same, so that runs compare. Raises BadValue where there are none.
    """

    reward: Reward
    augmentations: Augmentations

    def __post_init__(self) -> None:
        if not self.augmentations.count:
            raise BadValue("augmentations.count", 0, "must be at least 1")

    @property
    def differentiable(self) -> bool:
        """Whether gradients reach the pixels."""
        return self.reward.differentiable

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the reward's networks."""
        return tuple(getattr(self.reward, "networks", ()))

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b. One copy of each image is scored at a time."""
        check_inputs(images, tasks, "augmented")
        ids = list(dict.fromkeys(task.id for task in tasks))  # a task may have several images
        noise = Noise([f"augmented/{name}" for name in ids], device=images.device, dtype=images.dtype)
        copies = self.augmentations.draw(noise, *images.shape[-2:])
        rows = torch.tensor([ids.index(task.id) for task in tasks])
        found = [self.reward(copies(images, rows, torch.full_like(rows, i)), tasks) for i in range(copies.count)]
        return torch.stack(found).mean(0)
