"""The 2-D spatial score of T2I-CompBench: do the two things that a prompt relates stand so in the picture?

    score = (confidence_1 + confidence_2) / 4 + relation / 2, or a quarter of the one confidence where one is found; 0 below 0.5

As Karine-Huang/T2I-CompBench, UniDet_eval/2D_spatial_eval.py, which detects with UniDet (RS200, confidences above 0.5). Another
detector has other confidences, which are half of the score: its numbers are no substitute, and its metric has another name. What
the released code does is kept, also where it is odd:

1. A relation is the first of RELATIONS that is a substring of the prompt. "on top of" has no rule: 33 of the 300 complex prompts
   score at most 0.5, and 0 unless both confidences are 1.
2. Things are nouns, without their attributes: the first and the last of the prompt, or in complex prompts those around a phrase of
   AROUND, of which exactly two must be found. girl, boy, man and woman are detected as person.
3. A thing is the first, most confident, detection of its label. Where a prompt relates a thing to its like, both are the same one.
4. "next to" holds where the centres are within 150 px along either axis, on a picture whose shorter side is 479 px.

It stops with an error where a prompt has no noun or boxes have no area; here the one scores 0, and the other have no overlap.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from guidedgen.basics.images import Box, Detection, check
from guidedgen.basics.tasks import Task
from guidedgen.metrics.noun_phrases import Parser
from guidedgen.zoo import Detector

# What is looked for in a prompt, in this order, and the relation that it is.
RELATIONS = {
    phrase: phrase
    for phrase in (
        "on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", "on the top of", "on top of",
    )
}  # fmt: skip
AROUND = ("on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near")
PEOPLE = ("girl", "boy", "man", "woman")
_SHORT, _LONG = 479, 480  # px: Resize(size=479, max_size=480)
_NEAR = 150.0  # px
_OVERLAP = 0.1  # intersection over union from which on a relation counts less


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spatial:
    """A Reward without gradients. A prompt without a relation scores NaN, which leaves it out, and so does a picture that the
    detector knows nothing of.

    Tasks whose category begins with "complex" are read as the benchmark reads its complex prompts. `relations` and `around` are the
    phrases of another grammar, each relation with the one of RELATIONS that it means.
    """

    detector: Detector
    parser: Parser
    relations: Mapping[str, str] = dataclasses.field(default_factory=lambda: RELATIONS)
    around: Sequence[str] = AROUND

    differentiable = False

    @property
    def networks(self) -> tuple[str, ...]:
        """The name of the detector."""
        return (self.detector.name,)

    @property
    def described(self) -> str:
        """What else the numbers depend on."""
        return f"detections by {self.detector.name}; nouns by {self.parser.name}"

    def relates(self, task: Task) -> bool:
        """Whether the prompt has a relation that is read; without one its score is NaN."""
        return self._relation(task.prompt) is not None

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1], one task per image -> scores b, 0 or 0.5 to 1, or NaN."""
        check_tasks(images, tasks, "spatial")
        asked = {i: (relation, self._things(task)) for i, task in enumerate(tasks) if (relation := self._relation(task.prompt))}
        scores = images.new_full((len(images),), float("nan"), dtype=torch.float32)
        for i, placed in detected(self.detector, images, {i: things for i, (_, things) in asked.items()}):
            scores[i] = score(*asked[i], placed)
        return scores

    def _relation(self, prompt: str) -> str | None:
        return next((relation for phrase, relation in self.relations.items() if phrase in prompt), None)

    def _things(self, task: Task) -> Sequence[str]:
        tags = self.parser.tags(task.prompt)
        if task.category.startswith("complex"):
            things = around(tags, self.around)
        else:
            nouns = [word for word, tag in tags if tag == "NOUN"]
            things = [nouns[0], nouns[-1]] if nouns else []
        return ["person" if thing in PEOPLE else thing for thing in things]


