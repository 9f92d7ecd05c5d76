"""The 3-D spatial score of T2I-CompBench++: does one thing stand in front of, or behind, the other, by their depths?

    score = (confidence_1 + confidence_2) / 4 + relation / 2, or a quarter of the one confidence where one is found

As Karine-Huang/T2I-CompBench, UniDet_eval/3D_spatial_eval.py, which detects with UniDet (RS200) and measures depth with DPT
(hybrid, MiDaS). A relation holds if the mean depth over the one box is on the right side of that over the other, as far as the
boxes overlap: wholly from an intersection over union of 0.5 on, not at all where they do not. What the released code does is kept,
also where it is odd:

1. A box's part of the depth map is cut out with its axes swapped: rows from its left to its right, columns from its top to its
   bottom. On a square picture that is the depth of the box mirrored at the diagonal.
2. A thing is matched by its name as a part of a label. Labels are read until both things have been met; of each, the last one met
   counts.
3. A low score stays what it is; the 2-D one is 0 below 0.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics.images import Box, Detection
from guidedgen.basics.tasks import Task
from guidedgen.metrics.noun_phrases import Parser
from guidedgen.metrics.spatial import PEOPLE, check_tasks, detected, iou, size_of
from guidedgen.zoo import DepthEstimator, Detector

RELATIONS = {"in front of": 1, "behind": -1, "hidden": -1}  # looked for in this order; the sign of how much nearer the first is
_WHOLE = 0.5  # intersection over union from which on a relation holds wholly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spatial3d:
    """A Reward without gradients. A prompt without such a relation, or without nouns, scores NaN, which leaves it out, and so does
    a picture that the detector knows nothing of.
    """

    detector: Detector
    depth: DepthEstimator
    parser: Parser

    differentiable = False

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of the detector and of what measures depth."""
        return (self.detector.name, self.depth.name)

    @property
    def described(self) -> str:
        """What else the numbers depend on."""
        return f"detections by {self.detector.name}; depth by {self.depth.name}; nouns by {self.parser.name}"

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1], one task per image -> scores b, from 0 to 1, or NaN."""
        check_tasks(images, tasks, "spatial_3d")
        asked = {i: read for i, task in enumerate(tasks) if (read := self._read(task.prompt))}
        scores = images.new_full((len(images),), float("nan"), dtype=torch.float32)
        if asked:
            size = [round(side) for side in size_of(images)]
            with torch.no_grad():
                depth = self.depth(images[list(asked)])[:, None]
                near = F.interpolate(depth, size, mode="bilinear", antialias=True)[:, 0].cpu()
            nearness = dict(zip(asked, near, strict=True))
            for i, placed in detected(self.detector, images, {i: things for i, (_, things) in asked.items()}):
                scores[i] = score(*asked[i], placed, nearness[i])
        return scores

    def _read(self, prompt: str) -> tuple[int, list[str]] | None:
        """The sign of the prompt's relation, and the things related: its first and its last noun."""
        sign = next((sign for phrase, sign in RELATIONS.items() if phrase in prompt), None)
        nouns = [word for word, tag in self.parser.tags(prompt) if tag == "NOUN"]
        if sign is None or not nouns:
            return None
        return sign, ["person" if noun in PEOPLE else noun for noun in (nouns[0], nouns[-1])]


def score(sign: int, things: Sequence[str], detections: Sequence[Detection], nearness: Tensor) -> float:
    """The score of one picture from what was found in it, boxes in px, and its nearness H W, larger where nearer."""
    at: list[int | None] = [None, None]
    for i, (label, _, _) in enumerate(detections):
        at = [i if thing in label else before for thing, before in zip(things, at, strict=True)]
        if None not in at:
            break
    found = [detections[i] for i in at if i is not None]
    if len(found) < 2:  # the first that matches, not the last
        first = next((detection for detection in detections if any(thing in detection[0] for thing in things)), None)
        return 0.0 if first is None else 0.25 * first[1]
    (_, sure_1, box_1), (_, sure_2, box_2) = found
    return 0.25 * sure_1 + 0.25 * sure_2 + holds(sign, box_1, box_2, nearness) / 2


def holds(sign: int, box_1: Box, box_2: Box, nearness: Tensor) -> float:
    """How far, from 0 to 1, the thing in box 1 is nearer than (1) or behind (-1) the one in box 2; boxes in px."""
    mean_1, mean_2 = (
        nearness[int(left) : int(right), int(top) : int(bottom)].mean() for left, top, right, bottom in (box_1, box_2)
    )
    if not sign * (mean_1 - mean_2) > 0:  # of nothing the mean is NaN
        return 0.0
    return min(1.0, iou(box_1, box_2) / _WHOLE)
