"""The lab's prompt sets, in the shape of T2I-CompBench's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import islice

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.datasets.tasks import check_choices, check_limit, make_tasks, of_each
from guidedgen.lab.captions import CATEGORIES, prompts

MOST = 300  # prompts per category, as in T2I-CompBench; some categories have fewer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lab:
    """A category of `guidedgen.lab.captions`, or several: `limit` prompts of each, after the first `skip` of them."""

    category: str | Sequence[str] = "colour"
    limit: int | None = 8
    skip: int = 0

    def __post_init__(self) -> None:
        check_choices("category", self.category, CATEGORIES)
        check_limit(self.limit)
        if self.skip < 0:
            raise BadValue("skip", self.skip, "must be at least 0")

    def tasks(self) -> Sequence[Task]:
        return of_each(self.category, self._tasks)

    def _tasks(self, category: str) -> Sequence[Task]:
        most = MOST if self.limit is None else min(self.skip + self.limit, MOST)
        tasks = make_tasks(islice(prompts(category), self.skip, most), category)
        if not tasks:
            raise BadValue("skip", self.skip, f"leaves no prompt of {category}")
        return tasks
