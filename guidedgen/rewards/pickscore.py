"""Which image people would pick for the prompt: PickScore (Kirstain et al. 2023), a CLIP tuned on pairwise choices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.rewards.prompts import PromptCosine
from guidedgen.zoo import Clip


class ScaledClip(Clip, Protocol):
    """A CLIP with the scale of its logits."""

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by in training, about 100: exp of the stored parameter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PickScore:
    """cos(image, prompt) in a preference CLIP; with `scaled`, times its logit scale.

    The authors' score is the scaled one (yuvalkirstain/PickScore, README), about 20 for PickScore_v1. The CoDeX thesis prints and
    guides by the bare cosine, about 0.22 (maurya-goyal10/CoDe_ext, BoN/src_sd/scorers/pickscore_scorer.py), which is the default
    here: it is the scale of the thesis' weights and temperatures. The released code also resizes bilinearly and does not crop,
    which is not repeated: images are prepared as the authors' processor does.
    """

    clip: ScaledClip
    scaled: bool = False

    differentiable = True

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.clip.name,)

    @functools.cached_property
    def reports(self) -> Mapping[str, Reward]:
        """The authors' scale, where another one guides."""
        return {} if self.scaled else {"pickscore_x100": PickScore(clip=self.clip, scaled=True)}

    @functools.cached_property
    def _cosine(self) -> PromptCosine:
        return PromptCosine(self.clip, reward="pickscore")

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b in [-1, 1], or that times the logit scale."""
        cosine = self._cosine(images, tasks)
        return cosine * self.clip.logit_scale if self.scaled else cosine
