"""Any Stable Diffusion 1.x or 2.x folder in diffusers' layout; the only importer of diffusers.

Nothing is hard-wired: latent size, text length, schedule and prediction type are read from the folder's configs. Networks are
frozen and load at first use, after every option has been checked.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from guidedgen import images
from guidedgen.cost import Ledger
from guidedgen.models import tuning
from guidedgen.models.words import Words
from guidedgen.precision import run_in
from guidedgen.process.formulas import classifier_free, eps_from_v
from guidedgen.process.grid import NoiseSchedule, Point
from guidedgen.types import BadValue, Task, UsageError
from guidedgen.zoo.files import locate, locate_lab

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

_PARTS = ("unet", "vae", "text_encoder")
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
# No variants (fp16, non_ema) and no safety checker: they double the download and are not read.
_FILES = (
    *(f"{part}/config.json" for part in _PARTS),
    *(f"{part}/{_WEIGHTS[part]}.safetensors" for part in _PARTS),
    *(f"{part}/{_WEIGHTS[part]}-0*.safetensors" for part in _PARTS),  # in pieces, with their index
    *(f"{part}/{_WEIGHTS[part]}.safetensors.index.json" for part in _PARTS),
    "scheduler/*.json",
    "tokenizer/*",
    "model_index.json",
)
_REQUIRED = (
    *(f"{part}/config.json" for part in _PARTS),
    *(f"{part}/{_WEIGHTS[part]}*.safetensors" for part in _PARTS),
    "tokenizer/*",
    "scheduler/scheduler_config.json",
)
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
_Network = TypeVar("_Network", bound=torch.nn.Module)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StableDiffusion:
    """A text-to-image latent diffusion model.

    `path` is a folder, a repository of the hub, or "lab" for the bundled model. With `guidance_scale` 1 the empty prompt is never
    evaluated. A prompt longer than the text encoder reads is an error unless `truncate_prompts`, which cuts it as diffusers does.
    `learned` is a folder of tuned parameters, see `guidedgen.models.tuning`.
    """

    path: str
    name: str
    device: str = "cpu"
    dtype: str = "float32"
    guidance_scale: float = 7.5
    negative_prompt: str = ""
    truncate_prompts: bool = False
    batch_size: int = 8  # latent rows per network call; a guidance pair is one row here
    learned: str | None = None
    ledger: Ledger = dataclasses.field(default_factory=Ledger)

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise BadValue("dtype", self.dtype, f"choose from {', '.join(_DTYPES)}")
        if self.batch_size < 1:
            raise BadValue("batch_size", self.batch_size, "must be at least 1")
        if not self.guidance_scale >= 0:
            raise BadValue("guidance_scale", self.guidance_scale, "must be at least 0 (1 is no guidance)")
        self._check_configs()
        if self.learned is not None:
            tuning.check_folder(self._learned, "model.learned")

    # What the folder says of itself

    @functools.cached_property
    def folder(self) -> Path:
        """Where the files are on this machine. Raises UsageError where they cannot be had."""
        if self.path == "lab":
            return locate_lab("generator/model_index.json", key="model.path=lab", part="generator").parent
        return locate(self.path, key="model.path", files=_FILES, required=_REQUIRED)

    @property
    def files(self) -> tuple[str | Path, ...]:
        """What it is made of: the folders of the parts that are read, and what was learned besides."""
        parts = [self.folder / part for part in (*_PARTS, "scheduler", "tokenizer")]
        return (*parts, *([] if self.learned is None else [self._learned]))

    def _config(self, part: str, name: str = "config.json") -> dict[str, Any]:
        try:
            return json.loads((self.folder / part / name).read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"model.path={self.path}: cannot read {part}/{name} ({error})") from error

    def _check_configs(self) -> None:
        """Raises UsageError where the folder is of a kind of model that would be sampled wrongly."""
        scheduler, unet = self._config("scheduler", "scheduler_config.json"), self._config("unet")
        wrong = {
            f"prediction_type {self.prediction!r} (only epsilon, v_prediction)": self.prediction not in ("epsilon", "v_prediction"),
            f"beta_schedule {scheduler.get('beta_schedule')!r} (only linear, scaled_linear)": (
                scheduler.get("beta_schedule") not in ("linear", "scaled_linear") or scheduler.get("trained_betas") is not None
            ),
            "a schedule rescaled to zero terminal SNR": scheduler.get("rescale_betas_zero_snr", False),
            "a UNet without sample_size": not isinstance(unet.get("sample_size"), int),
            # An inpainting model's.
            f"a UNet of {unet.get('in_channels')} input channels": unet.get("in_channels") != unet.get("out_channels"),
        }
        for what, found in wrong.items():
            if found:
                raise UsageError(f"model.path={self.path}: {what} is not supported")

    @functools.cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise levels the model was trained on."""
        c = self._config("scheduler", "scheduler_config.json")
        try:
            return NoiseSchedule.from_betas(c["beta_start"], c["beta_end"], c["num_train_timesteps"], c["beta_schedule"])
        except KeyError as error:
            raise UsageError(f"model.path={self.path}: scheduler/scheduler_config.json has no {error}") from error

    @functools.cached_property
    def prediction(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return self._config("scheduler", "scheduler_config.json").get("prediction_type", "epsilon")

    @functools.cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """c h w."""
        unet = self._config("unet")
        side = unet["sample_size"]
        return (unet["in_channels"], side, side)

    @property
    def image_size(self) -> int:
        """Pixels per side."""
        return self.latent_shape[1] * 2 ** (len(self._config("vae")["block_out_channels"]) - 1)

    @functools.cached_property
    def max_tokens(self) -> int:
        """Tokens per prompt, start and end included."""
        return self._config("text_encoder")["max_position_embeddings"]

    # Networks

    def load(self) -> None:
        """Loads what is not loaded yet."""
        with self.ledger.timed("load"):
            from diffusers.utils import logging as diffusers_logging
            from transformers.utils import logging as transformers_logging

            diffusers_logging.disable_progress_bar()
            transformers_logging.disable_progress_bar()
            for network in (self.text_encoder, self.unet, self.vae):
                assert not network.training

    def _network(self, load: Callable[..., _Network], part: str) -> _Network:
        try:
            network = load(self.folder / part, dtype=_DTYPES[self.dtype], use_safetensors=True, local_files_only=True)
        except (OSError, SafetensorError) as error:
            raise UsageError(f"model.path={self.path}: {part} cannot be loaded ({error})") from error
        return network.to(self.device).eval().requires_grad_(False)

    @functools.cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoising network."""
        from diffusers import UNet2DConditionModel

        network = self._network(UNet2DConditionModel.from_pretrained, "unet")
        if self.learned is not None:
            tuning.load_network(network, self._learned, "model.learned")
        return network

    @functools.cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder."""
        from diffusers import AutoencoderKL

        return self._network(AutoencoderKL.from_pretrained, "vae")

    @functools.cached_property
    def text_encoder(self) -> CLIPTextModel:
        """The text encoder."""
        from transformers import CLIPTextModel

        return self._network(CLIPTextModel.from_pretrained, "text_encoder")

    @functools.cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer."""
        return _load_tokenizer(self.folder)

    @functools.cached_property
    def words(self) -> Words:
        """What the text encoder has learned besides its vocabulary."""
        words = Words(self.tokenizer, self.text_encoder)
        if self.learned is not None:
            tuning.load_words(words, self._learned, "model.learned")
        return words

    @property
    def _learned(self) -> Path:
        assert self.learned is not None
        return Path(self.learned).expanduser()

    # Use

    def check(self, tasks: Sequence[Task], reserved: int = 0) -> None:
        """Raises UsageError where a prompt is longer than the text encoder reads, less the tokens `reserved` for words to be
        learned; needs the tokenizer only.
        """
        if self.truncate_prompts:
            return
        room = self.max_tokens - 2 - reserved - (tuning.tokens(self._learned) if self.learned is not None else 0)
        prompts = list(dict.fromkeys([self.negative_prompt, *(task.prompt for task in tasks)]))
        # Every word is a token or more: no need to load the tokenizer to refuse a very long prompt.
        counts = [len(prompt.split()) for prompt in prompts]
        if max(counts) <= room:
            counts = _token_counts(self.folder, tuple(prompts))
        for prompt, tokens in zip(prompts, counts, strict=True):
            if tokens > room:
                raise UsageError(
                    f"prompt of {tokens} tokens or more ({prompt[:40]!r}...): model={self.name} reads {room}; "
                    "shorten it or set model.truncate_prompts=true"
                )

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings: b l d, differentiable in learned words that require gradients."""
        length = self.max_tokens
        ids = self.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        with self.ledger.timed("text"), torch.set_grad_enabled(self.words.tuned):
            return self.words.encode(ids.to(self.device))

    def denoiser(self, tasks: Sequence[Task]) -> PromptedDenoiser:
        """The denoiser of these tasks."""
        cond = self.encode_prompts([self.words.spoken(task.prompt) for task in tasks])
        uncond = self.encode_prompts([self.negative_prompt])
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
    """eps_hat(x_t, t | prompt) for b prompts; any number of particles each."""

    model: StableDiffusion
    cond: Tensor  # b l d
    uncond: Tensor  # 1 l d

    @property
    def guidance_scale(self) -> float:
        return self.model.guidance_scale

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Tensor:
        """b n c h w -> b n c h w, in calls of at most `batch_size` latents."""
        w = self.guidance_scale if guidance_scale is None else guidance_scale
        if w == 1:
            return self._rows(lambda rows, cond: self._network(rows, cond, t), x_t)
        if w == 0:
            return self._rows(lambda rows, cond: self._network(rows, self.uncond.expand_as(cond), t), x_t)
        return self._rows(lambda rows, cond: classifier_free(*self._pair(rows, cond, t), w), x_t)

    def pair(self, x_t: Tensor, t: Point) -> tuple[Tensor, Tensor]:
        """u and c, each b n c h w, in calls of at most `batch_size` latents."""
        both = self._rows(lambda rows, cond: torch.stack(self._pair(rows, cond, t), 1), x_t)  # b n 2 c h w
        return both[:, :, 0], both[:, :, 1]

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
        uncond, cond_eps = both.chunk(2)
        return uncond, cond_eps

    def _network(self, x_t: Tensor, embedding: Tensor, t: Point) -> Tensor:
        model = self.model
        model.ledger.nfe += len(x_t)
        with model.ledger.timed("denoise"):
            time = torch.full((len(x_t),), t.t, device=x_t.device)
            predicted = run_in(model.unet.dtype, lambda x, prompt: model.unet(x, time, prompt).sample, x_t, embedding)
        model.ledger.count_backward(predicted, len(x_t))
        return eps_from_v(x_t, predicted, t) if model.prediction == "v_prediction" else predicted


def _load_tokenizer(folder: Path) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


@functools.lru_cache(maxsize=4)  # of ten thousand prompts it takes a second, and a run and its unguided one check them twice each
def _token_counts(folder: Path, prompts: tuple[str, ...]) -> list[int]:
    """How many tokens each of the prompts is."""
    return list(map(len, _load_tokenizer(folder)(list(prompts), add_special_tokens=False, verbose=False).input_ids))
