"""How pleasing an image is: an aesthetic head over a CLIP's image embedding."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.images import check
from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.zoo import Clip


class Head(Protocol):
    """Scores unit-length image embeddings."""

    name: str
    dim: int  # width of the embedding

    def __call__(self, embedding: Tensor) -> Tensor:
        """b d -> b."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Aesthetic:
    """head(clip(image)). The prompt is not looked at. The head must have been trained on the embeddings of this very CLIP.

    With a `target` the reward is -|head(clip(image)) - target|, the loss of DOODL (arXiv:2303.13703), 5.3, less its lambda: 10 for
    better pictures, 1 for worse ones. Its released code (salesforce/DOODL, doodl.py) clips scores to [1, 10] first, beyond which no
    gradient is left, and that is not repeated here; and it takes the mean over crops before the difference, which is the same
    number where no crop is beyond the target.

    `published_code_range` repeats a bug behind the published numbers of CoDe: its pipelines decode to [0, 1] and its
    scorers/aesthetic_scorer.py then maps x/2 + 0.5 once more, so the network sees a washed-out image in [0.5, 1] (the released code
    also resizes bilinearly and does not crop, which is not repeated here). Off, the network sees the image.
    """

    clip: Clip
    head: Head
    published_code_range: bool = False
    target: float | None = None

    differentiable = True

    def __post_init__(self) -> None:
        dim = getattr(self.clip, "dim", self.head.dim)  # known before weights are loaded for every CLIP of the zoo
        if dim != self.head.dim:
            raise UsageError(
                f"reward=aesthetic: {self.head.name} takes embeddings of {self.head.dim} numbers, {self.clip.name} gives {dim}; "
                "use the CLIP that the head was trained on"
            )
        check_target(self.target)

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.clip.name, self.head.name)

    @functools.cached_property
    def reports(self) -> Mapping[str, Reward]:
        """The score itself, where its distance to a target guides."""
        return {} if self.target is None else {"aesthetic_score": dataclasses.replace(self, target=None)}

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] -> b, about 1 to 10; with a target at most 0."""
        images = check(images, "aesthetic")
        if self.published_code_range:
            images = images / 2 + 0.5
        return towards(self.target, self.head(self.clip.encode_image(images)))


def check_target(target: float | None) -> None:
    """Raises BadValue for a target that is not a finite number, nor None."""
    if target is not None and not math.isfinite(target):
        raise BadValue("target", target, "must be finite, or null for the score itself")


def towards(target: float | None, scores: Tensor) -> Tensor:
    """Minus the distance of scores (b) to a target, or the scores where there is none."""
    return scores if target is None else -(scores - target).abs()
