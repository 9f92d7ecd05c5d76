"""What can be said about a scene: descriptions and their text, captions with the noise real captions have, prompt sets.

The grammar, in full: `THING`, `THING RELATION THING`, `THING and THING`, `THING, THING and THING`, each optionally followed by
`on a BACKGROUND background`, with `THING = a|an [SIZE] [TEXTURE] [COLOUR] SHAPE|shape`.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Callable, Iterator, Sequence

from guidedgen.lab.world import (
    BACKGROUNDS,
    COLOURS,
    COMMON_SHAPES,
    FINE_SHAPES,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scenes,
)

_PHRASES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_COLOURS, _BACKGROUNDS = tuple(COLOURS), tuple(BACKGROUNDS)
WORDS = sorted(
    {*COLOURS, *SHAPES, *BACKGROUNDS, *TEXTURES, *SIZES, "a", "an", "and", "on", "background", "shape", "to", "the", "of", ","}
    | {*RELATIONS, "photo", "picture", "drawing", "image", "with", "in", "one", "two", "three", ".", "?"}
)


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object, as far as it is described."""

    colour: str | None = None
    shape: str | None = None
    texture: str | None = None
    size: str | None = None

    def __str__(self) -> str:
        words = [w for w in (self.size, self.texture, self.colour) if w] + [self.shape or "shape"]
        return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


@dataclasses.dataclass(frozen=True)
class Description:
    """One to three things, the relation of the first two, and the background; None where not given."""

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str | None = None

    def __str__(self) -> str:
        things = [str(thing) for thing in self.things]
        if self.relation:
            text = f" {_PHRASES[self.relation]} ".join(things)
        else:
            text = ", ".join(things[:-1]) + (" and " if len(things) > 1 else "") + things[-1]
        return text + (f" on a {self.background} background" if self.background else "")


_THING = (
    rf"an? (?:(?P<size{{0}}>{'|'.join(SIZES)}) )?(?:(?P<texture{{0}}>{'|'.join(TEXTURES)}) )?"
    rf"(?:(?P<colour{{0}}>{'|'.join(COLOURS)}) )?(?P<shape{{0}}>{'|'.join(SHAPES)}|shape)"
)
_GRAMMAR = re.compile(
    _THING.format(0)
    + rf"(?:(?:, {_THING.format(2)})? and {_THING.format(1)}| (?P<relation>{'|'.join(_PHRASES.values())}) {_THING.format(3)})?"
    + rf"(?: on a (?P<background>{'|'.join(BACKGROUNDS)}) background)?"
)


def parse(text: str) -> Description | None:
    """The description a text stands for, or None where it is not of the lab's grammar."""
    match = _GRAMMAR.fullmatch(" ".join(text.lower().rstrip(". ").split()))
    if match is None:
        return None
    found = match.groupdict()
    things = []
    for i in (0, 2, 1, 3):  # in reading order: the middle one of three is group 2
        if found[f"shape{i}"]:
            shape = None if found[f"shape{i}"] == "shape" else found[f"shape{i}"]
            things.append(Thing(found[f"colour{i}"], shape, found[f"texture{i}"], found[f"size{i}"]))
    relation = next((name for name, phrase in _PHRASES.items() if phrase == found["relation"]), None)
    return Description(tuple(things), relation, found["background"])


def describe(scenes: Scenes) -> list[Description]:
    """Everything there is to say about each scene (textures of solid and sizes of medium things are left out)."""
    columns = [getattr(scenes, name).tolist() for name in ("count", "colour", "shape", "texture", "size", "relation", "background")]
    return [_describe(*row) for row in zip(*columns, strict=True)]


def _describe(
    count: int, colour: list[int], shape: list[int], texture: list[int], size: list[int], relation: int, background: int
) -> Description:
    things = tuple(
        Thing(
            _COLOURS[colour[i]],
            SHAPES[shape[i]],
            TEXTURES[texture[i]] if texture[i] else None,
            SIZES[size[i]] if SIZES[size[i]] != "medium" else None,
        )
        for i in range(count)
    )
    return Description(things, RELATIONS[relation] if relation >= 0 else None, _BACKGROUNDS[background])


def caption(description: Description, rng: random.Random) -> str:
    """A caption as people write them: some of the description is left out, and things come in any order."""
    things = [
        Thing(
            thing.colour if rng.random() < 0.96 else None,
            thing.shape if rng.random() < 0.97 else None,
            thing.texture if rng.random() < 0.85 else None,
            thing.size if rng.random() < 0.4 else None,
        )
        for thing in description.things
    ]
    relation = description.relation if rng.random() < 0.6 else None
    if relation and rng.random() < 0.5:
        things, relation = things[::-1], OPPOSITE[relation]
    elif not relation:
        rng.shuffle(things)
        if len(things) > 1 and rng.random() < 0.03:
            things.pop()
    return str(Description(tuple(things), relation, description.background if rng.random() < 0.5 else None))


