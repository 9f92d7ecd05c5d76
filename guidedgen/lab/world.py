"""What a lab scene is: its vocabulary, the tensors that describe a batch of scenes, and how scenes are drawn at random.

A scene shows one to three objects on a plain background. Every object has a colour, a shape, a texture and a size; two
objects stand in one of four relations. Some shapes and some attribute combinations are kept from the generator's training
data (`Split.GENERATOR`) and shown to the other networks (`Split.WORLD`): they are the targets of vocabulary expansion.
"""

from __future__ import annotations

import dataclasses
import enum

import torch
from torch import Tensor

SIZE = 64  # pixels per side
SLOTS = 4  # object slots per scene; natural scenes fill 1 to 3, cluttered ones up to 4

# Colours and backgrounds are RGB in [0, 1].
COLOURS = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.10, 0.55, 0.18),
    "blue": (0.12, 0.26, 0.86),
    "yellow": (0.96, 0.86, 0.12),
    "purple": (0.48, 0.14, 0.64),
    "orange": (0.97, 0.54, 0.08),
    "cyan": (0.14, 0.82, 0.86),
    "pink": (0.98, 0.56, 0.74),
}
BACKGROUNDS = {"white": 0.96, "gray": 0.55, "black": 0.06}
TEXTURES = ("solid", "striped", "dotted", "checkered")
SIZES = ("small", "medium", "large")
RELATIONS = ("left", "right", "above", "below")  # of the first object, seen from the second

COMMON_SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring")
FINE_SHAPES = ("sparkle", "crescent")  # fine-grained kin of star and circle; the generator never sees them
SHAPES = COMMON_SHAPES + FINE_SHAPES

# Radii in pixels by number of objects and size. Below 8 px textures do not survive the autoencoder.
_RADII = torch.tensor([[9.0, 14.0, 20.0], [8.0, 11.0, 13.5], [8.0, 8.6, 9.2], [8.0, 8.3, 8.6]])
_RADIUS_JITTER = 0.05
_COLOUR_JITTER = 0.03


def unseen_pair(colour: Tensor, shape: Tensor) -> Tensor:
    """Whether this colour and common shape (indices) never occur together in the generator's data: one shape per colour."""
    return shape == (3 * colour + 1) % len(COMMON_SHAPES)


class Split(enum.Enum):
    """Which part of the world scenes are drawn from."""

    GENERATOR = "generator"  # common shapes, seen combinations only
    WORLD = "world"  # everything: what the companions are trained on
    UNSEEN = "unseen"  # every object an unseen colour-shape combination of common shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes:
    """A batch of b scenes. Slots at and beyond `count` are empty."""

    count: Tensor  # b, long, 1..SLOTS
    colour: Tensor  # b SLOTS, long, index into COLOURS
    shape: Tensor  # b SLOTS, long, index into SHAPES
    texture: Tensor  # b SLOTS, long, index into TEXTURES
    size: Tensor  # b SLOTS, long, index into SIZES
    radius: Tensor  # b SLOTS, px
    centre: Tensor  # b SLOTS 2, px, (x, y), y downwards
    rgb: Tensor  # b SLOTS 3, in [0, 1]
    background: Tensor  # b, long, index into BACKGROUNDS
    background_rgb: Tensor  # b 3, in [0, 1]
    relation: Tensor  # b, long, index into RELATIONS for pairs, -1 otherwise

    def __len__(self) -> int:
        return len(self.count)

    def __getitem__(self, index: slice | Tensor) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self)})

    @property
    def present(self) -> Tensor:
        """b SLOTS, bool: whether a slot holds an object."""
        return torch.arange(SLOTS, device=self.count.device) < self.count[:, None]

    def to(self, device: torch.device | str) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)})

    @staticmethod
    def cat(batches: list[Scenes]) -> Scenes:
        """Joins batches along b."""
        names = [f.name for f in dataclasses.fields(Scenes)]
        return Scenes(**{name: torch.cat([getattr(scenes, name) for scenes in batches]) for name in names})


