"""The numeracy score of T2I-CompBench++: its rules one by one, and every prompt of the benchmark."""

import math

import pytest
import torch
from detections import Found

from guidedgen.basics.tasks import Task
from guidedgen.metrics.numeracy import NUMBERS, Numeracy, counted, score


def at(label, x, side=20.0):
    """A box of `side` px whose left upper corner is at (x, 0), and its label."""
    return (label, 0.9, (x, 0.0, x + side, side))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("two boys", [("person", 2)]),
        ("three mice and one fish", [("mouse", 3), ("fish", 1)]),
        ("a goldfish, eight knives and six people", [("fish", 1), ("knife", 8), ("person", 6)]),
        ("an egg on two paintings", [("egg", 1), ("picture", 2)]),
        ("two red apples", []),  # the thing has to come right after the number
        ("nine apples", []),
        ("apples", []),
    ],
)
def test_things_and_numbers_are_read_from_the_prompt(prompt, expected):
    assert counted(prompt) == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([], 0),
        ([at("cat", 0)], 0.25),  # one of two cats
        ([at("cat", 0), at("cat", 50)], 0.5),
        ([at("cat", 0), at("cat", 50), at("dog", 100)], 1),
        ([at("cat", 0), at("cat", 50), at("cat", 90), at("dog", 100)], 0.75),
        ([at("cat", 0), at("cat", 1), at("cat", 50), at("dog", 100)], 1),  # the second is the first again
        ([at("cat", 0), at("cat", 3), at("cat", 50), at("dog", 100)], 0.75),  # 18 of 21 px: 86 %
        ([at("cat", 0), at("cat", 5, side=5), at("cat", 50), at("dog", 100)], 1),  # inside of the first
        ([at("cat", 0), at("cat", 50), at("dog", 0)], 1),  # of another label
        ([at("house cat", 0), at("cat toy", 50), at("dog", 100)], 1),  # parts of labels, where none is the whole
        ([at("house cat", 0), at("cat", 50), at("dog", 100)], 0.75),
    ],
)
def test_score_by_its_parts(found, expected):
    """Of "two cats and a dog"."""
    assert score([("cat", 2), ("dog", 1)], found) == expected


def test_it_reads_pictures_and_leaves_out_what_it_cannot_count():
    detector = Found(("apple", 0.9, (0.0, 0.0, 0.5, 0.5)), ("apple", 0.8, (0.5, 0.5, 1.0, 1.0)))
    prompts = ["two apples", "three apples", "red apples"]
    values = Numeracy(detector=detector)(torch.full((3, 3, 32, 32), 0.5), [Task(id=p, prompt=p) for p in prompts])
    assert values[:2].tolist() == [1.0, 0.5] and math.isnan(values[2])
    assert detector.asked == [["apple"], ["apple"]]
    unknown = Numeracy(detector=Found(None))(torch.zeros(1, 3, 8, 8), [Task(id="0", prompt="two apples")])
    assert unknown.isnan().all()
    assert Numeracy(detector=detector).described == "detections by found"


def test_every_prompt_of_the_benchmark_is_read_in_full(released):
    """But for things that are none of its own, as in "three camels shared a burger"."""
    for prompt in released("t2i_compbench", "numeracy_val.txt").read_text().splitlines():
        numbers = [NUMBERS[word] for word in prompt.replace(",", " ").split() if word in NUMBERS and word not in ("a", "an")]
        found = [number for _, number in counted(prompt)]
        assert [number for number in found if number > 1] == [number for number in numbers if number > 1], prompt
        assert found, prompt