def corrupt(description: Description, rng: random.Random) -> Description:
    """A description that is false in one point: two things trade an attribute, or one attribute or the relation changes."""
    things = list(description.things)
    choices: list[Callable[[], Description]] = []
    for name in ("colour", "shape", "texture"):
        values = [getattr(thing, name) for thing in things]
        for i, j in ((0, 1), (1, 2), (0, 2)):
            if j < len(things) and values[i] != values[j]:
                choices += [functools.partial(_swap, description, i, j, name)] * 2
        for i, value in enumerate(values):
            if value is not None:
                choices.append(functools.partial(_replace, description, i, name, rng))
    if description.relation:
        opposite = OPPOSITE[description.relation]
        choices += [lambda: dataclasses.replace(description, relation=opposite)] * 2
    if description.background:
        others = [b for b in _BACKGROUNDS if b != description.background]
        choices.append(lambda: dataclasses.replace(description, background=rng.choice(others)))
    return rng.choice(choices)()


def misname(description: Description, rng: random.Random) -> Description:
    """A description in which one thing that is named has another shape. Raises IndexError where none is named."""
    named = [i for i, thing in enumerate(description.things) if thing.shape]
    return _replace(description, rng.choice(named), "shape", rng)


def _swap(description: Description, i: int, j: int, name: str) -> Description:
    things = list(description.things)
    a, b = getattr(things[i], name), getattr(things[j], name)
    things[i], things[j] = dataclasses.replace(things[i], **{name: b}), dataclasses.replace(things[j], **{name: a})
    return dataclasses.replace(description, things=tuple(things))


def _replace(description: Description, i: int, name: str, rng: random.Random) -> Description:
    things = list(description.things)
    options: Sequence[str] = {"colour": _COLOURS, "shape": SHAPES, "texture": TEXTURES[1:]}[name]
    value = rng.choice([option for option in options if option != getattr(things[i], name)])
    things[i] = dataclasses.replace(things[i], **{name: value})
    return dataclasses.replace(description, things=tuple(things))


def _unseen_shape(colour: str) -> str:
    """The common shape that never has this colour in the generator's data (see `world.unseen_pair`)."""
    return COMMON_SHAPES[(3 * _COLOURS.index(colour) + 1) % len(COMMON_SHAPES)]


def _seen_things(n: int, rng: random.Random) -> list[Thing]:
    while True:
        colours, shapes = rng.sample(_COLOURS, n), rng.sample(COMMON_SHAPES, n)
        if all(_unseen_shape(c) != s for c, s in zip(colours, shapes, strict=True)):
            return [Thing(c, s) for c, s in zip(colours, shapes, strict=True)]


def _textured(things: list[Thing], rng: random.Random) -> list[Thing]:
    return [dataclasses.replace(t, texture=x) for t, x in zip(things, rng.sample(TEXTURES[1:], len(things)), strict=True)]


def _single(rng: random.Random) -> Description:
    return Description(tuple(_seen_things(1, rng)))


def _colour(rng: random.Random) -> Description:
    return Description(tuple(_seen_things(2, rng)))


def _shape(rng: random.Random) -> Description:
    while True:
        colour, shapes = rng.choice(_COLOURS), rng.sample(COMMON_SHAPES, 2)
        if _unseen_shape(colour) not in shapes:
            return Description(tuple(Thing(colour, shape) for shape in shapes))


def _texture(rng: random.Random) -> Description:
    """Of one colour, as in `_shape`: only the textures distinguish them."""
    return Description(tuple(_textured(list(_shape(rng).things), rng)))


def _spatial(rng: random.Random) -> Description:
    return Description(tuple(_seen_things(2, rng)), relation=rng.choice(RELATIONS))


def _complex(rng: random.Random) -> Description:
    first, second = _seen_things(2, rng)
    things = (dataclasses.replace(first, texture=rng.choice(TEXTURES[1:])), second)
    return Description(things, relation=rng.choice(RELATIONS), background=rng.choice(_BACKGROUNDS))


def _three(rng: random.Random) -> Description:
    return Description(tuple(_seen_things(3, rng)))


def _background(rng: random.Random) -> Description:
    return Description(tuple(_seen_things(1, rng)), background=rng.choice(_BACKGROUNDS))


def _unseen(rng: random.Random) -> Description:
    """Three of them: the generator recombines so well that two are drawn correctly nine times in ten."""
    return Description(tuple(Thing(c, _unseen_shape(c)) for c in rng.sample(_COLOURS, 3)))


def _fine(rng: random.Random) -> Description:
    return Description((Thing(rng.choice(_COLOURS), rng.choice(FINE_SHAPES)),))


# Category -> how one of its prompts is drawn. The first six have T2I-CompBench's shape; the rest are the lab's own.
CATEGORIES: dict[str, Callable[[random.Random], Description]] = {
    "colour": _colour,
    "shape": _shape,
    "texture": _texture,
    "spatial": _spatial,
    "complex": _complex,
    "three": _three,
    "single": _single,
    "background": _background,
    "unseen": _unseen,
    "fine": _fine,
}


def prompts(category: str, seed: int = 0) -> Iterator[str]:
    """An endless stream of distinct prompts of one category while there are any, the same for the same seed.

    Raises:
        KeyError: the category is not one of CATEGORIES.
    """
    draw = CATEGORIES[category]
    rng = random.Random(f"{category}/{seed}")
    seen: set[str] = set()
    misses = 0
    while misses < 2000:  # small categories run dry
        text = str(draw(rng))
        misses = misses + 1 if text in seen else 0
        if text not in seen:
            seen.add(text)
            yield text
