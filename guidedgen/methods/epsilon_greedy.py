"""Epsilon-greedy search over the noise of each step (Ramesh & Mardani 2025, "Test-Time Scaling of Diffusion Models via Noise
Trajectory Search", arXiv:2506.03164, Algorithm 2): rounds of candidates, each a fresh noise with probability epsilon and a
neighbour of the best one so far otherwise, judged by the look-ahead that they lead to.

    neighbour = pivot + radius sqrt(d) U(0, 1) (random unit vector)

Cost, with R rounds of K candidates and C steps that draw noise, of which c are not the last: 2(T + cRK) rows, as the winner's
prediction is the next step's; C(1 + RK) decodes and reward calls, and one decode of the finished image. Null setting:
num_rounds = 0.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts, check_positive
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, pick, top
from guidedgen.process import Prediction
from guidedgen.process.grid import Point


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpsilonGreedy:
    """Where the released code (rvignav/diffusion-tts) differs: it looks ahead from x_s with the network at t instead of s, and its
    pivot moves to the best candidate of a round also where that is worse. Here the first pivot is the unguided sample's noise.
    """

    num_candidates: int = 4
    num_rounds: int = 20
    epsilon: float = 0.4
    radius: float = 0.15

    def __post_init__(self) -> None:
        check_counts(self, "num_candidates")
        check_counts(self, "num_rounds", least=0)
        if not 0 <= self.epsilon <= 1:
            raise BadValue("epsilon", self.epsilon, "must be from 0 to 1")
        check_positive(self, "radius")

    @property
    def needs(self) -> Needs:
        return Needs(reward=self.num_rounds > 0, sampler="stochastic")

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        search, last = {name: problem.noise.fork(name) for name in ("fresh", "near", "choice")}, len(problem.grid) - 2
        x_t = problem.start()
        prediction = problem.denoise(x_t, problem.grid[0])
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            mean, std = problem.scheduler.transition(x_t, prediction, t, s)
            past, pivot = (prediction, t), problem.noise.draw(1, problem.latent_shape)
            x_t = mean + std * pivot
            ahead = problem.denoise(x_t, s).after(past) if i < last else None
            if std and self.num_rounds:
                level = problem.score(x_t if ahead is None else ahead.x_0)[:, 0]
                for _ in range(self.num_rounds):
                    noises = self._candidates(pivot, search)
                    x_t, pivot, ahead, level = self._better(problem, mean, std, noises, s, (x_t, pivot, ahead, level))
                observe("select", i, {"scores": level.unsqueeze(1)})
            prediction = prediction if ahead is None else ahead.after(past)
            observe("step", i, {})
        return x_t[:, 0]

    def _candidates(self, pivot: Tensor, search: dict[str, Noise]) -> Tensor:
        """A round's noises: b k c h w."""
        k, shape = self.num_candidates, pivot.shape[2:]
        fresh, direction = search["fresh"].draw(k, shape), search["near"].draw(k, shape)
        choice = search["choice"].uniform(2 * k).to(pivot)
        unit = direction / direction.flatten(2).norm(dim=2)[..., None, None, None]
        near = pivot + self.radius * shape.numel() ** 0.5 * choice[:, k:, None, None, None] * unit
        return torch.where(choice[:, :k, None, None, None] < self.epsilon, fresh, near)

    def _better(
        self, problem: Problem, mean: Tensor, std: float, noises: Tensor, s: Point,
        held: tuple[Tensor, Tensor, Prediction | None, Tensor],
    ) -> tuple[Tensor, Tensor, Prediction | None, Tensor]:  # fmt: skip
        """x_s, its noise, what is predicted of it and its reward: of the best of these noises where that is better than what is
        held.
        """
        x_s, pivot, ahead, level = held
        candidates = mean + std * noises
        looks = None if ahead is None else problem.denoise(candidates, s)
        scores = problem.score(candidates if looks is None else looks.x_0)
        chosen, reached = best(scores), top(scores)
        better = (reached > level) | (level.isnan() & reached.isfinite())
        wins = better[:, None, None, None, None]

        def kept(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(wins, pick(new, chosen), old)

        if looks is not None and ahead is not None:
            ahead = Prediction(kept(looks.x_0, ahead.x_0), kept(looks.eps, ahead.eps))
        return kept(candidates, x_s), kept(noises, pivot), ahead, torch.where(better, reached, level)
