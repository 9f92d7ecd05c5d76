"""Whether a picture shows what its prompt asks for: verdicts of the scene classifier, and the lab's taste as a scorer.

The classifier reads at most one object per shape, so a description that names a shape twice cannot be judged. Sizes are not
judged: in a scene of two or three, small and large differ by a few pixels only.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics.tasks import Task
from guidedgen.lab import captions, taste
from guidedgen.lab.captions import Description, Thing
from guidedgen.lab.networks import WEIGHTS, Reading, SceneClassifier, load_classifier
from guidedgen.lab.world import BACKGROUNDS, COLOURS, SHAPES, SIZE, SLOTS, TEXTURES

_COLOURS, _BACKGROUNDS = tuple(COLOURS), tuple(BACKGROUNDS)
_CHUNK = 256
RELATION_SCALE = 3.0  # px; of the logistic that makes a relation a probability in `log_score`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is right about each of b images: bool tensors (b). An aspect that was not asked for counts as right."""

    objects: Tensor  # the objects present are those asked for, none missing, none more; colours where given
    textures: Tensor  # each texture asked for is on its object
    relation: Tensor  # the first object stands to the second as asked
    background: Tensor

    @property
    def right(self) -> Tensor:
        """Everything asked for: b, bool."""
        return self.objects & self.textures & self.relation & self.background

    def __len__(self) -> int:
        return len(self.objects)


def judgeable(description: Description) -> bool:
    """Whether no shape is named twice and there are no more things than a scene holds."""
    named = [thing.shape for thing in description.things if thing.shape]
    return len(set(named)) == len(named) and len(description.things) <= SLOTS


def judge(images: Tensor, descriptions: Sequence[Description], classifier: SceneClassifier | None = None) -> Verdict:
    """Verdicts on images (b 3 H W in [0, 1]), one description each, by the shipped classifier unless another is given.

    Raises:
        ValueError: the images are not images, or a description is not `judgeable`.
    """
    pictures.check(images, "judge")
    network = shipped_classifier(images.device) if classifier is None else classifier
    verdicts = []
    with torch.no_grad():
        for start in range(0, len(images), _CHUNK):
            reading = network(pictures.resize(images[start : start + _CHUNK], SIZE).float())
            verdicts.append(verdict(reading, descriptions[start : start + _CHUNK]))
    names = [field.name for field in dataclasses.fields(Verdict)]
    return Verdict(**{name: torch.cat([getattr(v, name) for v in verdicts]) for name in names})


def verdict(reading: Reading, descriptions: Sequence[Description]) -> Verdict:
    """The verdicts that follow from a reading of b images, on its device.

    Raises:
        ValueError: a description is not `judgeable`, or their number is not b.
    """
    chosen = (
        (reading.shape > 0).tolist(), reading.colour.argmax(-1).tolist(), reading.texture.argmax(-1).tolist(),
        reading.centre.tolist(), reading.count.argmax(-1).tolist(), reading.background.argmax(-1).tolist(),
    )  # fmt: skip
    rows = [_judge_one(*row) for row in zip(descriptions, *chosen, strict=True)]
    columns = torch.tensor(rows, dtype=torch.bool, device=reading.shape.device).reshape(-1, 4).unbind(1)
    return Verdict(objects=columns[0], textures=columns[1], relation=columns[2], background=columns[3])


def _judge_one(
    description: Description,
    present: list[bool],
    colour: list[int],
    texture: list[int],
    centre: list[list[float]],
    count: int,
    background: int,
) -> tuple[bool, bool, bool, bool]:
    """Objects, textures, relation and background of one image. Where a thing could be several objects, the best choice counts."""
    if not judgeable(description):
        raise ValueError(f"a shape is named twice, which the classifier cannot read: {str(description)!r}")
    things = description.things
    background_right = description.background is None or _BACKGROUNDS[background] == description.background
    exact = sum(present) == count == len(things)
    found = [k for k, there in enumerate(present) if there]
    candidates = [[k for k in found if _fits(thing, SHAPES[k], _COLOURS[colour[k]])] for thing in things]
    best = (False, all(thing.texture is None for thing in things), description.relation is None)  # where something is missing
    for choice in _distinct(candidates):
        textures = all(t.texture in (None, TEXTURES[texture[k]]) for t, k in zip(things, choice, strict=True))
        relation = description.relation is None or stands(description.relation, centre[choice[0]], centre[choice[1]])
        best = max(best, (exact, textures, relation), key=lambda rights: (rights[0], sum(rights)))
    return (*best, background_right)


def _distinct(candidates: list[list[int]]) -> Iterator[tuple[int, ...]]:
    """Every way to give each thing one of its candidates, none to two of them."""
    return (choice for choice in itertools.product(*candidates) if len(set(choice)) == len(choice))


