"""MPGD for latent diffusion (He et al. 2024, "Manifold Preserving Guided Diffusion", arXiv:2311.16424; Algorithm 4 of the CoDeX
thesis): the clean estimate itself is moved along the reward's gradient, so that the denoiser is never differentiated.

Cost, with G guided evaluations (steps in the window, times their repeats): 2 rows per evaluation, none backward; G decodes and
reward calls, and one decode of the finished image. Null setting: strength = 0 and num_repeats = 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import ascent, check_counts, inside, predicted
from guidedgen.methods.problem import Problem
from guidedgen.process import Prediction
from guidedgen.process.formulas import from_x0, renoise
from guidedgen.process.grid import Point
from guidedgen.process.windows import check_window, within


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mpgd:
    """Where the paper's algorithm and the released code (KellyYutongHe/mpgd_pytorch,
    nonlinear/SD_style/ldm/models/diffusion/ddim.py, lines 203-281) differ:

    keep_eps: x_s is made from the moved estimate and the network's own noise prediction, as line 7 of the algorithm has it;
        otherwise, as in the code, from the moved estimate and x_t (which is another noise prediction).
    over_alpha: the step is divided by alpha_s. The code has it commented out and says that the paper's runs had it.
    rescale: the step's length is `strength` times that of w (c - u), as in the code.

    The code's scale compounds over the repeats of a step (line 266); here every repeat has its own.
    """

    needs: ClassVar[Needs] = Needs(gradient=True)

    strength: float = 15.0
    rescale: bool = True
    over_alpha: bool = True
    keep_eps: bool = True
    window: Sequence[float] = (0.7, 0.3)
    num_repeats: int = 1
    repeat_window: Sequence[float] = (0.7, 0.4)

    def __post_init__(self) -> None:
        check_window("window", self.window)
        check_window("repeat_window", self.repeat_window)
        check_counts(self, "num_repeats")

    def guides(self, i: int, steps: int, noise_ratio: float) -> bool:
        del i, steps
        return bool(self.strength) and within(noise_ratio, self.window)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        x_t, past, again = problem.start(), None, problem.noise.fork("renoise")
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            guided = self.guides(i, len(problem.grid) - 1, problem.noise_ratio(i))
            repeats = self.num_repeats if inside(problem, i, self.repeat_window) else 1
            for left in reversed(range(repeats)):
                if guided:
                    x_s, prediction, rewards = self._guided_step(problem, x_t, t, s, past)
                    observe("guide", i, {"rewards": rewards})
                else:
                    prediction = problem.denoise(x_t, t).after(past)
                    x_s = problem.step(x_t, prediction, t, s)
                if left:
                    x_t = renoise(x_s, s, t, again.draw(1, problem.latent_shape))
            x_t, past = x_s, (prediction, t)
            observe("step", i, {})
        return x_t[:, 0]

    def _guided_step(
        self, problem: Problem, x_t: Tensor, t: Point, s: Point, past: tuple[Prediction, Point] | None
    ) -> tuple[Tensor, Prediction, Tensor]:
        """x_s, what is predicted, and the rewards of the estimate before it is moved."""
        prediction, correction = predicted(problem, x_t, t)
        prediction = prediction.after(past)
        rewards, gradient = problem.score_and_gradient(prediction.x_0)
        strength = self.strength / s.alpha if self.over_alpha else self.strength
        move = ascent(gradient, strength, correction if self.rescale else None)
        if self.keep_eps:  # both DDIM and DDPM steps are alpha_s x_0 + (a function of eps) + noise
            return problem.step(x_t, prediction, t, s) + s.alpha * move, prediction, rewards
        prediction = from_x0(x_t, prediction.x_0 + move, t).after(past)
        return problem.step(x_t, prediction, t, s), prediction, rewards
