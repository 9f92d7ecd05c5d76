"""The 2-D spatial score: golden values of the benchmark, its rules and its oddities one by one."""

import math

import pytest
import torch
from detections import Found

from guidedgen.basics.tasks import Task
from guidedgen.metrics.noun_phrases import Rules
from guidedgen.metrics.spatial import RELATIONS, Spatial, around, holds, score

SIDE = 479  # px, of a square picture


def box(x, y, half=20, side=SIDE):
    return tuple(edge / side for edge in (x - half, y - half, x + half, y + half))


def spatial(detector, prompt, category="spatial", side=32, **options):
    pictures = torch.full((1, 3, side, side), 0.5)
    return Spatial(detector=detector, parser=Rules(), **options)(pictures, [Task(id="0", prompt=prompt, category=category)]).item()


def test_golden_values(golden_metrics):
    for case in golden_metrics["unidet_relation"]:
        boxes = tuple(case["box1"]), tuple(case["box2"])
        assert holds(case["relation"], *boxes) == case["relation_score"]
        detections = [("a", 0.9, boxes[0]), ("b", 0.8, boxes[1])]
        assert score(case["relation"], ["a", "b"], detections) == pytest.approx(case["score_conf_0_9_0_8"], abs=1e-12)
        assert score(case["relation"], ["a", "b"], detections[:1]) == case["score_only_first"]


@pytest.mark.parametrize(
    ("relation", "offset", "expected"),
    [
        ("next to", (149, 400), 1), ("near", (400, -149), 1), ("on side of", (-150, 300), 0.5), ("next to", (200, -150), 0.75),
        ("on the left of", (80, 79), 1), ("on the left of", (80, 80), 0), ("on the left of", (-80, 0), 0),
        ("on the right of", (-80, 79), 1), ("on the right of", (80, 0), 0),
        ("on the top of", (79, 80), 1), ("on the top of", (0, -80), 0), ("on the bottom of", (79, -80), 1), ("on the bottom of", (0, 80), 0),
        ("on top of", (0, 80), 0), ("beside", (80, 0), 0),
    ],
)  # fmt: skip
def test_relations_of_centres(relation, offset, expected):
    """`offset` is from the first thing to the second; boxes are small."""
    first, second = (200, 200, 202, 202), tuple(200 + d + e for e in (0, 2) for d in offset)
    assert holds(relation, first, second) == pytest.approx(expected)


def test_overlap_weakens_a_relation():
    """Two boxes of 40 x 40, 20 apart: they share 20 x 40 of 60 x 40, so 0.1 / (1 / 3)."""
    assert holds("on the left of", (0, 0, 40, 40), (20, 0, 60, 40)) == pytest.approx(0.3)
    assert holds("on the left of", (0, 0, 40, 40), (20, 1, 60, 41)) == pytest.approx(0.1 * (3200 - 780) / 780)
    assert holds("on the left of", (0, 0, 40, 40), (35, 0, 75, 40)) == 1  # 200 of 3000: below a tenth
    assert holds("on the left of", (5, 5, 5, 5), (9, 5, 9, 5)) == 1  # without area there is no overlap


def test_score_by_its_parts():
    left, right = ("cat", 0.7, (0, 0, 40, 40)), ("dog", 0.6, (200, 0, 240, 40))
    assert score("on the left of", ["cat", "dog"], [left, right]) == pytest.approx(0.25 * 0.7 + 0.25 * 0.6 + 0.5)
    assert score("on the right of", ["cat", "dog"], [left, right]) == 0  # 0.325 is below a half
    assert score("on the right of", ["cat", "dog"], [("cat", 1.0, left[2]), ("dog", 1.0, right[2])]) == 0.5
    assert score("on the left of", ["cat", "dog"], []) == score("on the left of", [], [left, right]) == 0
    assert score("near", ["cat", "cat"], [left]) == pytest.approx(0.5 * 0.7 + 0.5)  # a thing and its like are the same one


def test_the_first_detection_of_a_label_counts():
    detections = [("dog", 0.9, (200, 0, 240, 40)), ("cat", 0.8, (0, 0, 40, 40)), ("cat", 0.7, (400, 0, 440, 40))]
    assert score("on the left of", ["cat", "dog"], detections) == pytest.approx(0.925)


def test_things_and_relation_are_read_from_the_prompt():
    detector = Found(("cat", 0.9, box(100, 200)), ("car", 0.8, box(300, 210)))
    assert spatial(detector, "a black cat on the left of a car") == pytest.approx(0.925)
    assert spatial(detector, "a car on the right of a black cat") == pytest.approx(0.925)
    assert spatial(detector, "a car on the left of a cat") == 0
    assert detector.asked == [["cat", "car"], ["car", "cat"], ["car", "cat"]]


