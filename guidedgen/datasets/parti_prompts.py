"""PartiPrompts (P2; Yu et al. 2022, "Scaling Autoregressive Models for Content-Rich Text-to-Image Generation"): 1,632 prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from guidedgen.basics.tasks import Task
from guidedgen.datasets.downloads import read_released
from guidedgen.datasets.tasks import check_choice, check_limit, make_tasks

CATEGORIES = (
    "Abstract", "Animals", "Artifacts", "Arts", "Food & Beverage", "Illustrations", "Indoor Scenes", "Outdoor Scenes", "People",
    "Produce & Plants", "Vehicles", "World Knowledge",
)  # fmt: skip
CHALLENGES = (
    "Basic", "Complex", "Fine-grained Detail", "Imagination", "Linguistic Structures", "Perspective", "Properties & Positioning",
    "Quantity", "Simple Detail", "Style & Format", "Writing & Symbols",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartiPrompts:
    """One task per prompt of all categories and challenges, or of one of either.

    path: PartiPrompts.tsv, a folder that holds it, or null for what `scripts/fetch.py data parti_prompts` downloads.
    """

    category: str | None = None
    challenge: str | None = None
    path: str | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        check_choice("category", self.category, CATEGORIES, optional=True)
        check_choice("challenge", self.challenge, CHALLENGES, optional=True)
        check_limit(self.limit)

    def tasks(self) -> Sequence[Task]:
        lines = read_released("parti_prompts", "PartiPrompts.tsv", self.path).split("\n")
        rows = [line.split("\t")[:3] for line in lines[1:] if line]  # Prompt, Category, Challenge, Note
        tasks = make_tasks(prompt for prompt, _, _ in rows)  # of all, so that names do not change with the choice
        return [
            dataclasses.replace(task, category=category)
            for task, (_, category, challenge) in zip(tasks, rows, strict=True)
            if self.category in (None, category) and self.challenge in (None, challenge)
        ][: self.limit]
