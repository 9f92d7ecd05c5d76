"""Vision-language networks that judge how well a text tells what an image shows, on classes of transformers: BLIP-2's Q-Former
with its matching and captioning losses, BLIP's question answering, and the lab's small ones.

The lab's read 64 x 64 px in 8 x 8 patches. Their vision towers are transformers' with a convolutional stem in place of the linear
patch embedding, the hybrid of Dosovitskiy et al. 2021 (section 3.1): on a few million pictures it sees shapes much sooner.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidedgen.lab import networks
from guidedgen.lab.world import SIZE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SMOOTHING = 0.1  # of captions' targets: salesforce/LAVIS, lavis/models/blip2_models/Qformer.py, BertLMHeadModel.forward
SPECIAL = ("[ENC]", "[DEC]", "yes", "no")  # ids of the lab's referees after those of its tokenizer, in this order
WIDTH = 128


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

        The first id is replaced by `start`. One pass takes the place of LAVIS' two, of the queries and of the text upon their
        stored keys and values: queries see queries alone, a token sees the queries and the text up to itself.
        """
        queries = self.network.query_tokens.shape[1]
        ids = torch.cat([torch.full_like(ids[:, :1], start), ids[:, 1:]], 1)
        hidden = self._run(seen, ids, caption_mask(queries, mask, seen.dtype))[:, queries:-1]
        logits = self.head(hidden, self.network.embeddings.word_embeddings.weight)
        targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        losses = F.cross_entropy(logits.mT.float() if logits.dtype.itemsize < 4 else logits.mT, targets, reduction="none",
                                 label_smoothing=SMOOTHING)  # fmt: skip
        return losses.sum(1) / mask[:, 1:].sum(1)

    def _run(self, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        queries = self.network.query_tokens.expand(len(ids), -1, -1)
        embedded = self.network.embeddings(input_ids=ids, query_embeds=queries)
        return self.network.qformer(
            query_embeds=embedded, query_length=queries.shape[1], attention_mask=mask, encoder_hidden_states=seen
        ).last_hidden_state


def caption_mask(queries: int, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention's logits in `QFormer.caption`, b 1 q+l q+l: 0 where row sees column, else the least number.

    `mask` is the text's, b l. Padding is seen by nobody but itself and what follows, of which nothing is asked. `dtype` has to be
    that of attention's inputs: torch 2.13 on a CPU reads a float32 mask beside float64 queries wrongly.
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


# The lab's


def special(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of SPECIAL."""
    return {token: tokenizer.get_vocab_size() + i for i, token in enumerate(SPECIAL)}


def tokenise(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and masks, b MAX_TOKENS each: `networks.tokenize`, of whose end tokens the first belongs to the text."""
    ids = networks.tokenize(tokenizer, list(texts))
    ends = torch.eq(ids, tokenizer.token_to_id("<|endoftext|>") or 0).long()
    return ids, (ends.cumsum(1) == ends).long()


class Stem(nn.Module):
    """Convolutions in place of a patch embedding: b 3 64 64 in [-1, 1] -> b width 8 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 24, 5, 2, 2, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.fine = nn.Sequential(networks.Block(24, 48, 2), networks.Block(48, 96, 1))  # 16 x 16
        self.coarse = nn.Sequential(networks.Block(96, 120, 2), networks.Block(120, 120, 1))  # 8 x 8
        self.patches = nn.Conv2d(96, width, 2, 2)
        self.project = nn.Conv2d(120, width, 1)

    @property
    def weight(self) -> Tensor:
        """Any: the tower asks its patch embedding for the dtype of its weight."""
        return self.project.weight

    def forward(self, pixels: Tensor) -> Tensor:
        fine = self.fine(self.first(pixels))
        return self.patches(fine) + self.project(self.coarse(fine))


_VISION = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
           "image_size": SIZE, "patch_size": 8, "attention_dropout": 0.0, "initializer_range": 0.02}  # fmt: skip
_TEXT = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_attention_heads": 4, "hidden_dropout_prob": 0.0,
         "attention_probs_dropout_prob": 0.0, "max_position_embeddings": networks.MAX_TOKENS,
         "pad_token_id": None}  # fmt: skip  # the end token is the padding, and has to be learnt


def build_blip2(vocabulary: int) -> QFormer:
    """An untrained BLIP-2 of the lab's size, for a tokenizer of so many ids."""
    from transformers import Blip2Config, Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig

    words = vocabulary + len(SPECIAL)
    text = Blip2QFormerConfig(
        **_TEXT, vocab_size=words, num_hidden_layers=4, cross_attention_frequency=1, encoder_hidden_size=WIDTH,
        use_qformer_text_input=True,
    )  # fmt: skip
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**_VISION), qformer_config=text, num_query_tokens=8, image_text_hidden_size=8
    )
    network = Blip2ForImageTextRetrieval(config)
    nn.init.normal_(network.query_tokens, std=0.02)  # transformers starts them all at 0, alike
    _see_by_stem(network.vision_model)
    return QFormer(network, words)


def build_vqa(vocabulary: int) -> Any:
    """An untrained BlipForQuestionAnswering of the lab's size, for a tokenizer of so many ids."""
    from transformers import BlipConfig, BlipForQuestionAnswering

    ids = dict(zip(("bos_token_id", "eos_token_id", "sep_token_id"), (vocabulary + 1, vocabulary - 1, vocabulary - 1), strict=True))
    text = {**_TEXT, **ids, "vocab_size": vocabulary + len(SPECIAL), "num_hidden_layers": 3, "encoder_hidden_size": WIDTH}
    network = BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=_VISION))
    _see_by_stem(network.vision_model)
    return network


def _see_by_stem(tower: Any) -> None:
    tower.embeddings.patch_embedding = Stem(WIDTH)
    side = SIZE // 8
    with torch.no_grad():  # sines of rows and columns, not noise: where things stand is known from the first step
        tower.embeddings.position_embedding[:, 1:] = _sines(side, WIDTH).to(tower.embeddings.position_embedding)


def _sines(side: int, width: int) -> Tensor:
    """Positions of a square of tokens, side^2 width, as Vaswani et al. 2017 code them, half of the channels by row."""
    rates = math.pi * torch.arange(1, width // 4 + 1) / (width // 4)
    waves = torch.arange(side)[:, None] * rates
    line = torch.cat([waves.sin(), waves.cos()], 1)
    return torch.cat([line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)], 2).flatten(0, 1)


@functools.cache
def load_blip2() -> QFormer:
    """The shipped BLIP-2 in fp32, frozen."""
    return networks.load(build_blip2(networks.load_tokenizer().get_vocab_size()), "blip2")


@functools.cache
def load_vqa() -> Any:
    """The shipped question answering network in fp32, frozen."""
    return networks.load(build_vqa(networks.load_tokenizer().get_vocab_size()), "vqa")