def _fits(thing: Thing, shape: str, colour: str) -> bool:
    return thing.shape in (None, shape) and thing.colour in (None, colour)


def stands(relation: str, a: list[float], b: list[float]) -> bool:
    """Whether an object at a (x, y in px, y downwards) is left of, right of, above or below one at b: the longer axis decides."""
    dx, dy = a[0] - b[0], a[1] - b[1]
    if abs(dx) >= abs(dy):
        return relation == ("left" if dx < 0 else "right")
    return relation == ("above" if dy < 0 else "below")


def log_score(images: Tensor, descriptions: Sequence[Description], classifier: SceneClassifier) -> Tensor:
    """How probable the classifier finds all that is asked for, b in (-inf, 0], differentiable in images (b 3 H W in [0, 1]).

    The sum of log p over: each thing's shape, colour and texture where given; the absence of every shape not asked for; the
    number of objects; the background; and the relation, log sigmoid((d - |a|) / RELATION_SCALE) with d the distance in px in
    the direction asked for and a the one across. A thing without a shape is the one that fits best.

    Raises:
        ValueError: the images are not images, or a description is not `judgeable`.
    """
    reading = classifier(pictures.resize(pictures.check(images, "log_score"), SIZE).float())
    rows = [_log_score_one(reading, i, description) for i, description in enumerate(descriptions)]
    return torch.stack(rows)


def _log_score_one(reading: Reading, i: int, description: Description) -> Tensor:
    if not judgeable(description):
        raise ValueError(f"a shape is named twice, which the classifier cannot read: {str(description)!r}")
    things = description.things
    there, absent = F.logsigmoid(reading.shape[i]), F.logsigmoid(-reading.shape[i])  # k
    colour, texture = reading.colour[i].log_softmax(-1), reading.texture[i].log_softmax(-1)  # k COLOURS, k TEXTURES

    every = absent.sum()
    every = every + reading.count[i].log_softmax(-1)[len(things)]
    if description.background:
        every = every + reading.background[i].log_softmax(-1)[_BACKGROUNDS.index(description.background)]

    fit = []  # per thing: k, what is gained where it is the object of shape k
    for thing in things:
        gain = there - absent
        gain = gain + colour[:, _COLOURS.index(thing.colour)] if thing.colour else gain
        gain = gain + texture[:, TEXTURES.index(thing.texture)] if thing.texture else gain
        fit.append(gain)
    candidates = [[SHAPES.index(thing.shape)] if thing.shape else list(range(len(SHAPES))) for thing in things]

    def total(choice: tuple[int, ...]) -> Tensor:
        score = every + torch.stack([gain[k] for gain, k in zip(fit, choice, strict=True)]).sum()
        if description.relation:
            offset = reading.centre[i, choice[0]] - reading.centre[i, choice[1]]
            score = score + F.logsigmoid(relation_odds(description.relation, offset))
        return score

    return torch.stack([total(choice) for choice in _distinct(candidates)]).amax()


def relation_odds(relation: str, offset: Tensor) -> Tensor:
    """Log-odds (...) that an object stands so to another, given its offset from it (... 2, px): zero on the diagonals."""
    dx, dy = offset.unbind(-1)
    along, across = {"left": (-dx, dy), "right": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]
    return (along - across.abs()) / RELATION_SCALE


@functools.cache
def shipped_classifier(device: torch.device) -> SceneClassifier:
    """The shipped classifier, loaded once per device."""
    return load_classifier().to(device)


class SceneAccuracy:
    """A reward that judges and does not guide: 1 where the image shows everything its prompt asks for, 0 elsewhere.

    Prompts outside the lab's grammar, or not `judgeable`, score NaN. The classifier is loaded at the first call.
    """

    differentiable = False
    networks = ("lab-classifier",)
    files = (WEIGHTS / "classifier.safetensors",)

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] -> b in {0, 1, NaN}, on the images' device."""
        pictures.check(images, "SceneAccuracy")
        parsed = [captions.parse(task.prompt) for task in tasks]
        score = images.new_full((len(images),), float("nan"))
        known = [(i, d) for i, d in enumerate(parsed) if d is not None and judgeable(d)]
        if known:
            rows = torch.tensor([i for i, _ in known], device=images.device)
            right = judge(images[rows].to(self.device), [d for _, d in known], shipped_classifier(self.device)).right
            score[rows] = right.to(score)
        return score


class TasteOracle:
    """A reward that judges and does not guide: the rating of `taste` itself, 1 to 10, of which the aesthetic head is a copy.

    Gradients would pass through the formula, but they are cut: a picture that was guided by the oracle cannot show whether
    guidance made it better or only fooled the head.
    """

    differentiable = False
    networks: tuple[str, ...] = ()

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] -> b in [1, 10]; prompts are not read."""
        del tasks
        return taste.rate(pictures.check(images, "TasteOracle").detach().float())
