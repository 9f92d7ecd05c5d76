"""Fréchet distance class by class: how near the pictures of each task come to real pictures of what it asks for.

The tables of DOODL and AdjointDPM on vocabulary expansion: a handful of pictures per class against the class's validation images,
given as change against the unguided model. At four pictures a class the distance itself is mostly bias (see `frechet`), which both
runs share; only the change is informative.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.metrics import frechet
from guidedgen.metrics.features import Array
from guidedgen.metrics.sets import extract
from guidedgen.metrics.summary import ClassChange, class_change_percent
from guidedgen.zoo import Features


class ClassPictures(Protocol):
    """Real pictures of classes."""

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError where a task has no class, or its class has fewer than two pictures."""

    def __call__(self, task: Task) -> Iterator[Tensor]:
        """The pictures of a task's class, in batches b 3 H W in [0, 1]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """A folder with a folder of pictures for every class. A task's class is the one whose whole name stands in its prompt; of a
    name inside another one ("retriever", "golden retriever") the longer.

    Case and what separates words do not matter: "Golden_Retriever" is "golden retriever". A number is a part of the name, unless it
    is an index before it ("001.", or WordNet's "n02085620-"). A name does not stand in a prompt where the word goes on: "737" is
    not in "a Boeing 737-200".
    """

    path: str

    @property
    def files(self) -> tuple[str]:
        """The folder."""
        return (self.path,)

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError as ClassPictures says, and where a prompt names two classes, or its class has two folders."""
        for task in tasks:
            try:
                files = self._files(task)
                for file in files:
                    images.check_file(file)
            except OSError as error:
                raise UsageError(f"{self._option}: {error.filename} cannot be read ({error.strerror or error})") from error
            if len(files) < 2:
                raise UsageError(f"{self._option}: fewer than two pictures for {task.prompt!r}")

    def __call__(self, task: Task) -> Iterator[Tensor]:
        """One picture a batch."""
        return (images.read(file) for file in self._files(task))

    @property
    def _option(self) -> str:
        return f"metrics.per_class.pictures.path={self.path}"

    @functools.cached_property
    def _folders(self) -> Mapping[str, Sequence[Path]]:
        """The folders of each class by its name, as words with spaces between them."""
        folder, found = Path(self.path), defaultdict(list)
        for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
            if entry.is_dir() and (words := _words(_INDEX.sub("", _plain(entry.name)))):
                found[" ".join(words)].append(entry)
        return found

    def _files(self, task: Task) -> list[Path]:
        named = _longest({name: _spans_of(name, task.prompt) for name in self._folders})
        if not named:
            raise UsageError(f"{self._option}: no folder in it is named in {task.prompt!r}")
        if len(named) > 1:
            raise UsageError(f"{self._option}: {task.prompt!r} names {len(named)} of its folders: {', '.join(sorted(named))}")
        folders = self._folders[named[0]]
        if len(folders) > 1:
            same = ", ".join(folder.name for folder in folders)
            raise UsageError(f"{self._option}: {len(folders)} folders in it have the name in {task.prompt!r}: {same}")
        return images.in_folder(folders[0])


_INDEX = re.compile(r"^(n\d{8}[\W_]+|\d+\.(?!\d))(?=.)")  # WordNet's, as ImageNet and Stanford Dogs have it, or CUB's
_JOINT = r"[-_/.+]"  # what joins two words to one, where no space is next to it

Spans = Sequence[tuple[int, int]]


def _plain(text: str) -> str:
    """Without differences of case or of how accents are written."""
    return unicodedata.normalize("NFKC", text).casefold()


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _spans_of(name: str, prompt: str) -> Spans:
    """Where a name stands in a prompt, whatever separates its words there."""
    words = r"[\W_]+".join(map(re.escape, name.split()))
    pattern = rf"(?<!\w)(?<!\w{_JOINT}){words}(?!\w)(?!{_JOINT}\w)"
    return [match.span() for match in re.finditer(pattern, _plain(prompt))]


def _longest(spans_by_name: Mapping[str, Spans]) -> list[str]:
    """The names that stand somewhere outside of all longer ones."""
    spans = [span for found in spans_by_name.values() for span in found]

    def inside(span: tuple[int, int]) -> bool:
        return any(other != span and other[0] <= span[0] and span[1] <= other[1] for other in spans)

    return [name for name, found in spans_by_name.items() if any(not inside(span) for span in found)]


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
