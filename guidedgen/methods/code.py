"""CoDe: blockwise best-of-N (Singh et al. 2025, "CoDe: Blockwise Control for Denoising Diffusion Models", arXiv:2502.00968;
Algorithm 6 of the CoDeX thesis). N streams run for a block of B steps; the one whose look-ahead E[x_0 | x_t] has the highest
reward is kept, and the next block starts with N copies of it. Blocks count from where the chain starts, at a reference too.

Cost: the network's answer that the look-ahead is made from is also what the next step needs, and N copies need it once. So the
rows do not depend on B: 2N(T-1) + 2 with one shared x_T, 2NT with independent ones; the released code spends 2N(T + T/B - 1).
N ceil(T/B) decodes and reward calls, and one decode of the finished image. Null setting: N = 1.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, pick, spread_over


@dataclasses.dataclass(frozen=True, kw_only=True)
class Code:
    """Where the paper's algorithm is not specific or its released code (anujinho/code, BoN/src_sd/pipelines/cd_pipe.py) differs:

    shared_start: all streams of a sample start from one x_T, as Algorithm 6 (line 1) and the code have it; otherwise from N.
    extra_draw: the code looks ahead by a full scheduler step, which draws and drops a Gaussian; only the noise differs.
    """

    needs: ClassVar[Needs] = Needs(sampler="stochastic")

    num_particles: int = 4
    block_size: int = 5
    shared_start: bool = True
    extra_draw: bool = False

    def __post_init__(self) -> None:
        for name in ("num_particles", "block_size"):
            if getattr(self, name) < 1:
                raise BadValue(name, getattr(self, name), "must be at least 1")

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        n, last = self.num_particles, len(problem.grid) - 2
        x_t = problem.start(1 if self.shared_start else n)  # b 1 c h w stands for n equal streams
        prediction = problem.denoise(x_t, problem.grid[0])
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            prediction = prediction.map(spread_over, n)
            x_t = problem.step(spread_over(x_t, n), prediction, t, s)
            if i < last:
                prediction = problem.denoise(x_t, s).after((prediction, t))
            if (i + 1) % self.block_size == 0 or i == last:
                scores = problem.score(prediction.x_0 if i < last else x_t)
                if self.extra_draw and i < last:
                    problem.noise.draw(n, problem.latent_shape)
                chosen = best(scores)
                x_t, prediction = pick(x_t, chosen), prediction.map(pick, chosen) if i < last else prediction
                observe("select", i, {"scores": scores})
            observe("step", i, {})
        return x_t[:, 0]