def test_people_are_persons():
    detector = Found(("person", 0.9, box(100, 200)), ("dog", 0.8, box(200, 210)))
    assert spatial(detector, "a girl next to a dog") == pytest.approx(0.925)
    assert spatial(detector, "a woman near a man") == pytest.approx(0.95)
    assert detector.asked == [["person", "dog"], ["person"]]


def test_a_prompt_without_a_relation_is_left_out():
    detector = Found()
    assert math.isnan(spatial(detector, "a red cat and a blue car"))
    assert detector.rows == 0
    assert spatial(detector, "the cat is near") == 0  # one noun, which is both things; not found


def test_what_the_detector_does_not_know_is_left_out():
    assert math.isnan(spatial(Found(None), "a cat near a car"))


def test_scores_do_not_depend_on_the_size_of_a_square_picture():
    """150 px of 479 are the limit of "near", of pictures of any size."""
    for distance, expected in ((149.9, 1.0), (151.0, 0.5 + 0.5 * 150 / 151)):
        detector = Found(("cat", 1.0, box(100, 100)), ("car", 1.0, box(100 + distance, 100 + distance)))
        for side in (16, 64):
            assert spatial(detector, "a cat near a car", side=side) == pytest.approx(expected, abs=1e-5)


def test_a_wide_picture_is_480_px_wide():
    detector = Found(("cat", 1.0, (0, 0.4, 0.1, 0.6)), ("car", 1.0, (0.5, 0.4, 0.6, 0.6)))  # half a width apart, at one height
    pictures = torch.full((1, 3, 16, 64), 0.5)
    task = Task(id="0", prompt="a cat near a car")
    assert Spatial(detector=detector, parser=Rules())(pictures, [task]).item() == 1.0  # |dy| = 0
    apart = Found(("cat", 1.0, (0, 0, 0.1, 0.1)), ("car", 1.0, (0.9, 0.9, 1, 1)))  # 432 by 108 px
    assert Spatial(detector=apart, parser=Rules())(pictures, [task]).item() == 1.0


TAGS = [
    ("The", "DET"), ("red", "ADJ"), ("hat", "NOUN"), ("was", "AUX"), ("on", "ADP"), ("top", "NOUN"), ("of", "ADP"), ("the", "DET"),
    ("coat", "NOUN"), ("rack", "NOUN"), (".", "PUNCT"),
]  # fmt: skip


def test_complex_prompts_are_read_around_the_phrase():
    assert around(TAGS, ["on top of"]) == ["hat", "coat"]
    assert around(TAGS, ["near"]) == []
    assert around(TAGS, ["on top of", "of"]) == []  # two phrases give four things
    names = [("Ann", "PROPN"), ("near", "ADP"), ("New", "PROPN"), ("York", "PROPN"), (".", "PUNCT")]
    assert around(names, ["near"]) == ["Ann", "York"]
    assert around(names[:4], ["near"]) == []  # a name at the very end is not seen


def test_on_top_of_scores_nothing_in_complex_prompts():
    detector = Found(("mug", 0.9, box(200, 100)), ("coaster", 0.9, box(200, 300)))
    assert spatial(detector, "the blue mug is on top of the green coaster", "complex_spatial") == 0
    assert spatial(detector, "the blue mug is on the top of the green coaster", "spatial") == pytest.approx(0.95)


def test_another_grammar():
    detector = Found(("circle", 0.9, box(200, 100)), ("square", 0.9, box(200, 300)))
    options = {"relations": {"above": "on the top of", "below": "on the bottom of"}, "around": ["above", "below"]}
    prompt = "a red circle above a striped square on a white background"
    assert spatial(detector, prompt, "complex", **options) == pytest.approx(0.95)
    assert spatial(detector, prompt.replace("above", "below"), "complex", **options) == 0


def test_every_relation_of_the_benchmark_is_read_in_its_order():
    assert list(RELATIONS) == [
        "on side of", "next to", "near", "on the left of", "on the right of", "on the bottom of", "on the top of", "on top of",
    ]  # fmt: skip


def test_every_spatial_prompt_has_a_relation_and_two_things(released):
    """As counted with spaCy 3.8: 56 top, 56 right, 52 bottom, 51 left, 37 on side of, 24 next to, 24 near."""
    counts = dict.fromkeys(RELATIONS, 0)
    for line in released("t2i_compbench", "spatial_val.txt").read_text().splitlines():
        detector = Found()
        assert spatial(detector, line.strip()) == 0
        assert 1 <= len(detector.asked[0]) <= 2
        counts[next(phrase for phrase in RELATIONS if phrase in line)] += 1
    assert list(counts.values()) == [37, 24, 24, 51, 56, 52, 56, 0]


def test_it_says_what_it_depends_on():
    scorer = Spatial(detector=Found(), parser=Rules())
    assert (scorer.networks, scorer.described) == (("found",), "detections by found; nouns by rules 2")
    with pytest.raises(ValueError, match="2 images for 1 tasks"):
        scorer(torch.zeros(2, 3, 8, 8), [Task(id="0", prompt="a cat near a car")])