def around(tags: Sequence[tuple[str, str]], phrases: Sequence[str]) -> list[str]:
    """The noun before and the noun after the phrase, of tagged words; nothing unless they are two in all.

    Before, a proper noun serves too; after, where there is no noun, the last word of the first proper name.
    """
    words = [word for word, _ in tags]
    things: list[str] = []
    for start in range(len(words)):
        ends = [start + n for n in (5, 4, 3, 2, 1) if " ".join(words[start : start + n]) in phrases]
        if ends:
            before = (word for word, tag in reversed(tags[:start]) if tag in ("NOUN", "PROPN"))
            rest = tags[ends[0] :]
            after = [word for word, tag in rest if tag == "NOUN"]
            after = after or [word for (word, tag), (_, tag_2) in itertools.pairwise(rest) if tag == "PROPN" != tag_2]
            things += [*list(before)[:1], *after[:1]]
    return things if len(things) == 2 else []


def score(relation: str, things: Sequence[str], detections: Sequence[Detection]) -> float:
    """The score of one picture from what was found in it, boxes in px; `things` are two labels, or none."""
    firsts = {label: (confidence, box) for label, confidence, box in reversed(detections)}
    found = [firsts[thing] for thing in things if thing in firsts]
    total = sum(0.25 * confidence for confidence, _ in found[:2])
    if len(found) == 2:
        total += holds(relation, found[0][1], found[1][1]) / 2
    return total if total >= 0.5 else 0.0


def holds(relation: str, box_1: Box, box_2: Box) -> float:
    """How far, from 0 to 1, the thing in box 1 stands to the one in box 2 as asked; boxes in px."""
    dx, dy = ((box_2[i] + box_2[i + 2] - box_1[i] - box_1[i + 2]) / 2 for i in (0, 1))
    if relation in ("next to", "on side of", "near"):
        return 1.0 if abs(dx) < _NEAR or abs(dy) < _NEAR else _NEAR / max(abs(dx), abs(dy))
    along = {"on the left of": dx, "on the right of": -dx, "on the top of": dy, "on the bottom of": -dy}.get(relation, 0.0)
    across = abs(dy if relation in ("on the left of", "on the right of") else dx)
    if along <= across:
        return 0.0
    overlap = iou(box_1, box_2)
    return 1.0 if overlap < _OVERLAP else _OVERLAP / overlap


def iou(box_1: Box, box_2: Box) -> float:
    """Intersection over union of two boxes."""
    sides = (max(0.0, min(box_1[i + 2], box_2[i + 2]) - max(box_1[i], box_2[i])) for i in (0, 1))
    shared = next(sides) * next(sides)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (box_1, box_2)) - shared
    return shared / union if union else 0.0


def check_tasks(images: Tensor, tasks: Sequence[Task], name: str) -> None:
    """Raises ValueError where these are no images, or not one per task, for the metric of this name."""
    if len(tasks) != len(check(images, name)):
        raise ValueError(f"{name}: {len(images)} images for {len(tasks)} tasks")


def detected(detector: Detector, images: Tensor, things: Mapping[int, Sequence[str]]) -> Iterator[tuple[int, Sequence[Detection]]]:
    """What is found of the things that are asked of some of the images, by their numbers, boxes in px of the size at which the
    benchmark detects. Images that the detector knows nothing of are left out.
    """
    if not things:
        return
    height, width = size_of(images)
    with torch.no_grad():
        found = detector(images[list(things)], [list(dict.fromkeys(names)) for names in things.values()])
    for i, detections in zip(things, found, strict=True):
        if detections is not None:
            yield i, [(label, confidence, _scaled(box, width, height)) for label, confidence, box in detections]


def size_of(images: Tensor) -> tuple[float, float]:
    """Height and width in px at which the benchmark detects."""
    height, width = images.shape[-2:]
    scale = min(_SHORT / min(height, width), _LONG / max(height, width))
    return height * scale, width * scale


def _scaled(box: Box, width: float, height: float) -> Box:
    left, top, right, bottom = box
    return left * width, top * height, right * width, bottom * height
