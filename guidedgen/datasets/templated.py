"""Another dataset with its prompts in a template."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Dataset, Task
from guidedgen.datasets.tasks import check_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Templated:
    """The tasks of `prompts`, "{prompt}" in the template standing for each one's prompt. Their ids stay the same, so with equal
    seeds the pictures start at the same noise as those of `prompts` themselves.
    """

    prompts: Dataset
    template: str = "{prompt}"

    def __post_init__(self) -> None:
        if "{prompt}" not in self.template:
            raise BadValue("template", self.template, "must hold {prompt}")
        check_text("template", self.template)

    def tasks(self) -> Sequence[Task]:
        try:
            tasks = self.prompts.tasks()
        except BadValue as error:
            raise BadValue(f"prompts.{error.name}", error.value, error.rule) from error
        return [dataclasses.replace(task, prompt=self.template.replace("{prompt}", task.prompt)) for task in tasks]
