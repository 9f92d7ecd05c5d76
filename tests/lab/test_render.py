"""Renders against exact areas, symmetries and colours."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from guidedgen.lab.render import render
from guidedgen.lab.world import SHAPES, SIZE, SLOTS, TEXTURES, Scenes, draw_scenes

INK, PAPER = torch.tensor([0.9, 0.4, 0.7]), torch.tensor([0.2, 0.3, 0.1])


def _one(shape: str, radius: float = 18.0, centre: tuple[float, float] = (32.0, 32.0), texture: str = "solid") -> Scenes:
    def slots(value: float | Tensor) -> Tensor:
        value = torch.as_tensor(value)
        return value.expand(1, SLOTS, *value.shape).clone()

    return Scenes(
        count=torch.tensor([1]), colour=slots(0), shape=slots(SHAPES.index(shape)), texture=slots(TEXTURES.index(texture)),
        size=slots(1), radius=slots(radius), centre=slots(torch.tensor(centre)), rgb=slots(INK),
        background=torch.tensor([0]), background_rgb=PAPER[None], relation=torch.tensor([-1]),
    )  # fmt: skip


def _area(image: Tensor) -> float:
    """Covered area in px, from how far the picture has moved from paper to ink."""
    coverage = (image - PAPER[:, None, None]) / (INK - PAPER)[:, None, None]
    return float(coverage.mean(0).sum())


def _star(points: int, inner: float) -> float:
    """Area of a star with tips at 1 and valleys at `inner`: 2 `points` triangles with these sides and the angle pi/points."""
    return points * inner * math.sin(math.pi / points)


# Area in units of the squared radius, from the shape's geometry.
AREAS = {
    "circle": math.pi,
    "square": (2 * 0.86) ** 2,
    "ring": math.pi * (1 - 0.48**2),
    "diamond": 2 * 1.0 * (1 / 1.25),
    "cross": 2 * (2 * 0.98) * (2 * 0.34) - (2 * 0.34) ** 2,
    "triangle": _star(3, 0.5),
    "star": _star(5, 0.45),
    "sparkle": _star(4, 0.34),
}


@pytest.mark.parametrize("centre", [(32.0, 32.0), (30.3, 33.8)])
@pytest.mark.parametrize("shape", AREAS)
def test_areas(shape: str, centre: tuple[float, float]) -> None:
    measured = _area(render(_one(shape, 20.0, centre))[0])
    assert measured == pytest.approx(AREAS[shape] * 20.0**2, rel=0.02)


def test_the_crescent_is_a_disc_less_a_disc() -> None:
    """The lens of discs of radius 1 and 0.86, 0.52 apart, is cut from the first."""
    r, d = 0.86, 0.52
    a, b = (d * d + r * r - 1) / (2 * d * r), (d * d + 1 - r * r) / (2 * d)
    kite = 0.5 * math.sqrt((-d + r + 1) * (d + r - 1) * (d - r + 1) * (d + r + 1))
    lens = r * r * math.acos(a) + math.acos(b) - kite
    assert _area(render(_one("crescent", 20.0))[0]) == pytest.approx((math.pi - lens) * 400, rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_solid_colour_edges_and_background(shape: str) -> None:
    radius, centre = 15.0, (33.0, 30.0)
    image = render(_one(shape, radius, centre))[0]
    low, high = torch.minimum(INK, PAPER), torch.maximum(INK, PAPER)
    assert (image >= low[:, None, None] - 1e-6).all()
    assert (image <= high[:, None, None] + 1e-6).all()
    mixed = ((image - PAPER[:, None, None]).abs().amax(0) > 1e-5) & ((image - INK[:, None, None]).abs().amax(0) > 1e-5)
    assert 0 < mixed.float().mean() < 0.12  # anti-aliasing is a line, not a blur
    axis = torch.arange(SIZE) + 0.5
    far = torch.hypot(axis[None] - centre[0], axis[:, None] - centre[1]) > 1.5 * radius
    assert torch.equal(image[:, far], PAPER[:, None].expand(3, int(far.sum())))


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"ring", "crescent"}))
def test_the_centre_of_a_filled_shape_is_its_colour(shape: str) -> None:
    assert torch.equal(render(_one(shape, 14.0))[0, :, 32, 32], INK)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mirrored_scene_is_the_mirrored_image(shape: str) -> None:
    scene = _one(shape, 13.0, (21.3, 35.6))
    mirrored = dataclasses.replace(scene, centre=torch.stack([SIZE - scene.centre[..., 0], scene.centre[..., 1]], -1))
    same = torch.allclose(render(mirrored), render(scene).flip(-1), atol=1e-5)
    assert same == (shape != "crescent")  # the only one with a left and a right


@pytest.mark.parametrize("texture", TEXTURES[1:])
def test_textures_shade_the_inside_only(texture: str) -> None:
    solid, shaded = render(_one("square", 18.0))[0], render(_one("square", 18.0, texture=texture))[0]
    inside = (solid - INK[:, None, None]).abs().amax(0) < 1e-5
    factor = shaded[:, inside] / INK[:, None]
    assert float(factor.min()) == pytest.approx(0.4, abs=1e-3)
    assert float(factor.max()) == pytest.approx(1.0, abs=1e-3)
    assert 0.15 < (factor[0] < 0.7).float().mean() < 0.6
    outside = (solid - PAPER[:, None, None]).abs().amax(0) < 1e-5
    assert torch.equal(shaded[:, outside], solid[:, outside])


def test_a_picture_does_not_depend_on_its_batch() -> None:
    scenes = draw_scenes(40, torch.Generator().manual_seed(0), clutter=0.4)
    whole = render(scenes)
    assert torch.equal(whole[7], render(scenes[7:8])[0])
    assert whole.min() >= 0
    assert whole.max() <= 1
