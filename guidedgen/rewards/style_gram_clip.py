"""Style as FreeDoM and MPGD guide by it: the distance of Gram matrices of CLIP's early tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.rewards.inputs import check_inputs
from guidedgen.rewards.style import FeatureMap, StyleReward, gram


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleGramClip(StyleReward):
    """-|| G(image) - G(reference) ||_F, G = F^T F over the patch tokens F that leave one block of CLIP ViT-B/16.

    FreeDoM (Yu et al. 2023), vvictoryuki/FreeDoM, SD_style/ldm/models/diffusion/clip/base_clip.py: entry 2 of the outputs of the
    blocks, which is the third block; nothing is divided by. MPGD (KellyYutongHe/mpgd_pytorch, nonlinear/SD_style) has the same
    file. The released code squashes images to 224 px as here, but without antialiasing (bicubic) where the reference is
    antialiased (Pillow's bilinear); here both take the same path, bicubic and antialiased.
    """

    _name = "style_gram_clip"

    features: FeatureMap

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.features.name,)

    def _embed(self, images: Tensor) -> Tensor:
        """b 3 H W -> b d d."""
        return gram(self.features(images))

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b, at most 0."""
        residual = self._embed(check_inputs(images, tasks, self._name)) - self._references(tasks)
        return -torch.linalg.vector_norm(residual, dim=(-2, -1))
