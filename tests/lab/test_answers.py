"""Questions and detections against rendered scenes, whose truth is known, and against the formulas computed another way."""

import itertools
import math
import random

import pytest
import torch

from guidedgen.basics.noise import generator
from guidedgen.basics.tasks import Task
from guidedgen.lab import captions
from guidedgen.lab.answers import SceneAnswers, SceneDetector, understand
from guidedgen.lab.captions import Description, Thing
from guidedgen.lab.judge import shipped_classifier
from guidedgen.lab.networks import WEIGHTS
from guidedgen.lab.preference import stage
from guidedgen.lab.render import render
from guidedgen.lab.world import SHAPES, Scenes, draw_scenes
from guidedgen.metrics.blip_vqa import BlipVqaScore
from guidedgen.metrics.noun_phrases import Rules
from guidedgen.metrics.spatial import Spatial
from guidedgen.runs import composition, config
from guidedgen.zoo import Vqa

pytestmark = pytest.mark.skipif(not (WEIGHTS / "classifier.safetensors").exists(), reason="the classifier is not trained")

ONE, TWO, THREE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
SPATIAL = {
    "to the left of": "on the left of",
    "to the right of": "on the right of",
    "above": "on the top of",
    "below": "on the bottom of",
}


def scenes(counts: tuple[float, float, float], n: int = 128) -> tuple[Scenes, torch.Tensor, list[Description]]:
    drawn = draw_scenes(n, generator("test answers", str(counts)), counts=counts, textured=0.75)
    return drawn, render(drawn), captions.describe(drawn)


def ask(images: torch.Tensor, questions: list[object]) -> torch.Tensor:
    with torch.no_grad():
        return SceneAnswers()(images, [f"{question}?" for question in questions])


@pytest.mark.parametrize("counts", [ONE, TWO, THREE])
def test_true_things_are_seen_and_false_ones_are_not(counts) -> None:
    """One thing of each scene as it is, and with one of its attributes changed, or traded with another thing of the scene."""
    _, images, said = scenes(counts)
    rng = random.Random(0)
    true = [Thing(t.colour, t.shape, t.texture) for t in (rng.choice(d.things) for d in said)]
    false = []
    for thing, description in zip(true, said, strict=True):
        there = {(t.colour, t.shape) for t in description.things}
        changed = [
            t
            for t in (captions.corrupt(Description((thing,)), rng).things[0] for _ in range(9))
            if (t.colour, t.shape) not in there
        ]
        traded = [
            Thing(a.colour, b.shape) for a in description.things for b in description.things if (a.colour, b.shape) not in there
        ]
        false.append(rng.choice([*changed, *traded]))
    assert (ask(images, true) > 0).float().mean() >= 0.99
    assert (ask(images, false) < 0).float().mean() >= 0.99


def test_relations_and_backgrounds_are_seen() -> None:
    _, images, said = scenes(TWO)
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    plain = [tuple(Thing(t.colour, t.shape) for t in d.things) for d in said]
    true = [Description(things, d.relation) for things, d in zip(plain, said, strict=True)]
    false = [Description(things, opposite[d.relation]) for things, d in zip(plain, said, strict=True)]
    turned = [Description(things[::-1], opposite[d.relation]) for things, d in zip(plain, said, strict=True)]
    assert (ask(images, true) > 0).float().mean() >= 0.99
    torch.testing.assert_close(ask(images, turned), ask(images, true))  # the same, said the other way round
    assert (ask(images, false) < 0).float().mean() >= 0.99
    assert (ask(images, [f"a {d.background} background" for d in said]) > 0).float().mean() >= 0.99
    other = {"white": "gray", "gray": "black", "black": "white"}
    assert (ask(images, [f"a {other[d.background]} background" for d in said]) < 0).float().mean() >= 0.99


def test_whatever_else_is_there() -> None:
    """A thing of three is there, though the picture is not of it alone."""
    _, images, said = scenes(THREE, 64)
    for i in range(3):
        assert (ask(images, [Thing(shape=d.things[i].shape) for d in said]) > 0).float().mean() >= 0.98


