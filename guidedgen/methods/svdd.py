"""SVDD-PM (Li et al. 2024, "Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding",
arXiv:2408.08252, Algorithm 1): at every step M candidates are drawn from one latent, and one of them goes on, drawn with weights
exp(r(D(x0_hat)) / kl_weight), or the best one (kl_weight = null, the limit at 0, as the released code takes).

Cost: the prediction that the winner was looked at with is also what its step needs, and M candidates share it. With C choices (T,
or T - 1 where the last step ends clean, all candidates being equal there): 2 + 2M(T - 1) rows; MC decodes and reward calls, and
one decode of the finished image. The released code spends 2(T + M(T - 1)). Null setting: num_candidates = 1.
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, multinomial, spread_over, take


@dataclasses.dataclass(frozen=True, kw_only=True)
class Svdd:
    """CoDe with blocks of one step, but for the choice, and for the last step that ends clean, which is taken once.

    Where the released code (masa-ue/SVDD-image, sd_pipeline.py, Decoding_nonbatch_SDPipeline) differs: it takes the last step
    without a choice also where it draws noise. Its class for sequential Monte Carlo looks ahead at t instead of t - 1.
    """

    needs: ClassVar[Needs] = Needs(sampler="stochastic")

    num_candidates: int = 20
    kl_weight: float | None = None

    def __post_init__(self) -> None:
        check_counts(self, "num_candidates")
        if self.kl_weight is not None and not self.kl_weight > 0:
            raise BadValue("kl_weight", self.kl_weight, "must be above 0, or null for the best")

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        draws, last = problem.noise.fork("select"), len(problem.grid) - 2
        x_t = problem.start()  # b 1 c h w
        prediction = problem.denoise(x_t, problem.grid[0])
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            m = self.num_candidates if s.sigma else 1
            prediction = prediction.map(spread_over, m)
            x_t = problem.step(spread_over(x_t, m), prediction, t, s)
            if i < last:
                prediction = problem.denoise(x_t, s).after((prediction, t))
            if m > 1:
                scores = problem.score(prediction.x_0 if i < last else x_t)
                observe("select", i, {"scores": scores})
                index = self._chosen(scores, draws.uniform(1))
                x_t, prediction = take(x_t, index), prediction.map(take, index) if i < last else prediction
            observe("step", i, {})
        return x_t[:, 0]

    def _chosen(self, scores: Tensor, uniform: Tensor) -> Tensor:
        """Which candidate goes on (b 1)."""
        return best(scores).unsqueeze(1) if self.kl_weight is None else multinomial(scores, self.kl_weight, uniform)
