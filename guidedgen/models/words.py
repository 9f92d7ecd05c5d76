"""Words that a model has learned: embeddings of new tokens, read by its text encoder beside those it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer


class Words:
    """New words of a tokenizer and a text encoder, which itself is left as it is.

    A word of k vectors is k tokens, named as diffusers names them: <word>, <word>_1, ... A prompt that does not hold a learned
    word gets it at its beginning, where all that follows is read with it.
    """

    def __init__(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        self._tokenizer, self._text_encoder = tokenizer, text_encoder
        self._embeddings: dict[str, Tensor] = {}

    def add(self, name: str, embedding: Tensor) -> None:
        """A word and its embedding, k d; a word of this name is replaced."""
        if embedding.ndim != 2 or embedding.shape[1] != self._table.shape[1]:
            raise ValueError(f"{name}: expected k {self._table.shape[1]} numbers, got {tuple(embedding.shape)}")
        self._tokenizer.add_tokens(_tokens(name, len(embedding)))
        self._embeddings[name] = embedding

    @property
    def tuned(self) -> bool:
        """Whether one of them requires gradients."""
        return any(embedding.requires_grad for embedding in self._embeddings.values())

    def spoken(self, prompt: str) -> str:
        """The prompt with every learned word in it, spelt as its tokens."""
        for name, embedding in self._embeddings.items():
            prompt = prompt if name in prompt else f"{name} {prompt}"
            prompt = prompt.replace(name, " ".join(_tokens(name, len(embedding))))
        return prompt

    def encode(self, ids: Tensor) -> Tensor:
        """Token ids b l to text embeddings b l d, differentiable in the learned embeddings."""
        table = torch.cat([self._table, *(value.to(self._table) for value in self._embeddings.values())])
        (name,) = (name for name, value in self._text_encoder.named_parameters() if value is self._table)
        return torch.func.functional_call(self._text_encoder, {name: table}, (ids,)).last_hidden_state

    @property
    def _table(self) -> Tensor:
        return self._text_encoder.get_input_embeddings().weight


def _tokens(name: str, count: int) -> list[str]:
    return [name, *(f"{name}_{i}" for i in range(1, count))]
