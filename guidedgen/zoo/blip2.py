"""BLIP-2's first stage (Li et al. 2023, arXiv:2301.12597): how well a text matches an image, and how well it captions it.

    matching     -log softmax(m)_1, m the matching head's logits, averaged over the queries
    captioning   the cross-entropy of the text given the image, per token, label-smoothed by 0.1

Both are what LAVIS trains by (salesforce/LAVIS, lavis/models/blip2_models/blip2_qformer.py, Blip2Qformer.forward) and what images
are optimised by in "Referee Can Play" (L_itm and L_cg). transformers has the network without its captioning head, which comes in
a file of its own; `convert_head` makes it from the published checkpoint. Images are squashed to a square, bicubic, and
normalised on tensors, so that gradients reach the pixels. The vision tower runs once for both losses.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import UsageError
from guidedgen.basics.precision import DType, dtype_of, full_dtype_of, rounded, run_in, settled, wide
from guidedgen.basics.vision_language import QFormer
from guidedgen.zoo import web
from guidedgen.zoo.files import locate_lab, read_config, read_state
from guidedgen.zoo.needed import BERT_WORDS, TOKENIZER, Needed, Survey, cached_file, fetch_url, network
from guidedgen.zoo.pretrained import load_pretrained, load_processor

HEAD = "blip2-caption-head.safetensors"  # of HubBlip2, in torch.hub's cache
# BLIP-2's first stage as its authors published it, without a checksum: salesforce/LAVIS,
# lavis/configs/models/blip2/blip2_pretrain.yaml. A file of this name in torch.hub's cache is not fetched again.
LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/blip2_pretrained.pth"
LENGTH = 32  # tokens of a text at most, as LAVIS' blip2_pretrain.yaml has it
_CLS = "Qformer.cls.predictions."
_PARTS = {  # of vision_language.CaptionHead, and what LAVIS calls them
    "dense.weight": "transform.dense.weight",
    "dense.bias": "transform.dense.bias",
    "LayerNorm.weight": "transform.LayerNorm.weight",
    "LayerNorm.bias": "transform.LayerNorm.bias",
    "bias": "bias",
}


class HubBlip2:
    """A Blip2ForImageTextRetrieval in transformers' format, with its captioning head: zoo.Matcher.

    `path` is a folder or a hub name; `head` the file of the captioning head, or None for the one that `scripts/fetch.py blip2`
    makes. `name`, `weights`, `dtype` and `key` as for `zoo.clip.HubClip`. Texts are cut to 32 tokens. Raises UsageError where
    something is missing, or the folder holds another kind of model.
    """

    def __init__(
        self,
        *,
        name: str,
        path: str | Path,
        head: str | Path | None = None,
        device: torch.device | str = "cpu",
        dtype: DType = "float32",
        weights: str | None = None,
        key: str = "blip2.path",
    ) -> None:
        self.name = name
        self.device, self.dtype = torch.device(device), settled(dtype, device)
        needed, *_ = self.reads(path=path, weights=weights, head=head, key=key)
        assert isinstance(needed, Needed)
        self.folder = needed.locate()
        read_config(self.folder, source=f"{key}={path}", kind="blip-2")
        self._key = key
        self.head = cached_file(HEAD) if head is None else Path(head).expanduser()
        if not self.head.is_file():
            how = "make it with: python scripts/fetch.py blip2" if head is None else "no such file"
            raise UsageError(f"{key}: the captioning head {self.head} is missing; {how}")
        self._safetensors = needed.found(self.folder).endswith(".safetensors")

    @staticmethod
    def reads(
        *, path: str | Path, head: str | Path | None = None, weights: str | None = None, key: str = "blip2.path", **_: object
    ) -> tuple[Needed | MadeHead, ...]:
        """What is read: the network with its tokenizer, and the captioning head unless that is a file of the user's."""
        needed = network(path, key=key, files=TOKENIZER, weights=weights, one_of=BERT_WORDS)
        return (needed, MadeHead()) if head is None else (needed,)

    @property
    def network(self) -> QFormer:
        """The frozen network, loaded at first use."""
        return _load_hub(self.folder, self.head, self._safetensors, self.device, self.dtype, self._key)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = load_processor(AutoTokenizer, self.folder, source=f"{self._key}={self.folder}", what="its tokenizer")
        if tokenizer.bos_token_id is None:
            raise UsageError(f"{self._key}={self.folder}: its tokenizer has no start token of captions ([DEC]); fetch it again")
        return tokenizer

    def __call__(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """b 3 H W in [0, 1], one text each -> losses of matching and of captioning, b each, differentiable."""
        network, tokenizer = self.network, self._tokenizer
        pixels = pictures.check(images, self.name).to(self.device, full_dtype_of(network))
        pixels = pictures.resize(pixels, network.network.config.vision_config.image_size, crop=False)
        pixels = pictures.normalise(pixels, pictures.CLIP_MEAN, pictures.CLIP_STD)
        # Padded to one length, so that a text's losses do not depend on the other texts.
        read = [as_captions_are(text) for text in texts]
        tokens = tokenizer(read, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        return _losses(network, pixels, ids, mask, tokenizer.bos_token_id)


class LabBlip2:
    """The lab's BLIP-2, the same computation at small size: zoo.Matcher. Images are resized to 64 px.

    `dtype` as for `zoo.clip.HubClip`. Raises UsageError where its weights are missing.
    """

    name = "lab-blip2"

    def __init__(self, *, device: torch.device | str = "cpu", dtype: DType = "float32", key: str = "blip2") -> None:
        self.device, self.dtype = torch.device(device), settled(dtype, device)
        self.files = (
            locate_lab("blip2.safetensors", key=f"{key}={self.name}", part="blip2"),
            locate_lab("generator/tokenizer/tokenizer.json", key=f"{key}={self.name}", part="generator"),
        )

    @property
    def network(self) -> QFormer:
        """The frozen network, loaded at first use."""
        return _load_lab(self.device, self.dtype)

    def __call__(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """b 3 H W in [0, 1], one text each -> losses of matching and of captioning, b each, differentiable."""
        from guidedgen.lab import networks, referees
        from guidedgen.lab.world import SIZE

        pixels = pictures.resize(pictures.check(images, self.name).to(self.device, torch.float32), SIZE, crop=False)
        tokenizer = networks.load_tokenizer()
        ids, mask = (tensor.to(self.device) for tensor in referees.tokenise(tokenizer, texts))
        return _losses(self.network, pictures.to_model(pixels), ids, mask, referees.special(tokenizer)["[DEC]"])


class MadeHead:
    """The captioning head that transformers' BLIP-2 lacks, made of the authors' checkpoint."""

    name = "blip2-caption-head"

    def survey(self) -> Survey:
        """Whether it is there, and can be read."""
        path = cached_file(HEAD)
        try:
            if path.is_file() and read_state(path, key=self.name).keys() == _PARTS.keys():
                return Survey(where=path, files=1, size=path.stat().st_size)
        except UsageError:  # which is no head
            pass
        there = cached_file(LAVIS.rpartition("/")[2]).exists()
        return Survey(missing=[(HEAD if there else f"{HEAD}, of {LAVIS}", 0 if there else web.size(LAVIS))])

    def download(self) -> Path:
        """Makes it; the checkpoint is downloaded where needed, and then not kept. Raises UsageError."""
        from safetensors.torch import save_file

        path, checkpoint = cached_file(HEAD), cached_file(LAVIS.rpartition("/")[2])
        own = checkpoint.exists()
        if not own:
            fetch_url(self.name, LAVIS, checkpoint)
        state = convert_head(read_state(checkpoint, key=self.name), str(checkpoint))
        partial = path.with_suffix(".partial")
        save_file(state, partial)
        partial.replace(path)
        if not own:
            checkpoint.unlink()
        return path


def as_captions_are(text: str) -> str:
    """A text as BLIP-2 was trained to read it: small letters, no .!"()*#:;~ and at most 50 words.

    salesforce/LAVIS, lavis/processors/blip_processors.py, BlipCaptionProcessor.pre_caption, which the released code of "Referee Can
    Play" applies too.
    """
    return " ".join(re.sub(r"""[.!"()*#:;~]""", " ", text.lower()).split()[:50])


def _losses(network: QFormer, pixels: Tensor, ids: Tensor, mask: Tensor, start: int) -> tuple[Tensor, Tensor]:
    def outputs(pixels: Tensor) -> Tensor:
        seen = network.see(pixels)
        return torch.cat([wide(network.match(seen, ids, mask)), network.caption(seen, ids, mask, start)[:, None]], 1)

    found = run_in(dtype_of(network), outputs, pixels)
    # The softmax is outside: of a sure match its gradient is tiny, and would be 0 in float16 further back.
    return -F.log_softmax(found[:, :2], -1)[:, 1], found[:, 2]


def convert_head(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The captioning head's tensors from a checkpoint of LAVIS' Blip2Qformer ("model" of blip2_pretrained.pth), as HubBlip2 reads
    them.

    Raises UsageError where the checkpoint lacks one, or its output layer is not its word embeddings, which alone is supported.
    """
    if missing := [name for name in _PARTS.values() if _CLS + name not in state]:
        raise UsageError(f"{source}: no checkpoint of BLIP-2's first stage: it lacks {_CLS}{missing[0]}")
    words, decoder = (state.get(name) for name in ("Qformer.bert.embeddings.word_embeddings.weight", f"{_CLS}decoder.weight"))
    if words is not None and decoder is not None and not torch.equal(words, decoder):
        raise UsageError(f"{source}: its captioning head's output layer is not its word embeddings, which is not supported")
    return {name: state[_CLS + theirs].float().contiguous() for name, theirs in _PARTS.items()}


# Loading may first happen inside inference mode, whose tensors could never be differentiated through afterwards.
@functools.cache
@torch.inference_mode(False)
def _load_hub(folder: Path, head: Path, safetensors: bool, device: torch.device, dtype: DType, key: str) -> QFormer:
    from transformers import Blip2ForImageTextRetrieval

    kind, what = Blip2ForImageTextRetrieval, "a BLIP-2"
    network: Any = load_pretrained(kind, folder, what=what, safetensors=safetensors, device=torch.device("cpu"))
    state = read_state(head, key=f"{key}: head")
    words, embeddings = len(state.get("bias", ())), network.get_input_embeddings().weight
    whole = QFormer(network, words)
    try:
        whole.head.load_state_dict(state)
    except RuntimeError as error:
        raise UsageError(f"{key}: {head} is no captioning head of {folder}; make it with: python scripts/fetch.py blip2") from error
    if not 0 < words <= len(embeddings):
        raise UsageError(f"{key}: {head} is a captioning head for {words} words, but {folder} has {len(embeddings)}")
    return rounded(whole.eval().requires_grad_(False), dtype).to(device)


@functools.cache
@torch.inference_mode(False)
def _load_lab(device: torch.device, dtype: DType) -> QFormer:
    from guidedgen.lab.referees import load_blip2

    return rounded(copy.deepcopy(load_blip2()), dtype).to(device)
