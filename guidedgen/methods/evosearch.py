"""EvoSearch (He et al. 2025, "Scaling Image and Video Generation via Test-Time Evolutionary Search", arXiv:2505.17618): a
population of chains is bred at some steps. All are run to their ends, so that selection goes by true rewards, and what they were at
the later breeding steps is kept.

    generation 0: starting noises;  generation g, at step t_g: the states at t_g of all chains so far are its parents;
    the E best go on as they are; others are children of winners of tournaments among 90 % of the parents,
    child = sqrt(1 - m^2) parent + m z at the start,  parent + std z later,  std being that of the step that leads there

Cost, with populations of n_0, n_1, ... and T - t_g steps left: 2(n_0 T + sum n_g (T - t_g)) rows; sum of all n decodes and reward
calls, and one decode of the finished image. Null setting: population_sizes = [1], evolution_steps = [].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, pick, take, top, top_k
from guidedgen.methods.whole_chain import Best
from guidedgen.process import Prediction


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvoSearch:
    """`evolution_steps` are shares of the chain's steps, one for every generation but the first; a short chain is bred at its last
    step at the latest. The defaults are the released code's for Stable Diffusion 2.1, the cost of best-of-100.

    Where that (tinnerhrhe/EvoSearch-codes, SD2.1/evo_pipe.py and FLUX/flux_evol_pipe.py) differs: what it keeps of a chain at a
    breeding step is the state after it, which then takes that step again, at a noise level that it no longer has: of a Gaussian
    that shrinks the deviation by 1.5 % at step 40 of 50 and by 0.05 % at step 20. The first children are mutated as starting
    noises are, at step 5 of FLUX too; here those at the start alone. FLUX is sampled by a multistep solver of the flow's SDE there,
    by steps of eta = 1 here. Its tournaments are drawn from the global generator.
    """

    population_sizes: Sequence[int] = (42, 26, 26, 26, 30)
    evolution_steps: Sequence[float] = (0.0, 0.4, 0.6, 0.8)
    num_elites: int = 5
    mutation: float = 0.2
    tournament: float = 0.9

    def __post_init__(self) -> None:
        sizes, steps = list(self.population_sizes), list(self.evolution_steps)
        if not sizes or not all(isinstance(n, int) and n >= 1 for n in sizes):
            raise BadValue("population_sizes", sizes, "must be numbers of at least 1")
        if len(steps) != len(sizes) - 1 or not all(0 <= a < 1 for a in steps) or steps != sorted(steps):
            raise BadValue("evolution_steps", steps, f"must be {len(sizes) - 1} rising shares of the chain, from 0 to below 1")
        check_counts(self, "num_elites", least=0)
        for name in ("mutation", "tournament"):
            if not 0 < getattr(self, name) <= 1:
                raise BadValue(name, getattr(self, name), "must be above 0 and at most 1")

    @property
    def needs(self) -> Needs:
        return Needs(sampler="stochastic", chains=len(self.population_sizes))

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        last = len(problem.grid) - 2
        steps = [min(round(share * (last + 1)), last) for share in self.evolution_steps]
        mutations, tournaments, found = problem.noise.fork("mutation"), problem.noise.fork("tournament"), Best()
        states: dict[int, list[Tensor]] = {step: [] for step in steps}
        rewards: list[Tensor] = []
        x_t, first = problem.start(self.population_sizes[0]), 0
        for generation in range(len(self.population_sizes)):
            x_0 = self._run(problem, x_t, first, states, observe)
            rewards.append(problem.score(x_0))
            observe("select", generation, {"scores": rewards[-1]})
            found.see(pick(x_0, best(rewards[-1])), top(rewards[-1]))
            if generation < len(steps):
                first = steps[generation]
                parents, size = torch.cat(states[first], 1), self.population_sizes[generation + 1]
                x_t = self._bred(problem, parents, torch.cat(rewards, 1), size, first, mutations, tournaments)
        return found.x_0[:, 0]

    def _run(self, problem: Problem, x_t: Tensor, first: int, states: dict[int, list[Tensor]], observe: Observer) -> Tensor:
        """x_0 of chains from step `first` on; their states at the breeding steps that they pass are added to `states`."""
        past = None
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            if i >= first:
                if i in states:
                    states[i].append(x_t)
                prediction = problem.denoise(x_t, t).after(past)
                x_t, past = problem.step(x_t, prediction, t, s), (prediction, t)
            observe("step", i, {})
        return x_t

    def _bred(
        self, problem: Problem, parents: Tensor, rewards: Tensor, size: int, step: int, mutations: Noise, tournaments: Noise
    ) -> Tensor:
        """The next generation, b size c h w, of parents (b p c h w) at a step and what they came to (b p)."""
        elites = top_k(rewards, min(self.num_elites, size))
        count = size - elites.shape[1]
        if not count:
            return take(parents, elites)
        winners = self._winners(rewards, count, tournaments)
        children, z = take(parents, winners), mutations.draw(count, problem.latent_shape)
        if step == 0 and problem.reference is None:
            children = math.sqrt(1 - self.mutation**2) * children + self.mutation * z
        else:
            t, s = problem.grid[max(step - 1, 0)], problem.grid[max(step, 1)]
            children = children + problem.scheduler.transition(children, Prediction(children, children), t, s)[1] * z
        return torch.cat([take(parents, elites), children], 1)

    def _winners(self, rewards: Tensor, count: int, noise: Noise) -> Tensor:
        """The best of a random part of the parents, `count` times (b count)."""
        p = rewards.shape[1]
        part = max(1, int(p * self.tournament))
        chosen = []
        for _ in range(count):
            order = noise.uniform(p).argsort(1)[:, :part]
            chosen.append(order.gather(1, best(rewards.gather(1, order)).unsqueeze(1)))
        return torch.cat(chosen, 1)
