"""Any Stable Diffusion 1.x or 2.x folder in diffusers' layout; the only importer of diffusers.

Nothing is hard-wired: latent size, text length, schedule and prediction type are read from the folder's configs. Networks are
frozen and load at first use, after every option has been checked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.cost import Ledger
from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.precision import run_in
from guidedgen.basics.tasks import Task
from guidedgen.models.folder import WEIGHTS, Folder, needed, open_folder
from guidedgen.models.learned import Learned
from guidedgen.models.words import Words, replaced, words_in
from guidedgen.process import Prediction
from guidedgen.process.formulas import classifier_free, from_eps, from_v
from guidedgen.process.grid import NoiseSchedule, Point
from guidedgen.zoo.needed import Needed
from guidedgen.zoo.pretrained import load_pretrained

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
# CLIPTextModelWithProjection's: Stable Diffusion reads what goes into it.
_SPARE = (r"^text_projection\.weight$",)
_Network = TypeVar("_Network", bound=torch.nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusion:
    """A text-to-image latent diffusion model.

    `path` is a folder, a repository of the hub, or "lab" for the bundled model. With `guidance_scale` 1 the empty prompt is never
    evaluated. A prompt longer than the text encoder reads is an error unless `truncate_prompts`, which cuts it as diffusers does.
    `learned` is what was learned elsewhere: a folder or file, {path: ..., scale: ...}, or a list of these; see
    `guidedgen.models.learned`.
    """

    path: str
    name: str
    device: str = "cpu"
    dtype: str = "float32"
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    truncate_prompts: bool = False
    batch_size: int = 8  # latent rows per network call; a guidance pair is one row here
    learned: str | Sequence[Any] | Mapping[str, Any] | None = None
    ledger: Ledger = dataclasses.field(default_factory=Ledger)

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise BadValue("path", self.path, "must be a folder, a hub name (org/name) or lab")
        if self.dtype not in _DTYPES:
            raise BadValue("dtype", self.dtype, f"choose from {', '.join(_DTYPES)}")
        if self.batch_size < 1:
            raise BadValue("batch_size", self.batch_size, "must be at least 1")
        if not self.guidance_scale >= 0:
            raise BadValue("guidance_scale", self.guidance_scale, "must be at least 0 (1 is no guidance)")
        _ = self._opened  # refused before anything is loaded
        self.additions.check(self.config, lambda: self.tokenizer)

    # What the folder says of itself

    @functools.cached_property
    def _opened(self) -> Folder:
        return open_folder(self.path)

    @property
    def folder(self) -> Path:
        """Where the files are on this machine."""
        return self._opened.path

    @staticmethod
    def reads(*, path: str, **_: object) -> tuple[Needed, ...]:
        """What is read of the hub or of a folder: nothing of the bundled model."""
        return () if path == "lab" else (needed(path),)

    @property
    def files(self) -> tuple[Path, ...]:
        """What it is made of: the folders of the parts that are read, and what was learned besides."""
        parts = [self.folder / part for part in (*WEIGHTS, "scheduler", "tokenizer")]
        return (*parts, *self.additions.files)

    def config(self, part: str) -> Mapping[str, Any]:
        """What the folder says of a part of the model."""
        return self._opened.configs[part]

    @functools.cached_property
    def additions(self) -> Learned:
        """What `learned` names."""
        return Learned(self.learned, "model.learned")

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels the model was trained on."""
        return self._opened.schedule

    @property
    def prediction(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return self._opened.prediction

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """c h w."""
        return self._opened.latent_shape

    @property
    def image_size(self) -> int:
        """Pixels per side."""
        return self._opened.image_size

    @property
    def max_tokens(self) -> int:
        """Tokens per prompt, start and end included."""
        return self._opened.max_tokens

    # Networks

    def load(self) -> None:
        """Loads what is not loaded yet."""
        with self.ledger.timed("load"):
            from diffusers.utils import logging as diffusers_logging
            from transformers.utils import logging as transformers_logging

            diffusers_logging.disable_progress_bar()
            transformers_logging.disable_progress_bar()
            _ = self.tokenizer
            for network in (self.text_encoder, self.unet, self.vae):
                assert not network.training

    def _network(self, kind: type[_Network], part: str, spare: Sequence[str] = ()) -> _Network:
        network: _Network = load_pretrained(
            kind, self.folder / part, source=f"model.path={self.path}", what=f"its {part}", spare=spare,
            safetensors=str(self._opened.weights(part)).endswith(".safetensors"), device=torch.device(self.device),
            dtype=_DTYPES[self.dtype],
        )  # fmt: skip
        return network

    @functools.cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoising network."""
        from diffusers import UNet2DConditionModel

        network = self._network(UNet2DConditionModel, "unet")
        self.additions.into_unet(network)
        return network

    @functools.cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder."""
        from diffusers import AutoencoderKL

        network = self._network(AutoencoderKL, "vae")
        self.additions.into_vae(network)
        return network

    @functools.cached_property
    def text_encoder(self) -> CLIPTextModel:
        """The text encoder."""
        from transformers import CLIPTextModel

        network = self._network(CLIPTextModel, "text_encoder", spare=_SPARE)
        self.additions.into_text_encoder(network)
        return network

    @functools.cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer."""
        return self._opened.load_tokenizer()

    @functools.cached_property
    def words(self) -> Words:
        """What the text encoder has learned besides its vocabulary."""
        vocabulary = Words(self.tokenizer, self.text_encoder, self.negative_prompt)
        self.additions.into_words(vocabulary)
        return vocabulary

    # Use

    def check(self, tasks: Sequence[Task], reserved: int = 0) -> None:
        """Raises UsageError where a prompt is longer than the text encoder reads, less the tokens `reserved` for words to be
        learned; needs the tokenizer only.
        """
        if self.truncate_prompts:
            return
        available = self.max_tokens - 2 - reserved
        prompts = list(dict.fromkeys([self.negative_prompt, *(task.prompt for task in tasks)]))
        plain, learned = zip(*(self._without_learned(prompt) for prompt in prompts), strict=True)
        # Every word is a token or more: no need to load the tokenizer to refuse a very long prompt.
        counts = [len(prompt.split()) for prompt in plain]
        if max(counts) <= available:
            counts = _token_counts(self._opened, plain)
        for prompt, count, more in zip(prompts, counts, learned, strict=True):
            tokens = count + more
            if tokens > available:
                raise UsageError(
                    f"prompt of {tokens} tokens or more ({prompt[:40]!r}...): model={self.name} reads {available}; "
                    "shorten it or set model.truncate_prompts=true"
                )

    def _without_learned(self, prompt: str) -> tuple[str, int]:
        """A prompt without its learned words, and how many tokens these are, those included that it is read with."""
        known = self.additions.words
        if not known:
            return prompt, 0
        there = words_in(known, prompt)
        added = (
            known.keys() - {*there, *words_in(known, self.negative_prompt)} if prompt != self.negative_prompt or not prompt else ()
        )
        return replaced(known, prompt, lambda _: " "), sum(known[name] for name in (*there, *added))

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings: b l d, differentiable in learned words that require gradients."""
        length = self.max_tokens
        ids = self.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        with self.ledger.timed("text"), torch.set_grad_enabled(self.words.tuned):
            return self.words.encode(ids.to(self.device))

    def denoiser(self, tasks: Sequence[Task]) -> PromptedDenoiser:
        """The denoiser of these tasks."""
        cond = self.encode_prompts([self.words.expanded(task.prompt) for task in tasks])
        uncond = self.encode_prompts([self.words.with_tokens(self.negative_prompt)])
        return PromptedDenoiser(model=self, cond=cond, uncond=uncond.detach())

    def decode(self, x_0: Tensor) -> Tensor:
        """Latents (b c h w) to images (b 3 H W) in [0, 1]; differentiable."""
        with self.ledger.timed("decode"):
            self.ledger.decodes += len(x_0)
            scaled = x_0 / self.vae.config.scaling_factor
            return images.from_model(run_in(self.vae.dtype, lambda z: self.vae.decode(z).sample, scaled).float())

    def encode(self, pictures: Tensor) -> Tensor:
        """Images (b 3 H W) in [0, 1] to latents (b c h w), the mean of the posterior; differentiable."""
        with self.ledger.timed("encode"):
            posterior = self.vae.encode(images.to_model(pictures).to(self.vae.dtype)).latent_dist
            return posterior.mean.float() * self.vae.config.scaling_factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedDenoiser:
    """What the UNet predicts for b prompts; any number of particles each."""

    model: StableDiffusion
    cond: Tensor  # b l d
    uncond: Tensor  # 1 l d

    @property
    def guidance_scale(self) -> float:
        return self.model.guidance_scale

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Prediction:
        """Of b n c h w, in calls of at most `batch_size` latents."""
        w = self.guidance_scale if guidance_scale is None else guidance_scale
        if w == 1:
            output = self._rows(lambda rows, cond: self._network(rows, cond, t), x_t)
        elif w == 0:
            output = self._rows(lambda rows, cond: self._network(rows, self.uncond.expand_as(cond), t), x_t)
        else:
            output = self._rows(lambda rows, cond: classifier_free(*self._pair(rows, cond, t), w), x_t)
        return self._prediction(x_t, output, t)

    def pair(self, x_t: Tensor, t: Point) -> tuple[Prediction, Prediction]:
        """Of b n c h w, in calls of at most `batch_size` latents."""
        both = self._rows(lambda rows, cond: torch.stack(self._pair(rows, cond, t), 1), x_t)  # b n 2 c h w
        return self._prediction(x_t, both[:, :, 0], t), self._prediction(x_t, both[:, :, 1], t)

    def _prediction(self, x_t: Tensor, output: Tensor, t: Point) -> Prediction:
        return (from_v if self.model.prediction == "v_prediction" else from_eps)(x_t, output, t)

    @property
    def conditioning(self) -> Tensor:
        """The prompts' embeddings: b l d."""
        return self.cond

    def conditioned_on(self, conditioning: Tensor) -> PromptedDenoiser:
        return dataclasses.replace(self, cond=conditioning)

    def subset(self, rows: Sequence[int]) -> PromptedDenoiser:
        return dataclasses.replace(self, cond=self.cond[list(rows)])

    def _rows(self, predict: Callable[[Tensor, Tensor], Tensor], x_t: Tensor) -> Tensor:
        """`predict` of every latent and its prompt's embedding, put together again."""
        b, n = x_t.shape[:2]
        rows, owner = x_t.flatten(0, 1), torch.arange(b * n, device=x_t.device) // n
        size = self.model.batch_size
        parts = [predict(rows[i : i + size], self.cond[owner[i : i + size]]) for i in range(0, b * n, size)]
        return torch.cat(parts).unflatten(0, (b, n))

    def _pair(self, x_t: Tensor, cond: Tensor, t: Point) -> tuple[Tensor, Tensor]:
        both = self._network(torch.cat([x_t, x_t]), torch.cat([self.uncond.expand_as(cond), cond]), t)
        uncond, conditional = both.chunk(2)
        return uncond, conditional

    def _network(self, x_t: Tensor, embedding: Tensor, t: Point) -> Tensor:
        model = self.model
        model.ledger.nfe += len(x_t)
        with model.ledger.timed("denoise"):
            time = torch.full((len(x_t),), t.t, device=x_t.device)
            predicted = run_in(model.unet.dtype, lambda x, prompt: model.unet(x, time, prompt).sample, x_t, embedding)
        model.ledger.count_backward(predicted, len(x_t))
        return predicted


@functools.lru_cache(maxsize=4)  # of ten thousand prompts it takes a second, and a run and its unguided one check them twice each
def _token_counts(folder: Folder, prompts: tuple[str, ...]) -> list[int]:
    """How many tokens each of the prompts is."""
    return list(map(len, folder.load_tokenizer()(list(prompts), add_special_tokens=False, verbose=False).input_ids))
