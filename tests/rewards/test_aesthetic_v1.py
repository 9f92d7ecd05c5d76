"""AestheticV1: DOODL's mean of two heads, on LAION's own heads where they are at hand."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
import yaml

from guidedgen.basics.errors import BadValue
from guidedgen.rewards import Reward
from guidedgen.rewards.aesthetic import Aesthetic
from guidedgen.rewards.aesthetic_v1 import AestheticV1
from guidedgen.runs import config
from guidedgen.zoo.aesthetic import LaionHead


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A CLIP that sees the same in everything."""

    name: str
    dim: int

    def encode_image(self, images):
        return F.normalize(torch.linspace(-1, 2, self.dim), dim=0).expand(len(images), -1) + 0 * images.mean()


@dataclasses.dataclass(frozen=True)
class Channel:
    """The mean of one channel, ten times."""

    channel: int
    name = "channel"
    dim = 3

    def __call__(self, embedding):
        return 10 * embedding[:, self.channel]


@dataclasses.dataclass(frozen=True)
class Means:
    """Channel means as embeddings."""

    name: str
    dim = 3

    def encode_image(self, images):
        return images.mean((2, 3))


@pytest.fixture
def predictors():
    return {"red": Aesthetic(clip=Means("one"), head=Channel(0)), "blue": Aesthetic(clip=Means("two"), head=Channel(2), target=4)}


def test_is_the_weighted_mean(predictors, tasks, noise):
    x = noise(3)
    reward = AestheticV1(predictors=predictors, weights={"red": 0.5, "blue": 1.5})
    red, blue = 10 * x[:, 0].mean((1, 2)), 10 * x[:, 2].mean((1, 2))
    torch.testing.assert_close(reward(x, tasks(*"abc")), (red + 3 * blue) / 4)
    assert isinstance(reward, Reward) and reward.networks == ("one", "channel", "two")
    assert list(reward.reports) == ["aesthetic_red", "aesthetic_blue"]
    torch.testing.assert_close(reward.reports["aesthetic_blue"](x, []), blue)


def test_a_target_is_of_the_mean_and_the_mean_is_reported(predictors, tasks, noise):
    x, weights = noise(3), {"red": 0.5, "blue": 1.5}
    plain, aimed = (AestheticV1(predictors=predictors, weights=weights, target=target) for target in (None, 5))
    torch.testing.assert_close(aimed(x, tasks(*"abc")), -(plain(x, tasks(*"abc")) - 5).abs())
    assert list(aimed.reports) == ["aesthetic_score", "aesthetic_red", "aesthetic_blue"]
    assert torch.equal(aimed.reports["aesthetic_score"](x, []), plain(x, []))
    assert torch.autograd.gradcheck(lambda x: aimed(x, tasks("", "")), noise(2, 3).requires_grad_())


@pytest.mark.parametrize(
    ("weights", "name", "rule"),
    [
        ({"red": 1}, "weights", "no weight for blue"),
        ({"red": 1, "blue": 1, "green": 1}, "weights", "no predictor for green"),
        ({"red": 1, "blue": 0}, "weights.blue", "above 0"),
        ({"red": 1, "blue": math.inf}, "weights.blue", "finite"),
    ],
)
def test_wrong_weights(weights, name, rule, predictors):
    with pytest.raises(BadValue, match=rule) as caught:
        AestheticV1(predictors=predictors, weights=weights)
    assert caught.value.name == name


def test_the_released_heads(released_head, tasks, noise):
    """As aesthetic_loss_fn of doodl.py computes it: sum(w * p) / len, at the settings of its demonstration."""
    node = yaml.safe_load((config.CONF / "reward" / "aesthetic_v1.yaml").read_text())
    predictors, expected = {}, 0
    for name, dim in (("l14", 768), ("b32", 512)):
        head = node["predictors"][name]["head"]
        file = released_head(head["filename"])
        predictors[name] = Aesthetic(clip=Fixed(name, dim), head=LaionHead(path=file, name=head["name"]))
        state = torch.load(file, map_location="cpu", weights_only=True)
        score = F.linear(Fixed(name, dim).encode_image(torch.zeros(1, 3, 2, 2)), state["weight"], state["bias"])
        expected = expected + node["weights"][name] * score
    found = AestheticV1(predictors=predictors, weights=node["weights"], target=10)(noise(1).float(), tasks(""))
    torch.testing.assert_close(found, -(expected[0] / 2 - 10).abs())
    assert node["weights"] == {"l14": 0.5, "b32": 1.5}
