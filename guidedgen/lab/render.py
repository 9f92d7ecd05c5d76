"""Draws scenes: signed distances of the shapes, textures, one-pixel anti-aliasing, in plain torch on the scenes' device."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from guidedgen.lab.world import SHAPES, SIZE, TEXTURES, Scenes

_PERIOD = 8.0  # px between stripes, dots and checks
_SHADE = 0.4  # the dark half of a texture, as a factor on the object's colour


def render(scenes: Scenes) -> Tensor:
    """Images of b scenes: b 3 SIZE SIZE in [0, 1]."""
    axis = torch.arange(SIZE, device=scenes.centre.device) + 0.5
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))  # 2 H W: x, y
    image = scenes.background_rgb[:, :, None, None].expand(-1, 3, SIZE, SIZE).clone()
    for slot in range(int(scenes.count.max())):
        rows = (slot < scenes.count).nonzero()[:, 0]
        for kind in range(len(SHAPES)):
            chosen = rows[scenes.shape[rows, slot] == kind]
            if len(chosen) == 0:
                continue
            p = grid - scenes.centre[chosen, slot][:, :, None, None]  # k 2 H W, px from the centre
            r = scenes.radius[chosen, slot][:, None, None]
            x, y = (p / r[:, None]).unbind(1)
            coverage = (0.5 - _DISTANCE[SHAPES[kind]](x, y) * r).clamp(0, 1)[:, None]
            shade = _shading(p, scenes.texture[chosen, slot])[:, None]
            colour = scenes.rgb[chosen, slot][:, :, None, None] * shade
            image[chosen] = image[chosen] * (1 - coverage) + colour * coverage
    return image


def _shading(p: Tensor, texture: Tensor) -> Tensor:
    """Factor on the colour (k H W) of textures (k) at pixel offsets p (k 2 H W) from the centre."""
    x, y = p.unbind(1)
    wave_x, wave_y = (torch.sin(2 * math.pi * v / _PERIOD + math.pi / 4) for v in (x, y))
    from_dot = ((x + _PERIOD / 2) % _PERIOD - _PERIOD / 2).square() + ((y + _PERIOD / 2) % _PERIOD - _PERIOD / 2).square()
    slope = _PERIOD / (2 * math.pi)  # px per unit of the wave at its zero: one-pixel edges
    dark = torch.stack(
        [
            torch.zeros_like(x),
            (0.5 + slope * wave_y).clamp(0, 1),
            (0.5 + 2.5 - from_dot.sqrt()).clamp(0, 1),
            (0.5 + slope * wave_x * wave_y * 1.5).clamp(0, 1),
        ]
    )
    assert len(dark) == len(TEXTURES)
    chosen = dark[texture, torch.arange(len(texture), device=texture.device)]
    return 1 - (1 - _SHADE) * chosen


# Signed distances to shapes of unit radius, y downwards. Exact near the edge, which is all that anti-aliasing reads.


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.86


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return (1.25 * x.abs() + y.abs() - 1) / math.hypot(1.25, 1)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(long - 0.98, short - 0.34)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.74).abs() - 0.26


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(x, y) - 1, 0.86 - torch.hypot(x - 0.52, y))


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y + 0.12
    lobe = torch.hypot(x - 0.47, y + 0.35) - 0.52
    tip = torch.maximum((0.83 * x + 0.62 * y) - 0.565, -y - 0.35)  # below the lobes: two straight edges to the point
    return torch.minimum(lobe, torch.maximum(tip, x - 0.97))


def _polar(points: int, inner: float, turn: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """A star with `points` tips at radius 1 and valleys at radius `inner`; with inner = cos(pi/points), a regular polygon."""
    half = math.pi / points
    tip = torch.tensor([1.0, 0.0])
    valley = inner * torch.tensor([math.cos(half), math.sin(half)])
    edge = valley - tip
    normal = torch.tensor([float(-edge[1]), float(edge[0])]) / edge.norm()
    normal = normal if float(normal @ tip) > 0 else -normal  # outwards

    def distance(x: Tensor, y: Tensor) -> Tensor:
        angle = torch.atan2(x, -y) + turn  # 0 is up
        angle = ((angle + half) % (2 * half) - half).abs()
        radius = torch.hypot(x, y)
        return (radius * angle.cos() - 1) * normal[0] + radius * angle.sin() * normal[1]

    return distance


_DISTANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _polar(3, math.cos(math.pi / 3)),
    "star": _polar(5, 0.45),
    "heart": _heart,
    "diamond": _diamond,
    "cross": _cross,
    "ring": _ring,
    "sparkle": _polar(4, 0.34),
    "crescent": _crescent,
}
