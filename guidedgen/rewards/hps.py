"""Which image people would prefer for the prompt: Human Preference Score v2 (Wu et al. 2023)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.rewards.prompts import PromptCosine
from guidedgen.zoo import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hps:
    """cos(image, prompt) in the CLIP of HPS v2.1, the number that tgxs002/HPSv2, hpsv2/img_score.py returns: about 0.2 to 0.35.

    The checkpoint is read with open_clip's own ViT-H-14. The authors' package is not used: hpsv2 1.2.0 carries an old copy of
    open_clip, needs protobuf < 4 and pytest 7.2.0, and scores without gradients. Nor is there an ImageReward here: image-reward
    1.5 imports names that transformers 5 no longer has (apply_chunking_to_forward and others).
    """

    clip: Clip

    differentiable = True

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.clip.name,)

    @functools.cached_property
    def _cosine(self) -> PromptCosine:
        return PromptCosine(self.clip, reward="hps")

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b in [-1, 1]."""
        return self._cosine(images, tasks)
