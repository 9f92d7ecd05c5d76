"""How well an image fits its prompt: the cosine of a CLIP's two embeddings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from torch import Tensor

from guidedgen.rewards.prompts import PromptCosine
from guidedgen.types import Clip, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipText:
    """cos(image, prefix + prompt). jmhessel/clipscore reads prompts with the prefix "A photo depicts "."""

    clip: Clip
    prefix: str = ""

    differentiable = True

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.clip.name,)

    @functools.cached_property
    def _cosine(self) -> PromptCosine:
        return PromptCosine(self.clip, reward="clip_text", prefix=self.prefix)

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b in [-1, 1]."""
        return self._cosine(images, tasks)
