"""Attention that reads equal tokens once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class JointAttention:
    """The attention of diffusers' SD3Transformer2DModel (JointAttnProcessor2_0) where the context's last token stands for `copies`
    of it, which is exact: equal keys share their weight, and equal queries have equal answers.

    Written out, since the backward pass of torch's fused attention is slow in bf16 on a CPU.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, copies: int = 1, **kwargs: Any
    ) -> tuple[Tensor, Tensor] | Tensor:
        del kwargs
        b, n, _ = hidden_states.shape
        parts = [(attn.to_q, attn.norm_q), (attn.to_k, attn.norm_k), (attn.to_v, None)]
        q, k, v = (_heads(attn, hidden_states, *part) for part in parts)
        if encoder_hidden_states is not None:
            added = [(attn.add_q_proj, attn.norm_added_q), (attn.add_k_proj, attn.norm_added_k), (attn.add_v_proj, None)]
            context = [_heads(attn, encoder_hidden_states, *part) for part in added]
            q, k, v = (torch.cat(pair, 1) for pair in zip((q, k, v), context, strict=True))
        bias = torch.zeros(k.shape[1], dtype=q.dtype, device=q.device)
        if encoder_hidden_states is not None:
            bias[-1] = math.log(copies)
        weights = torch.baddbmm(bias.expand(len(q), q.shape[1], -1), q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5).softmax(-1)
        seen = (weights.to(v.dtype) @ v).unflatten(0, (b, attn.heads)).transpose(1, 2).flatten(2)
        image = attn.to_out[0](seen[:, :n])
        if encoder_hidden_states is None:
            return image
        return image, seen[:, n:] if attn.context_pre_only else attn.to_add_out(seen[:, n:])


def _heads(attn: Any, tokens: Tensor, layer: Any, norm: Any) -> Tensor:
    """What a layer, and the norm that there may be after it, make of tokens (b n d), head by head (b*heads n d/heads)."""
    made = layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    return (made if norm is None else norm(made)).flatten(0, 1)
