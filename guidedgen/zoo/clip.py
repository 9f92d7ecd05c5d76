"""CLIPs: any of transformers' CLIPModel, and those of the lab.

Both take images in [0, 1] of any size and prepare them as OpenAI's CLIP does, on tensors, so that gradients reach the pixels:
bicubic antialiased resize of the shorter side, centre crop, normalisation. Pillow, which the released code uses, also rounds the
resized image to 8 bits; that is the only difference for square images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import UsageError
from guidedgen.basics.precision import DType, dtype_of, full_dtype_of, rounded, run_in, settled, wide
from guidedgen.zoo.files import locate_lab, read_config
from guidedgen.zoo.needed import CLIP_WORDS, TOKENIZER, Needed, network
from guidedgen.zoo.pretrained import load_pretrained, load_processor

if TYPE_CHECKING:
    import open_clip
    from transformers import CLIPModel, CLIPTokenizer


class HubClip:
    """A CLIP in transformers' format: zoo.Clip.

    `name` labels the network in reports; `path` is a folder or a hub name (see `zoo.hub`); `key` is its config key, for
    messages. `weights` names the file that is read, its shards count as well; None: model.safetensors, or pytorch_model.bin where
    there is no other, by torch's `weights_only` unpickler. `tokenizer` is the folder or hub name that its tokenizer is from, where
    that is not its own; nothing but the tokenizer's files is fetched from there. `dtype` is the weights', and what they compute in:
    images are prepared in float32, embeddings and gradients come out in it, and gradients too small for float16 are kept. Raises
    UsageError where something is missing or the folder holds another kind of model.
    """

    def __init__(
        self,
        *,
        name: str,
        path: str | Path,
        device: torch.device | str = "cpu",
        dtype: DType = "float32",
        weights: str | None = None,
        tokenizer: str | Path | None = None,
        key: str = "clip.path",
    ) -> None:
        self.name = name
        self.device, self.dtype = torch.device(device), settled(dtype, device)
        own, *others = self.reads(path=path, weights=weights, tokenizer=tokenizer, key=key)
        self.folder = own.locate()
        self._safetensors, self._key = own.found(self.folder).endswith(".safetensors"), key
        config = read_config(self.folder, source=f"{key}={path}", kind="clip")
        self.dim: int = config.get("projection_dim", 512)  # CLIPConfig's default, which a config may leave out
        self._words = others[0].locate() if others else self.folder

    @staticmethod
    def reads(
        *,
        path: str | Path,
        weights: str | None = None,
        tokenizer: str | Path | None = None,
        key: str = "clip.path",
        **_: object,
    ) -> tuple[Needed, ...]:
        """What is read: the network, and the tokenizer where that is another's."""
        if tokenizer is None:
            return (network(path, key=key, files=TOKENIZER, weights=weights, one_of=CLIP_WORDS),)
        words = Needed(name=str(tokenizer), key=f"{key}: tokenizer", files=TOKENIZER, one_of=CLIP_WORDS)
        return network(path, key=key, weights=weights), words

    @property
    def network(self) -> CLIPModel:
        """The frozen network, loaded at first use."""
        return _load_hub(self.folder, self._safetensors, self.device, self.dtype)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by in training: exp of the stored parameter."""
        return float(self.network.logit_scale.exp())

    @property
    def _config(self) -> Any:
        return self.network.config

    @functools.cached_property
    def _tokenizer(self) -> CLIPTokenizer:
        from transformers import CLIPTokenizer

        return load_processor(CLIPTokenizer, self._words, source=f"{self._key}={self._words}", what="its tokenizer")

    def encode_image(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b d of unit length, differentiable."""
        network = self.network
        pixels = pictures.check(images, self.name).to(self.device, full_dtype_of(network))
        pixels = pictures.resize(pixels, self._config.vision_config.image_size)
        pixels = pictures.normalise(pixels, pictures.CLIP_MEAN, pictures.CLIP_STD)
        return run_in(dtype_of(network), lambda x: _unit(network.get_image_features(pixel_values=x).pooler_output), pixels)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """-> b d of unit length. Longer texts are cut to the model's length, the end token kept (clip.tokenize's truncate=True).

        All rows are padded to the model's length, so that a text's embedding does not depend on the other texts' lengths.
        """
        length = self._config.text_config.max_position_embeddings
        tokens = self._tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return _unit(self.network.get_text_features(**tokens.to(self.device)).pooler_output)


class LabClip:
    """A CLIP of the lab, "lab-guide", "lab-preference" or "lab-judge": zoo.Clip.

    Images are resized to 64 px; texts are cut at 40 tokens; `dtype` as for `HubClip`. Raises UsageError where the name is
    another one, or the weights are missing.
    """

    def __init__(self, *, name: str, device: torch.device | str = "cpu", dtype: DType = "float32", key: str = "clip.name") -> None:
        from guidedgen.lab.networks import CLIP_DIM, CLIPS

        choices = [f"lab-{which}" for which in CLIPS]
        if name not in choices:
            raise UsageError(f"{key}={name}: no such CLIP; choices: {', '.join(choices)}")
        self.name = name
        self.device, self.dtype = torch.device(device), settled(dtype, device)
        self.dim: int = CLIP_DIM
        self._which = name.removeprefix("lab-")
        self.files = (
            locate_lab(f"clip-{self._which}.safetensors", key=f"{key}={name}", part=f"clip-{self._which}"),
            locate_lab("generator/tokenizer/tokenizer.json", key=f"{key}={name}", part="generator"),
        )

    @property
    def network(self) -> open_clip.model.CLIP:
        """The frozen network, loaded at first use."""
        return _load_lab(self._which, self.device, self.dtype)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by in training: exp of the stored parameter."""
        return float(self.network.logit_scale.exp())

    def encode_image(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b d of unit length, differentiable."""
        from guidedgen.lab.world import SIZE

        pixels = pictures.resize(pictures.check(images, self.name).to(self.device, torch.float32), SIZE)
        network = self.network
        return run_in(dtype_of(network), lambda x: _unit(network.encode_image(x)), pictures.to_model(pixels))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """-> b d of unit length."""
        from guidedgen.lab.networks import load_tokenizer, tokenize

        return _unit(self.network.encode_text(tokenize(load_tokenizer(), list(texts)).to(self.device)))


def _unit(embedding: Tensor) -> Tensor:
    embedding = wide(embedding)
    return embedding / embedding.norm(dim=-1, keepdim=True)


# Loading may first happen inside inference mode, whose tensors could never be differentiated through afterwards.
@functools.cache
@torch.inference_mode(False)
def _load_hub(folder: Path, safetensors: bool, device: torch.device, dtype: DType) -> CLIPModel:
    from transformers import CLIPModel

    return rounded(load_pretrained(CLIPModel, folder, what="a CLIP", safetensors=safetensors, device=device), dtype)


@functools.cache
@torch.inference_mode(False)
def _load_lab(which: str, device: torch.device, dtype: DType) -> open_clip.model.CLIP:
    from guidedgen.lab.networks import load_clip

    return rounded(load_clip(which).to(device), dtype)
