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

from guidedgen.types import UsageError


class Parser(Protocol):
    """Reads a prompt."""

    @property
    def name(self) -> str:
        """Which, with its version."""

    def phrases(self, text: str) -> Sequence[str]:
        """The noun phrases as they stand in the text, in order."""

    def tags(self, text: str) -> Sequence[tuple[str, str]]:
        """The words in order, each with its universal part of speech: NOUN, PROPN and ADJ are told from the rest."""


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
            way_out = f"get it with: python -m spacy download {model}; or {key}=null, by rules"
            raise UsageError(f"{key}={model}: not installed; {way_out}")
        self.model = model

    @property
    def files(self) -> tuple[Path, ...]:
        """What tells the model's version: a package does not change otherwise."""
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


_DETERMINERS = frozenset("a an the this these those his her its their my your our each every some".split())
_PREPOSITIONS = frozenset(
    "of in on at to from with without by for near next over under above below behind beside between into onto through across "
    "against along around inside outside off up down out".split()
)
_OTHER_BORDERS = frozenset(
    "as than like while when where which who that and or but nor is are was were be been being am has have had does do did "
    "can could will would sit sits stand stands lies hangs not there it they".split()
)
_BORDERS = _PREPOSITIONS | _OTHER_BORDERS


class Rules:
    """Noun phrases by their borders: articles begin one; prepositions, conjunctions, forms of be and have, and punctuation end one.

    A verb is known by its place: the last word before an article ("wooden bowl mix | the batter"), or a last word in -ing or -ed
    before a preposition ("a jacket standing in"). Of a phrase, the last word is the noun and those between it and the article are
    adjectives. It is exact on the lab's prompts. Of T2I-CompBench's it splits 263 of the 300 of color as spaCy does (3.8.18,
    en_core_web_sm 3.8.0), 264 of shape, 265 of texture, all of spatial and 169 of complex.
    """

    name = "rules"

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
    return [(word, not re.match(r"\w", word) or word.lower() in _BORDERS) for word in words]


def _runs(text: str) -> list[tuple[list[str], int]]:
    """The phrases as lists of words, each with the place of its first word among the words of the text."""
    runs: list[tuple[list[str], int]] = []
    run: list[str] = []

    def end(place: int, border: str) -> None:
        kept = run[:-1] if _is_verb(run, border) else run
        if kept and not (len(kept) == 1 and kept[0].lower() in _DETERMINERS):
            runs.append((list(kept), place - len(run)))
        run.clear()

    words = _words(text)
    for place, (word, ends) in enumerate(words):
        if ends or (run and word.lower() in _DETERMINERS):
            end(place, word.lower())
        if not ends:
            run.append(word)
    end(len(words), "")
    return runs


def _is_verb(run: Sequence[str], border: str) -> bool:
    """Whether a run's last word is a verb, given the word that ends the run."""
    if not run or (len(run) > 1 and run[-2].lower() in _DETERMINERS):
        return False
    if border in _DETERMINERS:
        return len(run) > 1
    return border in _PREPOSITIONS and re.search(r"[aeiouy]\w*(ing|ed)$", run[-1].lower()) is not None  # not a ring or a bed


def make_parser(*, model: str | None = "en_core_web_sm", key: str = "parser.model") -> Parser:
    """The parser that a config asks for: spaCy's model of this name, or Rules for None. Raises UsageError as Spacy does."""
    return Rules() if model is None else Spacy(model=model, key=key)
