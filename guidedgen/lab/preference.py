"""The lab's simulated rater: which of two pictures people would prefer for a prompt, and pairs of pictures to rate.

    utility = 12 faithfulness + rating

`faithfulness` is the share of what the prompt asks for that the scene shows, `rating` that of `taste` (1 to 10): with five
points asked for, one mistake weighs as much as 2.4 points of taste. A choice follows Bradley and Terry (1952): the first picture
is preferred with probability sigmoid(u_1 - u_2). A CLIP learns it from choices, as PickScore does (Kirstain et al. 2023,
"Pick-a-Pic", arXiv:2305.01569); the formula is the oracle that such a CLIP is measured against.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.lab import captions, taste
from guidedgen.lab.captions import Description, Thing
from guidedgen.lab.judge import stands
from guidedgen.lab.render import render
from guidedgen.lab.world import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, SLOTS, TEXTURES, Scenes, draw_scenes, lay_out

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

FAITHFUL = 12.0  # utility of a picture that shows all of its prompt over one that shows nothing of it
_COLOURS, _BACKGROUNDS = tuple(COLOURS), tuple(BACKGROUNDS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """n questions to a rater: a prompt each, and two scenes."""

    prompts: tuple[Description, ...]  # n
    first: Scenes  # n
    second: Scenes  # n

    def __len__(self) -> int:
        return len(self.prompts)


# The rater


def utility(scenes: Scenes, prompts: Sequence[Description], images: Tensor) -> Tensor:
    """Utilities (b), about 1 to 22, of images (b 3 H W in [0, 1]) that show these scenes, one prompt each."""
    return FAITHFUL * faithfulness(scenes, prompts).to(images) + taste.rate(images)


def faithfulness(scenes: Scenes, prompts: Sequence[Description]) -> Tensor:
    """The share of the prompt's points that b scenes show: b in [0, 1].

    A point each: the shape, colour and texture of every thing, where given; the number of things; the relation and the
    background where given. Things are matched with objects to the prompt's best advantage. Sizes are not judged, as in `judge`.
    """
    names = ("count", "colour", "shape", "texture", "centre", "background")
    columns = [getattr(scenes, name).tolist() for name in names]
    shares = [_share(description, *row) for description, *row in zip(prompts, *columns, strict=True)]
    return torch.tensor(shares, device=scenes.count.device)


def _share(
    description: Description,
    count: int,
    colour: list[int],
    shape: list[int],
    texture: list[int],
    centre: list[list[float]],
    background: int,
) -> float:
    asked = [(thing.shape, thing.colour, thing.texture) for thing in description.things]
    shown = [(SHAPES[shape[i]], _COLOURS[colour[i]], TEXTURES[texture[i]]) for i in range(count)]

    def right(choice: tuple[int | None, ...]) -> int:
        points = sum(
            want is not None and want == have
            for wanted, i in zip(asked, choice, strict=True)
            if i is not None
            for want, have in zip(wanted, shown[i], strict=True)
        )
        if description.relation is None or choice[0] is None or choice[1] is None:
            return points
        return points + stands(description.relation, centre[choice[0]], centre[choice[1]])

    objects: list[int | None] = [*range(count), *[None] * (len(asked) - count)]  # None: a thing without an object
    best = max(right(choice) for choice in itertools.permutations(objects, len(asked)))
    best += (count == len(asked)) + (_BACKGROUNDS[background] == description.background)
    total = sum(want is not None for wanted in asked for want in wanted)
    return best / (total + 1 + (description.relation is not None) + (description.background is not None))


def choose(first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
    """What a rater prefers, given utilities (n each): n, long, 0 for the first and 1 for the second, by Bradley-Terry."""
    u = torch.rand(len(first), generator=generator).to(first)
    return (u >= (first - second).sigmoid()).long()


def preference_loss(scale: Tensor, text: Tensor, first: Tensor, second: Tensor, chosen: Tensor) -> Tensor:
    """Softmax cross-entropy of scale cos(text, image) over the two images: Kirstain et al. 2023, eq. 2, for choices without ties.

    Embeddings are n d of unit length, `scale` the CLIP's exp(logit_scale), `chosen` n as `choose` gives it.
    """
    logits = scale * torch.stack([(text * first).sum(1), (text * second).sum(1)], 1)
    return F.cross_entropy(logits, chosen)


# The questions


def draw_pairs(n: int, generator: torch.Generator) -> Pairs:
    """Draws n pairs: 45 % of a right and a wrong picture, 30 % of two right ones that differ in layout and in what the prompt
    leaves open, so that taste decides, and 25 % of two wrong ones. Either may be the first.
    """
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    prompts, sides = [], []
    for truth in captions.describe(draw_scenes(n, generator, counts=(0.35, 0.5, 0.15))):
        description = _ask(truth, rng)
        kind = rng.random()
        if kind < 0.45:
            pair = [truth, spoil(truth, rng)]
        elif kind < 0.75:
            pair = [truth, _vary(truth, description, rng)]
        else:
            pair = [spoil(truth, rng), spoil(truth, rng)]
        rng.shuffle(pair)
        prompts.append(description)
        sides.append(pair)
    first, second = (stage([pair[i] for pair in sides], generator) for i in (0, 1))
    return Pairs(prompts=tuple(prompts), first=first, second=second)


def _ask(truth: Description, rng: random.Random) -> Description:
    """A prompt as people write them, sizes left out."""
    description = captions.parse(captions.caption(truth, rng))
    assert description is not None  # captions are of the grammar
    return dataclasses.replace(description, things=tuple(dataclasses.replace(thing, size=None) for thing in description.things))


def spoil(truth: Description, rng: random.Random) -> Description:
    """A description that is false in one to three points, as generators err: a thing more or less, another relation or
    background, a texture forgotten, or what `captions.corrupt` does.
    """
    for _ in range(rng.choices((1, 2, 3), (0.6, 0.25, 0.15))[0]):
        truth = _spoil_once(truth, rng)
    return truth


def _spoil_once(truth: Description, rng: random.Random) -> Description:
    kind, n = rng.random(), len(truth.things)
    if kind < 0.12 and n > 1:
        gone = rng.randrange(n)
        return dataclasses.replace(truth, things=truth.things[:gone] + truth.things[gone + 1 :], relation=None)
    if kind < 0.24 and n < 3:
        more = Thing(rng.choice(_COLOURS), rng.choice(SHAPES), rng.choice((None, *TEXTURES[1:])))
        return dataclasses.replace(truth, things=(*truth.things, more), relation=None)
    if kind < 0.34 and truth.relation:
        return dataclasses.replace(truth, relation=rng.choice([r for r in RELATIONS if r != truth.relation]))
    if kind < 0.44:
        return dataclasses.replace(truth, background=rng.choice([name for name in _BACKGROUNDS if name != truth.background]))
    textured = [i for i, thing in enumerate(truth.things) if thing.texture]
    if kind < 0.54 and textured:
        things = list(truth.things)
        plain = rng.choice(textured)
        things[plain] = dataclasses.replace(things[plain], texture=None)
        return dataclasses.replace(truth, things=tuple(things))
    return captions.corrupt(truth, rng)


def _vary(truth: Description, description: Description, rng: random.Random) -> Description:
    """Another description that the prompt fits as well: other sizes, and a background and a relation if it names none."""
    things = tuple(dataclasses.replace(thing, size=rng.choice(SIZES)) for thing in truth.things)
    background = truth.background if description.background else rng.choice(_BACKGROUNDS)
    return Description(things, truth.relation if description.relation else None, background)


def stage(descriptions: Sequence[Description], generator: torch.Generator) -> Scenes:
    """Scenes that show these descriptions, laid out at random; their colours and shapes may repeat.

    Defaults: solid, of medium size, in any relation, on white.

    Raises:
        ValueError: a thing lacks its colour or shape.
    """
    b = len(descriptions)
    names: dict[str, Sequence[str]] = {"colour": _COLOURS, "shape": SHAPES, "texture": TEXTURES, "size": SIZES}
    facts = {name: torch.zeros(b, SLOTS, dtype=torch.long) for name in names}
    for i, description in enumerate(descriptions):
        for j, thing in enumerate(description.things):
            full = dataclasses.replace(thing, texture=thing.texture or "solid", size=thing.size or "medium")
            for name, values in names.items():
                if (value := getattr(full, name)) is None:
                    raise ValueError(f"stage: no {name} is given for {thing}")
                facts[name][i, j] = values.index(value)
    count = torch.tensor([len(description.things) for description in descriptions])
    relation = torch.randint(0, len(RELATIONS), (b,), generator=generator)
    for i, description in enumerate(descriptions):
        if description.relation:
            relation[i] = RELATIONS.index(description.relation)
    relation[count != 2] = -1
    background = torch.tensor([_BACKGROUNDS.index(description.background or "white") for description in descriptions])
    return lay_out(count=count, relation=relation, background=background, generator=generator, **facts)


@torch.no_grad()
def show(scenes: Scenes, vae: AutoencoderKL) -> Tensor:
    """Pictures of b scenes (b 3 64 64 in [0, 1]), every other one as it looks through the autoencoder, as generated ones do."""
    images = render(scenes)
    coded = vae.decode(vae.encode(pictures.to_model(images[::2].to(vae.device))).latent_dist.mean).sample
    images[::2] = pictures.from_model(coded.float()).cpu()
    return images
