"""How near each pixel of a picture is, by any of transformers' depth estimators."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.zoo.files import read_config
from guidedgen.zoo.needed import Needed, network
from guidedgen.zoo.pretrained import load_pretrained


class HubDepth:
    """A depth estimator in transformers' format (AutoModelForDepthEstimation), such as DPT: zoo.DepthEstimator.

    Pictures are squashed to the square of `size` px, bilinear, and normalised by a mean and a deviation of 0.5, as the benchmark
    does for DPT (Karine-Huang/T2I-CompBench, UniDet_eval/experts/model_bank_3d.py, there at 480 px); 384 is what DPT is made for.
    `name`, `weights` and `key` as for `zoo.clip.HubClip`. Raises UsageError where something is missing, or the folder holds another
    kind of model.
    """

    def __init__(
        self,
        *,
        name: str,
        path: str | Path,
        size: int = 384,
        device: torch.device | str = "cpu",
        weights: str | None = None,
        key: str = "depth.path",
    ) -> None:
        self.name, self.size = name, size
        self.device = torch.device(device)
        [needed] = self.reads(path=path, weights=weights, key=key)
        self.folder = needed.locate()
        self._safetensors = needed.found(self.folder).endswith(".safetensors")
        read_config(self.folder, source=f"{key}={path}")

    @staticmethod
    def reads(*, path: str | Path, weights: str | None = None, key: str = "depth.path", **_: object) -> tuple[Needed, ...]:
        """What is read: the network."""
        return (network(path, key=key, weights=weights),)

    @property
    def network(self) -> Any:
        """The frozen network, loaded at first use."""
        return _load(self.folder, self._safetensors, self.device)

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> how near each pixel is, b H W, from 0 to 1 in each picture."""
        pixels = pictures.check(images, self.name).to(self.device, torch.float32)
        height, width = pixels.shape[-2:]
        shown = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        near = self.network(pixel_values=2 * shown - 1).predicted_depth.float()
        low, high = near.flatten(1).aminmax(dim=1)
        near = (near - low[:, None, None]) / (high - low).clamp(min=torch.finfo(near.dtype).tiny)[:, None, None]
        return F.interpolate(near[:, None], (height, width), mode="bilinear", align_corners=True)[:, 0]


@functools.cache
def _load(folder: Path, safetensors: bool, device: torch.device) -> Any:
    from transformers import AutoModelForDepthEstimation

    return load_pretrained(AutoModelForDepthEstimation, folder, what="a depth estimator", safetensors=safetensors, device=device)
