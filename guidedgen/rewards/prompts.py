"""Shared by rewards that read the prompt: the cosine of image and prompt in a CLIP, every text embedded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.rewards.inputs import check_inputs
from guidedgen.zoo import Clip


class PromptCosine:
    """cos(image, prefix + prompt). `reward` names the caller in messages."""

    def __init__(self, clip: Clip, *, reward: str, prefix: str = "") -> None:
        self.clip, self.reward, self.prefix = clip, reward, prefix
        self._texts: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b in [-1, 1], differentiable in the images. ValueError for another range or count."""
        check_inputs(images, tasks, self.reward)
        texts = torch.stack([self._text(self.prefix + task.prompt) for task in tasks])
        return (self.clip.encode_image(images) * texts).sum(-1)

    def _text(self, text: str) -> Tensor:
        """d. One text at a time: in a batch its last bits would depend on the other texts, and so on the shard or resume point."""
        if text not in self._texts:
            with torch.inference_mode(False), torch.no_grad():  # kept for calls that differentiate
                self._texts[text] = self.clip.encode_text([text])[0]
        return self._texts[text]
