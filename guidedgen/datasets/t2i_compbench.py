"""T2I-CompBench and T2I-CompBench++ (Huang et al. 2023, arXiv:2307.06350; 2025): the validation prompts, 300 per category.

The benchmark draws 10 images of each: samples_per_prompt=10.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.datasets.downloads import read_released
from guidedgen.datasets.tasks import check_choices, check_limit, expand, make_tasks, of_each

CATEGORIES = ("color", "shape", "texture", "spatial", "3d_spatial", "non_spatial", "numeracy", "complex")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T2ICompBench:
    """One task per prompt of a category, or of each of several, in the files' order.

    A task's category is the benchmark's; of complex prompts, which are judged by what they hold, it is complex_spatial,
    complex_action or complex_spatialaction.

    limit: prompts of each category, or null for all.
    path: the folder of the released files, or null for what `scripts/fetch.py data t2i_compbench` downloads.
    """

    category: str | Sequence[str] = "color"
    path: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        check_choices("category", self.category, CATEGORIES)
        check_limit(self.limit)

    def tasks(self) -> Sequence[Task]:
        if self.path is not None and expand("path", self.path).is_file():
            raise BadValue("path", self.path, "is a file; the folder that holds the benchmark's files is needed")
        return of_each(self.category, self._tasks)

    def _tasks(self, category: str) -> Sequence[Task]:
        tasks = make_tasks(self._lines(f"{category}_val.txt")[: self.limit], category)
        if category != "complex":
            return tasks
        # As 3_in_1_eval/3_in_1.py: a prompt is looked up by what comes before its first full stop, and the rest hold both.
        parts = {kind: {_key(line) for line in self._lines(f"complex_val_{kind}.txt")} for kind in ("spatial", "action")}

        def kind(prompt: str) -> str:
            return next((kind for kind, prompts in parts.items() if _key(prompt) in prompts), "spatialaction")

        return [dataclasses.replace(task, category=f"complex_{kind(task.prompt)}") for task in tasks]

    def _lines(self, file: str) -> list[str]:
        return [line for line in read_released("t2i_compbench", file, self.path).split("\n") if line.strip()]


def _key(prompt: str) -> str:
    return prompt.split(".")[0].lower()
