"""Words that a model has learned: embeddings of new tokens that its text encoder reads in addition to its own (textual inversion,
Gal et al. 2022, arXiv:2208.01618).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.models.learnable import Learnable
from guidedgen.models.tensors import check_numbers, first

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

_KEYS = ("clip_l", "clip_g", "t5")  # what files of several text encoders' embeddings call them


class Words:
    """New words of a tokenizer and a text encoder, which itself is left as it is.

    A word of k vectors is k tokens, named as diffusers names them: <word>, <word>_1, ... A prompt that does not hold a learned
    word gets it at its beginning, so that all tokens after it attend to it. Words that `negative_prompt` holds are not added: they
    are meant for the negative prompt alone.
    """

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: Any, negative_prompt: str = "") -> None:
        self._tokenizer, self._text_encoder, self._negative_prompt = tokenizer, text_encoder, negative_prompt
        self._embeddings: dict[str, Tensor] = {}

    def add(self, name: str, embedding: Tensor) -> None:
        """A word and its embedding, k d; a word of this name is replaced. Raises ValueError: of another width, or not new."""
        if embedding.ndim != 2 or embedding.shape[1] != self._table.shape[1]:
            raise ValueError(f"{name}: expected k {self._table.shape[1]} numbers, got {tuple(embedding.shape)}")
        if name not in self._embeddings and (reason := not_new(name, self._tokenizer)):
            raise ValueError(f"{name}: {reason}")
        self._tokenizer.add_tokens(tokens_of(name, len(embedding)))
        self._embeddings[name] = embedding

    @property
    def tuned(self) -> bool:
        """Whether one of them requires gradients."""
        return any(embedding.requires_grad for embedding in self._embeddings.values())

    def expanded(self, prompt: str) -> str:
        """The prompt with every learned word in it, written as its tokens."""
        there = {*words_in(self._embeddings, prompt), *words_in(self._embeddings, self._negative_prompt)}
        return self.with_tokens(" ".join([*(name for name in reversed(self._embeddings) if name not in there), prompt]))

    def with_tokens(self, text: str) -> str:
        """The text with each learned word in it replaced by its tokens."""
        return replaced(self._embeddings, text, lambda name: " ".join(tokens_of(name, len(self._embeddings[name]))))

    def read(self, prompts: Sequence[str], length: int) -> Any:
        """The text encoder's output of prompts, filled up or cut to `length` tokens, with its hidden states."""
        ids = self._tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return self._run(ids.to(self._table.device), output_hidden_states=True)

    def encode(self, ids: Tensor) -> Tensor:
        """Token ids b l to text embeddings b l d, differentiable in the learned embeddings."""
        embeddings: Tensor = self._run(ids).last_hidden_state
        return embeddings

    def _run(self, ids: Tensor, **options: Any) -> Any:
        if not self._embeddings:
            return self._text_encoder(ids, **options)
        table = self._table
        tokens = [token for name, value in self._embeddings.items() for token in tokens_of(name, len(value))]
        rows = self._tokenizer.convert_tokens_to_ids(tokens)  # the table may be longer or shorter than the vocabulary
        padding = table.new_zeros(max(0, max(rows) + 1 - len(table)), table.shape[1])
        learned = torch.cat([value.to(table) for value in self._embeddings.values()])
        table = torch.cat([table, padding]).index_copy(0, torch.tensor(rows, device=table.device), learned)
        (name,) = (name for name, value in self._text_encoder.named_parameters() if value is self._table)
        return torch.func.functional_call(self._text_encoder, {name: table}, (ids,), options)

    @property
    def _table(self) -> Tensor:
        return self._text_encoder.get_input_embeddings().weight


def tokens_of(name: str, count: int) -> list[str]:
    """The tokens that a word of so many vectors is."""
    return [name, *(f"{name}_{i}" for i in range(1, count))]


def replaced(names: Iterable[str], text: str, by: Callable[[str], str]) -> str:
    """The text with something else for each of these words in it.

    They are found as the tokenizer finds them: in either case, and of two that begin alike the longer one.
    """
    order = sorted(names, key=len, reverse=True)
    if not order:
        return text
    pattern = re.compile("|".join(f"({re.escape(name)})" for name in order), re.IGNORECASE)
    return pattern.sub(lambda found: by(order[(found.lastindex or 1) - 1]), text)


