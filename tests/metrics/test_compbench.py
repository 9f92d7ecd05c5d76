"""3-in-1: golden means by category, and who is asked about what."""

import json
import math

import pytest
import torch

from guidedgen.metrics.compbench import ThreeInOne, WithoutAdjectives
from guidedgen.metrics.noun_phrases import Rules
from guidedgen.types import BadValue, Task


class Given:
    """Scores by task; counts its rows."""

    differentiable = False

    def __init__(self, name, values):
        self.networks, self.values, self.rows, self.prompts = (name,), values, 0, []

    def __call__(self, images, tasks):
        assert len(images) == len(tasks)
        self.rows += len(images)
        self.prompts += [task.prompt for task in tasks]
        return torch.tensor([self.values[int(task.id)] for task in tasks])


def ask(kinds, attribute, spatial, action, **options):
    parts = [Given(name, values) for name, values in zip("abc", (attribute, spatial, action), strict=True)]
    scorer = ThreeInOne(attribute=parts[0], spatial=parts[1], action=parts[2], **options)
    tasks = [Task(id=str(i), prompt="a cat", category=kind) for i, kind in enumerate(kinds)]
    return scorer(torch.zeros(len(kinds), 3, 4, 4), tasks).tolist(), [part.rows for part in parts], scorer


def test_golden_means(shared):
    golden = json.loads((shared / "reference/golden-metrics.json").read_text())["three_in_one"]
    kinds = [f"complex_{kind}" for kind in golden["kind"]]
    found, rows, scorer = ask(kinds, golden["attribute"], golden["spatial"], golden["clip"])
    assert found == pytest.approx(golden["per_image"], rel=1e-6)
    assert rows == [3, 2, 2]  # nothing is asked in vain
    assert scorer.networks == ("a", "b", "c")


def test_other_categories_are_left_out():
    found, rows, _ = ask(["color", "complex", ""], *[[0.5] * 3] * 3)
    assert all(map(math.isnan, found))
    assert rows == [0, 0, 0]


def test_a_relation_that_cannot_be_read_counts_nothing():
    """One prompt of the benchmark's spatialaction ("sank below the horizon"), to which 2D_spatial_eval.py gives 0."""
    found, _, _ = ask(["complex_spatialaction"], [0.9], [math.nan], [0.3])
    assert found == pytest.approx([0.4])


def test_parts_of_another_grammar():
    found, rows, scorer = ask(["complex"], [0.9], [0.5], [0.1], parts={"complex": ["attribute", "spatial"]})
    assert found == pytest.approx([0.7])
    assert rows == [1, 1, 0] and scorer.networks == ("a", "b")
    for parts in (["attributes"], []):
        with pytest.raises(BadValue, match="choose from attribute, spatial, action") as error:
            ask([], [], [], [], parts={"complex": parts})
        assert error.value.name == "parts.complex"


def test_adjectives_are_left_out():
    inner = Given("clip", [0.25])
    scorer = WithoutAdjectives(scorer=inner, parser=Rules())
    task = Task(id="0", prompt="The old red car was near a tall, white wall.", category="complex_action")
    assert scorer(torch.zeros(1, 3, 4, 4), [task]).tolist() == [0.25]
    assert inner.prompts == ["The car was near a tall , wall ."]  # to the rules "a tall" is a phrase whose noun is tall
    assert scorer.networks == ("clip",)
