"""Random search over noise (Ma et al. 2025, "Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps",
arXiv:2501.09732, section 3.2): rounds of best-of-N, of which the best picture ever is kept. It spends as much as best-of-N with as
many noises in all, and holds at most N chains in memory.

Cost, with R rounds of N noises each, M = RN in all (with `doubling` M = N (2^R - 1)): 2MT rows; M decodes and reward calls, and one
decode of the finished image. Null setting: num_particles = 1, num_rounds = 1.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, pick, top
from guidedgen.methods.whole_chain import Best, finished


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """`doubling` gives each round twice as many noises as the one before, N at a time, as sayakpaul/tt-scale-flux has it (main.py):
    2, 4, 8, ... there. That code starts every round anew and stores the best of each; here the best of all rounds is the picture.
    The first noise of the first round is the unguided sample's.
    """

    num_particles: int = 4
    num_rounds: int = 4
    doubling: bool = False

    def __post_init__(self) -> None:
        check_counts(self, "num_particles", "num_rounds")

    @property
    def needs(self) -> Needs:
        return Needs(chains=sum(self._parts(k) for k in range(self.num_rounds)))

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        found = Best()
        for k in range(self.num_rounds):
            scores: list[Tensor] = []
            for _ in range(self._parts(k)):
                x_0 = finished(problem, problem.start(self.num_particles), observe)
                scores.append(problem.score(x_0))
                found.see(pick(x_0, best(scores[-1])), top(scores[-1]))
            observe("select", k, {"scores": torch.cat(scores, 1)})
        return found.x_0[:, 0]

    def _parts(self, k: int) -> int:
        """How often N noises are drawn in a round."""
        return 2**k if self.doubling else 1
