"""Verdicts on readings made by hand, and the log-score's exact values and gradients."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from guidedgen.basics.tasks import Task
from guidedgen.lab import captions, judge
from guidedgen.lab.captions import Description, Thing
from guidedgen.lab.judge import RELATION_SCALE, SceneAccuracy, Verdict, log_score, verdict
from guidedgen.lab.networks import Reading, SceneClassifier
from guidedgen.lab.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, SLOTS, TEXTURES
from guidedgen.rewards import Reward

Object = tuple[str, str, str, tuple[float, float]]  # colour, shape, texture, centre
RED: Object = ("red", "circle", "solid", (16.0, 32.0))
BLUE: Object = ("blue", "star", "striped", (48.0, 30.0))
GREEN: Object = ("green", "heart", "solid", (30.0, 50.0))


def reading(objects: Sequence[Object], count: int | None = None, background: str = "white", sure: float = 20.0) -> Reading:
    """What a classifier that is `sure` (in logits) would read off one picture of these objects."""
    k = len(SHAPES)
    shape, centre = torch.full((1, k), -sure), torch.full((1, k, 2), 32.0)
    colour, texture = torch.zeros(1, k, len(COLOURS)), torch.zeros(1, k, len(TEXTURES))
    counted, behind = torch.zeros(1, SLOTS + 1), torch.zeros(1, len(BACKGROUNDS))
    for name, kind, pattern, where in objects:
        i = SHAPES.index(kind)
        shape[0, i], centre[0, i] = sure, torch.tensor(where)
        colour[0, i, list(COLOURS).index(name)] = sure
        texture[0, i, TEXTURES.index(pattern)] = sure
    counted[0, len(objects) if count is None else count] = sure
    behind[0, list(BACKGROUNDS).index(background)] = sure
    return Reading(
        shape=shape, colour=colour, texture=texture, size=torch.zeros(1, k, len(SIZES)), centre=centre, count=counted,
        background=behind,
    )  # fmt: skip


class Fixed(nn.Module):
    """A classifier that reads the same off every picture, and remembers the sizes of its batches."""

    def __init__(self, read: Reading) -> None:
        super().__init__()
        self.read, self.batches = read, list[tuple[int, ...]]()

    def forward(self, images: Tensor) -> Reading:
        self.batches.append(tuple(images.shape))
        names = Reading.__dataclass_fields__
        return Reading(
            **{name: getattr(self.read, name).expand(len(images), *[-1] * (getattr(self.read, name).ndim - 1)) for name in names}
        )


def rights(prompt: str, read: Reading) -> tuple[bool, bool, bool, bool]:
    """Objects, textures, relation, background."""
    said = captions.parse(prompt)
    assert said is not None
    found = verdict(read, [said])
    assert found.right.item() == (found.objects & found.textures & found.relation & found.background).item()
    return found.objects.item(), found.textures.item(), found.relation.item(), found.background.item()  # type: ignore[return-value]


PAIR = "a red circle to the left of a striped blue star on a white background"


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([RED, BLUE], (True, True, True, True)),
        ([("blue", *RED[1:]), ("red", *BLUE[1:])], (False, False, False, True)),  # colours traded: neither thing is there
        ([RED, BLUE, GREEN], (False, True, True, True)),  # one too many, but what was asked for is there
        ([RED], (False, False, False, True)),
        ([RED, (*BLUE[:2], "dotted", BLUE[3])], (True, False, True, True)),
        ([(*RED[:2], "striped", RED[3]), BLUE], (True, True, True, True)),  # an unasked texture is no mistake
        ([(*RED[:3], (60.0, 32.0)), BLUE], (True, True, False, True)),
    ],
)
def test_each_aspect(objects: list[Object], expected: tuple[bool, ...]) -> None:
    assert rights(PAIR, reading(objects)) == expected


def test_a_duplicate_that_only_the_count_shows_is_wrong() -> None:
    assert rights(PAIR, reading([RED, BLUE], count=3)) == (False, True, True, True)
    assert rights("a red circle", reading([RED], count=2))[0] is False
    assert rights("a red circle", reading([RED], count=1))[0] is True


def test_the_background() -> None:
    assert rights(PAIR, reading([RED, BLUE], background="gray")) == (True, True, True, False)
    assert rights("a red circle", reading([RED], background="black"))[3] is True


# Offset of the first object from the second, px, y downwards: the longer axis decides, a tie is sideways.
@pytest.mark.parametrize(
    ("offset", "relation"),
    [((-20, 5), "left"), ((20, -5), "right"), ((5, -20), "above"), ((-5, 20), "below"), ((-9, 9), "left"), ((9, -9), "right")],
)
def test_relations(offset: tuple[float, float], relation: str) -> None:
    first: Object = (*RED[:3], (32.0 + offset[0], 32.0 + offset[1]))
    read = reading([first, (*BLUE[:3], (32.0, 32.0))])
    things = (Thing("red", "circle"), Thing("blue", "star"))
    for name in ("left", "right", "above", "below"):
        assert verdict(read, [Description(things, name)]).relation.item() == (name == relation)
        turned = {"left": "right", "right": "left", "above": "below", "below": "above"}[name]
        assert verdict(read, [Description(things[::-1], turned)]).relation.item() == (name == relation)


def test_what_is_unsaid_may_be_anything() -> None:
    read = reading([RED, BLUE])
    assert rights("a circle and a blue shape", read)[0]
    assert rights("a shape and a shape", read)[0]
    assert not rights("a shape", read)[0]  # two are there
    assert not rights("a green shape and a star", read)[0]
    assert not rights("a red shape and a circle", read)[0]  # the same object cannot be both


def test_an_unsaid_thing_is_the_object_that_makes_most_right() -> None:
    read = reading([RED, BLUE])
    assert rights("a striped shape and a shape", read) == (True, True, True, True)
    assert rights("a shape to the right of a shape", read) == (True, True, True, True)
    assert rights("a striped shape to the left of a shape", read)[1:3] in ((True, False), (False, True))


def test_a_shape_named_twice_cannot_be_judged() -> None:
    twice = Description((Thing("red", "circle"), Thing("blue", "circle")))
    assert not judge.judgeable(twice)
    with pytest.raises(ValueError, match="named twice"):
        verdict(reading([RED]), [twice])
    with pytest.raises(ValueError, match="named twice"):
        log_score(torch.rand(1, 3, 64, 64), [twice], Fixed(reading([RED])))  # type: ignore[arg-type]


def test_images_are_resized_and_read_in_chunks() -> None:
    network = Fixed(reading([RED]))
    said = [Description((Thing("red", "circle"),)), Description((Thing("red", "star"),))] * 150
    found = judge.judge(torch.rand(300, 3, 16, 16), said, network)  # type: ignore[arg-type]
    assert network.batches == [(256, 3, 64, 64), (44, 3, 64, 64)]
    assert len(found) == 300
    assert found.right.tolist() == [True, False] * 150
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        judge.judge(torch.full((1, 3, 64, 64), -1.0), said[:1], network)  # type: ignore[arg-type]


def test_no_images_get_no_verdicts() -> None:
    found = verdict(Fixed(reading([RED]))(torch.rand(0, 3, 64, 64)), [])
    assert isinstance(found, Verdict)
    assert len(found) == 0


def test_scene_accuracy_scores_prompts_it_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "shipped_classifier", lambda device: Fixed(reading([RED])))
    prompts = ["a red circle", "an astronaut riding a horse", "a blue circle", "a red circle and a blue circle"]
    scorer = SceneAccuracy()
    scores = scorer(torch.rand(4, 3, 64, 64), [Task(id=str(i), prompt=p) for i, p in enumerate(prompts)])
    assert isinstance(scorer, Reward)
    assert not scorer.differentiable
    assert scorer.networks == ("lab-classifier",)
    torch.testing.assert_close(scores, torch.tensor([1.0, math.nan, 0.0, math.nan]), equal_nan=True)


def test_scene_accuracy_loads_nothing_before_it_has_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(device: torch.device) -> SceneClassifier:
        raise AssertionError("loaded")

    monkeypatch.setattr(judge, "shipped_classifier", load)
    assert SceneAccuracy()(torch.rand(1, 3, 64, 64), [Task(id="a", prompt="a photograph")]).isnan().all()


def score(prompt: str, read: Reading) -> float:
    said = captions.parse(prompt)
    assert said is not None
    return float(log_score(torch.rand(1, 3, 64, 64), [said], Fixed(read))[0])  # type: ignore[arg-type]


def test_the_log_score_of_an_undecided_reading() -> None:
    """All logits zero: every term is the logarithm of one over the number of choices."""
    blank = reading([], sure=0.0)
    looks = len(SHAPES) * math.log(1 / 2) + math.log(1 / (SLOTS + 1))
    assert score("a circle", blank) == pytest.approx(looks, rel=1e-5)
    assert score("a red circle", blank) == pytest.approx(looks + math.log(1 / 8), rel=1e-5)
    assert score("a dotted red circle on a white background", blank) == pytest.approx(looks + math.log(1 / 8 / 4 / 3), rel=1e-5)


@pytest.mark.parametrize(("offset", "margin"), [((-10.0, 4.0), 6.0), ((-10.0, -10.0), 0.0), ((3.0, 2.0), -5.0)])
def test_the_log_score_of_a_relation(offset: tuple[float, float], margin: float) -> None:
    read = reading([(*RED[:3], (32 + offset[0], 32 + offset[1])), (*BLUE[:3], (32.0, 32.0))])
    logistic = -math.log1p(math.exp(-margin / RELATION_SCALE))
    assert score("a red circle to the left of a blue star", read) == pytest.approx(logistic, abs=1e-5)


@pytest.mark.parametrize("prompt", [PAIR, "a red circle and a blue star", "a striped shape and a shape", "a shape above a star"])
def test_the_log_score_agrees_with_the_verdict(prompt: str) -> None:
    said = captions.parse(prompt)
    assert said is not None
    scenes = [[RED, BLUE], [RED, GREEN], [RED], [RED, BLUE, GREEN], [("blue", *RED[1:]), ("red", *BLUE[1:])]]
    for objects in scenes:
        right = verdict(reading(objects), [said]).right.item()
        probable = float(log_score(torch.rand(1, 3, 64, 64), [said], Fixed(reading(objects)))[0])  # type: ignore[arg-type]
        assert (probable > math.log(0.5)) == right


def test_the_log_score_is_differentiable_in_the_image() -> None:
    """The norm of its gradient is the slope measured by central differences along the gradient."""
    torch.manual_seed(0)
    network = SceneClassifier(width=4).eval().requires_grad_(False)
    image = (torch.rand(1, 3, 32, 32) * 0.8 + 0.1).requires_grad_()
    said = captions.parse("a striped red circle to the left of a blue star on a gray background")
    assert said is not None
    (gradient,) = torch.autograd.grad(log_score(image, [said], network).sum(), image)
    norm = gradient.norm().item()
    ahead, behind = (log_score(image.detach() + step * gradient / norm, [said], network).item() for step in (0.02, -0.02))
    assert norm > 0.01
    assert norm == pytest.approx((ahead - behind) / 0.04, rel=0.05)
