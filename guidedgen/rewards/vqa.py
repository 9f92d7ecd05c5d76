"""How sure a network is that the answer to a question about the image is yes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.basics.templates import check_template, fill
from guidedgen.rewards import Reward
from guidedgen.rewards.inputs import check_inputs
from guidedgen.zoo import Vqa


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """log P(yes) / (P(yes) + P(no)), P being of the first token of the answer to `question`.

    In the question {prompt} stands for the prompt; BadValue is raised for other words in braces. Whether it is differentiable
    depends on the network.
    """

    model: Vqa
    question: str = "{prompt}?"

    def __post_init__(self) -> None:
        check_template("question", self.question)

    @property
    def differentiable(self) -> bool:
        """Whether gradients reach the pixels."""
        return self.model.differentiable

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.model.name,)

    @functools.cached_property
    def reports(self) -> Mapping[str, Reward]:
        """The probability itself."""
        return {"vqa_yes": _Probability(self)}

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b, at most 0."""
        check_inputs(images, tasks, "vqa")
        return F.logsigmoid(self.model(images, [fill(self.question, task.prompt) for task in tasks]))


class _Probability:
    """exp of an answer's score."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.differentiable, self.networks = answer, answer.differentiable, answer.networks

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        return self.answer(images, tasks).exp()
