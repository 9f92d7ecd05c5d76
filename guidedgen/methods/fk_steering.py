"""FK steering (Singhal et al. 2025, "A General Framework for Inference-time Scaling and Steering of Diffusion Models",
arXiv:2501.06848): N particles, resampled at some steps by potentials of their look-aheads' rewards; no gradient.

    lambda = 1 / kl_weight;    G_t = exp(lambda (r_t - r_before)) ("difference"), exp(lambda max_{u >= t} r_u) ("max"),
                               exp(lambda sum_{u >= t} r_u) ("sum");    r_t = r(D(x0_hat(x_t)))

and at the end what makes the product of all potentials exp(lambda r(x_0)), so that with the weights the law aimed at is the model's
times exp(r / kl_weight), whichever the potential.

Cost, with R resampling steps: 2NT rows; N(R + 1) decodes and reward calls, and one decode of the finished image. Null setting:
num_particles = 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts, inside
from guidedgen.methods.particles import Output, Particles, Resampler, check_particles, output, propose, resample
from guidedgen.methods.problem import Problem
from guidedgen.process.windows import check_window


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Steered(Particles):
    so_far: Tensor | None = None  # b n: the maximum, or the sum, of what was seen of the particle and those it descends from


@dataclasses.dataclass(frozen=True, kw_only=True)
class FkSteering:
    """Resampling takes place at every `interval`-th step inside `window`; with `ess_threshold` only where the effective sample size
    is below that share of N. The defaults are the paper's: "max", lambda = 10, at the steps 0, 20, ..., 80 of 100.

    Where the released code (zacharyhorvitz/Fk-Diffusion-Steering, fkd_class.py) differs:
    - It takes exponentials before it normalises and cuts them at 1e10, so that potentials above exp(23) tie; here weights are kept
      as logarithms.
    - It drops the weights of a "difference" potential where it does not resample; here they stay.
    - It weighs with rewards of x_t particles that are at x_s already; here they are resampled before they step, and copies part.
    - Its running maximum begins at 0, so that negative rewards do not count; here it begins with the first reward.
    """

    needs: ClassVar[Needs] = Needs(sampler="stochastic")

    num_particles: int = 4
    kl_weight: float = 0.1
    potential: Literal["difference", "max", "sum"] = "max"
    interval: int = 20
    window: Sequence[float] = (1.0, 0.0)
    resampler: Resampler = "multinomial"
    ess_threshold: float | None = None
    output: Output = "reward"

    def __post_init__(self) -> None:
        check_particles(self)
        check_counts(self, "interval")
        check_window("window", self.window)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        draws, last = problem.noise.fork("resample"), len(problem.grid) - 2
        particles, past = _Steered.begin(problem.start(self.num_particles)), None
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            prediction = problem.denoise(particles.x_t, t).after(past)
            particles = dataclasses.replace(particles, prediction=prediction)
            if i % self.interval == 0 and inside(problem, i, self.window):
                rewards = problem.score(prediction.x_0)
                observe("select", i, {"scores": rewards})
                particles = self._weighted(particles, rewards.double() / self.kl_weight)
                particles = resample(particles, self.resampler, self.ess_threshold, draws)
            past = None if particles.prediction is None else (particles.prediction, t)
            particles = propose(problem, particles, t, s)
            observe("step", i, {})
        rewards = problem.score(particles.x_t)
        observe("select", last, {"scores": rewards})
        particles = particles.weighted(rewards.double() / self.kl_weight)
        return output(particles, rewards, self.output, draws, observe)

    def _weighted(self, particles: _Steered, log_rewards: Tensor) -> _Steered:
        """The particles with the potential of these rewards (b n, over kl_weight)."""
        if self.potential == "difference":
            return particles.weighted(log_rewards)
        before, so_far = particles.so_far, log_rewards
        if before is not None:
            so_far = torch.maximum(before, log_rewards) if self.potential == "max" else before + log_rewards
        return dataclasses.replace(particles.weighted(particles.potential + so_far), so_far=so_far)
