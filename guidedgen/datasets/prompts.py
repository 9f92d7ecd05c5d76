"""Prompts from a list."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.datasets.tasks import check_limit, check_text, make_tasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """A task for each of the prompts, named as those of a text file with the same lines."""

    prompts: list[str]
    limit: int | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)
        if not self.prompts:
            raise BadValue("prompts", [], "is empty; give them as in 'dataset.prompts=[a red circle,a blue star]'")
        for prompt in self.prompts:
            check_text("prompts", prompt)

    def tasks(self) -> Sequence[Task]:
        return make_tasks(self.prompts[: self.limit])
