"""TDS, the twisted diffusion sampler (Wu et al. 2023, "Practical and Asymptotically Exact Conditional Sampling in Diffusion
Models", arXiv:2306.17775, Algorithm 1): sequential Monte Carlo whose proposals follow the gradient of the look-ahead's reward, with
weights that make it exact as N grows. See guidedgen.methods.twisted; lambda_t = 1 throughout.

Cost for L looks (T, or T - 1 where the last step ends clean): 2NT rows forward, 2NL backward; N(L + 1) decodes and reward calls,
and one decode of the finished image. Null setting: num_particles = 1, kl_weight = .inf.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.particles import Output, Particles, Resampler, check_particles
from guidedgen.methods.problem import Problem
from guidedgen.methods.twisted import TwistedSmc, untempered


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tds:
    """The paper conditions on a likelihood p(y | x_0); here that is exp(r(x_0) / kl_weight), and the twisted proposal is the
    sampler's transition moved by std^2 h. Where the released code (blt2114/twisted_diffusion_sampler) resamples at every step,
    ess_threshold is null; its last step takes no gradient, and neither does one that ends clean here.
    """

    needs: ClassVar[Needs] = Needs(gradient=True, sampler="stochastic")

    num_particles: int = 4
    kl_weight: float = 0.1
    resampler: Resampler = "systematic"
    ess_threshold: float | None = None
    output: Output = "draw"

    def __post_init__(self) -> None:
        check_particles(self)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        smc = TwistedSmc(
            kl_weight=self.kl_weight, resampler=self.resampler, ess_threshold=self.ess_threshold, output=self.output
        )  # fmt: skip
        return smc(problem, Particles.begin(problem.start(self.num_particles)), untempered, observe)
