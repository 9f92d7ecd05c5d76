"""The style of a reference with the content of the original (AdjointDPM, arXiv:2307.10711, Eq. 13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.rewards.inputs import check_inputs
from guidedgen.rewards.original import against_originals
from guidedgen.rewards.style import FeatureMap, FeatureMaps, StyleReward, gram


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stylisation(StyleReward):
    """-(w_s sum_l |G_l(image) - G_l(reference)|^2 + w_c |F(image) - F(original)|^2), means over elements, with the Gram matrices
    G = F^T F over the positions of the features F of layers l, and one layer's features for content.

    The original is the picture that the untuned model draws of the same noise and prompt; without one there is no content term. The
    weights are in neither paper nor code: scale, layers and defaults are those of the tutorial that the paper refers to (PyTorch,
    "Neural Transfer Using PyTorch"), which divides G by the number of elements of F. `gram_scale` raw is G = F F^T as Eq. 13 has
    it, for which w_s has to be smaller by the square of that number.
    """

    _name = "stylisation"

    features: FeatureMaps | FeatureMap
    style_weight: float = 1e6
    content_weight: float = 1.0
    gram_scale: Literal["mean", "raw"] = "mean"

    needs_original = True

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.features.name,)

    @property
    def reports(self) -> Mapping[str, Reward]:
        """Its two terms, unweighted."""
        return {"style": _Term(of=self, index=0), "content": _Term(of=self, index=1)}

    def _maps(self, images: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """b 3 H W -> the layers for style, and the one for content, b p d each."""
        features = self.features
        if hasattr(features, "maps"):
            maps = features.maps(images)
            return maps, maps[cast(FeatureMaps, features).content]
        found = features(images)
        return [found], found

    def _grams(self, maps: Sequence[Tensor]) -> Tensor:
        """The Gram matrices of all layers in one row, b k, so scaled that a sum of squares is the sum of the layers' means."""
        grams = [gram(features) / (features.shape[1:].numel() if self.gram_scale == "mean" else 1) for features in maps]
        return torch.cat([matrix.flatten(1) / matrix.shape[1] for matrix in grams], 1)

    def _embed(self, images: Tensor) -> Tensor:
        """b 3 H W -> b k."""
        return self._grams(self._maps(images)[0])

    def terms(self, images: Tensor, tasks: Sequence[Task]) -> tuple[Tensor, Tensor]:
        """b 3 H W in [0, 1] and b tasks -> minus the squared errors of style and content, b each; NaN for the content of a task
        without an original.
        """
        maps, features = self._maps(check_inputs(images, tasks, self._name))
        style = -(self._grams(maps) - self._references(tasks)).square().sum(1)
        return style, against_originals(self._content, features, images.shape[-1], tasks)

    def _content(self, features: Tensor, originals: Tensor) -> Tensor:
        return -(features - self._maps(originals)[1]).square().mean((1, 2))

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b, at most 0."""
        style, content = self.terms(images, tasks)
        return self.style_weight * style + self.content_weight * content.where(content.isfinite(), 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Term:
    of: Stylisation
    index: int

    differentiable = True

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        return self.of.terms(images, tasks)[self.index]
