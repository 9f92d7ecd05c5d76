"""Prompts from a text file."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from guidedgen.basics.tasks import Task
from guidedgen.datasets.tasks import check_limit, make_tasks, read_lines


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFile:
    """One prompt a line, UTF-8; blank lines are skipped, and lines beyond the limit are not read."""

    path: str
    limit: int | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)

    def tasks(self) -> Sequence[Task]:
        return make_tasks(read_lines("path", self.path, self.limit))
