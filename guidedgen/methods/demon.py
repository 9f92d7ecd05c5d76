"""Demon (Yeh et al. 2024, "Training-Free Diffusion Model Alignment with Sampling Demons", arXiv:2410.05760): each step's noise is
made of K candidate noises, weighed by the rewards of the look-aheads that they lead to. It needs no gradient.

    R_k = r(D(x0_hat(mean + std z_k)));   w = tanh((R - mean R) / tau)  or  softmax(R / tau)
    z* = sqrt(d) sum_k w_k z_k / |sum_k w_k z_k|;   x_s = mean + std z*

Cost, with C steps in the window that draw noise, of which c are not the last: 2(T + Kc) rows; KC decodes and reward calls, and one
decode of the finished image. Null setting: num_candidates = 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts
from guidedgen.methods.problem import Problem
from guidedgen.process.windows import check_window, within


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demon:
    """`temperature` is tau; null is the standard deviation of the candidates' rewards, at every step. Where all candidates have the
    same reward the first one's noise is taken, which is the unguided sample's.

    The paper's chain (aiiu-lab/DemonSampling, src/api.py) has Karras' noise levels from 14.65 to 0.002 in 64 steps, its noise
    scaled by beta = 0.1, and draws none below a level of 0.11; here the sampler is the chain's own, and `window` says where it
    searches. Its candidates step by Heun's method, and look ahead by 2 steps of a consistency model or 20 of the ODE: better
    guesses than the one estimate here, for as many more rows. Its adaptive tau is that of the first step throughout, as its setting
    is overwritten.
    """

    needs: ClassVar[Needs] = Needs(sampler="stochastic")

    num_candidates: int = 16
    weights: Literal["tanh", "softmax"] = "tanh"
    temperature: float | None = None
    window: Sequence[float] = (1.0, 0.0)

    def __post_init__(self) -> None:
        check_counts(self, "num_candidates")
        check_window("window", self.window)
        if self.temperature is not None and not self.temperature > 0:
            raise BadValue("temperature", self.temperature, "must be above 0, or null for the rewards' own deviation")

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        x_t, past, last = problem.start(), None, len(problem.grid) - 2
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            prediction = problem.denoise(x_t, t).after(past)
            mean, std = problem.scheduler.transition(x_t, prediction, t, s)
            searches = self.num_candidates > 1 and std > 0 and within(problem.noise_ratio(i), self.window)
            noises = problem.noise.draw(self.num_candidates if searches else 1, problem.latent_shape)
            if searches:
                candidates = mean + std * noises
                scores = problem.score(problem.denoise(candidates, s).x_0 if i < last else candidates)
                observe("select", i, {"scores": scores})
                noises = self._combined(noises, scores)
            x_t, past = mean + std * noises, (prediction, t)
            observe("step", i, {})
        return x_t[:, 0]

    def _combined(self, noises: Tensor, scores: Tensor) -> Tensor:
        """The candidates' noises (b k c h w) as one (b 1 c h w), of the length that a noise has on average. A score that is not a
        number has no weight.
        """
        known = scores.isfinite()
        values = torch.where(known, scores.double(), 0.0)
        count = known.sum(1, keepdim=True).clamp(min=1)
        centred = torch.where(known, values - values.sum(1, keepdim=True) / count, 0.0)
        spread = (centred.square().sum(1, keepdim=True) / count).sqrt()
        tau = spread.clamp(min=1e-30) if self.temperature is None else torch.full_like(spread, self.temperature)
        scaled = centred / tau
        weights = scaled.tanh() if self.weights == "tanh" else torch.where(known, scaled, -torch.inf).softmax(1)
        total = (weights.to(noises)[..., None, None, None] * noises).sum(1, keepdim=True)
        length = total.flatten(1).norm(dim=1)[:, None, None, None, None]
        root = total[0].numel() ** 0.5
        differ = (spread.squeeze(1) > 0)[:, None, None, None, None] & (length > 0)
        return torch.where(differ, root / length.clamp(min=1e-30) * total, noises[:, :1])
