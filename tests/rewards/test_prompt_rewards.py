"""PickScore and Hps: cosines on their scales, golden values, gradients."""

import pytest
import torch

from guidedgen.rewards import Reward
from guidedgen.rewards.clip_text import ClipText
from guidedgen.rewards.hps import Hps
from guidedgen.rewards.pickscore import PickScore

REWARDS = [PickScore, Hps]


@pytest.mark.parametrize("kind", REWARDS)
def test_is_the_cosine_that_clip_text_computes(kind, tiny_clip, tasks, noise):
    prompts, x = tasks("a cat", "a dog", "a cat"), noise(3)
    reward = kind(clip=tiny_clip)
    assert isinstance(reward, Reward) and reward.differentiable and reward.networks == ("tiny",)
    assert torch.equal(reward(x, prompts), ClipText(clip=tiny_clip)(x, prompts))
    torch.testing.assert_close(reward(x[1:2], prompts[1:2]), reward(x, prompts)[1:2])
    assert tiny_clip.texts == ["a cat", "a dog"] * 2  # once by each reward


@pytest.mark.parametrize("kind", REWARDS)
def test_gradient_is_that_of_finite_differences(kind, tiny_clip, tasks, noise):
    reward, prompts = kind(clip=tiny_clip), tasks("a cat", "a dog")
    assert torch.autograd.gradcheck(lambda x: reward(x, prompts), noise(2, 4).requires_grad_())


@pytest.mark.parametrize("kind", REWARDS)
def test_other_ranges_and_counts_are_refused(kind, tiny_clip, tasks, noise):
    reward = kind(clip=tiny_clip)
    with pytest.raises(ValueError, match="expected values in"):
        reward(2 * noise(1) - 1, tasks("a cat"))
    with pytest.raises(ValueError, match="2 images, but 1 tasks"):
        reward(noise(2), tasks("a cat"))


def test_scaled_is_the_authors_scale_and_is_reported(tiny_clip, tasks, noise):
    x, prompts = noise(2), tasks("a cat", "a dog")
    guide = PickScore(clip=tiny_clip)
    assert list(guide.reports) == ["pickscore_x100"]
    torch.testing.assert_close(guide.reports["pickscore_x100"](x, prompts), 7 * guide(x, prompts))
    assert PickScore(clip=tiny_clip, scaled=True).reports == {}


def test_scales_of_the_published_numbers(golden_metrics: dict, tasks):
    """The thesis prints cosines, the authors' README 100 times as much: golden-metrics.json, pickscore."""
    golden = golden_metrics["pickscore"]

    class Fixed:
        name, logit_scale = "fixed", golden["logit_scale_exp"]

        def encode_image(self, images):
            cosines = torch.tensor(golden["cosines"], dtype=torch.float64)
            return torch.stack([cosines, (1 - cosines**2).sqrt()], 1)

        def encode_text(self, texts):
            return torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    x, prompts = torch.zeros(3, 3, 2, 2), tasks("", "", "")
    assert PickScore(clip=Fixed())(x, prompts).tolist() == pytest.approx(golden["cosines"])
    scaled = PickScore(clip=Fixed(), scaled=True)(x, prompts)
    assert scaled.tolist() == pytest.approx(golden["scaled"])
    assert scaled.softmax(0).tolist() == pytest.approx(golden["softmax"])
