"""RBF, rollover budget forcing (Kim et al. 2025, "Inference-Time Scaling for Flow Models via Stochastic Generation and Rollover
Budget Forcing", arXiv:2503.19385, Algorithm 1): each step of a chain is drawn again and again until its look-ahead is better than
all before; what a step does not use of its share of the budget, the next one has.

    M starting noises, the one with the best look-ahead goes on; quota q = (B - M) / T draws a step, B being the chain's budget
    a draw: x_s, and the reward of its look-ahead
        better than the best of all steps: go on at once, the rest of the quota rolls over
        the quota used up: go on with the best of this step
    at the last step that has a look-ahead: draw until the budget is used up

Cost, with N chains and a budget of B / N network calls each, of at least M + T - 1: 2B rows; B decodes and reward calls, and one
decode of the finished image. Null setting: num_particles = 1, num_starts = 1, budget = T, keep = last, on a grid that ends clean.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor

from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, pick, top
from guidedgen.process import Prediction
from guidedgen.process.formulas import joined


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rbf:
    """`budget` counts network calls of a sample, a guidance pair as one, all chains and starting noises included. `keep`: the
    picture is the best clean estimate of all, or the best of the last step, as in the released code, which forgets better ones of
    earlier steps (KAIST-Visual-AI-Group/Flow-Inference-Time-Scaling, rbf/rbf.py). As there, a chain's last step is never taken: the
    picture is a look-ahead.

    The paper's chains are those of a flow made stochastic, on FLUX.1-schnell in 10 steps that are denser near the noise; here the
    sampler is one of scheduler=flow (eta or sde), ddim with eta, or ddpm.
    """

    num_particles: int = 2
    num_starts: int = 25
    budget: int = 500
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        check_counts(self, "num_particles", "num_starts", "budget")

    @property
    def needs(self) -> Needs:
        return Needs(sampler="stochastic", steps=self.budget)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        noises = [problem.noise, *(problem.noise.fork(f"chain-{k}") for k in range(1, self.num_particles))]
        ends = [self._chain(dataclasses.replace(problem, noise=noise), observe) for noise in noises]
        x_0, rewards = torch.cat([x for x, _ in ends], 1), torch.stack([reward for _, reward in ends], 1)
        observe("select", 0, {"scores": rewards})
        return pick(x_0, best(rewards))[:, 0]

    def _chain(self, problem: Problem, observe: Observer) -> tuple[Tensor, Tensor]:
        """A chain's best clean estimate of every sample, b 1 c h w, and its reward, b."""
        budget, last = self.budget // self.num_particles, len(problem.grid) - 2
        share = max(1, (budget - self.num_starts) // (last + 1))
        x_t = problem.start(self.num_starts)
        prediction = problem.denoise(x_t, problem.grid[0])
        scores = problem.score(prediction.x_0)
        for _ in range(self.num_starts):
            observe("step", 0, {})
        chosen, reached = best(scores), top(scores)
        x_t, prediction = pick(x_t, chosen), prediction.map(pick, chosen)
        work = [
            _Work(x_t[i : i + 1], _row(prediction, i), float(reached[i]), share, self.num_starts, last, budget)
            for i in range(len(problem))
        ]
        while drawing := [i for i, each in enumerate(work) if each.draws]:
            # Samples are at different points: those at one point are drawn together.
            for point in sorted({work[i].point for i in drawing}):
                rows = [i for i in drawing if work[i].point == point and work[i].draws]
                self._draw(problem.subset(rows), point, [work[i] for i in rows])
            observe("step", 0, {})
        ends = [each.ever if self.keep == "best" or each.held is None else each.held for each in work]
        return torch.cat([end.prediction.x_0 for end in ends]), torch.tensor([end.reward for end in ends], device=x_t.device)

    def _draw(self, problem: Problem, point: int, work: list[_Work]) -> None:
        """One draw of each of some samples, all at one point of the grid."""
        t, s = problem.grid[point], problem.grid[point + 1]
        before = joined([each.prediction for each in work], 0)  # stochastic samplers use none before
        x_s = problem.step(torch.cat([each.x_t for each in work]), before, t, s)
        ahead = problem.denoise(x_s, s)
        rewards = top(problem.score(ahead.x_0)).tolist()
        for i, each in enumerate(work):
            each.see(_Draw(x_s[i : i + 1], _row(ahead, i), rewards[i]))


@dataclasses.dataclass(frozen=True)
class _Draw:
    x_t: Tensor  # 1 1 c h w
    prediction: Prediction
    reward: float


class _Work:
    """One sample's chain: where it stands, and what its draws have come to."""

    def __init__(self, x_t: Tensor, prediction: Prediction, reward: float, share: int, spent: int, last: int, budget: int) -> None:
        self.x_t, self.prediction, self.point = x_t, prediction, 0
        self.ever = _Draw(x_t, prediction, reward)
        self.held: _Draw | None = None  # the best of this step
        self._share, self._quota, self._used = share, share, 0
        self._spent, self._last, self._budget = spent, last, budget

    @property
    def draws(self) -> bool:
        """Whether it draws again: until the budget is used up, and at least once at every step."""
        if self._last == 0:  # there is nothing to draw: a chain of one step ends at the look-ahead of its start
            return False
        return self._spent < self._budget or self.point < self._last - 1 or self.held is None

    def see(self, draw: _Draw) -> None:
        """Goes on where the draw is better than all before, or with the best of the step where its quota is used up."""
        self._spent, self._used = self._spent + 1, self._used + 1
        if self.held is None or draw.reward > self.held.reward:
            self.held = draw
        better = draw.reward > self.ever.reward
        if better:
            self.ever = draw
        if self.point == self._last - 1:  # what is drawn here is looked at and never stepped from
            return
        if better or self._used >= self._quota:
            taken = draw if better else self.held
            self._quota = self._share + (self._quota - self._used if better else 0)
            self.x_t, self.prediction, self.point, self.held, self._used = taken.x_t, taken.prediction, self.point + 1, None, 0


def _row(prediction: Prediction, i: int) -> Prediction:
    """What is predicted of one sample."""
    return prediction.map(lambda value: value[i : i + 1])
