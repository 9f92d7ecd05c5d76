"""Prompts from a text file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from guidedgen.datasets.tasks import check_limit, make_tasks
from guidedgen.types import BadValue, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFile:
    """One prompt a line, UTF-8; blank lines are skipped."""

    path: str
    limit: int | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)

    def tasks(self) -> Sequence[Task]:
        try:
            text = Path(self.path).expanduser().read_text(encoding="utf-8-sig")
        except OSError as error:
            raise BadValue("path", self.path, f"cannot be read ({error.strerror or error})") from error
        except UnicodeDecodeError as error:
            raise BadValue("path", self.path, f"not UTF-8 ({error.reason} at byte {error.start})") from error
        lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
        if not lines:
            raise BadValue("path", self.path, "holds no prompt; write one a line")
        return make_tasks(lines[: self.limit])
