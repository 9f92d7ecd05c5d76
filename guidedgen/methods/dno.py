"""DNO, direct noise optimisation (Tang et al. 2024, "Inference-Time Alignment of Diffusion Models with Direct Noise Optimization",
arXiv:2405.18881, Algorithm 1): AdamW on x_T and on the noise of every step, through the whole chain.

    loss = -reward_weight r(D(x_0)) + gamma p(z),   z = (x_T, z_1, ..., z_T)

p keeps the noises such as normal ones are (section 4): cut into n rows of k numbers, as they are and 100 times permuted, the mean
of the rows and their second moments must not be further from 0 and 1 than chance would have it (Lemmas 1 and 2, M and N being those
distances),

    p = n M^2 / (2 k) + n max(sqrt(1 + N) - 1 - sqrt(k / n), 0)^2 / 2,   each at least log 2

Cost, with m updates and a chain of T steps, by checkpoint: 2T(2m + 1) rows forward, 2Tm backward; m + 1 decodes and reward calls,
and one decode of the finished image. Null setting: num_updates = 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from guidedgen.basics.noise import Noise
from guidedgen.gradients import GradientEngine
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts, check_positive
from guidedgen.methods.problem import Problem
from guidedgen.methods.whole_chain import Best, shortened, step_noises, walked
from guidedgen.process.chains import SamplerChain, walk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dno:
    """The best picture by reward alone is kept, the first being the unguided one. `subsample` j cuts noises into rows of 4^j
    numbers.

    Where the released code (TZW1998/Direct-Noise-Optimization, dno_stable_diffusion.py) differs: it stores every picture and keeps
    none; it decodes every intermediate latent and drops it; and it draws its permutations from the global generator. Its weight
    decay of 0.01 is that of PyTorch's AdamW. Its estimated gradients, for rewards that have none, are not here: use a search.
    """

    gradients: GradientEngine
    num_updates: int = 100
    lr: float = 0.01
    weight_decay: float = 0.01
    clip: float | None = 1.0
    reward_weight: float = 1.0
    gamma: float = 0.0
    subsample: int = 1
    num_permutations: int = 100

    def __post_init__(self) -> None:
        check_counts(self, "num_updates", "subsample", "num_permutations", "gamma", "weight_decay", least=0)
        check_positive(self, "lr", "clip")

    @property
    def needs(self) -> Needs:
        return Needs(reward=self.num_updates > 0, gradient=self.num_updates > 0, chains=self.num_updates + 1)

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        noises = [problem.noise.draw(1, problem.latent_shape), *step_noises(problem)]
        permutations, found = problem.noise.fork("permutations"), Best()
        with torch.enable_grad():
            leaves = [noise.clone().requires_grad_() for noise in noises]
        optimiser = torch.optim.AdamW(leaves, lr=self.lr, weight_decay=self.weight_decay)
        for i in range(self.num_updates):
            x_0, rewards, gradients = self._gradients(problem, leaves)
            found.see(x_0, rewards)
            observe("update", i, {"rewards": rewards, "gradient": gradients[0].flatten(1).norm(dim=1)})
            walked(problem, observe, x_0)
            descent = [-self.reward_weight * torch.where(gradient.isfinite(), gradient, 0) for gradient in gradients]
            if self.gamma:
                apart = self._by_concentration([leaf.detach() for leaf in leaves], permutations)
                descent = [a + self.gamma * b for a, b in zip(descent, apart, strict=True)]
            for leaf, gradient in zip(leaves, shortened(descent, self.clip), strict=True):
                leaf.grad = gradient
            optimiser.step()
        chain = self._chain(problem, [leaf.detach() for leaf in leaves])
        x_0 = walk(chain, chain.start(problem.noised(leaves[0].detach())))[0]
        walked(problem, observe, x_0)
        if not self.num_updates:
            return x_0[:, 0]
        found.see(x_0, problem.score(x_0)[:, 0])
        return found.x_0[:, 0]

    def _chain(self, problem: Problem, noises: Sequence[Tensor]) -> SamplerChain:
        return SamplerChain(denoise=problem.denoise, scheduler=problem.scheduler, grid=problem.grid, noises=noises[1:])

    def _gradients(self, problem: Problem, leaves: Sequence[Tensor]) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """x_0 (b 1 c h w), its reward (b), and the reward's gradients by all noises."""
        with torch.enable_grad():
            chain = self._chain(problem, leaves)
            end = self.gradients(chain, chain.start(problem.noised(leaves[0])), leaves)[0]
        rewards, by_end = problem.score_and_gradient(end.detach())
        with problem.timed("backward"):
            found = torch.autograd.grad(end, leaves, by_end, allow_unused=True)  # a last step that ends clean uses none
        gradients = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
        return end.detach(), rewards[:, 0], gradients

    def _by_concentration(self, noises: Sequence[Tensor], permutations: Noise) -> list[Tensor]:
        """The gradients of p by the noises. The order is drawn by sorting normal numbers, the same count for every sample."""
        with torch.enable_grad():
            flat = torch.cat([noise.flatten(1) for noise in noises], 1).requires_grad_()  # b d
            total = concentration(flat, 4**self.subsample).sum()
            for _ in range(self.num_permutations):
                order = permutations.draw(1, flat.shape[1:])[:, 0].argsort(1)
                total = total + concentration(flat.gather(1, order), 4**self.subsample).sum() / self.num_permutations
        (gradient,) = torch.autograd.grad(total, flat)
        sizes = [noise[0].numel() for noise in noises]
        return [part.view_as(noise) for part, noise in zip(gradient.split(sizes, 1), noises, strict=True)]


def concentration(noise: Tensor, k: int) -> Tensor:
    """p (b) of noises (b d), cut into rows of k numbers; what is left over is left out. At least 2 log 2."""
    n = noise.shape[1] // k
    rows = noise[:, : n * k].view(len(noise), n, k).to(torch.promote_types(noise.dtype, torch.float32))
    mean = rows.mean(1).square().sum(1)
    moments = rows.mT @ rows / n
    apart = torch.linalg.matrix_norm(moments - torch.eye(k, dtype=rows.dtype, device=rows.device), ord=2)
    of_mean = n * mean / (2 * k)
    of_moments = n * ((1 + apart).sqrt() - 1 - math.sqrt(k / n)).clamp(min=0).square() / 2
    return of_mean.clamp(min=math.log(2)) + of_moments.clamp(min=math.log(2))
