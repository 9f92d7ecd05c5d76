"""How sure an image classifier is of a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.rewards.inputs import check_inputs


class ImageClassifier(Protocol):
    """A classifier. It defines what a label is."""

    name: str

    def label(self, name: str) -> Any:
        """The label of this name. Raises UsageError where there is none, naming near misses."""

    def label_in(self, prompt: str) -> Any:
        """The label that a prompt asks for. Raises UsageError where there is none, naming near misses."""

    def __call__(self, images: Tensor, labels: Sequence[Any]) -> Tensor:
        """b 3 H W in [0, 1] and b labels -> log-probabilities b, differentiable."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """log p(label | image). The label is one for all tasks, by name, or what each task's prompt asks for (None)."""

    classifier: ImageClassifier
    label: str | None = None

    differentiable = True

    def __post_init__(self) -> None:
        if self.label is not None:
            self._find(self.label)

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.classifier.name,)

    def _find(self, label: str) -> Any:
        try:
            return self.classifier.label(label)
        except UsageError as error:
            raise UsageError(f"reward.label={label}: it {error}") from error

    def _label(self, task: Task) -> Any:
        if self.label is not None:
            return self._find(self.label)
        try:
            return self.classifier.label_in(task.prompt)
        except UsageError as error:
            raise UsageError(f"reward=classifier: prompt {task.prompt!r} {error}; reward.label= names one for all") from error

    def check(self, tasks: Sequence[Task]) -> None:
        """Raises UsageError where a task's label is not known."""
        for task in tasks:
            self._label(task)

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b, at most 0."""
        return self.classifier(check_inputs(images, tasks, "classifier"), [self._label(task) for task in tasks])
