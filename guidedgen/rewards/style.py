"""Shared by style rewards: their base class, feature maps, Gram matrices, and reference images.

A reference is one image file for all tasks, or each task's own `reference`; it is embedded once.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task


class FeatureMap(Protocol):
    """Features of an image by position. `name` identifies the network."""

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b p d: p positions, d features; differentiable."""


class FeatureMaps(Protocol):
    """Features of several layers. `content` is the number of the one, from 0, that says what is in the image."""

    name: str
    content: int

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        """b 3 H W in [0, 1] -> b p d of each layer; differentiable."""


def gram(features: Tensor) -> Tensor:
    """b p d -> b d d: sums over positions of products of features, so that positions do not matter."""
    return features.mT @ features


@dataclasses.dataclass(frozen=True, kw_only=True)
class References:
    """What the images of tasks are compared with: `embed` (1 3 H W in [0, 1] -> 1 ...) of their reference images.

    `image` is one file for all, or None for the tasks' own. Raises UsageError at once where that file cannot be read.
    """

    reward: str  # its name, for messages
    image: str | None
    embed: Callable[[Tensor], Tensor]
    _known: dict[str, Tensor] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.image is not None:
            _read(self.image, f"reward.image={self.image}")

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError where a task has no reference image, or one that cannot be read."""
        for file in sorted({self._file(task) for task in tasks} - {self.image, *self._known}):
            _read(file, f"reward={self.reward}: reference {file}")

    def __call__(self, tasks: Sequence[Task]) -> Tensor:
        """b tasks -> b ...: the embeddings of their references. Raises UsageError as `check` does."""
        return torch.cat([self._embedding(self._file(task)) for task in tasks])

    def _file(self, task: Task) -> str:
        file = task.reference if self.image is None else self.image
        if file is None:
            raise UsageError(
                f"reward={self.reward}: task {task.id} has no reference image; give one for all with reward.image=FILE, or use "
                "a dataset that has them"
            )
        return file

    def _embedding(self, file: str) -> Tensor:
        if file not in self._known:
            picture = _read(file, f"reward={self.reward}: reference {file}")
            with torch.inference_mode(False), torch.no_grad():  # kept for calls that differentiate
                self._known[file] = self.embed(picture)
        return self._known[file]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleReward(abc.ABC):
    """A reward that compares embeddings of images and of their references. `image` is the reference of all, or None for the tasks'
    own. Raises UsageError at once where that file cannot be read.
    """

    _name: ClassVar[str]  # for messages

    image: str | None = None

    differentiable = True

    def __post_init__(self) -> None:
        self._references  # noqa: B018  reads the image

    @property
    def files(self) -> tuple[str, ...]:
        """The image that is one for all, where there is one."""
        return () if self.image is None else (self.image,)

    @functools.cached_property
    def _references(self) -> References:
        return References(reward=self._name, image=self.image, embed=self._embed)

    @abc.abstractmethod
    def _embed(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b ...: what is compared; differentiable."""

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError where a task has no readable reference."""
        self._references.check(tasks)


def _read(file: str, what: str) -> Tensor:
    try:
        return images.read(Path(file).expanduser())
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no such home
        raise UsageError(f"{what}: cannot be read as an image ({getattr(error, 'strerror', None) or error})") from error
