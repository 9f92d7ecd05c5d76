"""Plain sampling: what every method is compared with, and equals at its null setting.

Cost: 2T rows; one decode, of the finished image.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.problem import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """The scheduler's chain from x_T to x_0."""

    needs: ClassVar[Needs] = Needs(reward=False, reference="ignored")

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        x_t, past = problem.start(), None
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            prediction = problem.denoise(x_t, t).after(past)
            x_t, past = problem.step(x_t, prediction, t, s), (prediction, t)
            observe("step", i, {})
        return x_t[:, 0]
