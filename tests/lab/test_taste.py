"""The taste formula's terms on pictures with known answers."""

import math

import pytest
import torch
from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.lab import taste
from guidedgen.lab.judge import TasteOracle
from guidedgen.rewards import Reward


def _disc(centre: tuple[float, float] = (32, 32), radius: float = 14, side: int = 64) -> Tensor:
    """A white disc on black: 1 3 side side."""
    axis = torch.arange(side) + 0.5
    inside = torch.hypot(axis[None] - centre[0], axis[:, None] - centre[1]) < radius
    return inside.float().expand(1, 3, side, side).clone()


def _halves(left: tuple[float, ...], right: tuple[float, ...]) -> Tensor:
    """Two equal blocks side by side on black."""
    image = torch.zeros(1, 3, 64, 64)
    image[0, :, 20:44, 20:32] = torch.tensor(left)[:, None, None]
    image[0, :, 20:44, 32:44] = torch.tensor(right)[:, None, None]
    return image


def test_a_centred_disc_is_balanced_and_an_off_centre_one_is_not() -> None:
    assert taste.assess(_disc()).balance.item() == pytest.approx(1, abs=1e-5)
    assert taste.assess(_disc((48, 32))).balance.item() == pytest.approx(1 - 0.25 / 0.4, abs=1e-4)  # a quarter of the width off
    assert taste.assess(_disc((20, 16))).balance.item() == pytest.approx(1 - math.hypot(12, 16) / 64 / 0.4, abs=1e-4)
    assert taste.rate(_disc()) > taste.rate(_disc((48, 32)))


@pytest.mark.parametrize(
    ("left", "right", "harmony"),
    [
        ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), 1.0),
        ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0), 1.0),  # complementary
        ((0.0, 0.0, 1.0), (1.0, 1.0, 0.0), 1.0),
        ((math.sqrt(0.75), 0.0, 0.0), (0.5, 1.0, 0.0), 0.0),  # hues 90 degrees apart, equal chroma
        ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), 0.5),  # 120 degrees: |1 + e^{i 240}| / 2
    ],
)
def test_harmony_of_two_hues(left: tuple[float, ...], right: tuple[float, ...], harmony: float) -> None:
    assert taste.assess(_halves(left, right)).harmony.item() == pytest.approx(harmony, abs=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "fill"), [(20, 25, 1.0), (40, 25, math.exp(-0.5)), (10, 25, math.exp(-0.5)), (5, 25, math.exp(-2))]
)
def test_a_fifth_covered_is_best(height: int, width: int, fill: float) -> None:
    image = torch.zeros(1, 3, 50, 50)
    image[:, :, 5 : 5 + height, 3 : 3 + width] = 1
    assert taste.assess(image).fill.item() == pytest.approx(fill, abs=1e-4)


@pytest.mark.parametrize(("paper", "ink", "contrast"), [(0.5, 1.0, 1.0), (0.0, 1.0, 1.0), (0.5, 0.85, 0.7), (0.9, 0.5, 0.8)])
def test_contrast_is_luminance_against_the_background(paper: float, ink: float, contrast: float) -> None:
    disc = _disc()
    assert taste.assess(paper + (ink - paper) * disc).contrast.item() == pytest.approx(contrast, abs=1e-5)


@pytest.mark.parametrize("grey", [0.0, 0.55, 1.0])
def test_a_blank_picture_rates_one(grey: float) -> None:
    assert taste.rate(torch.full((2, 3, 64, 64), grey)).tolist() == pytest.approx([1.0, 1.0], abs=1e-4)


def test_the_rating_is_the_stated_sum_and_the_best_is_ten() -> None:
    image = torch.zeros(1, 3, 60, 60)
    image[:, :2, 18:42, 15:45] = 1  # yellow on black, 24 x 30 of 3600 px, in the middle
    terms = taste.assess(image)
    expected = 1 + 9 * (0.4 * terms.balance + 0.25 * terms.contrast + 0.2 * terms.harmony + 0.15 * terms.fill)
    torch.testing.assert_close(taste.rate(image), expected)
    assert taste.rate(image).item() == pytest.approx(10, abs=1e-3)


def test_ratings_do_not_depend_on_mirroring_size_or_batch() -> None:
    image = _halves((0.9, 0.3, 0.1), (0.2, 0.8, 0.6)).roll(7, -1)
    rating = taste.rate(image)
    torch.testing.assert_close(taste.rate(image.flip(-1)), rating)
    torch.testing.assert_close(taste.rate(image.repeat_interleave(2, -1).repeat_interleave(2, -2)), rating)
    torch.testing.assert_close(taste.rate(torch.cat([_disc(), image]))[1:], rating)


def test_the_oracle_is_the_formula_and_lets_no_gradient_through() -> None:
    images = torch.cat([_disc(), _disc((44, 20))]).requires_grad_()
    oracle = TasteOracle()
    scores = oracle(images, [Task(id="a", prompt="x"), Task(id="b", prompt="y")])
    assert isinstance(oracle, Reward)
    assert not oracle.differentiable
    assert not scores.requires_grad
    torch.testing.assert_close(scores, taste.rate(images.detach()))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        oracle(2 * images, [Task(id="a", prompt="x")] * 2)
