"""DOODL (Wallace et al. 2023, "End-to-End Diffusion Latent Optimization Improves Classifier Guidance", arXiv:2303.13703): the noise
that a picture is drawn from is optimised by the reward of the finished picture, through the whole chain. Algorithm 1:

    L = -(r(MultiCrop(x_0)) + r(MultiCrop(y_0))) / 2;   g = clip(-lr dL/dx_T);   v = momentum v + g
    x_T = x_T + v + perturbation;   x_T = x_T |first x_T| / |x_T|

Cost, with S steps (those of the grid that go somewhere), m updates, c = 2 latents for EDICT and 1 for DDIM, and C crops, by
checkpoint or reversible: 2cS(2m + 1) rows forward, 2cSm backward. Decodes cm + m + 1 and reward calls Ccm + m + 1, the whole
pictures' being for the best to be kept; without crops m less of each; and one decode of the finished image. Null setting:
num_updates = 0, the unguided chain: plain DDIM for process=ddim, EDICT's own otherwise.

Prefer process=ddim: it costs half of EDICT, by checkpointing its gradient is exact too, and its pictures are better in few steps,
where EDICT's pair drifts apart under guidance. On the lab's 32 relation prompts, unguided, both things and their relation are right
in 47 % by DDIM in 12 steps; by EDICT with p = 0.93 in 25 % of 50 steps and none of 20, with p = 0.7 and `alternate` in 38 % of 12.
Guided in 12 steps (doodl/lab/relations) 95 % of 64 pictures are right by DDIM, 88 % by EDICT.
EDICT is the paper's, and alone can invert a picture exactly: for source_image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.gradients import GradientEngine
from guidedgen.gradients.adjoint import Adjoint
from guidedgen.gradients.reversible import Reversible
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts, check_positive
from guidedgen.methods.problem import Problem
from guidedgen.methods.views import draw_crops
from guidedgen.methods.whole_chain import Best, walked
from guidedgen.process.chains import EdictChain, State, walk
from guidedgen.process.flow import OdeChain, flow_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doodl:
    """Where paper and released code (salesforce/DOODL, doodl.py, lines 647-982) differ, the defaults are the paper's:

    perturbation: standard deviation of what is added at each update: N(0, 1e-4 I) in the paper, 1e-4 in the code (line 947).
    pair_gradient: of a tied pair, the derivative by the x_T that both of its latents begin at ("total"), or the mean of those by
        each of the two, which is half of it ("mean", lines 936-940). Without `tied` each latent has its own derivative, in both.
    alternate: see `EdictChain`.
    crop_reduction: the mean over crops, or the best one alone, as the code for CLIP losses (lines 198-199).
    keep: the best picture of all updates, or the last one, which the code never renders.

    `process` null is ddim, unless the gradients or a source picture need edict. `lr` is lambda. `tied` optimises one latent for
    both of the pair, else each its own. Crops are squares of U^crop_power, scaled to between `smallest_crop` and 1 of the image's
    side, averaged to the smallest's size: the paper's 224 of 512 px. With `patience` a sample stops after so many updates without a
    better reward. `invert` starts from the inversion of each task's picture by EDICT, instead of from noise; `source_image` is one
    picture for all of them.
    """

    gradients: GradientEngine
    process: Literal["edict", "ddim"] | None = "edict"
    mixing: float = 0.93
    alternate: bool = False
    num_updates: int = 50
    lr: float = 1.0
    clip: float | None = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    perturbation: float = 1e-2
    renormalise: bool = True
    tied: bool = True
    pair_gradient: Literal["total", "mean"] = "total"
    num_crops: int = 16
    crop_power: float = 0.3
    smallest_crop: float = 0.4375
    crop_reduction: Literal["mean", "best"] = "mean"
    keep: Literal["best", "last"] = "best"
    patience: int | None = None
    invert: bool = False
    source_image: str | None = None

    def __post_init__(self) -> None:
        check_counts(self, "num_updates", "num_crops", least=0)
        for name in ("momentum", "smallest_crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadValue(name, getattr(self, name), "must be from 0 to 1")
        check_positive(self, "mixing", "clip", "patience")
        wanted = {Reversible: "edict", Adjoint: "ddim"}.get(type(self.gradients))
        if self.process is None:
            object.__setattr__(self, "process", wanted or ("edict" if self._inverts else "ddim"))
        if wanted not in (None, self.process):
            raise BadValue("process", self.process, f"method/gradients={type(self.gradients).__name__.lower()} needs {wanted}")
        if self._inverts and (self.process != "edict" or self.tied):
            name = "invert" if self.source_image is None else "source_image"
            raise BadValue(name, getattr(self, name), "a picture is inverted to a pair: it needs process=edict and tied=false")

    @property
    def _inverts(self) -> bool:
        return self.invert or self.source_image is not None

    @property
    def needs(self) -> Needs:
        return Needs(
            gradient=self.num_updates > 0,
            sampler="deterministic",
            reference="inverted" if self._inverts else "optional",
            one_sample=self.patience is not None,
            chains=self.num_updates + 1,
            flow=True,
        )

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        chain = self._chain(problem)
        latents = self._start(problem, chain)
        sizes, velocity = [_norm(z) for z in latents], [torch.zeros_like(z) for z in latents]
        crops, perturbation = problem.noise.fork("crops"), problem.noise.fork("perturbation")
        best = Best()
        for i in range(self.num_updates):
            x_0, rewards, gradients = self._gradient(problem, chain, latents, crops)
            best.see(x_0, (problem.score(x_0) if self.num_crops else rewards)[:, 0])
            observe("update", i, {"rewards": rewards.mean(1), "gradient": gradients[0].flatten(1).norm(dim=1)})
            walked(problem, observe, x_0)
            if self.patience is not None and best.stalled >= self.patience:
                return best.x_0[:, 0]
            noise = self.perturbation * perturbation.draw(1, problem.latent_shape)
            latents = [self._moved(z, v, g, size, noise) for z, v, g, size in zip(latents, velocity, gradients, sizes, strict=True)]
        x_0 = self._picture(chain, latents)
        walked(problem, observe, x_0)
        if self.keep == "last" or not self.num_updates:
            return x_0[:, 0]
        best.see(x_0, problem.score(x_0)[:, 0])
        return best.x_0[:, 0]

    def _chain(self, problem: Problem) -> OdeChain | EdictChain:
        if self.process == "ddim":
            return flow_of(problem.denoise, problem.grid, problem.schedule)
        return EdictChain(
            denoise=problem.denoise, grid=problem.grid, mixing=self.mixing, alternate=self.alternate,
            by_velocity=not problem.grid[0].alpha,
        )  # fmt: skip

    def _start(self, problem: Problem, chain: OdeChain | EdictChain) -> list[Tensor]:
        """What is optimised: x_T, or the pair of them, b 1 c h w each; in float64, because undoing EDICT's steps needs it."""
        if self._inverts:
            assert isinstance(chain, EdictChain) and problem.reference is not None
            state = chain.start(problem.reference.unsqueeze(1).double())
            for i in reversed(range(len(chain))):
                state = chain.unstep(state, i)
            return list(state)
        x_t = problem.start().double()
        return [x_t] if self.tied else list(chain.start(x_t))

    def _state(self, chain: OdeChain | EdictChain, latents: Sequence[Tensor]) -> State:
        return chain.start(latents[0]) if self.tied else tuple(latents)

    def _picture(self, chain: OdeChain | EdictChain, latents: Sequence[Tensor]) -> Tensor:
        """x_0, b 1 c h w: of the pair, x."""
        return walk(chain, self._state(chain, latents))[0]

    def _gradient(
        self, problem: Problem, chain: OdeChain | EdictChain, latents: Sequence[Tensor], crops: Noise
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """x_0, the rewards of the chain's last state (b 1, or b 2 for a pair), and the gradients of their mean by the latents."""
        with torch.enable_grad():
            leaves = [z.detach().requires_grad_() for z in latents]
            end = self.gradients(chain, self._state(chain, leaves))
        drawn = draw_crops(
            crops, len(end), count=self.num_crops, power=self.crop_power, smallest=self.smallest_crop, reduction=self.crop_reduction
        )
        rewards, by_end = problem.score_and_gradient(torch.cat(end, 1).detach(), drawn)
        with problem.timed("backward"):
            gradients = torch.autograd.grad(end, leaves, (by_end / len(end)).split(1, 1))
        share = 0.5 if self.pair_gradient == "mean" and self.tied and len(end) > 1 else 1.0
        return end[0].detach(), rewards, [share * g for g in gradients]

    def _moved(self, z: Tensor, velocity: Tensor, gradient: Tensor, size: Tensor, noise: Tensor) -> Tensor:
        """The latent after an update; `velocity` is updated in place."""
        gradient = torch.where(gradient.isfinite(), self.lr * gradient, 0)
        if self.clip is not None:
            gradient = gradient.clamp(-self.clip, self.clip)
        velocity.mul_(self.momentum).add_(gradient)
        z = z + (gradient + self.momentum * velocity if self.nesterov else velocity) + noise
        return z * (size / _norm(z)) if self.renormalise else z


def _norm(z: Tensor) -> Tensor:
    """Euclidean norm of each latent: b n c h w -> b n 1 1 1."""
    return z.flatten(2).norm(dim=2)[..., None, None, None]
