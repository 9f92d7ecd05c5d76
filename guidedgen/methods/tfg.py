"""TFG, training-free guidance (Ye et al. 2024, "TFG: Unified Training-Free Guidance for Diffusion Models", arXiv:2409.15761,
Algorithm 1), of which DPS, LGD-MC, FreeDoM, MPGD and Universal Guidance are special cases:

    f(x_0) = log (1/K) sum_k exp(r(D(x_0 + sigma_t z_k)) / kl_weight)                                       smoothing
    Delta_t = rho_t grad_{x_t} f(x0_hat(x_t))                                                               mean guidance
    Delta_0 = sum over inner steps of mu_t grad f(x0_hat + Delta_0)                                         variance guidance
    x_s = step(x_t) + (alpha_s / alpha_t) Delta_t + alpha_s Delta_0;   x_t ~ q(x_t | x_s) and again          num_repeats times

rho_t and mu_t are `rho` and `mu` times a schedule whose mean over the chain is 1: "increase" (alpha_t / alpha_s)^2, "decrease" 1
minus that, or "constant". The smoothing's sigma_t is `sigma` times the point's ("decrease"), or itself ("constant"). All that is
computed in one repeat uses the same z_k.

Cost, with E evaluations (every step, times its repeats) of which G are guided, and m inner steps (m = 0 where mu = 0, K = 1 where
sigma = 0): 2E rows forward, 2G backward (0 where rho = 0); GK(1 + m) decodes and reward calls (GKm where rho = 0), and one decode
of the finished image. Where alpha is 0, at the first point of flows, there is no mean guidance. Null setting: rho = mu = 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import ascent, check_counts, check_positive
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import known
from guidedgen.process import Prediction
from guidedgen.process.formulas import renoise
from guidedgen.process.grid import Point
from guidedgen.process.windows import check_window, within

Schedule = Literal["increase", "decrease", "constant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfg:
    """`normalise` divides f's gradient by |f| ("reward") or by its root ("root"), see guidedgen.methods.dps. `over_alpha` false
    leaves out alpha_s / alpha_t, as DPS and LGD-MC do. Only guided steps are repeated.

    Where the released code (YWolfeee/Training-Free-Guidance, methods/tfg.py) differs: it clips the clean estimates of pixel models
    to [-1, 1] by default, cuts the gradients of molecules, and renoises after the last repeat too and drops it. It calls the
    network once a step, as is done here; its DPS calls it three times, its LGD-MC twice.
    """

    needs: ClassVar[Needs] = Needs(gradient=True)

    rho: float = 1.0
    mu: float = 1.0
    sigma: float = 0.01
    num_samples: int = 4
    inner_steps: int = 4
    num_repeats: int = 1
    kl_weight: float = 1.0
    rho_schedule: Schedule = "increase"
    mu_schedule: Schedule = "increase"
    sigma_schedule: Literal["decrease", "constant"] = "decrease"
    normalise: Literal["none", "reward", "root"] = "none"
    over_alpha: bool = True
    window: Sequence[float] = (1.0, 0.0)

    def __post_init__(self) -> None:
        check_window("window", self.window)
        check_counts(self, "num_samples", "num_repeats")
        check_counts(self, "inner_steps", "rho", "mu", "sigma", least=0)
        check_positive(self, "kl_weight")

    def guides(self, i: int, steps: int, noise_ratio: float) -> bool:
        del i, steps
        return bool(self.rho or (self.mu and self.inner_steps)) and within(noise_ratio, self.window)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        again, smoothing = problem.noise.fork("renoise"), problem.noise.fork("smoothing")
        rhos, mus = (_scheduled(problem.grid, *pair) for pair in ((self.rho, self.rho_schedule), (self.mu, self.mu_schedule)))
        x_t, past = problem.start(), None
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            guided = self.guides(i, len(problem.grid) - 1, problem.noise_ratio(i))
            for left in reversed(range(self.num_repeats if guided else 1)):
                if guided:
                    offsets = self._offsets(t, smoothing.draw(self.num_samples if self.sigma else 1, problem.latent_shape))
                    prediction, by_x_t, values = self._mean_guidance(problem, x_t, t, offsets)
                    prediction = prediction.after(past)
                    by_x_0, more = self._variance_guidance(problem, prediction.x_0, offsets, mus[i])
                    if seen := [*values, *more]:
                        observe("guide", i, {"rewards": self.kl_weight * seen[0]})
                    scale = s.alpha / t.alpha if self.over_alpha and t.alpha else 1.0
                    x_s = problem.step(x_t, prediction, t, s) + scale * rhos[i] * by_x_t + s.alpha * by_x_0
                else:
                    prediction = problem.denoise(x_t, t).after(past)
                    x_s = problem.step(x_t, prediction, t, s)
                if left:
                    x_t = renoise(x_s, s, t, again.draw(1, problem.latent_shape))
            x_t, past = x_s, (prediction, t)
            observe("step", i, {})
        return x_t[:, 0]

    def _offsets(self, t: Point, noise: Tensor) -> Tensor:
        """sigma_t z_k: b K c h w."""
        return self.sigma * (t.sigma if self.sigma_schedule == "decrease" else 1.0) * noise

    def _mean_guidance(self, problem: Problem, x_t: Tensor, t: Point, offsets: Tensor) -> tuple[Prediction, Tensor, list[Tensor]]:
        """What is predicted, grad f by x_t, and f (b 1). There is no f, and no move, where rho is 0 or x_t says nothing of x_0."""
        if not self.rho or not t.alpha:
            return problem.denoise(x_t, t), torch.zeros_like(x_t), []
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            prediction = problem.denoise(leaf, t)
        value, by_x_0 = self._smoothed(problem, prediction.x_0.detach(), offsets)
        with problem.timed("backward"):
            (gradient,) = torch.autograd.grad(prediction.x_0, leaf, by_x_0)
        return Prediction(prediction.x_0.detach(), prediction.eps.detach()), ascent(gradient, 1.0), [value]

    def _variance_guidance(self, problem: Problem, x_0: Tensor, offsets: Tensor, mu: float) -> tuple[Tensor, list[Tensor]]:
        """Delta_0, and f (b 1) before each inner step."""
        delta, values = torch.zeros_like(x_0), []
        for _ in range(self.inner_steps if mu else 0):
            value, gradient = self._smoothed(problem, x_0 + delta, offsets)
            delta = delta + ascent(gradient, mu)
            values.append(value)
        return delta, values

    def _smoothed(self, problem: Problem, x_0: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """f (b 1) and its gradient by x_0 (b 1 c h w): the rewards' gradients, weighed by exp(r_k / kl_weight) over their sum. A
        reward that is not a number has no weight.
        """
        rewards, gradients = problem.score_and_gradient(x_0 + offsets)
        scaled = known(rewards / self.kl_weight)
        weights = scaled.softmax(1)[..., None, None, None]
        gradient = torch.where(weights > 0, weights * gradients, 0).sum(1, keepdim=True) / self.kl_weight
        value = scaled.logsumexp(1, keepdim=True) - math.log(offsets.shape[1])
        if self.normalise != "none":
            size = value.abs() if self.normalise == "reward" else value.abs().sqrt()
            gradient = gradient / size.clamp(min=1e-8)[..., None, None, None]
        return value, gradient


def _scheduled(grid: Sequence[Point], strength: float, schedule: Schedule) -> list[float]:
    """A strength for every step, whose mean over the chain is `strength`. A schedule that is 0 at every step is taken as constant:
    "increase" in one step from alpha = 0.
    """
    ratios = [(t.alpha / s.alpha) ** 2 for t, s in pairwise(grid)]
    raw = {"increase": ratios, "decrease": [1 - ratio for ratio in ratios], "constant": [1.0] * len(ratios)}[schedule]
    total = sum(raw)
    return [strength * value * len(raw) / total if total else strength for value in raw]
