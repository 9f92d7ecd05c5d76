"""Latent diffusion models whose network is a UNet2DConditionModel: what Stable Diffusion and XL have in common."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.models.latent import LatentModel
from guidedgen.models.unet_folder import UNetFolder
from guidedgen.process import Prediction
from guidedgen.process.formulas import from_eps, from_v
from guidedgen.process.grid import Point

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetModel(LatentModel):
    """A latent diffusion model with a UNet.

    Some UNets are given their guidance as an input, and were trained to predict what classifier-free guidance of that scale would
    (Meng et al. 2023, arXiv:2210.03142): `embedded_guidance`, None for what the folder's pipeline gives. As in diffusers, these
    have no classifier-free guidance besides: their `guidance_scale` is 1.
    """

    embedded_guidance: float | None = None

    FOLDER: ClassVar[type[UNetFolder]]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.opened.guidance is None and self.embedded_guidance is not None:
            rule = "this model's UNet is not given its guidance; use null, and model.guidance_scale"
            raise BadValue("embedded_guidance", self.embedded_guidance, rule)
        if self.embedded_guidance is not None and not 0 <= self.embedded_guidance < math.inf:
            raise BadValue("embedded_guidance", self.embedded_guidance, "must be at least 0 (1 is no guidance), or null")
        if self.opened.guidance is not None and self.guidance_scale != 1:
            rule = "must be 1: this model's UNet is given its guidance; set model.embedded_guidance"
            raise BadValue("guidance_scale", self.guidance_scale, rule)

    @property
    @abc.abstractmethod
    def opened(self) -> UNetFolder: ...

    @classmethod
    def guidance_of(cls, path: str) -> float:
        """1 where the UNet is given its guidance."""
        return cls.GUIDANCE if cls.FOLDER.open(path).guidance is None else 1.0

    @property
    def predicts(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return self.opened.prediction

    @functools.cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoising network."""
        from diffusers import UNet2DConditionModel

        return self.load_network(UNet2DConditionModel, "unet")

    def guided(self, rows: int) -> dict[str, Any]:
        """What the UNet is called with besides, for so many rows: its guidance where it is given any."""
        if self.opened.guidance is None:
            return {}
        scale = self.opened.guidance if self.embedded_guidance is None else self.embedded_guidance
        one = embedding_of(scale, int(self.opened.configs["unet"]["time_cond_proj_dim"]))
        return {"timestep_cond": one.to(self.device, self.network_dtype).expand(rows, -1)}

    def prediction(self, x_t: Tensor, output: Tensor, t: Point) -> Prediction:
        return (from_v if self.predicts == "v_prediction" else from_eps)(x_t, output, t)


def embedding_of(guidance_scale: float, width: int) -> Tensor:
    """What a UNet is given for a guidance scale w: sines, then cosines, of 1000 (w - 1) at frequencies that fall geometrically from
    1 to 1/10000, and a 0 where the width is odd. 1 x width, in float32, as diffusers' get_guidance_scale_embedding has it.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
    angles = torch.tensor(guidance_scale - 1) * 1000.0 * frequencies
    return torch.cat([angles.sin(), angles.cos(), torch.zeros(width - 2 * half)])[None]
