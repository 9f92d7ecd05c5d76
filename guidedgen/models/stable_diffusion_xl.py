"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952) and what was trained from it, on diffusers' own classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from guidedgen.basics.precision import run_in
from guidedgen.basics.tasks import Task
from guidedgen.models.folder import INDEX
from guidedgen.models.latent import Conditioning
from guidedgen.models.learnable import Learnable, Reader
from guidedgen.models.stable_diffusion_xl_folder import CLIPS, StableDiffusionXlFolder
from guidedgen.models.unet import UNetModel
from guidedgen.models.words import Words
from guidedgen.process.grid import Point

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

_SPARE = (r"^text_projection\.weight$",)  # of the first CLIP, of which only hidden states are read


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusionXl(UNetModel):
    """Stable Diffusion XL. The UNet is told that pictures are whole and of the size they are made in. An empty negative prompt
    means none, as negative_prompt=None does in diffusers: zeros stand for it where the folder says force_zeros_for_empty_prompt.

    Where the folder says force_upcast the autoencoder computes in float32 in place of float16, in which it overflows.
    """

    FOLDER: ClassVar = StableDiffusionXlFolder
    LEARNABLE: ClassVar = Learnable(
        name="Stable Diffusion XL",
        networks={
            "unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel",
            "text_encoder_2": "CLIPTextModelWithProjection",
        },
        adapted=("unet", "text_encoder", "text_encoder_2"), loader="StableDiffusionXLLoraLoaderMixin",
        readers=(
            Reader(encoder="text_encoder", tokenizer="tokenizer", key="clip_l"),
            Reader(encoder="text_encoder_2", tokenizer="tokenizer_2", key="clip_g"),
        ),
        replaced=("unet",),
    )  # fmt: skip
    GUIDANCE: ClassVar = 5.0
    UPCASTS: ClassVar = True
    READERS: ClassVar = ("tokenizers", "text_encoders", "words")

    # What the folder says of itself

    @functools.cached_property
    def opened(self) -> StableDiffusionXlFolder:
        return StableDiffusionXlFolder.open(self.path, self.size)

    @property
    def files(self) -> tuple[Path, ...]:
        """model_index.json says what an empty negative prompt is."""
        parts = (*StableDiffusionXlFolder.WEIGHTS, "scheduler", *(tokenizer for tokenizer, _ in CLIPS))
        return (self.folder / INDEX, *(self.folder / part for part in parts), *self.additions.files)

    # Networks

    @functools.cached_property
    def text_encoders(self) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
        """CLIP-L and CLIP-bigG."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        first, second = (encoder for _, encoder in CLIPS)
        return (
            self.load_network(CLIPTextModel, first, spare=_SPARE), self.load_network(CLIPTextModelWithProjection, second),
        )  # fmt: skip

    @functools.cached_property
    def tokenizers(self) -> tuple[CLIPTokenizer, CLIPTokenizer]:
        """Those of the two."""
        first, second = (self.opened.load_tokenizer(tokenizer, encoder) for tokenizer, encoder in CLIPS)
        return first, second

    @functools.cached_property
    def words(self) -> tuple[Words, ...]:
        """What the two have learned besides their vocabularies."""
        return self.vocabularies(self.tokenizers, self.text_encoders)

    # Use

    def count_tokens(self, prompt: str) -> int:
        return max(len(each(prompt, add_special_tokens=False, verbose=False).input_ids) for each in self.tokenizers)

    def encode_prompts(self, prompts: Sequence[str], *, negative: bool = False) -> Conditioning:
        """Tokens: the last but one layers of the CLIPs side by side. Pooled: the second's projection. Prompts that are not negative
        are read with every learned word.
        """
        with self.ledger.timed("text"), torch.no_grad():
            read = [
                words.read(
                    [words.with_tokens(prompt) if negative else words.expanded(prompt) for prompt in prompts], self.max_tokens
                )
                for words in self.words
            ]
            return Conditioning(torch.cat([output.hidden_states[-2] for output in read], -1), read[1].text_embeds)

    def conditional(self, tasks: Sequence[Task]) -> Conditioning:
        return self.encode_prompts([task.prompt for task in tasks])

    def unconditional(self) -> Conditioning:
        read = self.encode_prompts([self.negative_prompt], negative=True)
        return read.map(torch.zeros_like) if not self.negative_prompt and self.opened.empty_is_zero else read

    def predict(self, x_t: Tensor, t: Point, conditioning: Conditioning) -> Tensor:
        assert conditioning.pooled is not None
        time, more = torch.full((len(x_t),), t.t, device=x_t.device), self.guided(len(x_t))
        height, width = self.image_size
        sizes = torch.tensor([height, width, 0, 0, height, width], device=x_t.device).expand(len(x_t), -1)

        def call(x: Tensor, tokens: Tensor, pooled: Tensor) -> Tensor:
            output: Tensor = self.unet(x, time, tokens, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}, **more).sample
            return output

        return run_in(self.network_dtype, call, x_t, conditioning.tokens, conditioning.pooled)

    def for_vae(self, x_0: Tensor) -> Tensor:
        if self.opened.latent_statistics is None:
            return super().for_vae(x_0)
        mean, std = (x_0.new_tensor(each)[:, None, None] for each in self.opened.latent_statistics)
        return x_0 * std / self.vae.config.scaling_factor + mean

    def from_vae(self, latents: Tensor) -> Tensor:
        if self.opened.latent_statistics is None:
            return super().from_vae(latents)
        mean, std = (latents.new_tensor(each)[:, None, None] for each in self.opened.latent_statistics)
        return (latents - mean) * self.vae.config.scaling_factor / std
