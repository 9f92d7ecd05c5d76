"""Zero-order search over noise (Ma et al. 2025, "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps",
arXiv:2501.09732, section 3.2): a pivot noise, K neighbours of it, and a new pivot where one of them gives a better picture.

    n' = |n| (tau n / |n| + sqrt(1 - tau^2) w),   w a random unit vector at right angles to n

Cost, with R rounds: 2T(1 + KR) rows; 1 + KR decodes and reward calls, and one decode of the finished image. Null setting:
num_rounds = 0.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, pick, top
from guidedgen.methods.whole_chain import Best, finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroOrder:
    """`similarity` is tau, the cosine of a pivot and its neighbours. The paper goes on from the best candidate; here the pivot is
    one of them, so it stays where no neighbour is better. With `restart` the next pivot is then a new random noise, as in
    sayakpaul/tt-scale-flux (main.py). That code runs the pivot again in every round, K + 1 chains; here a new pivot is not run,
    and the best of its neighbours is the next one whatever it scores.

    A chain that draws noise draws it anew for every neighbour, so that the best one may be lucky in that noise instead of its own:
    the method brings a sampler that draws none.
    """

    num_neighbours: int = 4
    num_rounds: int = 4
    similarity: float = 0.95
    restart: bool = False

    def __post_init__(self) -> None:
        check_counts(self, "num_neighbours")
        check_counts(self, "num_rounds", least=0)
        if not 0 <= self.similarity < 1:
            raise BadValue("similarity", self.similarity, "must be from 0 to below 1")

    @property
    def needs(self) -> Needs:
        return Needs(reward=self.num_rounds > 0, chains=1 + self.num_rounds)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        around, anew = problem.noise.fork("neighbours"), problem.noise.fork("restart")
        pivot = problem.noise.draw(1, problem.latent_shape)
        x_0 = finished(problem, problem.noised(pivot), observe)
        if not self.num_rounds:
            return x_0[:, 0]
        found, level = Best(), problem.score(x_0)[:, 0]
        found.see(x_0, level)
        for k in range(self.num_rounds):
            noises = neighbours(pivot, around.draw(self.num_neighbours, problem.latent_shape), self.similarity)
            x_0 = finished(problem, problem.noised(noises), observe)
            scores = problem.score(x_0)
            observe("select", k, {"scores": scores})
            chosen, reached = best(scores), top(scores)
            found.see(pick(x_0, chosen), reached)
            better = reached > level
            other = anew.draw(1, problem.latent_shape) if self.restart else pivot
            pivot = torch.where(better[:, None, None, None, None], pick(noises, chosen), other)
            level = torch.where(better, reached, -torch.inf if self.restart else level)
        return found.x_0[:, 0]


def neighbours(pivot: Tensor, directions: Tensor, similarity: float) -> Tensor:
    """Noises (b k c h w) of a pivot's (b 1 c h w) length whose cosine with it is `similarity`, in random directions (b k c h w)."""
    flat = pivot.flatten(2)
    length = flat.norm(dim=2, keepdim=True)
    unit, w = flat / length, directions.flatten(2)
    w = w - (w * unit).sum(2, keepdim=True) * unit
    w = w / w.norm(dim=2, keepdim=True)
    return (length * (similarity * unit + math.sqrt(1 - similarity**2) * w)).view_as(directions)
