"""The lab's BLIP-2 and its BLIP that answers questions, built, loaded and prompted: classes of transformers at small size.

They read 64 x 64 px in 8 x 8 patches. Their vision towers are transformers' with a convolutional stem instead of the linear
patch embedding, the hybrid of Dosovitskiy et al. 2021 (section 3.1): on a few million pictures it sees shapes much sooner.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from guidedgen.basics.vision_language import QFormer
from guidedgen.lab import networks
from guidedgen.lab.world import SIZE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("[ENC]", "[DEC]", "yes", "no")  # ids of the lab's referees after those of its tokenizer, in this order
WIDTH = 128


def special(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of SPECIAL."""
    return {token: tokenizer.get_vocab_size() + i for i, token in enumerate(SPECIAL)}


def tokenise(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and masks, b MAX_TOKENS each: `networks.tokenize`, of whose end tokens the first belongs to the text."""
    ids = networks.tokenize(tokenizer, list(texts))
    ends = torch.eq(ids, tokenizer.token_to_id("<|endoftext|>") or 0).long()
    return ids, (ends.cumsum(1) == ends).long()


class Stem(nn.Module):
    """Convolutions instead of a patch embedding: b 3 64 64 in [-1, 1] -> b width 8 8."""

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
