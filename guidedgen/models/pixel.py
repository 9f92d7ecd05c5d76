"""Unconditional models of pixels (DDPM, Ho et al. 2020, arXiv:2006.11239), on diffusers' own UNet2DModel."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.errors import BadValue
from guidedgen.basics.precision import run_in
from guidedgen.basics.tasks import Task
from guidedgen.models.latent import Conditioning, PromptedDenoiser
from guidedgen.models.learnable import Learnable
from guidedgen.models.pixel_folder import PixelFolder
from guidedgen.models.textless import TextlessModel
from guidedgen.process import Prediction
from guidedgen.process.formulas import from_eps, from_v
from guidedgen.process.grid import Point

if TYPE_CHECKING:
    from diffusers import UNet2DModel

# What does nothing here, and so may not be set.
_PLAIN = {"guidance_scale": 1, "negative_prompt": "", "truncate_prompts": False, "weaker": None, "guidance": None}
_MEMORY = {"offload": False, "vae_tiling": False, "vae_slicing": False, "quantization": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixel(TextlessModel):
    """An unconditional model of pictures in pixels: its latents are the pictures themselves, in [-1, 1].

    Prompts are for rewards and metrics alone, so those of any data set can be sampled; there is no classifier-free guidance.
    `clip_sample` is whether every prediction's x_0 is clipped to the scheduler's range, as diffusers' pipelines do whose scheduler
    says so; None: what the folder says. The network is small and alone, so there are no options for less memory.
    """

    guidance_scale: float = 1.0
    clip_sample: bool | None = None

    FOLDER: ClassVar = PixelFolder
    LEARNABLE: ClassVar = Learnable(name="an unconditional model", networks={"unet": "UNet2DModel"})
    GUIDANCE: ClassVar = 1.0
    CONDITIONED: ClassVar = False

    def __post_init__(self) -> None:
        for name, plain in _PLAIN.items():
            if getattr(self, name) != plain:
                value = "null" if plain is None else f'"{plain}"' if plain == "" else str(plain).lower()
                raise BadValue(name, getattr(self, name), f"must be {value}: this model is not conditioned on prompts")
        if self.clip_sample is not None and not isinstance(self.clip_sample, bool):
            raise BadValue("clip_sample", self.clip_sample, "must be true, false or null")
        super().__post_init__()
        _ = self.opened  # refused before anything is loaded

    def _check_memory(self) -> None:
        for name, plain in _MEMORY.items():
            if getattr(self, name) is not plain:
                rule = f"must be {'null' if plain is None else 'false'}: this model has one small network, and no autoencoder"
                raise BadValue(name, getattr(self, name), rule)

    # What the folder says of itself

    @functools.cached_property
    def opened(self) -> PixelFolder:
        return PixelFolder.open(self.path, self.size)

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.opened.files, *self.additions.files)

    @property
    def clip(self) -> float | None:
        """The range -r to r that x_0 is clipped to; None where it is not."""
        if self.clip_sample is None:
            return self.opened.clip
        return self.opened.clip_range if self.clip_sample else None

    @property
    def clips(self) -> bool:
        return self.clip is not None

    # Networks

    @functools.cached_property
    def unet(self) -> UNet2DModel:
        """The denoising network."""
        from diffusers import UNet2DModel

        return self.load_network(UNet2DModel, "unet")

    @property
    def networks(self) -> tuple[Any, ...]:
        return (self.unet,)

    # Use

    def check(self, tasks: Sequence[Task], reserved: int = 0) -> None:
        """Any prompt will do, as none is read."""

    def conditional(self, tasks: Sequence[Task]) -> Conditioning:
        """Nothing, in rows of no numbers."""
        return Conditioning(torch.zeros(len(tasks), 0))

    def unconditional(self) -> Conditioning:
        return Conditioning(torch.zeros(1, 0))

    def denoiser(self, tasks: Sequence[Task]) -> UnconditionalDenoiser:
        cond, uncond = self.condition(tasks)
        return UnconditionalDenoiser(model=self, cond=cond, uncond=uncond)

    def predict(self, x_t: Tensor, t: Point, conditioning: Conditioning) -> Tensor:
        del conditioning
        time = torch.full((len(x_t),), t.t, device=x_t.device)
        return run_in(self.network_dtype, lambda x: self.unet(x, time).sample, x_t)

    def prediction(self, x_t: Tensor, output: Tensor, t: Point) -> Prediction:
        """With x_0 clipped; eps is what the network says of it before that, as in diffusers' pipelines."""
        made = (from_v if self.opened.prediction == "v_prediction" else from_eps)(x_t, output, t)
        return made if self.clip is None else dataclasses.replace(made, x_0=made.x_0.clamp(-self.clip, self.clip))

    def decode(self, x_0: Tensor) -> Tensor:
        """Pixels in [-1, 1] (b 3 H W) to images in [0, 1]; differentiable."""
        with self.ledger.timed("decode"):
            self.ledger.decodes += len(x_0)
            return images.from_model(x_0).float()

    def encode(self, pictures: Tensor) -> Tensor:
        """The inverse of `decode`."""
        with self.ledger.timed("encode"):
            return images.to_model(pictures).float()


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnconditionalDenoiser(PromptedDenoiser):
    """There is one prediction, the unconditional one, and so u + w (c - u) is the same for every w: it takes one row."""

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Prediction:
        del guidance_scale
        return super().__call__(x_t, t, 1.0)

    def pair(self, x_t: Tensor, t: Point) -> tuple[Prediction, Prediction]:
        prediction = self(x_t, t)
        return prediction, prediction

    @property
    def conditioning(self) -> Tensor:
        raise ValueError("an unconditional model has no conditioning")

    def conditioned_on(self, conditioning: Tensor) -> PromptedDenoiser:
        raise ValueError("an unconditional model has no conditioning")
