"""The style of a reference with the content of the original (AdjointDPM, arXiv:2307.10711, Eq. 13)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.rewards.inputs import check_inputs
from guidedgen.rewards.original import against_originals
from guidedgen.rewards.style import FeatureMap, StyleReward, gram


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stylisation(StyleReward):
    """-(w_s |G(image) - G(reference)|^2 + w_c |F(image) - F(original)|^2), means over elements, G = F^T F over the positions of
    VGG's features F, divided by the number of these.

    The original is the picture that the untuned model draws of the same noise and prompt; without one there is no content term.
    The weights, and which of VGG's layers are meant, are in neither paper nor code: scale and defaults are those of the tutorial
    that the paper refers to (PyTorch, "Neural Transfer Using PyTorch").
    """

    _name = "stylisation"

    features: FeatureMap
    style_weight: float = 1e6
    content_weight: float = 1.0

    needs_original = True

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.features.name,)

    @property
    def reports(self) -> Mapping[str, Reward]:
        """Its two terms, unweighted."""
        return {"style": _Term(of=self, index=0), "content": _Term(of=self, index=1)}

    def _embed(self, images: Tensor) -> Tensor:
        """b 3 H W -> b d d."""
        return _gram(self.features(images))

    def terms(self, images: Tensor, tasks: Sequence[Task]) -> tuple[Tensor, Tensor]:
        """b 3 H W in [0, 1] and b tasks -> minus the squared errors of style and content, b each; NaN for the content of a task
        without an original.
        """
        features = self.features(check_inputs(images, tasks, self._name))
        style = -(_gram(features) - self._references(tasks)).square().mean((1, 2))
        return style, against_originals(self._content, features, images.shape[-1], tasks)

    def _content(self, features: Tensor, originals: Tensor) -> Tensor:
        return -(features - self.features(originals)).square().mean((1, 2))

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b, at most 0."""
        style, content = self.terms(images, tasks)
        return self.style_weight * style + self.content_weight * content.where(content.isfinite(), 0)


def _gram(features: Tensor) -> Tensor:
    """b p d -> b d d."""
    return gram(features) / features.shape[1:].numel()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Term:
    of: Stylisation
    index: int

    differentiable = True

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        return self.of.terms(images, tasks)[self.index]
