"""Style as the cosine of VGG-16 Gram matrices: the "I-Gram" of the CoDe paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.rewards.inputs import check_inputs
from guidedgen.rewards.style import FeatureMap, StyleReward, gram


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleGramVgg16(StyleReward):
    """cos(G(image), G(reference)), G = F^T F over the positions of VGG-16's last feature map, flattened.

    learn2phoenix/CSD, main_sim.py with `--pt_style vgg --feattype gram`, as the CoDe paper measures by it (its fork leaves the
    PCA out). Features are not negative, so the score is in [0, 1]; it does not change where positions are shuffled or features
    scaled. The released code rounds the Gram matrices to half precision, which is not repeated.
    """

    _name = "style_gram_vgg16"

    features: FeatureMap

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.features.name,)

    def _embed(self, images: Tensor) -> Tensor:
        """b 3 H W -> b d*d of unit length."""
        return F.normalize(gram(self.features(images)).flatten(1), dim=-1)

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b in [0, 1]."""
        return (self._embed(check_inputs(images, tasks, self._name)) * self._references(tasks)).sum(-1)