def draw_scenes(
    n: int,
    generator: torch.Generator,
    *,
    split: Split = Split.WORLD,
    counts: tuple[float, ...] = (0.42, 0.46, 0.12),
    textured: float = 0.45,
    clutter: float = 0.0,
    free: bool = False,
) -> Scenes:
    """Draws n scenes.

    `counts` are the odds of one, two and three objects, `textured` the odds that an object is not solid. In natural scenes
    colours and shapes differ within a scene. `clutter` is the share of scenes, two to four objects, in which they may repeat:
    generators draw such things by mistake, so the classifier has to know them. With `free`, cluttered scenes also have any sizes
    and positions that do not overlap, instead of one small object per quadrant.
    """
    weights = torch.tensor(counts, dtype=torch.float)
    count = 1 + torch.multinomial(weights, n, replacement=True, generator=generator)
    messy = torch.rand(n, generator=generator) < clutter
    count = torch.where(messy, torch.randint(2, SLOTS + 1, (n,), generator=generator), count)

    colour, shape = _draw_attributes(n, messy, generator, split)
    has_texture = torch.rand(n, SLOTS, generator=generator) < textured
    texture = torch.randint(1, len(TEXTURES), (n, SLOTS), generator=generator) * has_texture
    size = torch.randint(0, len(SIZES), (n, SLOTS), generator=generator)
    jitter = 1 + _RADIUS_JITTER * (2 * torch.rand(n, SLOTS, generator=generator) - 1)
    radius = _RADII[count[:, None] - 1, size] * jitter

    relation = torch.where(count == 2, torch.randint(0, len(RELATIONS), (n,), generator=generator), -1)
    centre = _place(count, radius, relation, generator)

    if free:
        radius[messy], centre[messy] = _place_freely(count[messy], generator)

    base = torch.tensor(list(COLOURS.values()))
    rgb = base[colour] + _COLOUR_JITTER * (2 * torch.rand(n, SLOTS, 3, generator=generator) - 1)
    background = torch.randint(0, len(BACKGROUNDS), (n,), generator=generator)
    background_rgb = torch.tensor(list(BACKGROUNDS.values()))[background][:, None].expand(n, 3)
    background_rgb = background_rgb + _COLOUR_JITTER * (2 * torch.rand(n, 1, generator=generator) - 1)
    return Scenes(
        count=count, colour=colour, shape=shape, texture=texture, size=size, radius=radius, centre=centre,
        rgb=rgb.clamp(0, 1), background=background, background_rgb=background_rgb.clamp(0, 1), relation=relation,
    )  # fmt: skip


def lay_out(
    *,
    count: Tensor,
    colour: Tensor,
    shape: Tensor,
    texture: Tensor,
    size: Tensor,
    relation: Tensor,
    background: Tensor,
    generator: torch.Generator,
) -> Scenes:
    """Scenes of given facts (see `Scenes`), natural or not, with positions, radii and shades drawn as `draw_scenes` draws them.

    Pairs need a relation; other scenes have none (-1).
    """
    n = len(count)
    jitter = 1 + _RADIUS_JITTER * (2 * torch.rand(n, SLOTS, generator=generator) - 1)
    radius = _RADII[count[:, None] - 1, size] * jitter
    centre = _place(count, radius, relation, generator)
    rgb = torch.tensor(list(COLOURS.values()))[colour]
    rgb = rgb + _COLOUR_JITTER * (2 * torch.rand(n, SLOTS, 3, generator=generator) - 1)
    grey = torch.tensor(list(BACKGROUNDS.values()))[background] + _COLOUR_JITTER * (2 * torch.rand(n, generator=generator) - 1)
    return Scenes(
        count=count, colour=colour, shape=shape, texture=texture, size=size, radius=radius, centre=centre, rgb=rgb.clamp(0, 1),
        background=background, background_rgb=grey.clamp(0, 1)[:, None].expand(n, 3), relation=relation,
    )  # fmt: skip


