"""How networks of transformers' say what a text has to do with an image, where its own classes fall short: BLIP-2's Q-Former with
its matching and captioning losses, and the first token of BLIP's answer, both with gradients. Of any size: published or the lab's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidedgen.basics.precision import wide

_SMOOTHING = 0.1  # of captions' targets: salesforce/LAVIS, lavis/models/blip2_models/Qformer.py, BertLMHeadModel.forward


class CaptionHead(nn.Module):
    """What predicts the next token from the Q-Former's text states: LAVIS' `Qformer.cls.predictions`, whose last layer is the word
    embeddings. It may know fewer words than there are embeddings: the first ones.
    """

    def __init__(self, width: int, words: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, hidden: Tensor, embeddings: Tensor) -> Tensor:
        """b l d and the words' embeddings (at least words d) -> logits b l words."""
        return F.linear(self.LayerNorm(F.gelu(self.dense(hidden))), embeddings[: len(self.bias)], self.bias)


class QFormer(nn.Module):
    """transformers' Blip2ForImageTextRetrieval, which has BLIP-2's matching head, and the captioning head that it lacks.

    Texts are token ids (b l) and their masks (b l, 1 up to the last token, 0 on the padding after it).
    """

    def __init__(self, network: Any, words: int) -> None:
        super().__init__()
        config = network.config.qformer_config
        self.network = network
        self.head = CaptionHead(config.hidden_size, words, config.layer_norm_eps)

    def see(self, pixels: Tensor) -> Tensor:
        """b 3 H W, prepared -> what the vision tower makes of them, b p d."""
        return self.network.vision_model(pixel_values=pixels).last_hidden_state

    def match(self, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits of no match and of a match, b 2: the head's mean over the queries, which see each other and all of the text."""
        return self.network.itm_head(self.fuse(seen, ids, mask)[0].to(self.network.itm_head.weight.dtype)).mean(1)

    def fuse(self, seen: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The states of the queries and of the text, b q d and b l d, where each sees all of the other."""
        queries = self.network.query_tokens.shape[1]
        hidden = self._run(seen, ids, F.pad(mask, (queries, 0), value=1))
        return hidden[:, :queries], hidden[:, queries:]

    def caption(self, seen: Tensor, ids: Tensor, mask: Tensor, start: int) -> Tensor:
        """The label-smoothed cross-entropy of the text per token, b: each is predicted from the image and the tokens before it.

        The first id is replaced by `start`. One pass replaces LAVIS' two, of the queries and of the text on their
        stored keys and values: queries see queries alone, a token sees the queries and the text up to itself.
        """
        queries = self.network.query_tokens.shape[1]
        ids = torch.cat([torch.full_like(ids[:, :1], start), ids[:, 1:]], 1)
        hidden = self._run(seen, ids, caption_mask(queries, mask, seen.dtype))[:, queries:-1]
        logits = self.head(hidden, self.network.embeddings.word_embeddings.weight)
        targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        losses = F.cross_entropy(wide(logits.mT), targets, reduction="none", label_smoothing=_SMOOTHING)
        return losses.sum(1) / mask[:, 1:].sum(1)

    def _run(self, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        queries = self.network.query_tokens.expand(len(ids), -1, -1)
        embedded = self.network.embeddings(input_ids=ids, query_embeds=queries)
        return self.network.qformer(
            query_embeds=embedded, query_length=queries.shape[1], attention_mask=mask, encoder_hidden_states=seen
        ).last_hidden_state


def caption_mask(queries: int, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's logits in `QFormer.caption`, b 1 q+l q+l: 0 where row sees column, else the least number.

    `mask` is the text's, b l. Padding is seen only by itself and by what follows, whose outputs are not used. `dtype` has to be
    that of attention's inputs: torch 2.13 on a CPU reads a float32 mask with float64 queries wrongly.
    """
    length = queries + mask.shape[1]
    sees = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    sees[:queries, :queries] = True
    hidden = torch.zeros(length, length, dtype=dtype, device=mask.device).masked_fill(~sees, torch.finfo(dtype).min)
    return hidden.expand(len(mask), 1, length, length)


def answer(network: Any, pixels: Tensor, ids: Tensor, mask: Tensor, start: int) -> Tensor:
    """Logits of an answer's first token (b words) by transformers' BlipForQuestionAnswering, of whose own methods `forward` returns
    none and `generate` has no gradient. Where the pixels are not of the network's size, its positions are interpolated.

    Questions are token ids (b l), [ENC] first, and their masks; `start` is [DEC]: salesforce/BLIP, models/blip_vqa.py, rank_answer.
    """
    other = pixels.shape[-1] != network.config.vision_config.image_size
    seen = network.vision_model(pixel_values=pixels, interpolate_pos_encoding=other).last_hidden_state
    read = network.text_encoder(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
    return decode(network, read, mask, start)


def decode(network: Any, read: Tensor, mask: Tensor, start: int) -> Tensor:
    """As `answer`, of what the encoder has made of the questions and of the image (b l d), and the questions' masks.

    The decoder is walked through layer by layer: in transformers 5.23 that mask gets lost on the way to its attention
    (modeling_blip_text.py, BlipTextLayer.forward), and padding would be read as well.
    """
    hidden = torch.zeros(mask.shape, dtype=read.dtype, device=read.device).masked_fill(mask == 0, torch.finfo(read.dtype).min)
    x = network.text_decoder.bert.embeddings(input_ids=torch.full_like(mask[:, :1], start))
    for layer in network.text_decoder.bert.encoder.layer:
        x, _ = layer.attention(x)
        asked, _ = layer.crossattention.self(x, encoder_hidden_states=read, encoder_attention_mask=hidden[:, None, None])
        x = layer.feed_forward_chunk(layer.crossattention.output(asked, x))
    return network.text_decoder.cls(x)[:, 0]
