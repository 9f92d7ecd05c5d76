"""Scenes keep to their split, lie inside the picture, and are a function of the generator."""

import dataclasses

import pytest
import torch

from guidedgen.lab.world import (
    COLOURS,
    COMMON_SHAPES,
    RELATIONS,
    SHAPES,
    SIZE,
    SLOTS,
    Scenes,
    Split,
    draw_scenes,
    unseen_pair,
)


def _draw(n: int, seed: int = 0, **how: object) -> Scenes:
    return draw_scenes(n, torch.Generator().manual_seed(seed), **how)  # type: ignore[arg-type]


def _pairs(scenes: Scenes) -> set[tuple[int, int]]:
    there = scenes.present
    return set(zip(scenes.colour[there].tolist(), scenes.shape[there].tolist(), strict=True))


ALL = {(c, s) for c in range(len(COLOURS)) for s in range(len(SHAPES))}
UNSEEN = {(c, (3 * c + 1) % 8) for c in range(8)}
COMMON = {(c, s) for c, s in ALL if s < len(COMMON_SHAPES)}


@pytest.mark.parametrize("clutter", [0.0, 0.5])
@pytest.mark.parametrize(("split", "allowed"), [(Split.GENERATOR, COMMON - UNSEEN), (Split.WORLD, ALL), (Split.UNSEEN, UNSEEN)])
def test_a_split_shows_all_of_its_combinations_and_no_other(split: Split, allowed: set[tuple[int, int]], clutter: float) -> None:
    assert _pairs(_draw(6000, split=split, clutter=clutter)) == allowed


def test_one_shape_per_colour_is_held_out() -> None:
    colour, shape = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    unseen = unseen_pair(colour, shape)
    assert unseen.sum(0).eq(1).all()
    assert unseen.sum(1).eq(1).all()


@pytest.mark.parametrize("clutter", [0.0, 1.0])
def test_objects_are_inside_and_disjoint(clutter: float) -> None:
    scenes = _draw(5000, clutter=clutter)
    there, r = scenes.present, scenes.radius
    edge = torch.minimum(scenes.centre, SIZE - scenes.centre).amin(-1) - r
    assert edge[there].min() >= 0
    gap = (scenes.centre[:, :, None] - scenes.centre[:, None]).abs().amax(-1) - (r[:, :, None] + r[:, None])
    both = there[:, :, None] & there[:, None] & ~torch.eye(SLOTS, dtype=torch.bool)
    assert both.any()
    assert gap[both].min() > 0


def test_natural_scenes_repeat_neither_colour_nor_shape_and_cluttered_ones_do() -> None:
    def repeats(scenes: Scenes, values: torch.Tensor) -> torch.Tensor:
        same = (values[:, :, None] == values[:, None]) & scenes.present[:, :, None] & scenes.present[:, None]
        return same.sum((1, 2)) > scenes.count

    natural, cluttered = _draw(3000), _draw(3000, clutter=1.0)
    assert not repeats(natural, natural.colour).any()
    assert not repeats(natural, natural.shape).any()
    assert repeats(cluttered, cluttered.colour).any()
    assert repeats(cluttered, cluttered.shape).any()
    assert set(natural.count.tolist()) == {1, 2, 3}
    assert set(cluttered.count.tolist()) == {2, 3, 4}


def test_the_relation_is_the_one_between_the_centres() -> None:
    scenes = _draw(4000, counts=(0.0, 1.0, 0.0))
    dx, dy = (scenes.centre[:, 0] - scenes.centre[:, 1]).unbind(1)
    sideways = dx.abs() >= dy.abs()
    name = torch.where(sideways, torch.where(dx < 0, 0, 1), torch.where(dy < 0, 2, 3))
    assert RELATIONS == ("left", "right", "above", "below")
    assert torch.equal(name, scenes.relation)
    assert (_draw(100, counts=(1.0, 0.0, 1.0)).relation == -1).all()


def test_odds_are_kept() -> None:
    n = 20_000
    scenes = _draw(n, counts=(0.2, 0.5, 0.3), textured=0.4)
    share = torch.bincount(scenes.count, minlength=4)[1:] / n
    torch.testing.assert_close(share, torch.tensor([0.2, 0.5, 0.3]), atol=0.015, rtol=0)  # 4 standard deviations
    textured = (scenes.texture > 0).float().mean().item()
    assert textured == pytest.approx(0.4, abs=0.008)


def _same(a: Scenes, b: Scenes) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Scenes))


@pytest.mark.parametrize("split", list(Split))
def test_scenes_are_a_function_of_the_generator(split: Split) -> None:
    assert _same(_draw(200, seed=3, split=split, clutter=0.3), _draw(200, seed=3, split=split, clutter=0.3))
    assert not _same(_draw(200, seed=3, split=split), _draw(200, seed=4, split=split))


def test_slices_join_to_the_whole() -> None:
    scenes = _draw(50)
    assert _same(Scenes.cat([scenes[:20], scenes[20:]]), scenes)
    assert len(scenes[torch.tensor([3, 5])]) == 2
