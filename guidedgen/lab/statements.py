"""True and false statements about scenes: what the lab's vision-language networks are taught and examined with."""

from __future__ import annotations

import dataclasses
import itertools
import random

from guidedgen.lab import captions
from guidedgen.lab.captions import Description, Thing
from guidedgen.lab.world import BACKGROUNDS, RELATIONS

_ATTRIBUTES = ("colour", "shape", "texture")


def holds(description: Description, truth: Description) -> bool:
    """Whether a description is true of a scene that `captions.describe` describes by `truth`, whatever else is in it.

    Each thing has to be another object. A relation is only known in scenes of two objects, and holds nowhere else.
    """
    if description.background not in (None, truth.background):
        return False
    return any(
        all(_fits(thing, truth.things[i]) for thing, i in zip(description.things, chosen, strict=True))
        and (description.relation is None or description.relation == _relation(truth, chosen))
        for chosen in itertools.permutations(range(len(truth.things)), len(description.things))
    )


def where(description: Description, truth: Description) -> list[int | None]:
    """Which object of the scene each thing is, by its index in `truth`; None where it is none, or could be several."""
    found = [[i for i, there in enumerate(truth.things) if _fits(thing, there)] for thing in description.things]
    return [objects[0] if len(objects) == 1 else None for objects in found]


def _fits(thing: Thing, there: Thing) -> bool:
    full = dataclasses.replace(there, texture=there.texture or "solid", size=there.size or "medium")
    return all(getattr(thing, name) in (None, getattr(full, name)) for name in (*_ATTRIBUTES, "size"))


def _relation(truth: Description, chosen: tuple[int, ...]) -> str | None:
    if truth.relation is None or len(chosen) != 2:
        return None
    return truth.relation if chosen == (0, 1) else captions.OPPOSITE[truth.relation]


def statement(truth: Description, rng: random.Random) -> Description:
    """Something true of a scene: half of the time a caption of all of it, else a description of one or two of its objects."""
    if len(truth.things) <= 3 and rng.random() < 0.5:
        description = captions.parse(captions.caption(truth, rng))
        if description is not None and all(thing.colour or thing.shape for thing in description.things):
            return description
    few = min(len(truth.things), rng.choice((1, 2, 2) if truth.relation else (1, 1, 2)))
    chosen = rng.sample(range(len(truth.things)), few)
    relation = _relation(truth, tuple(chosen)) if rng.random() < 0.8 else None
    background = truth.background if rng.random() < 0.15 else None
    return Description(tuple(_seen(truth.things[i], rng) for i in chosen), relation, background)


def _seen(thing: Thing, rng: random.Random) -> Thing:
    colour, shape = rng.choices([(True, True), (True, False), (False, True)], (0.8, 0.1, 0.1))[0]
    texture = thing.texture or ("solid" if rng.random() < 0.05 else None)
    return Thing(thing.colour if colour else None, thing.shape if shape else None, texture if rng.random() < 0.7 else None)


def falsify(description: Description, truth: Description, rng: random.Random) -> Description:
    """The description made false of the scene in one point.

    Half of the time, where they are given, that is the relation or the background, which a network learns slowly where few are
    false. Else `captions.corrupt` chooses, or a thing gets an attribute of another object.
    """
    values = {"relation": RELATIONS, "background": tuple(BACKGROUNDS)}
    if (names := [name for name in values if getattr(description, name)]) and rng.random() < 0.5:
        name = rng.choice(names)
        other = rng.choice([value for value in values[name] if value != getattr(description, name)])
        false = (
            dataclasses.replace(description, relation=other)
            if name == "relation"
            else dataclasses.replace(description, background=other)
        )
        if not holds(false, truth):
            return false
    while True:
        false = _mixed(description, truth, rng) if rng.random() < 0.4 else captions.corrupt(description, rng)
        if not holds(false, truth):
            return false


def _mixed(description: Description, truth: Description, rng: random.Random) -> Description:
    things, i = list(description.things), rng.randrange(len(description.things))
    name, other = rng.choice(_ATTRIBUTES), rng.choice(truth.things)
    if getattr(things[i], name) is None or getattr(other, name) is None:
        return captions.misname(description, rng) if any(thing.shape for thing in things) else captions.corrupt(description, rng)
    things[i] = dataclasses.replace(things[i], **{name: getattr(other, name)})
    return dataclasses.replace(description, things=tuple(things))


def question(truth: Description, rng: random.Random) -> tuple[str, str]:
    """Two questions about a scene, to be answered with yes and with no."""
    if rng.random() < 0.08:
        false = rng.choice([name for name in BACKGROUNDS if name != truth.background])
        return f"a {truth.background} background?", f"a {false} background?"
    description = statement(truth, rng)
    return f"{description}?", f"{falsify(description, truth, rng)}?"
