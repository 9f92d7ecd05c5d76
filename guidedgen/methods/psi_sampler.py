"""Psi-Sampler (Yoon et al. 2025, "Psi-Sampler: Initial Particle Sampling for SMC-Based Inference-Time Reward Alignment in Score
Models", arXiv:2506.01320): the noise that particles start from is itself drawn from the law tilted by the reward, by Markov chains,
before twisted sequential Monte Carlo goes on from there (see guidedgen.methods.twisted; lambda_t = 1).

    target at x_T: N(0, I) exp(r(D(x0_hat(x_T))) / kl_weight);    g = grad r / kl_weight;    rho = (1 - e / 4) / (1 + e / 4)
    proposal (pCNL):  y = rho x + sqrt(1 - rho^2) (z + sqrt(e) / 2 g(x))
    accepted where log u < J(y -> x) - J(x -> y),
    J(x -> y) = r(x) / kl_weight - e / 8 |g(x)|^2 + sqrt(e) / 2 <(y - rho x) / sqrt(1 - rho^2), g(x)>

The Gaussian terms cancel in J, whatever g is: a shortened gradient stays valid (Cotter et al. 2013, arXiv:1202.0709).

Cost, with C chains of m = burn_in + num_mcmc_steps steps, and L looks (T, or T - 1 where the last step ends clean): 2C(m + 1) +
2N(T - 1) rows forward, 2C(m + 1) + 2N(L - 1) backward; C(m + 1) + NL decodes and reward calls, and one decode of the finished
image. Null setting: num_particles = num_chains = 1, burn_in = 0, num_mcmc_steps = 0, kl_weight = .inf.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from guidedgen.basics.noise import Noise
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts, check_positive
from guidedgen.methods.particles import Output, Particles, Resampler, check_particles
from guidedgen.methods.problem import Problem
from guidedgen.methods.twisted import Look, TwistedSmc, untempered
from guidedgen.process import Prediction
from guidedgen.process.formulas import joined


@dataclasses.dataclass(frozen=True, kw_only=True)
class PsiSampler:
    """The N particles are taken from the chains' states after `burn_in`, evenly spaced in each chain from its first one, as the
    released code has it (KAIST-Visual-AI-Group/Psi-Sampler, src/mcmc.py, "chains_thinning"). `step_size` is e. `max_gradient` is
    the largest root mean square of a reward's gradient by x_t, before it is divided by kl_weight.

    Where the released code differs: it asks the network once more for every chain's last state. Where the effective sample size
    is large enough it permutes the particles by the last resampling's index again and drops their weights (src/runner.py, lines
    150-190), so that it fails at the first step if that does not resample; here they stay as they are. It weighs the first
    particles by exp(r / kl_weight), which the chains have been drawn by already; here their weights are equal.
    """

    needs: ClassVar[Needs] = Needs(gradient=True, sampler="stochastic", reference="ignored")

    num_particles: int = 10
    kl_weight: float = 0.1
    num_chains: int = 5
    burn_in: int = 25
    num_mcmc_steps: int = 25
    step_size: float = 0.5
    max_gradient: float | None = 4e-4
    resampler: Resampler = "ssp"
    ess_threshold: float | None = 0.5
    output: Output = "reward"

    def __post_init__(self) -> None:
        check_particles(self)
        check_counts(self, "num_chains")
        check_counts(self, "burn_in", "num_mcmc_steps", least=0)
        check_positive(self, "step_size", "max_gradient")

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        smc = TwistedSmc(
            kl_weight=self.kl_weight, resampler=self.resampler, ess_threshold=self.ess_threshold, output=self.output,
            max_gradient=self.max_gradient,
        )  # fmt: skip
        x_t, look = self._starts(problem, smc, observe)
        particles = Particles.begin(x_t)
        # The chains have drawn them with this potential: the weights hold it already.
        particles = dataclasses.replace(particles, potential=look.rewards.double() / self.kl_weight)
        return smc(problem, particles, untempered, observe, look)

    def _starts(self, problem: Problem, smc: TwistedSmc, observe: Observer) -> tuple[Tensor, Look]:
        """N states of the Markov chains, b n c h w, and what is known of them."""
        t, noise = problem.grid[0], problem.noise.fork("mcmc")
        x = problem.start(self.num_chains)
        look, kept = smc.look(problem, x, t), []
        wanted = _thinned(self.num_particles, self.num_chains, self.num_mcmc_steps)
        for k in range(self.burn_in + self.num_mcmc_steps):
            x, look, accepted = self._moved(problem, smc, x, look, noise)
            observe("mcmc", k, {"rewards": look.rewards, "accepted": accepted})
            kept += [_rows(x, look, [chain]) for chain, step in wanted if step == k - self.burn_in]
        if not self.num_mcmc_steps:
            kept = [_rows(x, look, [k % self.num_chains for k in range(self.num_particles)])]
        return _joined(kept)

    def _moved(self, problem: Problem, smc: TwistedSmc, x: Tensor, look: Look, noise: Noise) -> tuple[Tensor, Look, Tensor]:
        """A step of the chains, what is known of their states, and which of them have moved (b C)."""
        e, rho = self.step_size, (1 - self.step_size / 4) / (1 + self.step_size / 4)
        spread = math.sqrt(1 - rho**2)
        z = noise.draw(x.shape[1], problem.latent_shape)
        y = rho * x + spread * (z + math.sqrt(e) / 2 * look.gradient / self.kl_weight)
        ahead = smc.look(problem, y, problem.grid[0])

        def joint(seen: Look, start: Tensor, end: Tensor) -> Tensor:
            g = seen.gradient.double() / self.kl_weight
            move = (end - rho * start).double() / spread
            terms = math.sqrt(e) / 2 * move * g - e / 8 * g.square()
            return seen.rewards.double() / self.kl_weight + terms.flatten(2).sum(2)

        gain = joint(ahead, y, x) - joint(look, x, y)
        accepted = noise.uniform(x.shape[1]).log() < gain  # a gain that is not a number is refused

        def merged(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(accepted.view(accepted.shape + (1,) * (new.ndim - 2)), new, old)

        prediction = Prediction(
            merged(ahead.prediction.x_0, look.prediction.x_0), merged(ahead.prediction.eps, look.prediction.eps)
        )
        return merged(y, x), Look(merged(ahead.rewards, look.rewards), merged(ahead.gradient, look.gradient), prediction), accepted


def _thinned(n: int, chains: int, steps: int) -> list[tuple[int, int]]:
    """Which states become particles, as (chain, step after the burn-in): n / chains of each chain, evenly spaced from its first,
    some of them twice where there are fewer.
    """
    found = []
    for chain in range(chains):
        count = n // chains + (chain < n % chains)
        found += [(chain, k * max(1, steps // max(count, 1)) % max(steps, 1)) for k in range(count)]
    return found


def _rows(x: Tensor, look: Look, chains: list[int]) -> tuple[Tensor, Look]:
    """The states of some chains."""
    prediction = look.prediction.map(lambda value: value[:, chains])
    return x[:, chains], Look(look.rewards[:, chains], look.gradient[:, chains], prediction)


def _joined(parts: list[tuple[Tensor, Look]]) -> tuple[Tensor, Look]:
    x, looks = torch.cat([x for x, _ in parts], 1), [look for _, look in parts]
    prediction = joined([look.prediction for look in looks], 1)
    return x, Look(torch.cat([look.rewards for look in looks], 1), torch.cat([look.gradient for look in looks], 1), prediction)
