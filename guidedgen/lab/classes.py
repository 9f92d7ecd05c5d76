"""Rendered pictures of what a prompt asks for: the lab's validation images of a class."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.noise import generator, stream
from guidedgen.basics.tasks import Task
from guidedgen.lab import captions
from guidedgen.lab.preference import stage
from guidedgen.lab.render import render
from guidedgen.lab.world import BACKGROUNDS, COLOURS, SIZES


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderedClasses:
    """`count` scenes of every prompt, the same at every call. Colours, sizes and backgrounds that it does not give are random."""

    count: int = 64

    def __post_init__(self) -> None:
        if self.count < 2:
            raise BadValue("count", self.count, "must be at least 2")

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError where a prompt describes no scene, or a thing without a shape."""
        for task in tasks:
            description = captions.parse(task.prompt)
            if description is None or not all(thing.shape for thing in description.things):
                raise UsageError(f"metrics.per_class.pictures: {task.prompt!r} describes no scene of things that have shapes")

    def __call__(self, task: Task) -> Iterator[Tensor]:
        """One batch, `count` 3 64 64."""
        description = captions.parse(task.prompt)
        assert description is not None
        rng = random.Random(int(stream("class", task.prompt).integers(2**62)))

        def filled() -> captions.Description:
            things = (
                dataclasses.replace(thing, colour=thing.colour or rng.choice(list(COLOURS)), size=thing.size or rng.choice(SIZES))
                for thing in description.things
            )
            return dataclasses.replace(
                description, things=tuple(things), background=description.background or rng.choice(list(BACKGROUNDS))
            )

        yield render(stage([filled() for _ in range(self.count)], generator("class", task.prompt)))
