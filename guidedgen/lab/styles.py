"""Style references: named pictures whose palette and texture a style reward asks for. Drawn by the lab's own renderer, of more and
larger things than a scene has, and shipped as PNG files.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import generator as stream
from guidedgen.lab.networks import WEIGHTS
from guidedgen.lab.render import render
from guidedgen.lab.world import SHAPES, SIZE, TEXTURES, Scenes

_RGB = tuple[float, float, float]


def file(name: str) -> Path:
    """The shipped picture of a style, an RGB PNG of 64 x 64 px. Raises BadValue where the name is not in STYLES."""
    if name not in STYLES:
        raise BadValue("reference", name, f"no such style; choices: {', '.join(STYLES)}, or the path of an image file")
    return WEIGHTS / "styles" / f"{name}.png"


def draw(name: str) -> Tensor:
    """A style's picture: 3 64 64 in [0, 1], the same at every call. Raises KeyError where the name is not in STYLES."""
    return render(STYLES[name](stream("style", name)))[0]


def _things(
    centre: Tensor, radius: Tensor, rgb: Tensor, paper: _RGB, *, shapes: tuple[str, ...], textures: tuple[str, ...] = ("solid",)
) -> Scenes:
    """One picture of k things, later ones over earlier ones: centres (k 2) and radii (k) in px, colours (k 3), kinds in turn."""
    k = len(centre)
    turn = torch.arange(k)
    nothing = torch.zeros(1, k, dtype=torch.long)
    return Scenes(
        count=torch.tensor([k]), colour=nothing, shape=torch.tensor([SHAPES.index(s) for s in shapes])[turn % len(shapes)][None],
        texture=torch.tensor([TEXTURES.index(t) for t in textures])[turn % len(textures)][None], size=nothing,
        radius=radius[None], centre=centre[None], rgb=rgb.clamp(0, 1)[None], background=torch.tensor([0]),
        background_rgb=torch.tensor([paper]), relation=torch.tensor([-1]),
    )  # fmt: skip


def _pick(palette: tuple[_RGB, ...], n: int, generator: torch.Generator) -> Tensor:
    return torch.tensor(palette)[torch.randint(len(palette), (n,), generator=generator)]


def _grid(side: int) -> Tensor:
    """Centres (side^2 2, px) of a square lattice that fills the picture."""
    axis = (torch.arange(side) + 0.5) * SIZE / side
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)


def _mosaic(generator: torch.Generator) -> Scenes:
    """Small tiles of warm saturated colours, no two quite alike, on dark grout."""
    palette = ((0.86, 0.25, 0.10), (0.95, 0.62, 0.12), (0.98, 0.84, 0.35), (0.10, 0.55, 0.52), (0.62, 0.14, 0.20))
    centre = _grid(8) + 0.6 * torch.randn(64, 2, generator=generator)
    rgb = _pick(palette, 64, generator) + 0.05 * torch.randn(64, 3, generator=generator)
    radius = 3.9 + 0.4 * torch.rand(64, generator=generator)
    return _things(centre, radius, rgb, (0.12, 0.08, 0.07), shapes=("square",))


def _night(generator: torch.Generator) -> Scenes:
    """Pale stars and a moon on deep blue."""
    palette = ((0.98, 0.94, 0.70), (0.80, 0.88, 1.00), (0.55, 0.66, 0.95))
    centre = _grid(6) + 2.2 * torch.randn(36, 2, generator=generator)
    radius = 1.5 + 3.5 * torch.rand(36, generator=generator).square()
    rgb = _pick(palette, 36, generator)
    far = (centre - torch.tensor([44.0, 20.0])).norm(dim=1) > 16
    moon = torch.tensor([[44.0, 20.0]]), torch.tensor([12.0]), torch.tensor([[0.99, 0.95, 0.75]])
    centre, radius, rgb = (torch.cat([some[far], one]) for some, one in zip((centre, radius, rgb), moon, strict=True))
    shapes = ("sparkle",) * int(far.sum()) + ("crescent",)
    return _things(centre, radius, rgb, (0.04, 0.06, 0.26), shapes=shapes)


def _stripes(generator: torch.Generator) -> Scenes:
    """Level bands of white, red and navy, rows of squares that touch; the white ones are shaded into finer lines."""
    del generator
    rgb = torch.tensor([[0.97, 0.96, 0.92], [0.84, 0.10, 0.12], [0.97, 0.96, 0.92], [0.08, 0.14, 0.42]])
    rows = rgb[torch.arange(8) % 4].repeat_interleave(8, 0)
    textures = (*("striped",) * 8, *("solid",) * 8)
    return _things(_grid(8), torch.full((64,), 4.7), rows, (0.97, 0.96, 0.92), shapes=("square",), textures=textures)


def _pastel(generator: torch.Generator) -> Scenes:
    """Large discs of pale colours, one over the other."""
    palette = ((0.99, 0.82, 0.86), (0.80, 0.92, 0.84), (0.82, 0.86, 0.99), (0.99, 0.93, 0.78), (0.90, 0.82, 0.97))
    n = 28
    centre = SIZE * torch.rand(n, 2, generator=generator)
    radius = 7 + 9 * torch.rand(n, generator=generator)
    return _things(centre, radius, _pick(palette, n, generator), (0.98, 0.95, 0.92), shapes=("circle",))


STYLES: dict[str, Callable[[torch.Generator], Scenes]] = {
    "mosaic": _mosaic,
    "night": _night,
    "stripes": _stripes,
    "pastel": _pastel,
}
