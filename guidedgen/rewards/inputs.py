"""Checks a reward's inputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from guidedgen.basics.images import check
from guidedgen.basics.tasks import Task


def check_inputs(images: Tensor, tasks: Sequence[Task], reward: str) -> Tensor:
    """The images, or ValueError naming the reward: not float, b 3 H W, in [0, 1], or not one task per image."""
    if len(tasks) != len(check(images, reward)):
        raise ValueError(f"{reward}: {len(images)} images, but {len(tasks)} tasks")
    return images