def words_in(names: Iterable[str], text: str) -> list[str]:
    """The words among these that are in the text, as often as they are in it."""
    found: list[str] = []

    def note(name: str) -> str:
        found.append(name)
        return name

    replaced(names, text, note)
    return found


def not_new(name: str, tokenizer: CLIPTokenizer) -> str:
    """Why this cannot be a new word; empty where it can. What the vocabulary has is never looked up as something new."""
    vocabulary, plain = tokenizer.get_vocab(), name.lower()
    if not name.strip() or not name.isprintable():
        return "no word"
    if {name, plain, f"{plain}</w>"} & vocabulary.keys() or len(tokenizer(name, add_special_tokens=False).input_ids) < 2:
        return "the model knows this word, or has it as a piece of words; choose a new one, as in <effect>"
    if f"{name}_1" in vocabulary:
        return f"the model knows {name}_1, which its second vector would be called"
    return ""


def parse(state: Any, file: Path, takes: Learnable, widths: Mapping[str, int], source: str) -> dict[str, dict[str, Tensor]]:
    """By text encoder, the words in a file, each with its embedding k d: diffusers' (by name), AUTOMATIC1111's and the original
    repository's (string_to_param, or emb_params; where these name no word, it is the file's name), and those of several text
    encoders at once (clip_l, clip_g: the file's name too). `widths` are those of the text encoders that learn words: of several
    encoders, a file with names has embeddings of that one whose width they have.

    Raises UsageError where it holds something else, or embeddings of another width than the text encoder's.
    """
    keys = {reader.key: reader.encoder for reader in takes.readers if reader.key}
    if isinstance(state, Mapping) and {*_KEYS, *keys} & state.keys():
        if not keys:
            raise UsageError(f"{source}: {file.name} is a textual inversion of SDXL (clip_g, clip_l), which has two text encoders")
        if set(state) != set(keys):
            raise UsageError(f"{source}: {file.name} holds {first(state)}, and {' and '.join(keys)} are what {takes.name} reads")
        return {
            encoder: _embeddings({file.stem: state[key]}, file, {encoder: widths[encoder]}, takes, source)[encoder]
            for key, encoder in keys.items()
        }
    return _embeddings(state, file, widths, takes, source)


def _embeddings(state: Any, file: Path, widths: Mapping[str, int], takes: Learnable, source: str) -> dict[str, dict[str, Tensor]]:
    kinds = f"neither a {'UNet' if takes.denoiser == 'unet' else takes.denoiser}, a LoRA nor a textual inversion"
    if isinstance(state, Tensor):
        state = {file.stem: state}
    if isinstance(state, Mapping) and isinstance(state.get("string_to_param"), (Mapping, torch.nn.ParameterDict)):
        name = state.get("name")
        own = dict(state["string_to_param"].items())
        if len(own) > 1:
            raise UsageError(f"{source}: {file.name} has parameters for {len(own)} strings; one is needed")
        state = {
            (name if isinstance(name, str) and name else file.stem) if key == "*" else key: value for key, value in own.items()
        }
    elif isinstance(state, Mapping) and set(state) == {"emb_params"}:
        state = {file.stem: state["emb_params"]}
    elif isinstance(state, Mapping) and "emb_params" in state:
        raise UsageError(f"{source}: would not use {first(name for name in state if name != 'emb_params')}")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageError(f"{source}: {file.name} is {kinds}")
    if not state:
        raise UsageError(f"{source}: {file.name} holds no tensors")
    odd = {str(name): tuple(value.shape) for name, value in state.items() if value.ndim not in (1, 2) or not value.numel()}
    if odd or not all(isinstance(name, str) for name in state):
        raise UsageError(f"{source}: {file.name} is {kinds} (it holds {first(odd or state)})")
    words = {name: value.detach() if value.ndim == 2 else value.detach()[None] for name, value in state.items()}
    check_numbers(words, source)
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in words.items():
        fits = [encoder for encoder, width in widths.items() if width == value.shape[1]]
        if not fits:
            have = "; this text encoder's have" if len(widths) == 1 else "; these text encoders' have"
            raise UsageError(
                f"{source}: {name} has embeddings of {value.shape[1]} numbers{have} {' and '.join(map(str, widths.values()))}"
            )
        if len(fits) > 1:
            raise UsageError(f"{source}: {name} does not say which it is for, {' or '.join(fits)}, which are equally wide")
        found.setdefault(fits[0], {})[name] = value
    return found