@torch.no_grad()
def test_log_odds_are_those_of_a_product_of_probabilities() -> None:
    _, images, _ = scenes(TWO, 16)
    images = (0.5 * images + 0.25).double().float()  # less sure, so that the product can be computed plainly
    reading = shipped_classifier(torch.device("cpu"))(images)
    odds = {
        thing: ask(images, [thing] * 16).double()
        for thing in ("a red circle", "a striped square", "a shape", "a dotted pink shape")
    }
    there, colour, texture = (
        reading.shape.double().sigmoid(),
        reading.colour.double().softmax(-1),
        reading.texture.double().softmax(-1),
    )
    circle, square = SHAPES.index("circle"), SHAPES.index("square")
    expected = {
        "a red circle": there[:, circle] * colour[:, circle, 0],
        "a striped square": there[:, square] * texture[:, square, 1],
        "a shape": there.amax(1),
        "a dotted pink shape": (there * colour[..., 7] * texture[..., 2]).amax(1),
    }
    for thing, chance in expected.items():
        torch.testing.assert_close(odds[thing], chance.logit(), rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_pixels_also_where_it_is_sure() -> None:
    _, images, said = scenes(ONE, 8)
    images.requires_grad_()
    odds = SceneAnswers()(images, [str(d.things[0]) for d in said])
    assert odds.min() > 2
    (gradient,) = torch.autograd.grad(odds.sum(), images)
    assert (gradient.flatten(1).norm(dim=1) > 1).all()


def test_an_answer_depends_on_its_picture_alone() -> None:
    _, images, _ = scenes(TWO, 6)
    questions = [
        "a red circle",
        "a circle above a square",
        "a white background",
        "a shape",
        "what",
        "a red circle and a blue square",
    ]
    alone = torch.cat([ask(images[i : i + 1], questions[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(ask(images, questions), alone, equal_nan=True)
    assert alone.isnan().tolist() == [False] * 4 + [True, False]


@pytest.mark.parametrize(
    ("question", "meant"),
    [
        ("a red circle?", Description((Thing("red", "circle"),))),
        ("A Red Circle ?", Description((Thing("red", "circle"),))),
        ("red circle", Description((Thing("red", "circle"),))),
        ("the blue striped square?", Description((Thing("blue", "square", "striped"),))),
        ("an orange large dotted star?", Description((Thing("orange", "star", "dotted", "large"),))),
        ("a circle to the left of a square?", Description((Thing(shape="circle"), Thing(shape="square")), "left")),
        ("the circle to the left of the red square", Description((Thing(shape="circle"), Thing("red", "square")), "left")),
        ("a star on a black background", Description((Thing(shape="star"),), None, "black")),
        ("a black background?", Description((), None, "black")),
        ("a shape", Description((Thing(),))),
        ("the left?", None), ("a red dog?", None), ("", None), ("?", None), ("a red", None), ("a red blue circle", None),
    ],
)  # fmt: skip
def test_questions_that_are_understood(question: str, meant: Description | None) -> None:
    assert understand(question) == meant


def test_a_thing_twice_needs_two_objects() -> None:
    """Which the classifier cannot read of one shape; of an unnamed shape it takes another one."""
    _, images, said = scenes(ONE, 4)
    shapes = [d.things[0].shape for d in said]
    assert ask(images, [f"a {shape} and a {shape}" for shape in shapes]).isnan().all()
    assert (ask(images, ["a shape and a shape"] * 4) < 0).all()
    _, images, _ = scenes(TWO, 4)
    assert (ask(images, ["a shape and a shape"] * 4) > 0).all()


def test_detections_are_the_scene_s_objects() -> None:
    drawn, images, _ = scenes(TWO)
    found = SceneDetector()(images, [list(SHAPES)] * len(images))
    for i, detections in enumerate(found):
        expected = {SHAPES[kind]: k for k, kind in enumerate(drawn.shape[i, :2].tolist())}
        assert {label for label, _, _ in detections} == set(expected)
        for label, confidence, box in detections:
            x, y = drawn.centre[i, expected[label]].tolist()
            assert 0.5 <= confidence <= 1
            assert math.dist((32 * (box[0] + box[2]), 32 * (box[1] + box[3])), (x, y)) < 4
            assert 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1


def test_labels_may_be_things_and_are_what_is_asked_for() -> None:
    _, images, said = scenes(TWO, 16)
    asked = [[str(d.things[0])[2:].strip(), "dog", f"the {d.things[1].shape}"] for d in said]
    found = SceneDetector()(images, asked)
    assert [sorted(label for label, _, _ in one) for one in found] == [sorted((names[0], names[2])) for names in asked]
    assert SceneDetector()(images[:1], [[]]) == [[]]
    assert len(SceneDetector()(images[:1], [["shape"]])[0]) == 2


def test_the_benchmark_s_scores_run_on_the_lab() -> None:
    """What is drawn as it is said scores about 1, and what is said the other way round 0."""
    _, images, said = scenes(TWO, 64)
    plain = [Description(tuple(Thing(t.colour, t.shape) for t in d.things), d.relation) for d in said]
    swapped = [Description((Thing(b.colour, a.shape), Thing(a.colour, b.shape)), d.relation) for d in plain for a, b in [d.things]]
    turned = [Description(d.things[::-1], d.relation) for d in plain]
    answers: Vqa = SceneAnswers()
    vqa = BlipVqaScore(vqa=answers, parser=Rules(), rounding="none")
    spatial = Spatial(detector=SceneDetector(), parser=Rules(), relations=SPATIAL, around=list(SPATIAL))

    def mean(scorer, texts) -> float:
        return scorer(images, [Task(id=str(i), prompt=str(text)) for i, text in enumerate(texts)]).mean().item()

    assert mean(vqa, plain) > 0.98 and mean(vqa, swapped) < 0.02
    assert mean(spatial, plain) > 0.98 and mean(spatial, turned) == 0
    assert mean(spatial, swapped) == mean(spatial, plain)  # nouns alone are looked for


def test_the_composed_metrics_agree_with_the_verdict() -> None:
    """metrics=lab_compbench on complex prompts, drawn as they say."""
    cfg = composition.composed(["metrics=lab_compbench", "device=cpu"])
    names = ("scene", "lab_vqa", "spatial_lab", "three_in_one_lab")
    scorers = {name: config.build(cfg.metrics.scorers[name], name) for name in names}
    texts = list(itertools.islice(captions.prompts("complex"), 24))
    images = render(stage([captions.parse(text) for text in texts], generator("test answers", "complex")))
    tasks = [Task(id=str(i), prompt=text, category="complex") for i, text in enumerate(texts)]
    found = {name: scorer(images, tasks) for name, scorer in scorers.items()}
    assert (found["scene"] == 1).all()
    assert all((found[name] > 0.95).all() for name in names[1:])
    torch.testing.assert_close(found["three_in_one_lab"], (found["lab_vqa"] + found["spatial_lab"]).float() / 2)
    assert scorers["three_in_one_lab"](images[:1], [Task(id="0", prompt=texts[0], category="colour")]).isnan().all()
