"""FreeDoM (Yu et al. 2023, "FreeDoM: Training-Free Energy-Guided Conditional Diffusion Model", arXiv:2303.09833; Algorithm 3 of the
CoDeX thesis): after each step the latent is moved along the gradient of the look-ahead's reward, through the denoiser; in the
semantic stage of the chain steps are taken several times, going back by renoising ("time travel").

    x_s <- step(x_t) + rho_t g,   g = grad_{x_t} r(D(x0_hat(x_t))),   rho_t = strength * rms(w (c - u)) / rms(g)

as in the released code (vvictoryuki/FreeDoM, SD_style/ldm/models/diffusion/ddim.py, lines 202-277). The paper's own step,
(1 + beta/2) x_t + beta s + sqrt(beta) eps, is the first-order form of the ancestral step that the code takes: use scheduler=ddpm.
The code computes a renoised latent after the last repeat too and drops it.

Cost, with E evaluations (every step, times its repeats) of which G are guided: 2E rows forward, 2G backward; G decodes and reward
calls, and one decode of the finished image. Null setting: strength = 0 and num_repeats = 1. Independent of the reward's scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import ascent, check_counts, inside, predicted, reward_gradient
from guidedgen.methods.problem import Problem
from guidedgen.process import Prediction
from guidedgen.process.formulas import renoise
from guidedgen.process.grid import Point
from guidedgen.process.windows import check_window, within


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreeDom:
    """`num_repeats` holds inside `repeat_window`. `rescale=false` makes rho_t the strength itself."""

    needs: ClassVar[Needs] = Needs(gradient=True)

    strength: float = 0.2
    rescale: bool = True
    window: Sequence[float] = (0.7, 0.3)
    num_repeats: int = 3
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
                    prediction, move, rewards = self._look(problem, x_t, t)
                    observe("guide", i, {"rewards": rewards})
                    prediction = prediction.after(past)
                    x_s = problem.step(x_t, prediction, t, s) + move
                else:
                    prediction = problem.denoise(x_t, t).after(past)
                    x_s = problem.step(x_t, prediction, t, s)
                if left:
                    x_t = renoise(x_s, s, t, again.draw(1, problem.latent_shape))
            x_t, past = x_s, (prediction, t)
            observe("step", i, {})
        return x_t[:, 0]

    def _look(self, problem: Problem, x_t: Tensor, t: Point) -> tuple[Prediction, Tensor, Tensor]:
        """The prediction, the move along the gradient and the rewards of the look-ahead."""

        def look(x: Tensor) -> tuple[Tensor, ...]:
            prediction, correction = predicted(problem, x, t)
            return prediction.x_0, prediction.eps, correction

        rewards, gradient, (x_0, eps, correction) = reward_gradient(problem, x_t, look)
        return Prediction(x_0, eps), ascent(gradient, self.strength, correction if self.rescale else None), rewards
