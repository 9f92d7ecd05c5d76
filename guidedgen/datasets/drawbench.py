"""DrawBench (Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding")."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Sequence

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.datasets.downloads import find, reading
from guidedgen.datasets.tasks import check_choice, check_limit, make_tasks, read_text

FILE = "DrawBench_Prompts.csv"  # of github.com/tinnerhrhe/EvoSearch-codes
CATEGORIES = (
    "Colors", "Conflicting", "Counting", "DALL-E", "Descriptions", "Gary Marcus et al.", "Misspellings", "Positional", "Rare Words",
    "Reddit", "Text",
)  # fmt: skip
# SHA-256 of "category: prompt" of every row, sorted, joined by newlines; white space around and in a row aside.
DIGEST = "6039640630982975ef5002e9ca34f7f28244c1c98678a76ef55cae5946565183"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawBench:
    """One task per prompt of all categories, or of one: DOODL (arXiv:2303.13703) evaluates on DALL-E and on Reddit.

    path: the CSV file with the columns Prompts and Category, or its folder; None: where `python scripts/fetch.py data drawbench`
        downloads it to. It has to hold the 200 prompts, in any order: figures are compared with published ones by the dataset's
        name. `dataset=text` takes other files.
    """

    path: str | None = None
    category: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        check_choice("category", self.category, CATEGORIES, optional=True)
        check_limit(self.limit)

    def tasks(self) -> Sequence[Task]:
        path = find("drawbench", FILE, self.path)
        with reading("drawbench", path):
            rows = _rows(str(path))
        tasks = make_tasks(prompt for prompt, _ in rows)  # of all, so that names do not change with the category
        named = [dataclasses.replace(task, category=category) for task, (_, category) in zip(tasks, rows, strict=True)]
        return [task for task in named if self.category in (None, task.category)][: self.limit]


def _rows(path: str) -> list[tuple[str, str]]:
    """Prompts and their categories, in the file's order. Raises BadValue where they are not DrawBench's."""
    try:
        rows = [
            (" ".join(row["Prompts"].split()), row["Category"].strip())
            for row in csv.DictReader(read_text("path", path).splitlines(keepends=True), strict=True)
        ]
    except (KeyError, AttributeError, csv.Error) as error:  # no such column, or a row that ends before it
        raise BadValue("path", path, f"is no CSV file with the columns Prompts and Category; needed is {FILE}") from error
    found = "\n".join(sorted(f"{category}: {prompt}" for prompt, category in rows))
    if hashlib.sha256(found.encode()).hexdigest() != DIGEST:
        rule = f"holds {len(rows)} prompts that are not the 200 of DrawBench ({FILE}); dataset=text takes any file of prompts"
        raise BadValue("path", path, rule)
    return rows
