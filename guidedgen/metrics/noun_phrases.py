"""Noun phrases and word classes of prompts, for the metrics of T2I-CompBench: by spaCy, as the benchmark, or by rules.

The benchmark's questions are spaCy's noun chunks, which depend on its model: between en_core_web_sm 3.6.0 and 3.8.0, 13 of the
300 color prompts, 16 of shape, 23 of texture and 31 of complex are split differently. So a score goes with its parser's name.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from guidedgen.basics.errors import UsageError


class Parser(Protocol):
    """Reads a prompt."""

    @property
    def name(self) -> str:
        """Which, with its version."""

    def phrases(self, text: str) -> Sequence[str]:
        """The noun phrases as they stand in the text, in order."""

    def tags(self, text: str) -> Sequence[tuple[str, str]]:
        """The words in order, each with its universal part of speech: NOUN, PROPN and ADJ are distinguished from the rest."""


class Spacy:
    """spaCy's noun chunks and tags. `model` is a package that spacy.load knows; the benchmark pins en_core_web_sm 3.5.0.

    Raises UsageError where spaCy or the model is not installed.
    """

    def __init__(self, *, model: str = "en_core_web_sm", key: str = "parser.model") -> None:
        try:
            import spacy
            import spacy.util
        except ImportError as error:
            raise UsageError(f'{key}={model}: needs spaCy: pip install "guidedgen[phrases]"; or {key}=null, by rules') from error
        if not spacy.util.is_package(model):
            hint = f"get it with: python -m spacy download {model}; or {key}=null, by rules"
            raise UsageError(f"{key}={model}: not installed; {hint}")
        self.model = model

    @property
    def files(self) -> tuple[Path, ...]:
        """What identifies the model's version: a package does not change otherwise."""
        spec = importlib.util.find_spec(self.model)
        return () if spec is None or spec.origin is None else (Path(spec.origin).with_name("meta.json"),)

    @property
    def name(self) -> str:
        """As in "spacy 3.8.18, en_core_web_sm 3.8.0"."""
        import spacy

        return f"spacy {spacy.__version__}, {self.model} {_load(self.model).meta['version']}"

    def phrases(self, text: str) -> Sequence[str]:
        """The texts of its noun chunks."""
        return _parsed(self.model, text)[0]

    def tags(self, text: str) -> Sequence[tuple[str, str]]:
        """Its tokens and their coarse tags."""
        return _parsed(self.model, text)[1]


@functools.cache
def _load(model: str) -> Any:
    import spacy

    return spacy.load(model)


@functools.lru_cache(maxsize=4096)  # a prompt comes again with every image of it
def _parsed(model: str, text: str) -> tuple[Sequence[str], Sequence[tuple[str, str]]]:
    doc = _load(model)(text)
    return [chunk.text for chunk in doc.noun_chunks], [(token.text, token.pos_) for token in doc]


_ARTICLES = frozenset("a an the".split())
_DETERMINERS = _ARTICLES | frozenset("this these those his her its their my your our each every some".split())
_PREPOSITIONS = frozenset(
    "of in on at to from with without by for near next over under above below behind beside between into onto through across "
    "against along around inside outside off up down out past toward towards before after during among beneath underneath beyond "
    "within throughout atop upon about until".split()
)
_BE = frozenset("is are was were be been being am".split())
_MODALS = frozenset("can could will would do does did".split())
# Forms that are hardly ever nouns or stand before them.
_FINITE = frozenset(
    "sat stood hung fell flew slept grew swam sank woke drove sped shone wrote blew strode sang ran came went rode kept took gave "
    "threw wore caught brought bought crept knelt leapt hang hangs sit sits lies provide provides".split()
)
_OTHER_BORDERS = frozenset(
    "as than like while when where which who that and or but nor has have had not there it they because if".split()
)
_BORDERS = _PREPOSITIONS | _OTHER_BORDERS | _BE | _MODALS | _FINITE
# Participles that do not end in -ed.
_PARTICIPLES = frozenset("hidden held made found built worn drawn seen shown blown grown thrown lit left lay lain spun".split())
# Verbs that are nouns too: of one subject with -s, of several without.
_EITHER = frozenset(
    "stand rest lean float play ride swim walk run jump sleep grow shine fly wait nap look work move perch cut spread burst fall "
    "lie".split()
)
_NO_ADVERBS = re.compile(
    r"\w*fly|\w*belly|ally|anomaly|assembly|bully|doily|dolly|family|holly|jelly|july|italy|lily|monopoly|rally"
)


