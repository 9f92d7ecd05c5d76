"""DAS (Kim et al. 2025, "Test-time Alignment of Diffusion Models without Reward Over-optimization", arXiv:2501.05803): TDS whose
potentials are tempered, lambda_t r / kl_weight with lambda rising from 0 to 1, so that look-aheads count for little while they are
bad guesses. See guidedgen.methods.twisted.

    exponential:  lambda_i = min((1 + gamma)^i - 1, 1)        polynomial:  lambda_i = min((gamma i)^power, 1)
    adaptive:     the largest lambda, not below the last one, that leaves an effective sample size of ess_threshold N

Cost for L looks (T, or T - 1 where the last step ends clean): 2NT rows forward, 2NL backward; N(L + 1) decodes and reward calls,
and one decode of the finished image. Null setting: num_particles = 1, kl_weight = .inf.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_positive
from guidedgen.methods.particles import Output, Particles, Resampler, check_particles, effective_size
from guidedgen.methods.problem import Problem
from guidedgen.methods.twisted import Tempering, TwistedSmc


@dataclasses.dataclass(frozen=True, kw_only=True)
class Das:
    """The paper's gamma = 0.008 reaches lambda = 1 at step 87 of 100; for T steps take about 2^(1 / (0.87 T)) - 1. At x_0 lambda is
    1 whatever gamma is.

    Where the released code (krafton-ai/DAS, das/diffusers_patch/pipeline_using_SMC.py) differs:
    - It resamples latents and predictions, but neither their gradients nor the potentials that the next weights subtract (lines
      341-345): a particle is moved by another one's gradient. Here one index permutes all.
    - Of a polynomial schedule the next step's lambda lacks the power.
    - The adaptive lambda is searched by 500 steps of Adam at a rate of 1e-4; here by bisection.
    - It returns the particle of the highest weight of all prompts of a batch; here each sample has its own.
    """

    needs: ClassVar[Needs] = Needs(gradient=True, sampler="stochastic")

    num_particles: int = 4
    kl_weight: float = 0.005
    tempering: Literal["exponential", "polynomial", "adaptive"] = "exponential"
    gamma: float = 0.008
    power: float = 1.0
    resampler: Resampler = "ssp"
    ess_threshold: float | None = 0.5
    output: Output = "weight"

    def __post_init__(self) -> None:
        check_particles(self)
        check_positive(self, "gamma", "power")
        if self.tempering == "adaptive" and not self.ess_threshold:
            raise BadValue("ess_threshold", self.ess_threshold, "must be above 0 with tempering=adaptive, which aims at it")

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        smc = TwistedSmc(
            kl_weight=self.kl_weight, resampler=self.resampler, ess_threshold=self.ess_threshold, output=self.output
        )  # fmt: skip
        tempering = self._adaptive() if self.tempering == "adaptive" else self._scheduled
        return smc(problem, Particles.begin(problem.start(self.num_particles)), tempering, observe)

    def _scheduled(self, i: int, held: Tensor, log_rewards: Tensor) -> tuple[float, float]:
        """lambda at step i and at the next."""
        del held, log_rewards
        return self._share(i), self._share(i + 1)

    def _share(self, i: int) -> float:
        return min((1 + self.gamma) ** i - 1 if self.tempering == "exponential" else (self.gamma * i) ** self.power, 1.0)

    def _adaptive(self) -> Tempering:
        """lambda at a step, which the push to the next one has too."""
        assert self.ess_threshold is not None
        threshold = self.ess_threshold
        so_far: list[Tensor] = []

        def share(i: int, held: Tensor, log_rewards: Tensor) -> tuple[Tensor, Tensor]:
            del i
            low = so_far[-1] if so_far else torch.zeros_like(held[:, :1])
            high, least = torch.ones_like(low), threshold * held.shape[1]
            enough = effective_size(held + log_rewards).unsqueeze(1) >= least
            for _ in range(30):
                middle = (low + high) / 2
                keeps = effective_size(held + middle * log_rewards).unsqueeze(1) >= least
                low, high = torch.where(keeps, middle, low), torch.where(keeps, high, middle)
            so_far.append(torch.where(enough, 1.0, low))
            return so_far[-1], so_far[-1]

        return share
