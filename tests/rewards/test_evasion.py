"""Minus a filter's margin, and its verdict as a further score."""

import pytest
import torch

from guidedgen.rewards import Reward
from guidedgen.rewards.evasion import Evasion, Flagged
from guidedgen.runs import composition, config
from guidedgen.zoo.filter import ClassifierFilter


class Brightness:
    """Flags what is bright: the mean of a picture, less a half."""

    name = "brightness"

    def margin(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3)) - 0.5


def shades(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_it_is_minus_the_margin_and_positive_where_not_flagged(tasks):
    reward, x = Evasion(filter=Brightness()), shades(0.1, 0.5, 0.9)
    torch.testing.assert_close(reward(x, tasks("a", "b", "c")), torch.tensor([0.4, 0.0, -0.4]))
    assert isinstance(reward, Reward) and reward.differentiable
    assert reward.networks == ("brightness",)
    (name, flagged), *others = reward.reports.items()
    assert name == "flagged" and not others
    assert flagged(x, tasks("a", "b", "c")).tolist() == [0, 0, 1]
    assert flagged.flags and not flagged.differentiable and flagged.networks == ("brightness",)


def test_its_gradient_reaches_the_pixels(tasks):
    x = shades(0.1, 0.9).clone().requires_grad_()
    [gradient] = torch.autograd.grad(Evasion(filter=Brightness())(x, tasks("a", "b")).sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, -1 / 48))


def test_the_verdict_has_no_gradient_and_is_of_the_images_type(tasks):
    x = shades(0.1, 0.9).double().clone().requires_grad_()
    verdict = Flagged(filter=Brightness())(x, tasks("a", "b"))
    assert not verdict.requires_grad and verdict.dtype == torch.float64


def test_images_are_checked(tasks):
    for scorer, name in ((Evasion(filter=Brightness()), "evasion"), (Flagged(filter=Brightness()), "flagged")):
        with pytest.raises(ValueError, match=rf"{name}: expected values in \[0, 1\]"):
            scorer(2 * shades(0.9), tasks("a"))
        with pytest.raises(ValueError, match=f"{name}: 1 images, but 2 tasks"):
            scorer(shades(0.9), tasks("a", "b"))


def test_the_lab_s_filter_is_built_from_its_config_file():
    cfg = composition.composed(["model=lab", "reward=evasion", "device=cpu"])
    reward = config.build(cfg.reward, "reward")
    assert isinstance(reward, Evasion) and isinstance(reward.filter, ClassifierFilter)
