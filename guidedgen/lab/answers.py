"""Questions about lab pictures, answered from the scene classifier's probabilities; and the same reading as a detector.

A question asks whether such a thing is there, whatever else is: "a red circle?", "the blue striped square?", "a circle to the left
of a square?", "a white background?". Of log-odds l_1 ... l_m of what has to hold, taken as independent, those of all of it are

    log p - log(1 - p) = s - log(1 - exp(s)),    s = sum_i log sigmoid(l_i)                                                 (1)

which loses no digits where p is near 0 or 1, so that its gradient does not vanish where the classifier is sure.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics.images import Detection
from guidedgen.lab.captions import Description, Thing, parse
from guidedgen.lab.judge import relation_odds, shipped_classifier
from guidedgen.lab.networks import WEIGHTS, Reading
from guidedgen.lab.world import BACKGROUNDS, COLOURS, SHAPES, SIZE, SIZES, TEXTURES

_COLOURS, _BACKGROUNDS = tuple(COLOURS), tuple(BACKGROUNDS)
_ORDER = {word: position for position, words in enumerate((SIZES, TEXTURES, COLOURS)) for word in words}
_RADII = (9.0, 11.0, 13.0)  # px, by size: between those of one object and of three


class SceneAnswers:
    """A Vqa, differentiable, that knows what the classifier reads: at most one object of each shape.

    Where several objects could be what is asked for, the one that fits best counts. A question that is no thing, and no things with
    a relation, of the lab's grammar has log-odds NaN. The network is the one that `scene` judges by.
    """

    name = "lab-classifier"
    files = (WEIGHTS / "classifier.safetensors",)
    differentiable = True

    def __init__(self, *, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    def __call__(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """b 3 H W in [0, 1], one question each -> log-odds of yes, b."""
        reading = _read(images, self.device, self.name)
        odds = [_answer(reading, i, description) for i, description in enumerate(map(understand, questions))]
        return torch.stack(odds).to(images.device)


class SceneDetector:
    """A detector of the lab's shapes: each that the classifier finds at least as likely as not is one detection.

    Labels are shapes ("circle", "shape"), or things ("red circle"), whose odds then count as a whole. The confidence is the
    probability that the thing is there; the box is a square about the classifier's centre, of twice the radius of the size that
    it reads: 9, 11 and 13 px for small, medium and large on 64 px. Of rendered scenes of one, two and three objects it finds all,
    and meets their boxes to an intersection over union of 0.66, 0.88 and 0.61 on average.
    """

    name = "lab-classifier"
    files = (WEIGHTS / "classifier.safetensors",)

    def __init__(self, *, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    def __call__(self, images: Tensor, labels: Sequence[Sequence[str]]) -> list[list[Detection] | None]:
        """b 3 H W in [0, 1] and what is looked for in each -> what is found in each, the most confident first. Labels that are no
        things are not found.
        """
        with torch.no_grad():
            reading = _read(images, self.device, self.name)
        found: list[list[Detection] | None] = []
        for i, names in enumerate(labels):
            things = {
                name: description.things[0]
                for name in names
                if (description := understand(name)) is not None and description.things
            }
            boxes = _boxes(reading, i)
            kept = [
                (name, confidence, boxes[k])
                for name, thing in things.items()
                for k, confidence in zip(_candidates(thing), _thing_odds(reading, i, thing).sigmoid().tolist(), strict=True)
                if confidence >= 0.5
            ]
            found.append(sorted(kept, key=lambda detection: -detection[1]))
        return found


@functools.lru_cache(maxsize=4096)
def understand(question: str) -> Description | None:
    """What a question asks for, or None where it is no thing or things of the lab's grammar. Of a background alone, no things.

    "the" and no article stand for "a", and adjectives come in any order.
    """
    words = question.lower().rstrip("?. ").split()
    background = re.fullmatch(rf"(?:an? |the )?({'|'.join(BACKGROUNDS)}) background", " ".join(words))
    if background:
        return Description((), background=background[1])
    if words and words[0] not in ("a", "an", "the"):
        words = ["a", *words]
    sides = ("left", "right")
    plain = [
        "a" if word == "the" and words[i + 1 : i + 2][0:1] not in ([s] for s in sides) else word for i, word in enumerate(words)
    ]
    runs = [list(run) for _, run in itertools.groupby(plain, lambda word: word in _ORDER)]
    return parse(" ".join(word for run in runs for word in sorted(run, key=lambda word: _ORDER.get(word, 0))))


def _read(images: Tensor, device: torch.device, who: str) -> Reading:
    pixels = pictures.check(images, who).to(device, torch.float32)
    return shipped_classifier(device)(pictures.resize(pixels, SIZE))


def _answer(reading: Reading, i: int, description: Description | None) -> Tensor:
    """Log-odds that a description is true of image i."""
    if description is None:
        return reading.shape.new_full((), float("nan"))
    parts = [] if description.background is None else [_odds(reading.background[i], _BACKGROUNDS.index(description.background))]
    if description.things:
        parts.append(_things_odds(reading, i, description))
    return _all_of(torch.stack(parts))


def _things_odds(reading: Reading, i: int, description: Description) -> Tensor:
    """Log-odds that image i has these things, different ones, in this relation: of the objects that fit best."""
    choices = [choice for choice in itertools.product(*map(_candidates, description.things)) if len(set(choice)) == len(choice)]
    if not choices:
        return reading.shape.new_full((), float("nan"))
    odds = torch.stack([_spread(reading, i, thing) for thing in description.things])  # m k
    chosen = torch.tensor(choices, device=odds.device)  # c m
    parts = odds.gather(1, chosen.T)  # m c
    if description.relation:
        offsets = reading.centre[i, chosen[:, 0]] - reading.centre[i, chosen[:, 1]]
        parts = torch.cat([parts, relation_odds(description.relation, offsets)[None]])
    return _all_of(parts).amax()


def _candidates(thing: Thing) -> Sequence[int]:
    """The shapes, by index, that a thing may be."""
    return [SHAPES.index(thing.shape)] if thing.shape else range(len(SHAPES))


def _spread(reading: Reading, i: int, thing: Thing) -> Tensor:
    """Log-odds, k, that the object of each shape is the thing; of shapes that it cannot be they are not used."""
    parts = [reading.shape[i]]
    if thing.colour:
        parts.append(_odds(reading.colour[i], _COLOURS.index(thing.colour)))
    if thing.texture:
        parts.append(_odds(reading.texture[i], TEXTURES.index(thing.texture)))
    if thing.size:
        parts.append(_odds(reading.size[i], SIZES.index(thing.size)))
    return _all_of(torch.stack(parts))


def _thing_odds(reading: Reading, i: int, thing: Thing) -> Tensor:
    """Log-odds of the candidates alone."""
    return _spread(reading, i, thing)[list(_candidates(thing))]


def _odds(logits: Tensor, which: int) -> Tensor:
    """Log-odds of one class against the others, along the last axis."""
    others = torch.cat([logits[..., :which], logits[..., which + 1 :]], -1)
    return logits[..., which] - others.logsumexp(-1)


def _all_of(odds: Tensor) -> Tensor:
    """Equation (1), along the first axis."""
    s = F.logsigmoid(odds).sum(0).clamp(max=-1e-30)
    return s - torch.log(-torch.expm1(s))


def _boxes(reading: Reading, i: int) -> list[tuple[float, float, float, float]]:
    """A box for each shape of image i, as shares of the sides."""
    radii = reading.size[i].softmax(-1) @ reading.size.new_tensor(_RADII)
    corners = torch.cat([reading.centre[i] - radii[:, None], reading.centre[i] + radii[:, None]], 1) / SIZE
    return [(left, top, right, bottom) for left, top, right, bottom in corners.clamp(0, 1).tolist()]
