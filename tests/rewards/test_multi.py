"""Multi: a weighted sum of its parts, which need not all be there."""

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.rewards import Reward
from guidedgen.rewards.compressibility import Compressibility
from guidedgen.rewards.multi import Multi
from guidedgen.rewards.pickscore import PickScore
from guidedgen.rewards.style_gram_vgg16 import StyleGramVgg16
from guidedgen.runs import composition, config


@dataclasses.dataclass(frozen=True)
class Channel:
    """The mean of one channel."""

    channel: int
    networks: tuple[str, ...] = ("one",)
    differentiable = True

    def __call__(self, images, tasks):
        return images[:, self.channel].mean((1, 2))


def test_is_the_weighted_sum(tasks, noise):
    x = noise(3)
    reward = Multi(rewards={"red": Channel(0), "blue": Channel(2, ("one", "two"))}, weights={"red": 2, "blue": -0.5})
    torch.testing.assert_close(reward(x, tasks(*"abc")), 2 * x[:, 0].mean((1, 2)) - 0.5 * x[:, 2].mean((1, 2)))
    assert isinstance(reward, Reward) and reward.differentiable and reward.networks == ("one", "two")
    assert list(reward.reports) == ["red", "blue"]
    [gradient] = torch.autograd.grad(reward(x.requires_grad_(), tasks(*"abc")).sum(), x)
    expected = torch.tensor([2.0, 0.0, -0.5], dtype=torch.float64).view(3, 1, 1).expand(3, 8, 8) / 64
    torch.testing.assert_close(gradient, expected.expand(3, 3, 8, 8))


def test_one_part_is_that_part(tasks, noise):
    assert torch.equal(Multi(rewards={"red": Channel(0)}, weights={"red": 1})(noise(2), tasks("", "")), Channel(0)(noise(2), []))


def test_differentiable_only_if_all_that_count_are():
    parts = {"red": Channel(0), "compressibility": Compressibility()}
    assert not Multi(rewards=parts, weights={"red": 1, "compressibility": 1}).differentiable
    assert Multi(rewards=parts, weights={"red": 1, "compressibility": 0}).differentiable


def test_parts_report_what_they_would_alone(tiny_clip):
    reward = Multi(rewards={"pickscore": PickScore(clip=tiny_clip)}, weights={"pickscore": 150})
    assert list(reward.reports) == ["pickscore", "pickscore_x100"]


def test_parts_check_their_tasks(tiny_map, tasks):
    reward = Multi(rewards={"red": Channel(0), "style": StyleGramVgg16(features=tiny_map)}, weights={"red": 1, "style": 1})
    with pytest.raises(UsageError, match="task 0 has no reference image"):
        reward.check(tasks("a cat"))


@pytest.mark.parametrize(
    ("weights", "name", "rule"),
    [
        ({"red": 1, "rad": 1}, "weights.rad", "no reward of this name; did you mean red"),
        ({"red": float("nan")}, "weights.red", "finite"),
        ({"red": float("inf")}, "weights.red", "finite"),
        ({"red": 0, "blue": 0.0}, "weights", "all are 0"),
        ({}, "rewards.red", "has no weight"),
    ],
)
def test_wrong_weights(weights, name, rule):
    with pytest.raises(BadValue, match=rule) as caught:
        Multi(rewards={"red": Channel(0)}, weights=weights)
    assert caught.value.name == name


def reward_of(*overrides):
    cfg = composition.composed(["reward=multi", "device=cpu", "dtype=float32", *overrides])
    OmegaConf.resolve(cfg)
    return config.build(config.without_weightless(cfg.reward), "reward")


def test_from_the_command_line_only_what_counts_is_built():
    """With zoo=hub nothing is on this machine: what needs weights would be refused."""
    off = ["reward.weights.aesthetic=0", "reward.weights.pickscore=0"]
    reward = reward_of(
        "model=lab", "zoo=hub", *off, "reward.weights.compressibility=2", "reward.rewards.compressibility.quality=60"
    )
    assert dict(reward.rewards) == {"compressibility": Compressibility(quality=60)}
    assert reward.weights["compressibility"] == 2
    with pytest.raises(UsageError, match="offline"):
        reward_of("model=lab", "zoo=hub", *off, "reward.weights.hps=1", "zoo.hps.path=org/none")


def test_wrong_weights_from_the_command_line_are_one_line():
    off = ["reward.weights.aesthetic=0", "reward.weights.pickscore=0"]
    for overrides, match in [
        (off, r"^reward\.weights=.*all are 0"),
        (["reward.weights.aesthetic=much"], r"^reward\.weights\.aesthetic=much: expected float"),
        ([*off, "reward.weights.compressibility=inf"], r"^reward\.weights\.compressibility=inf: has to be a finite number"),
        ([*off, "reward.weights.hps=1"], "reward=hps; choose reward=pickscore, or zoo=hub"),
    ]:
        with pytest.raises(UsageError, match=match) as caught:
            reward_of(*overrides)
        assert "\n" not in str(caught.value)


def test_other_nodes_keep_everything():
    node = OmegaConf.create({"_target_": "guidedgen.rewards.compressibility.Compressibility", "quality": 0})
    assert config.without_weightless(node) is node
