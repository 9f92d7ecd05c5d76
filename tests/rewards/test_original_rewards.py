"""Rewards that compare with the unguided picture of the same sample: identities, gradients, and pictures without one."""

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from guidedgen.basics import images
from guidedgen.basics.errors import BadValue
from guidedgen.rewards.multi import Multi
from guidedgen.rewards.pixels import Pixels
from guidedgen.rewards.stylisation import Stylisation


@pytest.fixture
def original(tmp_path: Path, noise) -> str:
    file = tmp_path / "original.png"
    file.write_bytes(images.png(noise(1, 8, seed=9)[0]))
    return str(file)


@pytest.fixture
def having(tasks, original: str):
    """Tasks that have the original, but for those of the prompt "none"."""

    def make(*prompts: str, reference: str | None = None):
        made = tasks(*prompts, reference=reference)
        return [task if task.prompt == "none" else dataclasses.replace(task, original=original) for task in made]

    return make


def test_pixels_is_the_mean_squared_error(having, noise, original: str) -> None:
    x, y = noise(2), images.read(Path(original)).double()
    values = Pixels()(x, having("a", "b"))
    torch.testing.assert_close(values, -torch.stack([((row - y[0]) ** 2).sum() / 192 for row in x]), rtol=1e-9, atol=0)
    assert Pixels()(y, having("a")).item() == 0


def test_the_original_is_brought_to_the_picture_s_size(having, noise) -> None:
    flat = torch.full((1, 3, 16, 16), 0.5, dtype=torch.float64)
    assert Pixels()(flat, having("a")).isfinite().all()


def test_a_picture_without_an_original_has_no_likeness_and_leaves_its_neighbours_alone(having, noise) -> None:
    x = noise(3)
    values = Pixels()(x, having("a", "none", "b"))
    assert values.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(values[[0, 2]], Pixels()(x[[0, 2]], having("a", "b")))
    assert Pixels()(x[:1], having("none")).isnan().all()


def test_an_edited_original_takes_the_place_of_the_original(having, noise, tmp_path: Path, original: str) -> None:
    """By hand, or in grayscale as Pillow makes it; where there is none, the original stays."""
    edited, empty = tmp_path / "edited", tmp_path / "empty"
    edited.mkdir()
    empty.mkdir()
    with Image.open(original) as picture:
        picture.convert("L").save(edited / Path(original).name)
    x, gray = noise(2), images.read(edited / Path(original).name).double()
    expected = -(x - gray).square().mean((1, 2, 3))
    torch.testing.assert_close(Pixels(edit=str(edited))(x, having("a", "b")), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(Pixels(edit="grayscale")(x, having("a", "b")), expected, rtol=0, atol=5e-3)  # it is of whole levels
    assert (expected - Pixels()(x, having("a", "b"))).abs().min() > 1e-2
    assert torch.equal(Pixels(edit=str(empty))(x, having("a", "b")), Pixels()(x, having("a", "b")))
    assert Pixels(edit=str(edited)).files == (edited / Path(original).name,)


def test_an_original_that_was_not_edited_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a-0.png").write_bytes(b"")
    reward = Multi(rewards={"pixels": Pixels(edit=str(tmp_path))}, weights={"pixels": 1.0})
    reward.check_lessons(["a-0"])
    with pytest.raises(BadValue, match=r"1 of 2 originals are not in it, a-1\.png first") as refused:
        reward.check_lessons(["a-0", "a-1"])
    assert refused.value.name == "rewards.pixels.edit"
    with pytest.raises(BadValue, match="no such folder"):
        Pixels(edit=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)])
def test_stylisation_is_equation_13(having, noise, reference: str, original: str, tiny_map, weights) -> None:
    """Gram matrices and features summed by hand."""
    x = noise(2)
    reward = Stylisation(features=tiny_map, style_weight=weights[0], content_weight=weights[1])
    values = reward(x, having("a", "b", reference=reference))
    f, g, h = (tiny_map(picture.double()) for picture in (x, images.read(Path(reference)), images.read(Path(original))))

    def gram(one: torch.Tensor) -> torch.Tensor:
        return torch.einsum("pi,pj->ij", one, one) / one.numel()

    style = torch.stack([((gram(row) - gram(g[0])) ** 2).mean() for row in f])
    content = torch.stack([((row - h[0]) ** 2).mean() for row in f])
    torch.testing.assert_close(values, -(weights[0] * style + weights[1] * content), rtol=1e-6, atol=1e-12)
    reports = {name: scorer(x, having("a", "b", reference=reference)) for name, scorer in reward.reports.items()}
    torch.testing.assert_close(reports["style"], -style, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(reports["content"], -content, rtol=1e-6, atol=1e-12)


class TwoMaps:
    """The features, and their squares at every other position, for style; the first for content."""

    name, content = "two", 0

    def __init__(self, one) -> None:
        self.one = one

    def maps(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        features = self.one(pictures)
        return [features, features[:, ::2].square()]


@pytest.mark.parametrize("scale", ["mean", "raw"])
def test_styles_of_several_layers_add_up(having, noise, reference: str, original: str, tiny_map, scale: str) -> None:
    x, tasks = noise(2), having("a", "b", reference=reference)
    maps = TwoMaps(tiny_map)
    reward = Stylisation(features=maps, style_weight=2.0, content_weight=0.5, gram_scale=scale)
    both = [maps.maps(picture.double()) for picture in (x, images.read(Path(reference)), images.read(Path(original)))]
    style = torch.zeros(2, dtype=torch.float64)
    for own, wanted in zip(both[0], both[1], strict=True):
        divisor = own[0].numel() if scale == "mean" else 1
        for i, row in enumerate(own):
            style[i] += ((row.T @ row - wanted[0].T @ wanted[0]) / divisor).square().mean()
    content = (both[0][0] - both[2][0]).square().mean((1, 2))
    torch.testing.assert_close(reward(x, tasks), -(2.0 * style + 0.5 * content), rtol=1e-6, atol=1e-12)
    assert reward.networks == ("two",)


def test_without_an_original_stylisation_is_style_alone(having, tasks, noise, reference: str, tiny_map) -> None:
    x = noise(1).requires_grad_()
    both = Stylisation(features=tiny_map)(x, having("none", reference=reference))
    alone = Stylisation(features=tiny_map, content_weight=0.0)(x, having("a", reference=reference))
    assert both.item() == alone.item()
    [gradient] = torch.autograd.grad(both.sum(), x)
    assert gradient.isfinite().all() and gradient.any()


def test_gradients_are_those_of_finite_differences(having, noise, reference: str, tiny_map) -> None:
    style, named = Stylisation(features=tiny_map, content_weight=0.3), having("a", "none", reference=reference)
    assert torch.autograd.gradcheck(lambda x: style(x, named), noise(2, 5).requires_grad_())
    assert torch.autograd.gradcheck(lambda x: Pixels()(x, having("a")), noise(1, 5).requires_grad_())


def test_a_weighted_sum_needs_what_its_parts_need(tiny_map) -> None:
    style = Stylisation(features=tiny_map)
    assert Multi(rewards={"stylisation": style, "pixels": Pixels()}, weights={"stylisation": 1, "pixels": 0}).needs_original
    assert not Multi(rewards={"plain": tiny_map}, weights={"plain": 1}).needs_original
