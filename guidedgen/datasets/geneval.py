"""GenEval (Ghosh et al. 2023, arXiv:2310.11513): 553 prompts of six kinds, "a photo of a ...". It draws 4 images of each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from guidedgen.basics.tasks import Task
from guidedgen.datasets.downloads import read_released
from guidedgen.datasets.tasks import check_choice, check_limit, make_tasks

CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenEval:
    """One task per prompt of all kinds, or of one; a task's category is its `tag` in the metadata.

    path: evaluation_metadata.jsonl, a folder that holds it, or null for what `scripts/fetch.py data geneval` downloads.
    """

    category: str | None = None
    path: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        check_choice("category", self.category, CATEGORIES, optional=True)
        check_limit(self.limit)

    def tasks(self) -> Sequence[Task]:
        lines = read_released("geneval", "evaluation_metadata.jsonl", self.path).split("\n")
        rows = [json.loads(line) for line in lines if line]
        tasks = make_tasks(row["prompt"] for row in rows)  # of all, so that names do not change with the category
        named = [dataclasses.replace(task, category=row["tag"]) for task, row in zip(tasks, rows, strict=True)]
        return [task for task in named if self.category in (None, task.category)][: self.limit]
