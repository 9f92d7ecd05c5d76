"""3-in-1: golden means by category, and who is asked about what."""

import math

import pytest
import torch

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.metrics.clip_score import ClipScore
from guidedgen.metrics.compbench import ThreeInOne, WithoutAdjectives
from guidedgen.metrics.noun_phrases import Rules
from guidedgen.metrics.spatial import Spatial


class Given:
    """Scores by task; counts its rows. All prompts have a relation, or none has."""

    differentiable = False

    def __init__(self, name, values, related=True):
        self.networks, self.values, self.rows, self.prompts, self.related = (name,), values, 0, [], related
        self.described = f"by {name}"

    def relates(self, task):
        return self.related

    def __call__(self, images, tasks):
        assert len(images) == len(tasks)
        self.rows += len(images)
        self.prompts += [task.prompt for task in tasks]
        return torch.tensor([self.values[int(task.id)] for task in tasks])


def ask(kinds, attribute, spatial, action, related=True, **options):
    parts = [Given(name, values, related) for name, values in zip("abc", (attribute, spatial, action), strict=True)]
    scorer = ThreeInOne(attribute=parts[0], spatial=parts[1], action=parts[2], **options)
    tasks = [Task(id=str(i), prompt="a cat", category=kind) for i, kind in enumerate(kinds)]
    return scorer(torch.zeros(len(kinds), 3, 4, 4), tasks).tolist(), [part.rows for part in parts], scorer


def test_golden_means(golden_metrics):
    golden = golden_metrics["three_in_one"]
    kinds = [f"complex_{kind}" for kind in golden["kind"]]
    found, rows, scorer = ask(kinds, golden["attribute"], golden["spatial"], golden["clip"])
    assert found == pytest.approx(golden["per_image"], rel=1e-6)
    assert rows == [3, 2, 2]  # nothing is asked in vain
    assert (scorer.networks, scorer.described) == (("a", "b", "c"), "by a; by b; by c")


def test_other_categories_are_left_out():
    found, rows, _ = ask(["color", "complex", ""], *[[0.5] * 3] * 3)
    assert all(map(math.isnan, found))
    assert rows == [0, 0, 0]


def test_a_relation_that_cannot_be_read_counts_nothing():
    """One prompt of the benchmark's spatialaction ("sank below the horizon"), to which 2D_spatial_eval.py gives 0."""
    found, _, _ = ask(["complex_spatialaction"], [0.9], [math.nan], [0.3], related=False)
    assert found == pytest.approx([0.4])


def test_a_picture_that_the_detector_knows_nothing_of_has_no_score():
    found, _, _ = ask(["complex_spatialaction"] * 2, [0.9] * 2, [math.nan, 0.6], [0.3] * 2)
    assert math.isnan(found[0]) and found[1] == pytest.approx(0.6)


def test_relations_and_unknown_pictures_as_the_spatial_score_tells_them_apart():
    class Blind:
        name = "blind"

        def __call__(self, images, labels):
            return [None] * len(labels)

    spatial = Spatial(detector=Blind(), parser=Rules())
    scorer = ThreeInOne(attribute=Given("a", [0.8] * 2), spatial=spatial, action=Given("c", [0.5] * 2))
    prompts = ("The cat sank below the horizon.", "The cat is near the car.")
    tasks = [Task(id=str(i), prompt=prompt, category="complex_spatial") for i, prompt in enumerate(prompts)]
    found = scorer(torch.zeros(2, 3, 4, 4), tasks)
    assert found[0] == pytest.approx(0.4) and found[1].isnan()
    assert [spatial.relates(task) for task in tasks] == [False, True]


def test_parts_of_another_grammar():
    found, rows, scorer = ask(["complex"], [0.9], [0.5], [0.1], parts={"complex": ["attribute", "spatial"]})
    assert found == pytest.approx([0.7])
    assert rows == [1, 1, 0] and (scorer.networks, scorer.described) == (("a", "b"), "by a; by b")
    for parts in (["attributes"], []):
        with pytest.raises(BadValue, match="choose from attribute, spatial, action") as error:
            ask([], [], [], [], parts={"complex": parts})
        assert error.value.name == "parts.complex"


def test_the_clip_that_scores_actions_is_named():
    """So that 3-in-1 is marked where it guides."""

    class Named:
        name = "tiny-clip"

    action = WithoutAdjectives(scorer=ClipScore(clip=Named(), convention="t2i_compbench"), parser=Rules())
    scorer = ThreeInOne(attribute=Given("a", []), spatial=Given("b", []), action=action)
    assert scorer.networks == ("a", "b", "tiny-clip")
    assert scorer.described == "by a; by b; t2i_compbench of tiny-clip; adjectives left out by rules 2"


def test_adjectives_are_left_out():
    inner = Given("clip", [0.25])
    scorer = WithoutAdjectives(scorer=inner, parser=Rules())
    task = Task(id="0", prompt="The old red car was near a tall, white wall.", category="complex_action")
    assert scorer(torch.zeros(1, 3, 4, 4), [task]).tolist() == [0.25]
    assert inner.prompts == ["The car was near a tall , wall ."]  # to the rules "a tall" is a phrase whose noun is tall
    assert (scorer.networks, scorer.described) == (("clip",), "by clip; adjectives left out by rules 2")
