"""BLIP-VQA: golden products and roundings, the questions asked, and how many."""

import math

import pytest
import torch

from guidedgen.basics.errors import BadValue
from guidedgen.basics.tasks import Task
from guidedgen.metrics.blip_vqa import SLOTS, BlipVqaScore, combine, questions
from guidedgen.metrics.noun_phrases import Rules


class Answers:
    """Log-odds from a function of the image's mean and the question; counts its rows."""

    name, differentiable = "answers", True

    def __init__(self, odds):
        self.odds, self.rows, self.asked = odds, 0, []

    def __call__(self, images, asked):
        assert len(images) == len(asked)
        self.rows += len(images)
        self.asked += asked
        return torch.stack([torch.as_tensor(self.odds(float(i.mean()), q)) for i, q in zip(images, asked, strict=True)])


class Listed:
    """A parser of comma-separated phrases."""

    name = "listed"

    def phrases(self, text):
        return text.split(",") if text else []


def tasks(*prompts):
    return [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]


def grey(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


@pytest.mark.parametrize(("rounding", "key"), [("reference", "reference_per_image"), ("none", "exact_product_first8")])
def test_golden_products(golden_metrics, rounding, key):
    golden = golden_metrics["blip_vqa_aggregation"]
    found = [combine(chances, rounding) for chances in golden["p_yes"]]
    assert found == pytest.approx(golden[key], rel=1e-12, abs=0)
    mean = golden["reference_mean" if rounding == "reference" else "exact_mean"]
    assert sum(found) / len(found) == pytest.approx(mean, rel=1e-12)


def test_golden_chance_of_yes(golden_metrics):
    golden = golden_metrics["blip_vqa_yes_probability"]
    for (yes, no), chance in zip(golden["logit_yes_no"], golden["p_yes"], strict=True):
        scorer = BlipVqaScore(vqa=Answers(lambda *_, odds=yes - no: odds), parser=Listed(), rounding="none")
        assert scorer(grey(0.5), tasks("a cat")).item() == pytest.approx(chance, abs=1e-6)


def test_score_is_the_product_of_the_answers():
    """An image's answers depend on it alone, not on the other images."""
    vqa = Answers(lambda mean, question: mean * len(question))
    scorer = BlipVqaScore(vqa=vqa, parser=Listed(), rounding="none")
    prompts, means = ("a cat,a red dog", "", "a bird"), (0.1, 0.2, 0.3)
    expected = [
        math.prod(1 / (1 + math.exp(-m * (len(p) + 1))) for p in q.split(",") if p) for q, m in zip(prompts, means, strict=True)
    ]
    assert scorer(grey(*means), tasks(*prompts)).tolist() == pytest.approx(expected, rel=1e-6)
    assert vqa.rows == 3  # two, none and one
    alone = [scorer(grey(mean), tasks(prompt)).item() for prompt, mean in zip(prompts, means, strict=True)]
    assert alone == pytest.approx(expected, rel=1e-6)


def test_no_more_than_8_are_asked():
    vqa = Answers(lambda *_: 2.0)
    BlipVqaScore(vqa=vqa, parser=Listed())(grey(0.5, 0.5), tasks(",".join("abcdefghijk"), "a"))
    assert vqa.rows == SLOTS + 1 == 9
    assert vqa.asked == ["a?", "a?", *(f"{letter}?" for letter in "bcdefgh")]


def test_questions_are_written_as_the_benchmark_writes_them():
    """Lower case; . ! " ( ) * # : ; ~ dropped, ? and , kept; 50 words; four phrases, letter by letter, left out."""
    assert questions('A "Red" Cat,a dog #1!,a (b) c: d; e* f~ g.', Listed()) == ["a red cat?", "a dog 1?", "a b c d e f g?"]
    assert questions(" ".join(["word"] * 60), Listed()) == [" ".join(["word"] * 50)]
    assert questions("top,the side,the left,the right,The left,the top,tops", Listed()) == ["the left?", "the top?", "tops?"]


def test_the_ignored_do_not_take_a_slot():
    assert questions("top," * 8 + "a cat", Listed()) == ["a cat?"]


def test_what_cannot_be_answered_has_no_score():
    scorer = BlipVqaScore(vqa=Answers(lambda _, q: math.nan if "dog" in q else 0.0), parser=Rules(), rounding="reference")
    found = scorer(grey(0.5, 0.5), tasks("a cat and a dog", "a cat"))
    assert math.isnan(found[0]) and found[1] == 0.5


def test_it_says_what_it_depends_on():
    scorer = BlipVqaScore(vqa=Answers(lambda *_: 0.0), parser=Rules())
    assert (scorer.networks, scorer.described) == (("answers",), "answers by answers; noun phrases by rules 2; rounding: reference")
    assert not scorer.differentiable
    vqa = Answers(lambda *_: 0.0)
    vqa.described = "answers at 480 px"
    assert BlipVqaScore(vqa=vqa, parser=Rules()).described.startswith("answers by answers at 480 px; ")


def test_bad_input():
    with pytest.raises(BadValue, match="choose from reference, none"):
        BlipVqaScore(vqa=Answers(lambda *_: 0.0), parser=Rules(), rounding="up")
    with pytest.raises(ValueError, match="2 images for 1 tasks"):
        BlipVqaScore(vqa=Answers(lambda *_: 0.0), parser=Rules())(grey(0.5, 0.5), tasks("a cat"))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        BlipVqaScore(vqa=Answers(lambda *_: 0.0), parser=Rules())(grey(1.5), tasks("a cat"))
