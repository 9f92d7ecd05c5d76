"""What is true of a scene and what is not, on scenes that are spelt out, and what is drawn from them."""

import random
from collections import Counter

import pytest
import torch

from guidedgen.lab import captions, statements
from guidedgen.lab.captions import Description
from guidedgen.lab.statements import falsify, holds, question, statement
from guidedgen.lab.world import draw_scenes


def _said(text: str) -> Description:
    said = captions.parse(text)
    assert said is not None
    return said


# A statement, a scene, and whether it is so.
CASES = [
    ("a red circle", "a red circle", True),
    ("a red circle", "a small striped red circle and a blue square", True),
    ("a red circle", "a blue circle and a red square", False),  # both words are there
    ("a red shape", "a blue circle and a red square", True),
    ("a circle", "a blue circle and a red square", True),
    ("a solid red circle", "a red circle", True),
    ("a solid red circle", "a dotted red circle", False),
    ("a striped red circle", "a dotted red circle", False),
    ("a medium red circle", "a large red circle", False),
    ("a red circle and a red circle", "a red circle and a blue square", False),  # one object is not two
    ("a red circle and a red circle", "a red circle, a red circle and a blue square", True),
    ("a blue square and a red circle", "a red circle and a blue square", True),
    ("a red circle to the left of a blue square", "a red circle to the left of a blue square", True),
    ("a blue square to the right of a red circle", "a red circle to the left of a blue square", True),
    ("a blue square to the left of a red circle", "a red circle to the left of a blue square", False),
    ("a red circle above a blue square", "a red circle to the left of a blue square", False),
    ("a red circle above a blue square", "a red circle and a blue square", False),  # unknown
    ("a shape above a shape", "a red circle below a blue square", True),
    ("a red circle on a gray background", "a red circle and a blue square on a gray background", True),
    ("a red circle on a gray background", "a red circle on a black background", False),
]


@pytest.mark.parametrize(("said", "scene", "so"), CASES)
def test_what_is_so(said: str, scene: str, so: bool):
    assert holds(_said(said), _said(scene)) is so


@pytest.mark.parametrize("free", [False, True])
def test_statements_hold_and_falsified_ones_do_not(free: bool):
    rng = random.Random(0)
    clutter = 1.0 if free else 0.0
    for truth in captions.describe(draw_scenes(300, torch.Generator().manual_seed(0), clutter=clutter, free=free)):
        said = statement(truth, rng)
        assert holds(said, truth)
        assert not holds(falsify(said, truth, rng), truth)
        assert all(thing.colour or thing.shape for thing in said.things)


def test_falsified_ones_differ_in_as_little_as_may_be():
    """In one attribute of one thing or two that trade it, or in the relation or the background."""
    rng, scenic, heeded = random.Random(0), 0, 0
    for truth in captions.describe(draw_scenes(300, torch.Generator().manual_seed(1))):
        said = statement(truth, rng)
        false = falsify(said, truth, rng)
        changed = {
            name for a, b in zip(said.things, false.things, strict=True) for name in ("colour", "shape", "texture", "size")
            if getattr(a, name) != getattr(b, name)
        }  # fmt: skip
        changed |= {name for name in ("relation", "background") if getattr(said, name) != getattr(false, name)}
        assert len(changed) == 1, (said, false)
        scenic += bool(said.relation or said.background)
        heeded += changed <= {"relation", "background"}
    assert heeded > 0.5 * scenic


def test_questions_come_in_pairs_and_are_of_all_kinds():
    rng, kinds = random.Random(0), Counter()
    truths = captions.describe(draw_scenes(1000, torch.Generator().manual_seed(2), counts=(0.35, 0.5, 0.15)))
    for truth in truths:
        yes, no = question(truth, rng)
        if yes.endswith(" background?") and captions.parse(yes.rstrip("?")) is None:
            assert (yes, no) == (f"a {truth.background} background?", no)
            assert no != yes
            kinds["background"] += 1
            continue
        assert holds(_said(yes.rstrip("?")), truth)
        assert not holds(_said(no.rstrip("?")), truth)
        kinds["thing" if len(_said(yes.rstrip("?")).things) == 1 else "things"] += 1
        kinds["relation"] += _said(yes.rstrip("?")).relation is not None
    assert kinds["background"] == pytest.approx(80, abs=30)
    assert kinds["thing"] > 400 and kinds["things"] > 200 and kinds["relation"] > 100


def test_they_are_a_function_of_the_generator():
    truths = captions.describe(draw_scenes(50, torch.Generator().manual_seed(3)))
    first, again = ([statements.question(truth, rng) for truth in truths] for rng in (random.Random(5), random.Random(5)))
    assert first == again
