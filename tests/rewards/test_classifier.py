"""Classifier: which label a task is scored by, and that its log-probability passes through."""

import pytest
import torch

from guidedgen.basics.errors import UsageError
from guidedgen.rewards import Reward
from guidedgen.rewards.classifier import Classifier


class Two:
    """Two classes, "dark" and "bright", by the mean of the image."""

    name = "two"

    def label(self, name):
        if name not in ("dark", "bright"):
            raise UsageError("is no label of two; did you mean dark?")
        return ("dark", "bright").index(name)

    def label_in(self, prompt):
        found = [word for word in prompt.split() if word in ("dark", "bright")]
        if not found:
            raise UsageError("names no label of two")
        return self.label(found[0])

    def __call__(self, images, labels):
        mean = images.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1).log_softmax(1)[range(len(images)), labels]


def test_scores_by_the_prompts_label_or_by_one_for_all(tasks, noise):
    x, prompts = noise(2), tasks("a dark cat", "a bright dog")
    reward, mean = Classifier(classifier=Two()), x.mean((1, 2, 3))
    assert isinstance(reward, Reward) and reward.differentiable and reward.networks == ("two",)
    torch.testing.assert_close(reward(x, prompts), torch.nn.functional.logsigmoid(torch.stack([-2 * mean[0], 2 * mean[1]])))
    torch.testing.assert_close(Classifier(classifier=Two(), label="bright")(x, prompts), torch.nn.functional.logsigmoid(2 * mean))
    assert torch.autograd.gradcheck(lambda y: reward(y, prompts), noise(2, 3).requires_grad_())


def test_unknown_labels_are_one_line_before_anything_is_scored(tasks, noise):
    with pytest.raises(UsageError, match=r"^reward\.label=drak: it is no label of two; did you mean dark\?$"):
        Classifier(classifier=Two(), label="drak")
    reward = Classifier(classifier=Two())
    for call in (lambda: reward.check(tasks("a cat")), lambda: reward(noise(1), tasks("a cat"))):
        with pytest.raises(
            UsageError, match=r"^reward=classifier: prompt 'a cat' names no label of two; reward\.label= names one for all"
        ):
            call()
    reward.check(tasks("a dark cat"))
    with pytest.raises(ValueError, match="2 images, but 1 tasks"):
        reward(noise(2), tasks("dark"))
    with pytest.raises(ValueError, match="expected values in"):
        reward(2 * noise(1) - 1, tasks("dark"))
