"""How pleasing an image is: an aesthetic head over a CLIP's image embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from guidedgen.images import check
from guidedgen.types import Clip, Task, UsageError


class Head(Protocol):
    """Scores unit-length image embeddings."""

    name: str
    dim: int  # width of the embedding

    def __call__(self, embedding: Tensor) -> Tensor:
        """b d -> b."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aesthetic:
    """head(clip(image)). The prompt is not looked at. The head must have been trained on the embeddings of this very CLIP.

    `published_code_range` repeats a bug behind the published numbers of CoDe: its pipelines decode to [0, 1] and its
    scorers/aesthetic_scorer.py then maps x/2 + 0.5 once more, so the network sees a washed-out image in [0.5, 1] (the released code
    also resizes bilinearly and does not crop, which is not repeated here). Off, the network sees the image.
    """

    clip: Clip
    head: Head
    published_code_range: bool = False

    differentiable = True

    def __post_init__(self) -> None:
        dim = getattr(self.clip, "dim", self.head.dim)  # known before weights are loaded for every CLIP of the zoo
        if dim != self.head.dim:
            raise UsageError(
                f"reward=aesthetic: {self.head.name} takes embeddings of {self.head.dim} numbers, {self.clip.name} gives {dim}; "
                "use the CLIP that the head was trained on"
            )

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.clip.name, self.head.name)

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] -> b, about 1 to 10."""
        images = check(images, "aesthetic")
        if self.published_code_range:
            images = images / 2 + 0.5
        return self.head(self.clip.encode_image(images))
