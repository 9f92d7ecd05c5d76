"""How frozen text encoders of transformers read prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def by_clip(prompts: Sequence[str], tokenizer: Any, encoder: Any, length: int) -> Any:
    """A CLIP's output of prompts, filled up or cut to `length` tokens, with its hidden states."""
    ids = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    return encoder(ids.to(encoder.device), output_hidden_states=True)


def by_t5(prompts: Sequence[str], tokenizer: Any, encoder: Any, length: int, *, masked: bool = False) -> tuple[Tensor, Tensor]:
    """T5's last states of prompts, filled up or cut to `length` tokens (b l d), and where there are tokens (b l). `masked`: the
    tokens do not see those that fill up; of Stable Diffusion 3 and FLUX they do.
    """
    read = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").to(
        encoder.device
    )
    mask = {"attention_mask": read.attention_mask} if masked else {}
    return encoder(read.input_ids, **mask)[0], read.attention_mask


def in_lower_case(prompt: str) -> str:
    """A prompt as PixArt's and SANA's pipelines read it: in lower case, without spaces around it."""
    return prompt.lower().strip()
