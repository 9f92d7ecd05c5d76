"""Any Stable Diffusion 1.x or 2.x folder in diffusers' layout.

Nothing is hard-wired: latent size, text length, schedule and prediction type are read from the folder's configs. Networks are
frozen and load at first use, after every option has been checked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from guidedgen.basics.precision import run_in
from guidedgen.basics.tasks import Task
from guidedgen.models.folder import INDEX
from guidedgen.models.latent import Conditioning
from guidedgen.models.learnable import Learnable, Reader
from guidedgen.models.stable_diffusion_folder import StableDiffusionFolder
from guidedgen.models.unet import UNetModel
from guidedgen.models.words import Words
from guidedgen.process.grid import Point

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

# CLIPTextModelWithProjection's: Stable Diffusion reads what goes into it.
_SPARE = (r"^text_projection\.weight$",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusion(UNetModel):
    """Stable Diffusion 1.x or 2.x, or what was trained from it, latent consistency models included. `path` may be "lab", the
    bundled model.

    `learned` is what was learned elsewhere: a folder or file, {path: ..., scale: ...}, or a list of these; see
    `guidedgen.models.learned`.
    """

    FOLDER: ClassVar = StableDiffusionFolder
    LEARNABLE: ClassVar = Learnable(
        name="Stable Diffusion 1 or 2",
        networks={"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"},
        adapted=("unet", "text_encoder"), loader="StableDiffusionLoraLoaderMixin",
        readers=(Reader(encoder="text_encoder", tokenizer="tokenizer"),),
        replaced=("unet", "vae", "text_encoder"), pipelines=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    )  # fmt: skip
    GUIDANCE: ClassVar = 7.5
    READERS: ClassVar = ("tokenizer", "text_encoder", "words")

    # What the folder says of itself

    @functools.cached_property
    def opened(self) -> StableDiffusionFolder:
        return StableDiffusionFolder.open(self.path, self.size)

    @property
    def files(self) -> tuple[Path, ...]:
        """What it is made of: the folders of the parts that are read, and what was learned besides."""
        parts = [self.opened.part_folder(part) for part in (*StableDiffusionFolder.WEIGHTS, "scheduler", "tokenizer")]
        index = () if self.opened.guidance is None else (self.folder / INDEX,)  # which pipeline it is says what guidance is given
        return (*index, *parts, *self.additions.files)

    def config(self, part: str) -> Mapping[str, Any]:
        """What the folder says of a part of the model."""
        return self.opened.configs[part]

    # Networks

    @functools.cached_property
    def text_encoder(self) -> CLIPTextModel:
        """The text encoder."""
        from transformers import CLIPTextModel

        return self.load_network(CLIPTextModel, "text_encoder", spare=_SPARE)

    @functools.cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer."""
        return self.opened.load_tokenizer()

    @functools.cached_property
    def words(self) -> Words:
        """What the text encoder has learned besides its vocabulary."""
        return self.vocabularies([self.tokenizer], [self.text_encoder])[0]

    # Use

    def check(self, tasks: Sequence[Task], reserved: int = 0) -> None:
        """The same for prompts with learned words in them, and for very many prompts."""
        if self.truncate_prompts:
            return
        available = self.max_tokens - 2 - reserved
        prompts = list(dict.fromkeys([self.negative_prompt, *(task.prompt for task in tasks)]))
        plain, learned = zip(*(self.without_learned(prompt) for prompt in prompts), strict=True)
        # Every word is a token or more: no need to load the tokenizer to refuse a very long prompt.
        counts = [len(prompt.split()) for prompt in plain]
        if max(counts) <= available:
            counts = _token_counts(self.opened, plain)
        for prompt, count, more in zip(prompts, counts, learned, strict=True):
            tokens = count + more
            if tokens > available:
                self._refuse(prompt, tokens, available)

    def count_tokens(self, prompt: str) -> int:
        return _token_counts(self.opened, (prompt,))[0]

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings: b l d, differentiable in learned words that require gradients."""
        length = self.max_tokens
        ids = self.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        with self.ledger.timed("text"), torch.set_grad_enabled(self.words.tuned):
            return self.words.encode(ids.to(self.device))

    def conditional(self, tasks: Sequence[Task]) -> Conditioning:
        return Conditioning(self.encode_prompts([self.words.expanded(task.prompt) for task in tasks]))

    def unconditional(self) -> Conditioning:
        return Conditioning(self.encode_prompts([self.words.with_tokens(self.negative_prompt)]).detach())

    def predict(self, x_t: Tensor, t: Point, conditioning: Conditioning) -> Tensor:
        time = torch.full((len(x_t),), t.t, device=x_t.device)
        more = self.guided(len(x_t))
        return run_in(self.network_dtype, lambda x, prompt: self.unet(x, time, prompt, **more).sample, x_t, conditioning.tokens)


@functools.lru_cache(maxsize=4)  # of ten thousand prompts it takes a second, and a run and its unguided one check them twice each
def _token_counts(folder: StableDiffusionFolder, prompts: tuple[str, ...]) -> list[int]:
    """How many tokens each of the prompts is."""
    return list(map(len, folder.load_tokenizer()(list(prompts), add_special_tokens=False, verbose=False).input_ids))
