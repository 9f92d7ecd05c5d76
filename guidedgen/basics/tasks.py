"""What is drawn: tasks, and samples of them. Data sets are described here too: methods may learn on one, and know no data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol


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
        """Path of its image in the run's folder."""
        return f"images/{self.name}.png"

    def extra_image(self, name: str) -> str:
        """Path, in the run's folder, of an extra image of it that its method keeps under this name."""
        return f"images/{name}/{self.name}.png"

    def sheet(self, name: str) -> str:
        """Path, in the run's folder, of a sheet of pictures by this name that shows how its image was made."""
        return f"sheets/{name}/{self.name}.png"


class Dataset(Protocol):
    """What is to be drawn."""

    def tasks(self) -> Sequence[Task]:
        """The tasks in their order. Raises BadValue where an option turns out to be wrong."""
