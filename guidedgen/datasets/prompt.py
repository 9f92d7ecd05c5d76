"""A single prompt from the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from guidedgen.datasets.tasks import make_tasks
from guidedgen.types import BadValue, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnePrompt:
    """One prompt."""

    prompt: str

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise BadValue("prompt", repr(self.prompt), "is empty; write dataset.prompt=\"'a red circle'\"")

    def tasks(self) -> Sequence[Task]:
        return make_tasks([self.prompt])
