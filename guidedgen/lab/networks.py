"""The lab's companions: tokenizer, scene classifier and CLIPs, as network definitions and as loaders of the shipped weights."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidedgen.lab.captions import WORDS
from guidedgen.lab.world import BACKGROUNDS, COLOURS, SHAPES, SIZE, SIZES, SLOTS, TEXTURES

if TYPE_CHECKING:
    import open_clip
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from tokenizers import Tokenizer
    from transformers import CLIPTextModel

WEIGHTS = Path(__file__).parent / "weights"
_Network = TypeVar("_Network", bound=nn.Module)
MAX_TOKENS = 40  # of captions, start and end included; the longest scene of three fits
CLIP_DIM = 128


def train_tokenizer() -> Tokenizer:
    """Byte-pair encoding in which every word of the lab is one token and any other text falls back to its characters.

    Ids follow OpenAI's CLIP: bytes, bytes with the end-of-word mark, merges, start, end; padding is the end token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    start, end = "<|startoftext|>", "<|endoftext|>"
    merges = _merges(WORDS)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*symbols, *(s + "</w>" for s in symbols), *dict.fromkeys("".join(pair) for pair in merges), start, end]
    ids = {token: i for i, token in enumerate(vocabulary)}

    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, end_of_word_suffix="</w>", unk_token=end))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing((end, ids[end]), (start, ids[start]), add_prefix_space=False)
    tokenizer.add_special_tokens([start, end])
    return tokenizer


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """The merges that make every word one token: the most frequent pair first, among equals the first in the alphabet.

    The tokenizers library's own trainer breaks ties by chance, and ids must not change from one training to the next.
    """
    spelled = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while counts := Counter(pair for word in spelled for pair in itertools.pairwise(word)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in spelled:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def _end(tokenizer: Tokenizer) -> int:
    end = tokenizer.token_to_id("<|endoftext|>")
    assert end is not None
    return end


@functools.cache
def load_tokenizer() -> Tokenizer:
    """The shipped tokenizer, which the generator and the CLIPs share."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(WEIGHTS / "generator" / "tokenizer" / "tokenizer.json"))


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Token ids (b MAX_TOKENS), cut to length with the end token kept and padded with it."""
    end = _end(tokenizer)
    rows = []
    for encoding in tokenizer.encode_batch(texts):
        ids = encoding.ids[:MAX_TOKENS]
        ids[-1] = end
        rows.append(ids + [end] * (MAX_TOKENS - len(ids)))
    return torch.tensor(rows)


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        same = stride == 1 and channels == out
        self.skip = nn.Identity() if same else nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(channels, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What the classifier reads off b images. k runs over SHAPES; attributes of a shape mean something where it is present."""

    shape: Tensor  # b k, logit that the shape is present
    colour: Tensor  # b k COLOURS, logits
    texture: Tensor  # b k TEXTURES, logits
    size: Tensor  # b k SIZES, logits
    centre: Tensor  # b k 2, px, (x, y)
    count: Tensor  # b SLOTS+1, logits of the number of objects
    background: Tensor  # b BACKGROUNDS, logits


class SceneClassifier(nn.Module):
    """Looks for each shape with an attention map of its own, then reads colour, texture and size where it looked.

    Input: b 3 64 64 in [0, 1]; other sizes are the caller's to resize. `features` are the lab's Inception features.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.stem = nn.Sequential(nn.Conv2d(3, w, 5, 2, 2, bias=False), nn.BatchNorm2d(w), nn.ReLU(inplace=True))
        self.fine = nn.Sequential(Block(w, 2 * w, 2), Block(2 * w, 4 * w, 1))  # 16 x 16
        self.coarse = nn.Sequential(Block(4 * w, 5 * w, 2), Block(5 * w, 5 * w, 1))  # 8 x 8
        self.merge = nn.Conv2d(9 * w, 4 * w, 1)
        self.look = nn.Conv2d(4 * w, len(SHAPES), 1)
        self.present = nn.Conv2d(4 * w, len(SHAPES), 1)
        self.kind = nn.Parameter(torch.randn(len(SHAPES), 4 * w) * 0.02)
        self.read = nn.Sequential(nn.Linear(4 * w, 4 * w), nn.ReLU(inplace=True))
        self.attributes = nn.Linear(4 * w, len(COLOURS) + len(TEXTURES) + len(SIZES))
        self.scene = nn.Linear(10 * w, SLOTS + 1 + len(BACKGROUNDS))

    def trunk(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(self.stem(2 * images - 1))
        return fine, self.coarse(fine)

    def features(self, images: Tensor) -> Tensor:
        """b 120: the globally averaged last feature map."""
        return self.trunk(images)[1].mean((2, 3))

    def forward(self, images: Tensor) -> Reading:
        fine, coarse = self.trunk(images)
        up = F.interpolate(coarse, scale_factor=2.0, mode="nearest")
        x = F.relu(self.merge(torch.cat([fine, up], 1)))  # b d 16 16
        attention = self.look(x).flatten(2).float().softmax(-1)  # b k 256
        present = torch.logsumexp(self.present(x).flatten(2).float(), -1) - 5.5  # log 256: a soft maximum
        seen = torch.einsum("bkp,bdp->bkd", attention, x.flatten(2).float())
        read = self.read(seen.to(x.dtype) + self.kind)
        colour, texture, size = self.attributes(read).float().split([len(COLOURS), len(TEXTURES), len(SIZES)], -1)
        side = x.shape[-1]
        axis = (torch.arange(side, device=x.device) + 0.5) * SIZE / side
        grid = attention.unflatten(-1, (side, side))
        centre = torch.stack([(grid.sum(-2) * axis).sum(-1), (grid.sum(-1) * axis).sum(-1)], -1)
        pooled = torch.cat([coarse.mean((2, 3)), coarse.amax((2, 3))], 1)
        count, background = self.scene(pooled).float().split([SLOTS + 1, len(BACKGROUNDS)], -1)
        return Reading(shape=present, colour=colour, texture=texture, size=size, centre=centre, count=count, background=background)


# `guide` may steer, `judge`, which differs in architecture, only judges; `preference` is the guide taught a rater's choices.
# All read 64 x 64 pixels.
CLIPS = {
    "guide": {"layers": (1, 1, 1, 1), "width": 16},
    "preference": {"layers": (1, 1, 1, 1), "width": 16},
    "judge": {"layers": (1, 2, 1, 1), "width": 16},
}


def build_clip(name: str, vocabulary: int) -> open_clip.model.CLIP:
    """An untrained open_clip CLIP of the lab's size. Raises KeyError where `name` is not in CLIPS."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(image_size=SIZE, head_width=32, **CLIPS[name])
    text = CLIPTextCfg(context_length=MAX_TOKENS, vocab_size=vocabulary, width=128, heads=4, layers=2)
    return CLIP(CLIP_DIM, vision, text)


class AestheticHead(nn.Module):
    """LAION's aesthetic predictor v2: a stack of linear layers without activations over a unit-length CLIP image embedding.

    Same state dict as the released head (christophschuhmann/improved-aesthetic-predictor, simple_inference.py):
    `layers.{0,2,4,6,7}`; its dropouts do nothing at inference and are left out.
    """

    def __init__(self, dim: int = 768) -> None:
        super().__init__()
        widths = [dim, 1024, 128, 64, 16, 1]
        linear = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        self.layers = nn.ModuleDict(dict(zip("02467", linear, strict=True)))

    def forward(self, embedding: Tensor) -> Tensor:
        """Scores (b), about 1 to 10, of unit-length embeddings (b d)."""
        for layer in self.layers.values():
            embedding = layer(embedding)
        return embedding[:, 0]


def load_vae() -> AutoencoderKL:
    """The shipped autoencoder in fp32."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(WEIGHTS / "generator" / "vae").float().eval().requires_grad_(False)


def load_generator() -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The shipped generator's UNet and text encoder in fp32, frozen."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    root = WEIGHTS / "generator"
    unet = UNet2DConditionModel.from_pretrained(root / "unet").float().eval().requires_grad_(False)
    return unet, CLIPTextModel.from_pretrained(root / "text_encoder").float().eval().requires_grad_(False)


def load(network: _Network, name: str) -> _Network:
    """The network with the shipped weights of this name in fp32, frozen."""
    from safetensors.torch import load_file

    network.load_state_dict(load_file(WEIGHTS / f"{name}.safetensors"))
    return network.float().eval().requires_grad_(False)


def load_classifier() -> SceneClassifier:
    """The shipped scene classifier in fp32, frozen."""
    return load(SceneClassifier(), "classifier")


def load_clip(name: str) -> open_clip.model.CLIP:
    """A shipped CLIP (of CLIPS) in fp32, frozen."""
    return load(build_clip(name, load_tokenizer().get_vocab_size()), f"clip-{name}")


def load_aesthetic() -> AestheticHead:
    """The shipped aesthetic head in fp32, frozen."""
    return load(AestheticHead(CLIP_DIM), "aesthetic")
