"""Tasks from a JSONL file, for what differs from task to task: reference images, noise ratios, categories."""

from __future__ import annotations

import dataclasses
import difflib
import json
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.datasets.references import check_ratio, counted, read_reference, refer
from guidedgen.datasets.tasks import check_limit, check_text, make_tasks, number_lines, read_text

KEYS = {"prompt": str, "reference": str, "noise_ratio": (int, float), "category": str}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jsonl:
    """One JSON object a line, UTF-8: `prompt`, and where wanted `category`, `reference` (an image file, relative to the JSONL
    file, or `lab:NAME`) and `noise_ratio` (above 0, at most 1; without it, or at 1, the chain starts from pure noise). Blank
    lines are skipped, null stands for a key left out.
    """

    path: str
    limit: int | None = None

    def __post_init__(self) -> None:
        check_limit(self.limit)

    def tasks(self) -> Sequence[Task]:
        numbered = number_lines(read_text("path", self.path))
        if not numbered:
            raise BadValue("path", self.path, 'holds no task; write one a line, as in {"prompt": "a cat"}')
        return list(counted(self._tasks(numbered[: self.limit])))

    def _tasks(self, numbered: Sequence[tuple[int, str]]) -> Iterator[Task]:
        for number, line in numbered:
            try:
                yield _task(line, Path(self.path).expanduser().parent)
            except BadValue as error:
                reason = f"{error.name}={error.value}: {error.rule}" if error.name else error.rule
                raise BadValue("path", self.path, f"line {number}: {reason}") from error


def _task(line: str, folder: Path) -> Task:
    """The task of a line. Raises BadValue, named by its key, for whatever is wrong with it."""
    values = _values(line)
    if "prompt" not in values:
        raise BadValue("", line, "has no prompt")
    check_text("prompt", values["prompt"])
    if category := values.get("category", ""):
        check_text("category", category)
    (task,) = make_tasks([values["prompt"]], category)
    ratio = values.get("noise_ratio", 1)
    check_ratio("noise_ratio", ratio)
    if "reference" in values:
        return refer(task, read_reference("reference", values["reference"], folder), ratio)
    if "noise_ratio" in values:
        raise BadValue("noise_ratio", ratio, "needs a reference to start from")
    return task


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different; of two equal ones `json` would drop the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise BadValue(ascii(key)[1:-1], "...", "stands there twice")
    return found


def _values(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line, object_pairs_hook=_once)
    except BadValue:
        raise
    except ValueError as error:
        raise BadValue("", line, f"is not JSON ({error})") from error
    except RecursionError as error:
        raise BadValue("", line, 'is nested too deeply; write {"prompt": "a cat"}') from error
    if not isinstance(found, dict):
        raise BadValue("", line, 'is not an object; write {"prompt": "a cat"}')
    values = {key: value for key, value in found.items() if value is not None}
    for key, value in values.items():
        shown = reprlib.repr(value) if isinstance(value, list | dict) else value  # short, however deep it is
        if key not in KEYS:
            close = difflib.get_close_matches(key, KEYS, 1)
            raise BadValue(key, shown, f"no such key; {f'did you mean {close[0]}? ' if close else ''}choose from {', '.join(KEYS)}")
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):  # type: ignore[arg-type]
            raise BadValue(key, shown, f"expected a {'text' if KEYS[key] is str else 'number'}, got {type(value).__name__}")
    return values
