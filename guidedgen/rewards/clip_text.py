"""How well an image fits its prompt: the cosine of a CLIP's two embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from guidedgen.images import check
from guidedgen.types import Clip, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipText:
    """cos(image, prefix + prompt). jmhessel/clipscore reads prompts with the prefix "A photo depicts "."""

    clip: Clip
    prefix: str = ""
    _texts: dict[str, Tensor] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    differentiable = True

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks that guide."""
        return (self.clip.name,)

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b in [-1, 1]."""
        check(images, "clip_text")
        if len(tasks) != len(images):
            raise ValueError(f"clip_text: {len(images)} images, but {len(tasks)} tasks")
        texts = torch.stack([self._text(self.prefix + task.prompt) for task in tasks])
        return (self.clip.encode_image(images) * texts).sum(-1)

    def _text(self, text: str) -> Tensor:
        """d. One text at a time: in a batch its last bits would depend on its neighbours, and so on the shard or resume point."""
        if text not in self._texts:
            with torch.inference_mode(False), torch.no_grad():  # kept for calls that differentiate
                self._texts[text] = self.clip.encode_text([text])[0]
        return self._texts[text]
