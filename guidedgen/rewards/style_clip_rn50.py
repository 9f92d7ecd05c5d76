"""Style as the CoDeX thesis measures and guides by it: the cosine of image embeddings of CLIP RN50, called "I-Gram" there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics import images as pictures
from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.rewards.inputs import check_inputs
from guidedgen.rewards.style import StyleReward
from guidedgen.zoo import Clip


class PixelClip(Clip, Protocol):
    """A CLIP that also takes pixels which its caller has prepared."""

    size: int

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """b 3 size size, normalised -> b d of unit length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleClipRn50(StyleReward):
    """100 cos(image, reference) of image embeddings. No Gram matrix is involved, whatever the thesis' tables call it.

    `published_code_range` repeats how maurya-goyal10/CoDe_ext, BoN/src_sd/scorers/stylescorer.py prepares both images, which is
    what the published numbers are of: images in [0, 1] are mapped to [0.5, 1] as if they were in [-1, 1], squashed to 224 px
    (bicubic, antialiased as torchvision does since 0.17) and normalised by ImageNet's mean and deviation. Off, the network sees
    the image as CLIP prepares it. Raises UsageError where the option is on and the CLIP takes no prepared pixels (the lab's).
    """

    _name = "style_clip_rn50"

    clip: Clip
    published_code_range: bool = False

    def __post_init__(self) -> None:
        if self.published_code_range and not hasattr(self.clip, "encode_pixels"):
            raise UsageError(
                f"reward.published_code_range=true: {self.clip.name} has a preparation of its own; use zoo=hub, or leave it false"
            )
        super().__post_init__()

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.clip.name,)

    def _embed(self, images: Tensor) -> Tensor:
        """b 3 H W in [0, 1] -> b d of unit length."""
        return _as_published(self.clip, images) if self.published_code_range else self.clip.encode_image(images)  # type: ignore[arg-type]

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b in [-100, 100]."""
        return 100 * (self._embed(check_inputs(images, tasks, self._name)) * self._references(tasks)).sum(-1)


def _as_published(clip: PixelClip, images: Tensor) -> Tensor:
    size = (clip.size, clip.size)
    pixels = F.interpolate(images / 2 + 0.5, size=size, mode="bicubic", antialias=True, align_corners=False)
    return clip.encode_pixels(pictures.normalise(pixels, pictures.IMAGENET_MEAN, pictures.IMAGENET_STD))
