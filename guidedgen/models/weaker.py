"""Guidance by a weaker model ("autoguidance": Karras et al. 2024, arXiv:2406.02507).

    D(x) = weak(x) + w (strong(x) - weak(x))

Both predict for the prompt. The weaker model is one of the same kind with fewer parameters or a shorter training: it errs as the
strong one does, only more, so that the difference leads away from errors and not from other prompts, as classifier-free guidance's
does. A row of either model is counted as one; w = 1 is the strong model alone and costs no weak rows, so that the weaker one is
never asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from guidedgen.process import Denoiser, Prediction
from guidedgen.process.classifier_free import PlainlyGuided
from guidedgen.process.formulas import guided
from guidedgen.process.grid import Point


@dataclasses.dataclass(frozen=True)
class Autoguided(PlainlyGuided):
    """What a model predicts for b prompts, guided by a weaker one that reads the same prompts. Its "unconditional" prediction, that
    of `pair` and of a guidance scale of 0, is the weaker model's.
    """

    strong: Denoiser
    weak: Denoiser

    @property
    def guidance_scale(self) -> float:
        return self.strong.guidance_scale

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Prediction:
        w = self.guidance_scale if guidance_scale is None else guidance_scale
        if w == 1:
            return self.strong(x_t, t, 1)
        return self.weak(x_t, t, 1) if w == 0 else guided(*self.pair(x_t, t), w)

    def pair(self, x_t: Tensor, t: Point) -> tuple[Prediction, Prediction]:
        return self.weak(x_t, t, 1), self.strong(x_t, t, 1)

    @property
    def conditioning(self) -> Tensor:
        return self.strong.conditioning

    def conditioned_on(self, conditioning: Tensor) -> Autoguided:
        """The weaker model goes on with the prompts as they were read."""
        return dataclasses.replace(self, strong=self.strong.conditioned_on(conditioning))

    def subset(self, rows: Sequence[int]) -> Autoguided:
        return Autoguided(self.strong.subset(rows), self.weak.subset(rows))
