"""One-step classifier guidance: the noise prediction is moved along the gradient of the look-ahead's reward.

    eps <- eps - sigma_t * strength * grad_{x_t} r(D(x0_hat(x_t)))

It is Dhariwal & Nichol's guidance (2021, arXiv:2105.05233) with an off-the-shelf reward on the Tweedie estimate, the baseline of
DOODL (salesforce/DOODL, doodl.py, `one_step_baseline`) and diffusers' community CLIP-guided pipeline. The step grows with the
reward's scale.

Cost, with G guided steps: 2T rows forward, G backward (2G with `source=cfg`); G decodes and reward calls, and one decode of the
finished image; 2T rows more forward to invert a picture. Without classifier-free guidance a step of `cond` or `cfg` is one row.
Null setting: strength = 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor

from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import ascent, pushed, reward_gradient
from guidedgen.methods.problem import Problem
from guidedgen.process import Prediction
from guidedgen.process.formulas import add_noise
from guidedgen.process.grid import Point
from guidedgen.process.windows import check_window, within

_SCALES = {"uncond": 0.0, "cond": 1.0, "cfg": None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierGuidance:
    """Where the sources differ:

    source: which noise prediction the look-ahead is made from: "uncond" is DOODL's, "cond" diffusers', "cfg" the one the chain
        takes. The other part of classifier-free guidance is evaluated without a gradient.
    invert: where the chain starts from a picture, it starts from its inversion by DDIM, not from its noised latent: DOODL's
        baseline for edits (5.3), from the middle of the chain, which is noise_ratio 0.5.
    blend: what is decoded is sigma_t x0_hat + (1 - sigma_t) x_t, as both codes do, instead of DOODL's published x0_hat.
    """

    strength: float = 100.0
    source: Literal["uncond", "cond", "cfg"] = "uncond"
    blend: bool = False
    invert: bool = False
    window: Sequence[float] = (1.0, 0.0)

    def __post_init__(self) -> None:
        check_window("window", self.window)

    @property
    def needs(self) -> Needs:
        return Needs(gradient=True, reference="required" if self.invert else "optional")

    def guides(self, i: int, steps: int, noise_ratio: float) -> bool:
        del i, steps
        return bool(self.strength) and within(noise_ratio, self.window)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        x_t, past = self._inverted(problem) if self.invert else problem.start(), None
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            if t.alpha and self.guides(i, len(problem.grid) - 1, problem.noise_ratio(i)):  # at alpha = 0 x_t says nothing of x_0
                rewards, gradient, prediction = self._look(problem, x_t, t)
                observe("guide", i, {"rewards": rewards})
                prediction = pushed(prediction, -ascent(gradient, t.sigma * self.strength), t)
            else:
                prediction = problem.denoise(x_t, t)
            prediction = prediction.after(past)
            x_t, past = problem.step(x_t, prediction, t, s), (prediction, t)
            observe("step", i, {})
        return x_t[:, 0]

    def _inverted(self, problem: Problem) -> Tensor:
        """x at the first point, b 1 c h w: the pictures by DDIM's steps backwards, each with what is predicted at its end."""
        assert problem.reference is not None
        x_s = problem.reference.unsqueeze(1)
        for t, s in reversed(list(pairwise(problem.grid))):
            prediction = problem.denoise(x_s, s if s.sigma else t)  # at no noise there is nothing to predict
            x_s = add_noise((x_s - s.sigma * prediction.eps) / s.alpha, prediction.eps, t)
        return x_s

    def _look(self, problem: Problem, x_t: Tensor, t: Point) -> tuple[Tensor, Tensor, Prediction]:
        """Rewards and gradients of the look-ahead, and the chain's prediction."""
        scale, w = _SCALES[self.source], problem.denoise.scale_at(t)

        def look(x: Tensor) -> tuple[Tensor, ...]:
            seen = problem.denoise(x, t, scale)
            return (x + t.sigma * (seen.x_0 - x) if self.blend else seen.x_0), seen.x_0, seen.eps

        rewards, gradient, (_, x_0, eps) = reward_gradient(problem, x_t, look)
        seen = Prediction(x_0, eps)
        if scale is None or scale == w:
            return rewards, gradient, seen
        other = problem.denoise(x_t, t, 1 - scale)
        if scale == 0:
            return rewards, gradient, other if w == 1 else problem.denoise.mixed(seen, other, t)[0]
        return rewards, gradient, problem.denoise.mixed(other, seen, t)[0]
