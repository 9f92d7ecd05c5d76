"""Likeness to the original, pixel by pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.rewards.inputs import check_inputs
from guidedgen.rewards.original import against_originals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """Minus the mean squared error to the sample's original, images in [0, 1]: the loss by which AdjointDPM finds the embedding of
    an effect (arXiv:2307.10711, appendix A), the original being drawn of a prompt that names it.
    """

    differentiable = True
    needs_original = True
    networks = ()

    def __call__(self, images: Tensor, tasks: Sequence[Task]) -> Tensor:
        """b 3 H W in [0, 1] and b tasks -> b, from -1 to 0; NaN where a task has no original."""
        pictures = check_inputs(images, tasks, "pixels")
        return against_originals(lambda x, y: -(x - y).square().mean((1, 2, 3)), pictures, pictures.shape[-1], tasks)
