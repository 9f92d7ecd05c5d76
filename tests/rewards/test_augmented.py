"""Augmented: the mean of a reward over an image's copies."""

import dataclasses

import pytest
import torch

from guidedgen.basics.augment import Augmentations
from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.rewards import Reward
from guidedgen.rewards.augmented import Augmented


@dataclasses.dataclass(frozen=True)
class Left:
    """The mean of an image's left half."""

    networks: tuple[str, ...] = ("one",)
    differentiable = True

    def __call__(self, images, tasks):
        return images[..., : images.shape[-1] // 2].mean((1, 2, 3))


def test_is_the_mean_over_the_copies_that_the_task_draws(tasks, noise):
    x, asked = noise(2), tasks("a", "b")
    augmentations = Augmentations(count=5, erased=[0.1, 0.2])
    reward = Augmented(reward=Left(), augmentations=augmentations)
    copies = augmentations.draw(Noise([f"augmented/{task.id}" for task in asked], dtype=torch.float64), 8, 8)
    shown = [[copies(x[[b]], torch.tensor([b]), torch.tensor([v])) for v in range(5)] for b in range(2)]
    expected = torch.stack([torch.cat([Left()(copy, asked) for copy in row]).mean() for row in shown])
    torch.testing.assert_close(reward(x, asked), expected)
    assert isinstance(reward, Reward) and reward.differentiable and reward.networks == ("one",)
    assert (reward(x, asked) != Left()(x, asked)).all()


def test_copies_are_a_task_s_own_whatever_the_batch(tasks, noise):
    x, reward = noise(3), Augmented(reward=Left(), augmentations=Augmentations(count=3))
    together = reward(x, tasks("a", "b", "c"))
    alone = torch.cat([reward(x[i : i + 1], tasks("a", "b", "c")[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(reward(x, tasks("a", "b", "c")), together, rtol=0, atol=0)


def test_images_of_one_task_have_the_same_copies(tasks, noise):
    x, reward = noise(1), Augmented(reward=Left(), augmentations=Augmentations(count=3))
    alone = reward(x, tasks("a"))
    torch.testing.assert_close(reward(x.repeat(3, 1, 1, 1), tasks("a") * 3), alone.repeat(3))


def test_copies_that_change_nothing_leave_the_reward(tasks, noise):
    still = Augmentations(count=2, degrees=0, translate=0, perspective_odds=0, jitter_odds=0, erase_odds=0, copy_grain=0, grain=0)
    x = noise(2)
    torch.testing.assert_close(Augmented(reward=Left(), augmentations=still)(x, tasks("a", "b")), Left()(x, tasks("a", "b")))


def test_gradients_reach_the_pixels(tasks, noise):
    x = noise(2).requires_grad_()
    [gradient] = torch.autograd.grad(Augmented(reward=Left(), augmentations=Augmentations(count=4))(x, tasks("a", "b")).sum(), x)
    assert gradient.abs().sum() > 0 and gradient.isfinite().all()


def test_without_copies_there_is_nothing_to_average():
    with pytest.raises(BadValue, match="count=0"):
        Augmented(reward=Left(), augmentations=Augmentations(count=0))
