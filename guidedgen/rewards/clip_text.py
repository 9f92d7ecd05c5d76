"""How well an image fits its prompt: how near a CLIP's two embeddings are to each other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.rewards import Reward
from guidedgen.rewards.distance import Distance, likeness
from guidedgen.rewards.inputs import check_inputs
from guidedgen.rewards.prompts import PromptCosine
from guidedgen.zoo import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipText:
    """cos(image, prefix + prompt), or minus the spherical distance (see `likeness`), which DOODL guides by.

    jmhessel/clipscore reads prompts with the prefix "A photo depicts ".
    """

    clip: Clip
    prefix: str = ""
    distance: Distance = "cosine"

    differentiable = True

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.clip.name,)

    @functools.cached_property
    def reports(self) -> Mapping[str, Reward]:
        """The cosine, where the other distance guides."""
        return {} if self.distance == "cosine" else {"clip_text_cosine": ClipText(clip=self.clip, prefix=self.prefix)}

    @functools.cached_property
    def _score(self) -> PromptCosine:
        kind = PromptCosine if self.distance == "cosine" else _PromptSpherical
        return kind(self.clip, reward="clip_text", prefix=self.prefix)

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b in [-1, 1], or from -pi^2/2 to 0."""
        return self._score(images, tasks)


class _PromptSpherical(PromptCosine):
    """The other distance to the same embeddings."""

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        check_inputs(images, tasks, self.reward)
        texts = torch.stack([self._text(self.prefix + task.prompt) for task in tasks])
        return likeness(self.clip.encode_image(images), texts, "spherical")
