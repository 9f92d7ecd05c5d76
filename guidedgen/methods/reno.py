"""ReNO, reward-based noise optimisation (Eyring et al. 2024, "ReNO: Enhancing One-step Text-to-Image Models through Reward-based
Noise Optimization", arXiv:2406.04312, Algorithm 1): gradient ascent on the noise that a few-step model starts from, through its
chain.

    loss = -reward_weight r(D(x_0)) + norm_weight (|z|^2 / 2 - (d - 1) log |z|),   z = x_T
    g = grad loss, shortened to `clip`;   v = momentum v + g;   z = z - lr (g + momentum v)

The second term is minus the logarithm of the density of a normal noise's length, least at |z|^2 = d - 1.

Cost, with m updates and a chain of T steps, by checkpoint: 2T(2m + 1) rows forward, 2Tm backward (half of it without
classifier-free guidance); m + 1 decodes and reward calls, and one decode of the finished image. Null setting: num_updates = 0.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.gradients import GradientEngine
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts, check_positive
from guidedgen.methods.problem import Problem
from guidedgen.methods.whole_chain import Best, shortened, step_noises, walked
from guidedgen.process.chains import SamplerChain, walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reno:
    """The best picture by reward alone is kept, the first being the unguided one. Where the chain draws noise, that of the unguided
    sample is kept throughout.

    Where the released code (ExplainableML/ReNO, training/trainer.py) differs: the rewards there are sums, 5 HPS v2, 1 ImageReward,
    0.01 CLIP and 0.05 PickScore logits, which reward=multi can have as weights. It computes |z| in the latents' precision, which in
    float16 overflows; here in float32.
    """

    gradients: GradientEngine
    num_updates: int = 50
    lr: float = 5.0
    momentum: float = 0.9
    nesterov: bool = True
    clip: float | None = 0.1
    reward_weight: float = 1.0
    norm_weight: float = 0.01

    def __post_init__(self) -> None:
        check_counts(self, "num_updates", least=0)
        check_positive(self, "lr", "clip")
        if not 0 <= self.momentum < 1:
            raise BadValue("momentum", self.momentum, "must be from 0 to below 1")

    @property
    def needs(self) -> Needs:
        return Needs(reward=self.num_updates > 0, gradient=self.num_updates > 0, chains=self.num_updates + 1)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        noise = problem.noise.draw(1, problem.latent_shape)
        chain = SamplerChain(
            denoise=problem.denoise, scheduler=problem.scheduler, grid=problem.grid, noises=step_noises(problem)
        )  # fmt: skip
        velocity, found = torch.zeros_like(noise), Best()
        for i in range(self.num_updates):
            with torch.enable_grad():
                leaf = noise.detach().requires_grad_()
                end = self.gradients(chain, chain.start(problem.noised(leaf)))[0]
            rewards, by_end = problem.score_and_gradient(end.detach())
            with problem.timed("backward"):
                (gradient,) = torch.autograd.grad(end, leaf, by_end)
            found.see(end.detach(), rewards[:, 0])
            observe("update", i, {"rewards": rewards[:, 0], "gradient": gradient.flatten(1).norm(dim=1)})
            walked(problem, observe, end.detach())
            descent = -self.reward_weight * torch.where(gradient.isfinite(), gradient, 0) + self.norm_weight * by_norm(noise)
            (descent,) = shortened((descent,), self.clip)
            velocity = self.momentum * velocity + descent
            noise = noise - self.lr * (descent + self.momentum * velocity if self.nesterov else velocity)
        x_0 = walk(chain, chain.start(problem.noised(noise)))[0]
        walked(problem, observe, x_0)
        if not self.num_updates:
            return x_0[:, 0]
        found.see(x_0, problem.score(x_0)[:, 0])
        return found.x_0[:, 0]


def by_norm(noise: Tensor) -> Tensor:
    """The gradient by a noise (b n c h w) of |z|^2 / 2 - (d - 1) log |z|: z - (d - 1) z / |z|^2, in float32 at least."""
    z = noise.to(torch.promote_types(noise.dtype, torch.float32))
    squared = z.flatten(2).square().sum(2)[..., None, None, None]
    return (z - (noise[0, 0].numel() - 1) / squared * z).to(noise)
