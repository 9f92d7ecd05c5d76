"""Universal Guidance (Bansal et al. 2023, "Universal Guidance for Diffusion Models", arXiv:2302.07121; Algorithm 5 of the CoDeX
thesis): every step is taken `num_repeats` times, going back by renoising, with

    forward    eps <- eps - strength sigma_t grad_{x_t} r(D(x0_hat(x_t)))
    backward   Delta: `backward_steps` of gradient ascent of r(D(x0_hat + Delta)) from 0;  eps <- eps - alpha_t / sigma_t Delta

After the released code (arpitbansal297/Universal-Guided-Diffusion, ldm/models/diffusion/ddim_with_grad.py, lines 105-216) with the
backward step that its Stable Diffusion sampler reads the options of and never takes. x0_hat is the unguided estimate in both.
The code samples by DDIM without noise: scheduler=ddim. The step grows with the reward's scale.

Cost, with G guided steps taken k times each and m backward steps: 2(T + (k-1)G) rows forward, 2kG backward; kG(1 + m) decodes and
reward calls, and one decode of the finished image; with strength = 0 no row backward, and kGm decodes. Null setting: strength = 0,
backward_steps = 0, num_repeats = 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import ascent, check_counts, pushed, reward_gradient, rms
from guidedgen.methods.problem import Problem
from guidedgen.process import Prediction
from guidedgen.process.formulas import renoise
from guidedgen.process.grid import Point
from guidedgen.process.windows import check_window, within


@dataclasses.dataclass(frozen=True, kw_only=True)
class Universal:
    """`strength` and the backward ascent's `backward_lr` are in units of latents per unit of reward's gradient."""

    needs: ClassVar[Needs] = Needs(gradient=True)

    strength: float = 6.0
    num_repeats: int = 6
    backward_steps: int = 0
    backward_lr: float = 1.0
    window: Sequence[float] = (1.0, 0.0)

    def __post_init__(self) -> None:
        check_window("window", self.window)
        check_counts(self, "num_repeats")
        check_counts(self, "backward_steps", least=0)

    def guides(self, i: int, steps: int, noise_ratio: float) -> bool:
        del i, steps
        return within(noise_ratio, self.window)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        x_t, past, again = problem.start(), None, problem.noise.fork("renoise")
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            guided = self.guides(i, len(problem.grid) - 1, problem.noise_ratio(i))
            for left in reversed(range(self.num_repeats if guided else 1)):
                if guided:
                    prediction, push = self._guided(problem, x_t, t)
                    observe("guide", i, {"push": rms(push).flatten(1)})
                else:
                    prediction = problem.denoise(x_t, t)
                prediction = prediction.after(past)
                x_s = problem.step(x_t, prediction, t, s)
                if left:
                    x_t = renoise(x_s, s, t, again.draw(1, problem.latent_shape))
            x_t, past = x_s, (prediction, t)
            observe("step", i, {})
        return x_t[:, 0]

    def _guided(self, problem: Problem, x_t: Tensor, t: Point) -> tuple[Prediction, Tensor]:
        """The guided prediction, and how its noise differs from the unguided one's. Where alpha is 0 x_t says nothing of x_0, and
        there is no gradient by it.
        """

        def look(x: Tensor) -> tuple[Tensor, Tensor]:
            prediction = problem.denoise(x, t)
            return prediction.x_0, prediction.eps

        if self.strength and t.alpha:
            _, gradient, (x_0, eps) = reward_gradient(problem, x_t, look)
            prediction = pushed(Prediction(x_0, eps), -ascent(gradient, t.sigma * self.strength), t)
        else:
            x_0, eps = look(x_t)
            prediction = Prediction(x_0, eps)
        delta = torch.zeros_like(x_0)
        for _ in range(self.backward_steps):
            delta = delta + ascent(problem.score_and_gradient(x_0 + delta)[1], self.backward_lr)
        prediction = Prediction(prediction.x_0 + delta, prediction.eps - t.alpha / t.sigma * delta)
        return prediction, prediction.eps - eps
