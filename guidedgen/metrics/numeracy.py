"""The numeracy score of T2I-CompBench++: are there as many of each thing in the picture as the prompt says?

    score = sum over things of (found + (found and as many)) / (2 number of things)

As Karine-Huang/T2I-CompBench, UniDet_eval/numeracy_eval.py, which detects with UniDet (R50). A thing is a word of THINGS, one of
them or several, right after a number from a to eight; it is detected under another name where LABELS has one. Boxes of one label
that nearly cover each other (intersection over union, or over either area, above 0.9) count once. Where nothing has a thing's
label, everything does whose label has it for a part ("teddy bear" is a bear). The released code stops with an error where a prompt
has no such thing; here the picture scores NaN, which leaves it out.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from guidedgen.basics.images import Box, Detection
from guidedgen.basics.tasks import Task
from guidedgen.metrics.spatial import check_tasks, detected
from guidedgen.zoo import Detector

NUMBERS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8}
# The benchmark's things (examples/dataset/new_objects.txt), and the plurals that do not end in s alone.
THINGS = tuple(
    """
    bottle cup cake bird knife microwave desk book helmet pillow bowl flag stool toy pen microphone bread fish camera candle paddle
    drum guitar tomato tent kite lemon strawberry suitcase pear printer duck hamburger deer egg ship chicken peach helicopter swan
    camel goldfish shrimp banana balloon giraffe frog horse man rabbit bicycle bee girl mouse painting lamp cow train vase pig sheep
    airplane woman phone boy plate computer couch turtle bag car backpack dog television butterfly cat person table sofa key
    refrigerator clock chair truck boat bear sink apple
    """.split()
)
PLURALS = {
    "knife": "knives", "fish": "fish", "tomato": "tomatoes", "strawberry": "strawberries", "deer": "deer", "peach": "peaches",
    "goldfish": "goldfish", "shrimp": "shrimp", "man": "men", "mouse": "mice", "sheep": "sheep", "woman": "women",
    "couch": "couches", "butterfly": "butterflies", "person": "people",
}  # fmt: skip
LABELS = {
    "boy": "person", "girl": "person", "man": "person", "woman": "person", "ship": "boat", "goldfish": "fish",
    "painting": "picture",
}  # fmt: skip
_SINGULAR = {word: thing for thing in THINGS for word in (thing, PLURALS.get(thing, f"{thing}s"))}
_SAME = 0.9  # share of two boxes that makes them one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numeracy:
    """A Reward without gradients. A prompt without a counted thing scores NaN, and so does a picture that the detector knows
    nothing of.
    """

    detector: Detector

    differentiable = False

    @property
    def networks(self) -> tuple[str, ...]:
        """The name of the detector."""
        return (self.detector.name,)

    @property
    def described(self) -> str:
        """What else the numbers depend on."""
        return f"detections by {self.detector.name}"

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1], one task per image -> scores b, from 0 to 1, or NaN."""
        check_tasks(images, tasks, "numeracy")
        asked = {i: things for i, task in enumerate(tasks) if (things := counted(task.prompt))}
        scores = images.new_full((len(images),), float("nan"), dtype=torch.float32)
        for i, placed in detected(self.detector, images, {i: [label for label, _ in things] for i, things in asked.items()}):
            scores[i] = score(asked[i], placed)
        return scores


def counted(prompt: str) -> list[tuple[str, int]]:
    """The labels of the things that a prompt counts, and how many there are to be."""
    words = re.findall(r"\w+", prompt)
    found = []
    for number, word in itertools.pairwise(words):
        if number in NUMBERS and word in _SINGULAR:
            thing = _SINGULAR[word]
            found.append((LABELS.get(thing, thing), NUMBERS[number]))
    return found


def score(things: Sequence[tuple[str, int]], detections: Sequence[Detection]) -> float:
    """The score of one picture from what was found in it, boxes in px."""
    labels = [label for label, _ in _distinct(detections)]
    total = 0.0
    for thing, number in things:
        if thing not in labels:
            labels = [thing if thing in label else label for label in labels]
        count = labels.count(thing)
        total += (0.5 if count else 0.0) + (0.5 if count and count == number else 0.0)
    return total / len(things)


def _distinct(detections: Sequence[Detection]) -> list[tuple[str, Box]]:
    """Labels and boxes without those that repeat an earlier one of their label."""
    kept: list[tuple[str, Box]] = []
    for label, _, box in detections:
        if not any(label == other and _same(box, earlier) for other, earlier in kept):
            kept.append((label, box))
    return kept


def _same(box_1: Box, box_2: Box) -> bool:
    """Whether two boxes nearly cover each other, or one the other; the pixels at their edges count, as in the released code."""
    across, down = (max(0.0, min(box_1[i + 2], box_2[i + 2]) - max(box_1[i], box_2[i]) + 1) for i in (0, 1))
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (box_1, box_2)]
    return across * down / min(areas) > _SAME  # which is above both other shares
