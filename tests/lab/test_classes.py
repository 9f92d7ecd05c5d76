"""Rendered pictures of classes."""

import pytest
import torch

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.lab.captions import parse
from guidedgen.lab.classes import RenderedClasses
from guidedgen.lab.judge import judge


def task(prompt: str) -> Task:
    return Task(id="a", prompt=prompt)


@pytest.mark.parametrize("prompt", ["a red sparkle", "a circle above a striped blue square on a gray background"])
def test_the_pictures_show_what_is_asked(prompt: str) -> None:
    (batch,) = RenderedClasses(count=32)(task(prompt))
    said = parse(prompt)
    assert said is not None and batch.shape == (32, 3, 64, 64)
    assert judge(batch, [said] * 32).right.float().mean() > 0.9
    assert torch.equal(batch, next(RenderedClasses(count=32)(task(prompt))))


def test_what_is_unsaid_varies() -> None:
    (batch,) = RenderedClasses(count=32)(task("a circle"))
    assert len({tuple((picture[:, 0, 0] * 10).round().tolist()) for picture in batch}) >= 3  # backgrounds
    assert batch.std(0).amax() > 0.2


@pytest.mark.parametrize("prompt", ["a photo of a dog", "a red shape"])
def test_prompts_that_are_no_scene_are_refused(prompt: str) -> None:
    with pytest.raises(UsageError, match=prompt):
        RenderedClasses().check([task(prompt)])


def test_one_picture_is_no_class() -> None:
    with pytest.raises(BadValue, match="count=1"):
        RenderedClasses(count=1)