def _draw_attributes(n: int, messy: Tensor, generator: torch.Generator, split: Split) -> tuple[Tensor, Tensor]:
    """Colours and shapes (n SLOTS each): distinct within a scene unless it is messy, and allowed by the split."""
    shapes = len(SHAPES) if split is Split.WORLD else len(COMMON_SHAPES)
    colour = torch.rand(n, len(COLOURS), generator=generator).argsort(1)[:, :SLOTS]
    if split is Split.UNSEEN:  # the unseen shape of a colour is unique, and so distinct for distinct colours
        return colour, (3 * colour + 1) % len(COMMON_SHAPES)
    shape = torch.rand(n, shapes, generator=generator).argsort(1)[:, :SLOTS]
    # Messy scenes repeat the first object's colour, shape, or both in a later slot.
    repeat_colour = messy[:, None] & (torch.rand(n, SLOTS, generator=generator) < 0.4)
    repeat_shape = messy[:, None] & (torch.rand(n, SLOTS, generator=generator) < 0.5)
    colour = torch.where(repeat_colour, colour[:, :1], colour)
    shape = torch.where(repeat_shape, shape[:, :1], shape)
    if split is Split.GENERATOR:
        # A forbidden combination rotates the scene's colours by one or more; colours stay distinct.
        for _ in range(len(COLOURS)):
            bad = unseen_pair(colour, shape).any(1, keepdim=True)
            colour = torch.where(bad, (colour + 1) % len(COLOURS), colour)
        bad = unseen_pair(colour, shape).any(1)
        if bad.any():  # no rotation fits: draw those scenes again
            colour[bad], shape[bad] = _draw_attributes(int(bad.sum()), messy[bad], generator, split)
    return colour, shape


def _place(count: Tensor, radius: Tensor, relation: Tensor, generator: torch.Generator) -> Tensor:
    """Centres (b SLOTS 2) such that objects are inside the picture and do not overlap."""
    n = len(count)
    u = torch.rand(n, SLOTS, 2, generator=generator)
    edge = radius + 1
    alone = edge[..., None] + u * (SIZE - 2 * edge)[..., None]

    # Pairs: disjoint along the relation's axis, close to the middle on the other.
    low, high = radius[:, 0] + 2, radius[:, 1] + 2
    slack = SIZE - 2 * (low + high) + 2
    a, b = torch.rand(2, n, generator=generator).sort(0).values
    along = torch.stack([low + a * slack, low + a * slack + radius[:, 0] + radius[:, 1] + 2 + (b - a) * slack], 1)
    across = SIZE / 2 + 14 * (u[:, :2, 0] - 0.5)
    first, last = torch.stack([along, across], -1), torch.stack([across, along], -1)
    pair = torch.where((relation < 2)[:, None, None], first, last)  # left, right | above, below
    swapped = (relation == 1) | (relation == 3)
    mirror = SIZE - pair  # puts the first object behind the second on both axes, radii included
    pair = torch.where(swapped[:, None, None], mirror, pair)

    # Three or four: one per quadrant.
    quadrant = torch.rand(n, 4, generator=generator).argsort(1)[:, :SLOTS]
    corner = torch.stack([quadrant % 2, quadrant // 2], -1) * 30.0 + 17.0
    many = corner + 8 * (u - 0.5)

    centre = torch.where((count >= 3)[:, None, None], many, alone)
    is_pair = (count == 2)[:, None, None]
    return torch.cat([torch.where(is_pair, pair, centre[:, :2]), centre[:, 2:]], 1)


def _place_freely(count: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Radii (b SLOTS) of 6 to 15 px and centres (b SLOTS 2): of 24 positions for each object the first with space enough, and where
    none has, the one with most space, which then limits the radius.
    """
    n = len(count)
    radius = 6 + 9 * torch.rand(n, SLOTS, generator=generator)
    u = torch.rand(n, SLOTS, 24, 2, generator=generator)
    centre = torch.zeros(n, SLOTS, 2)
    for slot in range(SLOTS):
        edge = radius[:, slot, None, None] + 1
        candidates = edge + u[:, slot] * (SIZE - 2 * edge)  # n 24 2
        gap = torch.full((n, 24), 99.0)
        for other in range(slot):
            gap = torch.minimum(gap, (candidates - centre[:, None, other]).norm(dim=-1) - radius[:, other, None] - 1)
        enough = gap >= radius[:, slot, None]
        chosen = torch.where(enough.any(1), enough.float().argmax(1), gap.argmax(1))
        rows = torch.arange(n)
        centre[:, slot] = candidates[rows, chosen]
        present = slot < count
        # An object squeezed below 5 px would not be seen: it takes 5 px and may touch the next object.
        radius[:, slot] = torch.where(present, torch.minimum(radius[:, slot], gap[rows, chosen]).clamp(min=5), radius[:, slot])
    return radius, centre
