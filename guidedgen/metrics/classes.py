"""Fréchet distance class by class: how near the pictures of each task come to real pictures of what it asks for.

The tables of DOODL and AdjointDPM on vocabulary expansion: a handful of pictures per class against the class's validation images,
given as change against the unguided model. At four pictures a class the distance itself is mostly bias (see `frechet`), which both
runs share; only the change says something.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from guidedgen import images
from guidedgen.metrics import frechet
from guidedgen.metrics.features import Array
from guidedgen.metrics.sets import extract
from guidedgen.metrics.summary import ClassChange, class_change_percent
from guidedgen.types import Features, Task, UsageError


class ClassPictures(Protocol):
    """Real pictures of classes."""

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError where a task has no class, or its class has fewer than two pictures."""

    def __call__(self, task: Task) -> Iterator[Tensor]:
        """The pictures of a task's class, in batches b 3 H W in [0, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """A folder with a folder of pictures for every class. A task's class is the one whose name, the longest there is, stands in its
    prompt; what is no letter separates words ("n02085620-golden_retriever" is called "golden retriever").
    """

    path: str

    @property
    def files(self) -> tuple[str]:
        """The folder."""
        return (self.path,)

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError as ClassPictures says."""
        for task in tasks:
            if len(self._files(task)) < 2:
                raise UsageError(f"metrics.per_class.pictures.path={self.path}: fewer than two pictures for {task.prompt!r}")

    def __call__(self, task: Task) -> Iterator[Tensor]:
        """One picture a batch."""
        return (images.read(file) for file in self._files(task))

    @functools.cached_property
    def _folders(self) -> dict[str, Path]:
        """Each class's folder by its name, in words."""
        folder = Path(self.path)
        return {_words(entry.name): entry for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else {}

    def _files(self, task: Task) -> list[Path]:
        text = f" {_words(task.prompt)} "
        found = [name for name in self._folders if name and f" {name} " in text]
        if not found:
            raise UsageError(f"metrics.per_class.pictures.path={self.path}: no folder in it is named in {task.prompt!r}")
        return sorted(file for file in self._folders[max(found, key=len)].iterdir() if file.suffix.lower() in images.SUFFIXES)


def _words(text: str) -> str:
    """The words of a name, without numbers such as "001." and WordNet's "n02085620" before them."""
    return " ".join(word for word in re.split(r"[\W_]+", text.casefold()) if word and not re.fullmatch(r"n?\d+", word))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerClass:
    """The Fréchet distance of every class on `features`, with and without guidance."""

    features: Features
    pictures: ClassPictures

    def __call__(
        self, guided: Mapping[str, Array], base: Mapping[str, Array], tasks: Mapping[str, Task]
    ) -> tuple[dict[str, float], dict[str, float], ClassChange]:
        """Features n d by task id, of the guided and the unguided pictures -> distances by task id of both, and the change.

        ValueError where a class has fewer than two pictures.
        """
        real = {name: extract(self.features, self.pictures(tasks[name])) for name in guided}
        ours, theirs = ({name: frechet.frechet_distance(side[name], real[name]) for name in real} for side in (guided, base))
        return ours, theirs, class_change_percent(ours, theirs)
