"""D-Flow (Ben-Hamu et al. 2024, "D-Flow: Differentiating through Flows for Controlled Generation", arXiv:2402.14017, Algorithm 1):
the noise that a deterministic flow starts from is optimised by L-BFGS, through few steps of a solver of second order.

    min over x_T of  -reward_weight r(D(x_0)) + norm_weight (|x_T|^2 / 2 - (d - 1) log |x_T|)

Cost, with E evaluations of the loss, of S steps of c = 2 calls by the midpoint rule and 1 by Euler's, by checkpoint: 2cS(2E + 1)
rows forward, 2cSE backward; E + 1 decodes and reward calls, and one decode of the finished image. L-BFGS evaluates as often as its
line search needs, at most about `num_updates` times `max_evaluations`: `evaluations` in the trace says how often. Null setting:
num_updates = 0 and solver = euler.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from guidedgen.gradients import GradientEngine
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts, check_positive
from guidedgen.methods.problem import Problem
from guidedgen.methods.reno import by_norm
from guidedgen.methods.whole_chain import Best, walked
from guidedgen.process.chains import walk
from guidedgen.process.flow import MidpointChain, OdeChain, flow_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class DFlow:
    """The best picture by reward alone is kept, the first being the unguided one. `lr` is the first step of each line search.

    The authors' code is not public. The paper's solver is the midpoint rule in 6 steps; its regulariser is optional there too
    (section 3.4, Eq. 14), and off by default.
    """

    gradients: GradientEngine
    solver: Literal["midpoint", "euler"] = "midpoint"
    num_updates: int = 20
    lr: float = 1.0
    history: int = 100
    max_evaluations: int = 20
    reward_weight: float = 1.0
    norm_weight: float = 0.0

    def __post_init__(self) -> None:
        check_counts(self, "num_updates", "norm_weight", least=0)
        check_counts(self, "history", "max_evaluations")
        check_positive(self, "lr", "reward_weight")

    @property
    def needs(self) -> Needs:
        learns = self.num_updates > 0
        return Needs(
            reward=learns, gradient=learns, sampler="deterministic", one_sample=learns, flow=True, chains=self.num_updates + 1
        )

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        ode = flow_of(problem.denoise, problem.grid, problem.schedule)
        chain = MidpointChain(ode=ode) if self.solver == "midpoint" else ode
        noise = problem.noise.draw(1, problem.latent_shape)
        if not self.num_updates:
            x_0 = walk(chain, chain.start(problem.noised(noise)))[0]
            walked(problem, observe, x_0)
            return x_0[:, 0]
        if len(problem) > 1:
            raise ValueError("d_flow: samples differ in how often they are evaluated, so they are made one at a time")
        search = _Search(self, problem, chain, noise)
        for i in range(self.num_updates):
            search.update()
            seen = {"rewards": search.found.rewards, "evaluations": torch.tensor([search.evaluations])}
            observe("update", i, seen)
            walked(problem, observe, search.found.x_0)
        x_0 = walk(chain, chain.start(problem.noised(search.leaf.detach())))[0]
        walked(problem, observe, x_0)
        search.found.see(x_0, problem.score(x_0)[:, 0])
        return search.found.x_0[:, 0]


class _Search:
    """L-BFGS on one sample's noise."""

    def __init__(self, method: DFlow, problem: Problem, chain: OdeChain | MidpointChain, noise: Tensor) -> None:
        self._method, self._problem, self._chain = method, problem, chain
        with torch.enable_grad():
            self.leaf = noise.clone().requires_grad_()
        self._optimiser = torch.optim.LBFGS(
            [self.leaf], lr=method.lr, max_iter=1, max_eval=method.max_evaluations, history_size=method.history,
            line_search_fn="strong_wolfe",
        )  # fmt: skip
        self.found, self.evaluations = Best(), 0

    def update(self) -> None:
        """One step along a direction, with its line search."""
        self._optimiser.step(self._evaluated)

    def _evaluated(self) -> float:
        """The loss at the leaf, whose gradient is left in it."""
        method, problem = self._method, self._problem
        with torch.enable_grad():
            end = method.gradients(self._chain, self._chain.start(problem.noised(self.leaf)))[0]
        rewards, by_end = problem.score_and_gradient(end.detach())
        with problem.timed("backward"):
            (gradient,) = torch.autograd.grad(end, self.leaf, by_end)
        self.found.see(end.detach(), rewards[:, 0])
        self.evaluations += 1
        z = self.leaf.detach()
        descent = -method.reward_weight * torch.where(gradient.isfinite(), gradient, 0) + method.norm_weight * by_norm(z)
        self.leaf.grad = descent.contiguous()
        squared = z.double().square().sum()
        norm = squared / 2 - (z.numel() - 1) / 2 * squared.log()
        return float(-method.reward_weight * rewards.double().sum() + method.norm_weight * norm)
