"""Best of N: N independent samples, the one with the highest reward is kept.

Cost: 2NT rows, N decodes and reward calls. Null setting: N = 1.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, pick


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfN:
    """`num_particles` samples from independent noise, particle 0 being the unguided sample."""

    needs: ClassVar[Needs] = Needs()

    num_particles: int = 4

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise BadValue("num_particles", self.num_particles, "must be at least 1")

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        x_t, past = problem.start(self.num_particles), None
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            prediction = problem.denoise(x_t, t).after(past)
            x_t, past = problem.step(x_t, prediction, t, s), (prediction, t)
            observe("step", i, {})
        scores = problem.score(x_t)
        observe("select", len(problem.grid) - 2, {"scores": scores})
        return pick(x_t, best(scores))[:, 0]