class Rules:
    """Noun phrases by their borders: articles begin one; prepositions, conjunctions, punctuation, and verbs end one.

    Some verbs are known by their form ("was", "hung"), others by where they are. The last word before an article ("wooden bowl mix
    | the batter"), unless it follows one. A last word in -ing or -ed, or another participle, before a preposition ("a jacket
    standing in", "a vase hidden by") or alone after a form of be ("is holding | a book"). And before a preposition a word that is a
    noun or a verb, where it agrees with what is before it ("horses stand in", "the belt and leather hat rest on", "the sun shines
    through", but "a music stand on"). Adverbs in -ly at the end are no part of a phrase. Of a phrase, the last word is the noun and
    those between it and the article are adjectives.

    It is exact on the lab's prompts. Of T2I-CompBench's it splits 263 of the 300 of color as spaCy does (3.8.18, en_core_web_sm
    3.8.0), 272 of shape, 267 of texture, all of spatial and 3D spatial, 214 of complex and 184 of non-spatial.
    """

    name = "rules 2"  # their second edition: what the first split is another score

    def phrases(self, text: str) -> Sequence[str]:
        """Runs of words between borders."""
        return [" ".join(phrase) for phrase, _ in _runs(text)]

    def tags(self, text: str) -> Sequence[tuple[str, str]]:
        """Words of phrases as DET, ADJ and NOUN, the others as X."""
        words = [word for word, _ in _words(text)]
        tagged = [(word, "X") for word in words]
        for phrase, start in _runs(text):
            for i, word in enumerate(phrase):
                last = i == len(phrase) - 1
                tagged[start + i] = (word, "NOUN" if last else "DET" if word.lower() in _DETERMINERS else "ADJ")
        return tagged


def _words(text: str) -> list[tuple[str, bool]]:
    """The words and punctuation marks, and whether each ends a phrase."""
    words = re.findall(r"\w+(?:['\u2019-]\w+)*|[^\w\s]", text)
    lower = ["", *(word.lower() for word in words), ""]
    return [(word, _ends(*lower[i : i + 3])) for i, word in enumerate(words)]


def _ends(before: str, word: str, after: str) -> bool:
    """Whether a word, or a mark, ends a phrase, given the words before and after it, which are empty at the text's ends."""
    if not re.match(r"\w", word):
        return True
    if before in _ARTICLES and word not in _BE:  # the past, a can
        return False
    if word == "can":  # of soup; a can that stands before a verb is none
        return not (after in _BORDERS or not re.match(r"\w", after))
    return word in _BORDERS


def _runs(text: str) -> list[tuple[list[str], int]]:
    """The phrases as lists of words, each with the index of its first word among the words of the text."""
    runs: list[tuple[list[str], int]] = []
    run: list[str] = []
    words = _words(text)

    def end(position: int, border: str) -> None:
        start = position - len(run)
        before = [word.lower() for word, _ in words[max(0, start - 2) : start]]
        kept = _without_verb(run, border, before)
        if kept and not (len(kept) == 1 and kept[0].lower() in _DETERMINERS):
            runs.append((kept, start))
        run.clear()

    for position, (word, ends) in enumerate(words):
        if ends or (run and word.lower() in _DETERMINERS):
            end(position, word.lower())
        if not ends:
            run.append(word)
    end(len(words), "")
    return runs


def _without_verb(run: Sequence[str], border: str, before: Sequence[str]) -> list[str]:
    """A run without the adverbs and the verb at its end, given the word that ends it and the words before it."""
    kept = list(run)
    while kept and _is_adverb(kept[-1].lower()) and (len(kept) == 1 or kept[-2].lower() not in _DETERMINERS):
        kept.pop()
    return kept[:-1] if _is_verb([word.lower() for word in kept], border, before) else kept


def _is_adverb(word: str) -> bool:
    return re.fullmatch(r"\w{3,}ly", word) is not None and not _NO_ADVERBS.fullmatch(word)


def _is_verb(run: Sequence[str], border: str, before: Sequence[str]) -> bool:
    """Whether a run's last word is a verb."""
    if not run or (len(run) > 1 and run[-2] in _DETERMINERS):
        return False
    last, alone = run[-1], len(run) == 1
    # A syllable before the ending: not a ring or a bed.
    participle = last in _PARTICIPLES or re.search(r"[aeiouy]\w*(ing|ed)$", last) is not None
    if border in _DETERMINERS:
        return not alone or participle
    if alone and before and before[-1] in _BE | _MODALS:
        return participle or before[-1] in _MODALS
    if border not in _PREPOSITIONS:
        return False
    if participle:
        return True
    several = len(run) > 1 and (_plural(run[-2]) or "and" in before)
    return (last in _EITHER and several) or (len(run) > 1 and not several and last.endswith("s") and _stem(last) in _EITHER)


def _plural(noun: str) -> bool:
    return re.search(r"[^siu]s$", noun) is not None


def _stem(verb: str) -> str:
    """flies -> fly, shines -> shine"""
    return verb[:-3] + "y" if verb.endswith("ies") else verb[:-1]


def make_parser(*, model: str | None = "en_core_web_sm", key: str = "parser.model") -> Parser:
    """The parser that a config asks for: spaCy's model of this name, or Rules for None. Raises UsageError as Spacy does."""
    return Rules() if model is None else Spacy(model=model, key=key)
