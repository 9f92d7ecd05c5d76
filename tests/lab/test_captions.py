"""Captions and prompts are of the grammar, and say what they should."""

import itertools
import random

import pytest
import torch

from guidedgen.lab.captions import (
    CATEGORIES,
    WORDS,
    Description,
    Thing,
    caption,
    corrupt,
    describe,
    parse,
    prompts,
)
from guidedgen.lab.world import COLOURS, COMMON_SHAPES, FINE_SHAPES, draw_scenes, unseen_pair


def _descriptions(n: int, seed: int = 0, clutter: float = 0.0) -> list[Description]:
    return describe(draw_scenes(n, torch.Generator().manual_seed(seed), clutter=clutter))


def _take(category: str, n: int = 100, seed: int = 0) -> list[Description]:
    found = [parse(text) for text in itertools.islice(prompts(category, seed), n)]
    assert None not in found
    return [d for d in found if d is not None]


def _unseen(thing: Thing) -> bool:
    assert thing.colour
    assert thing.shape
    colour, shape = torch.tensor(list(COLOURS).index(thing.colour)), torch.tensor(COMMON_SHAPES.index(thing.shape))
    return bool(unseen_pair(colour, shape))


def test_parsing_undoes_writing_for_scenes() -> None:
    for description in _descriptions(1000):
        assert parse(str(description)) == description


@pytest.mark.parametrize("category", CATEGORIES)
def test_parsing_undoes_writing_for_prompts(category: str) -> None:
    for text in itertools.islice(prompts(category), 200):
        assert str(parse(text)) == text
        assert set(text.replace(",", " ,").split()) <= set(WORDS)


def test_grammar_by_example() -> None:
    red, blue, star = Thing("red", "circle"), Thing("blue", None, "striped"), Thing(None, "star", None, "small")
    assert parse("a red circle") == Description((red,))
    assert parse("A red  circle.") == Description((red,))
    assert parse("a red circle and a striped blue shape") == Description((red, blue))
    assert parse("a red circle, a striped blue shape and a small star") == Description((red, blue, star))
    assert parse("a small star to the left of a red circle on a gray background") == Description((star, red), "left", "gray")
    assert str(Thing("orange", "ring")) == "an orange ring"


@pytest.mark.parametrize(
    "text", ["", "red circle", "a zebra", "a red red circle", "a red circle a star", "a red circle on a red background"]
)
def test_other_text_is_not_of_the_grammar(text: str) -> None:
    assert parse(text) is None


def _says(said: Thing, true: Thing) -> bool:
    return all(getattr(said, name) in (None, getattr(true, name)) for name in ("colour", "shape", "texture", "size"))


def test_captions_leave_out_but_never_lie() -> None:
    rng = random.Random(0)
    words, full = [], 0
    for description in _descriptions(1000):
        text = caption(description, rng)
        said = parse(text)
        assert said is not None
        assert said.background in (None, description.background)
        order = itertools.permutations(description.things, len(said.things))
        matches = [things for things in order if all(map(_says, said.things, things))]
        assert matches
        if said.relation:
            turned = {"left": "right", "right": "left", "above": "below", "below": "above"}[said.relation]
            assert any(
                (things == description.things and said.relation == description.relation)
                or (things == description.things[::-1] and turned == description.relation)
                for things in matches
            )
        words.append(len(text.split()) / len(str(description).split()))
        full += text == str(description)
    assert min(words) < 0.5
    assert max(words) == 1
    assert 0 < full < 500


def test_a_corrupted_description_is_wrong_in_one_aspect() -> None:
    rng = random.Random(0)
    kinds = set()
    for description in _descriptions(1000):
        wrong = corrupt(description, rng)
        assert parse(str(wrong)) == wrong
        before, after = (
            {name: [getattr(t, name) for t in d.things] for name in ("colour", "shape", "texture", "size")}
            | {"relation": [d.relation], "background": [d.background]}
            for d in (description, wrong)
        )
        changed = [name for name in before if before[name] != after[name]]
        assert len(changed) == 1
        kinds.add(changed[0])
        name = changed[0]
        moved = sum(a != b for a, b in zip(before[name], after[name], strict=True))
        assert moved == 1 or (moved == 2 and sorted(map(str, before[name])) == sorted(map(str, after[name])))
    assert kinds == {"colour", "shape", "texture", "relation", "background"}


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_are_distinct_and_a_function_of_the_seed(category: str) -> None:
    first, again, other = (list(itertools.islice(prompts(category, seed), 120)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert len(set(first)) == len(first)


def test_small_categories_run_dry() -> None:
    assert len(list(prompts("single"))) == 56  # 8 x 8 combinations less the 8 unseen ones
    assert len(list(prompts("fine"))) == len(COLOURS) * len(FINE_SHAPES)


def test_an_unknown_category_is_an_error() -> None:
    with pytest.raises(KeyError):
        next(prompts("colours"))


@pytest.mark.parametrize("category", sorted(set(CATEGORIES) - {"unseen", "fine"}))
def test_seen_categories_ask_for_seen_combinations(category: str) -> None:
    assert not any(_unseen(thing) for d in _take(category) for thing in d.things)


def test_unseen_asks_for_nothing_but_unseen_combinations() -> None:
    found = _take("unseen")
    assert all(len(d.things) == 3 and all(map(_unseen, d.things)) for d in found)
    assert len({t for d in found for t in d.things}) == len(COLOURS)


# Category -> things, things with a texture, whether a relation and a background are asked for.
PLANS = {
    "single": (1, 0, False, False),
    "colour": (2, 0, False, False),
    "shape": (2, 0, False, False),
    "texture": (2, 2, False, False),
    "spatial": (2, 0, True, False),
    "complex": (2, 1, True, True),
    "three": (3, 0, False, False),
    "background": (1, 0, False, True),
    "unseen": (3, 0, False, False),
    "fine": (1, 0, False, False),
}


@pytest.mark.parametrize("category", CATEGORIES)
def test_what_a_category_asks_for(category: str) -> None:
    for d in _take(category):
        textures = [t.texture for t in d.things if t.texture]
        assert (len(d.things), len(textures), bool(d.relation), bool(d.background)) == PLANS[category]
        assert len(set(textures)) == len(textures)
        assert "solid" not in textures
        colours, shapes = {t.colour for t in d.things}, {t.shape for t in d.things}
        assert None not in colours | shapes
        assert len(shapes) == len(d.things)
        assert len(colours) == (1 if category in ("shape", "texture") else len(d.things))
        assert (shapes <= set(FINE_SHAPES)) == (category == "fine")
