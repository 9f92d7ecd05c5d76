"""Rewards by BLIP-2 and by question answering, on stand-ins whose scores are known."""

import zlib
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.rewards.blip2 import Blip2
from guidedgen.rewards.multi import Multi
from guidedgen.rewards.vqa import Answer
from guidedgen.runs import composition, config


def _weights(text: str) -> torch.Tensor:
    return torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


class TinyMatcher:
    """A random linear score per text, and its half, both made positive."""

    name = "tiny-matcher"

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[str, ...]]] = []

    def __call__(self, images: torch.Tensor, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked.append((len(images), tuple(texts)))
        shown = F.adaptive_avg_pool2d(images, 4)
        score = torch.stack([(image * _weights(text)).sum() for image, text in zip(shown, texts, strict=True)])
        return F.softplus(score), F.softplus(score / 2)


class TinyVqa:
    """The same score as log-odds."""

    name = "tiny-vqa"

    def __init__(self, differentiable: bool = True) -> None:
        self.differentiable, self.asked = differentiable, []

    def __call__(self, images: torch.Tensor, questions: Sequence[str]) -> torch.Tensor:
        self.asked += questions
        shown = F.adaptive_avg_pool2d(images, 4)
        return torch.stack([(image * _weights(text)).sum() for image, text in zip(shown, questions, strict=True)])


Make = Callable[..., list[Task]]
Noise = Callable[..., torch.Tensor]


def test_blip2_is_minus_the_weighted_losses(tasks: Make, noise: Noise):
    x, asked = noise(2), tasks("a cat", "a dog {x}")
    matcher = TinyMatcher()
    matching, caption = TinyMatcher()(x, ["so a cat!", "so a dog {x}!"])
    reward = Blip2(matcher=matcher, template="so {prompt}!", matching_weight=2.0, caption_weight=0.5)
    torch.testing.assert_close(reward(x, asked), -2 * matching - caption / 2)
    assert matcher.asked == [(2, ("so a cat!", "so a dog {x}!"))]  # one pass for both losses
    torch.testing.assert_close(Blip2(matcher=matcher)(x, asked), -sum(TinyMatcher()(x, ["a cat", "a dog {x}"])))
    reports = reward.reports
    torch.testing.assert_close(reports["blip2_match"](x, asked), (-matching).exp())
    torch.testing.assert_close(reports["blip2_caption"](x, asked), -caption)
    assert reward.networks == reports["blip2_match"].networks == ("tiny-matcher",)
    assert isinstance(reward, Reward) and reward.differentiable
    assert torch.autograd.gradcheck(lambda x: reward(x, asked), x.requires_grad_())


def test_vqa_is_the_log_probability_of_yes(tasks: Make, noise: Noise):
    x, asked, model = noise(2), tasks("a cat", "a dog"), TinyVqa()
    odds = TinyVqa()(x, ["a cat?", "a dog?"])
    reward = Answer(model=model)
    torch.testing.assert_close(reward(x, asked), (odds.exp() / (1 + odds.exp())).log())
    torch.testing.assert_close(reward.reports["vqa_yes"](x, asked), odds.sigmoid())
    assert model.asked == ["a cat?", "a dog?"] * 2
    assert reward.networks == ("tiny-vqa",) and reward.differentiable
    assert torch.autograd.gradcheck(lambda x: reward(x, asked), x.requires_grad_())
    Answer(model=model, question="Is it good?")(x, asked)
    assert model.asked[-2:] == ["Is it good?"] * 2
    stiff = Answer(model=TinyVqa(differentiable=False))
    assert not stiff.differentiable and not stiff.reports["vqa_yes"].differentiable


def test_they_are_parts_of_a_sum(tasks: Make, noise: Noise):
    x, asked = noise(2), tasks("a cat", "a dog")
    parts = {"blip2": Blip2(matcher=TinyMatcher()), "vqa": Answer(model=TinyVqa())}
    reward = Multi(rewards=parts, weights={"blip2": 1.0, "vqa": 3.0})
    torch.testing.assert_close(reward(x, asked), parts["blip2"](x, asked) + 3 * parts["vqa"](x, asked))
    assert reward.networks == ("tiny-matcher", "tiny-vqa") and reward.differentiable
    assert set(reward.reports) == {"blip2", "vqa", "blip2_match", "blip2_caption", "vqa_yes"}
    assert not Multi(rewards={"vqa": Answer(model=TinyVqa(differentiable=False))}, weights={"vqa": 1.0}).differentiable


def test_scores_do_not_depend_on_neighbours(tasks: Make, noise: Noise):
    x, asked = noise(3), tasks("a cat", "a dog", "a cow")
    for reward in (Blip2(matcher=TinyMatcher()), Answer(model=TinyVqa())):
        alone = torch.cat([reward(x[i : i + 1], asked[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(reward(x, asked), alone)


def test_other_images_and_counts_are_refused(tasks: Make, noise: Noise):
    for reward, name in ((Blip2(matcher=TinyMatcher()), "blip2"), (Answer(model=TinyVqa()), "vqa")):
        with pytest.raises(ValueError, match=f"{name}: expected values in"):
            reward(2 * noise(1), tasks("a cat"))
        with pytest.raises(ValueError, match=f"{name}: 2 images, but 1 tasks"):
            reward(noise(2), tasks("a cat"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"template": "a photo of {promt}"},
            "template='a photo of {promt}': {promt} is unknown; {prompt} stands for the prompt",
        ),
        ({"template": "  "}, "is empty"),
        ({"matching_weight": -1.0}, "matching_weight=-1.0: must be at least 0 and finite"),
        ({"caption_weight": float("nan")}, "must be at least 0 and finite"),
        ({"matching_weight": 0.0, "caption_weight": 0.0}, "both weights are 0"),
    ],
)
def test_wrong_options(options: dict, message: str):
    with pytest.raises(BadValue, match=message.replace("(", r"\(")):
        Blip2(matcher=TinyMatcher(), **options)
    if "template" in options:
        with pytest.raises(BadValue, match="question="):
            Answer(model=TinyVqa(), question=options["template"])


def _refusal(*overrides: str) -> str:
    cfg = composition.composed(["device=cpu", *overrides])
    with pytest.raises(UsageError) as caught:
        config.build(cfg.reward, "reward")
    return str(caught.value)


def test_missing_weights_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for overrides, key in (
        (["reward=blip2", "zoo=hub"], "zoo.blip2.path=Salesforce/blip2-itm-vit-g"),
        (["reward=vqa", "zoo=hub"], "zoo.vqa.path=Salesforce/blip-vqa-capfilt-large"),
        (["reward=vqa_model", "reward.model.path=org/name"], "reward.model.path=org/name"),
    ):
        assert f"{key}: not on this machine and the hub is offline; fetch it with: python scripts/fetch.py" in _refusal(*overrides)
