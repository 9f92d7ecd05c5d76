"""A single prompt from the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from guidedgen.basics.tasks import Task
from guidedgen.datasets.tasks import check_text, make_tasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnePrompt:
    """One prompt."""

    prompt: str

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)

    def tasks(self) -> Sequence[Task]:
        return make_tasks([self.prompt])
