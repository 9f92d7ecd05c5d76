"""AdjointDPM (Pan et al. 2024, "AdjointDPM: Adjoint Sensitivity Method for Gradient Backpropagation of Diffusion Probabilistic
Models", arXiv:2307.10711): the latents or the embedding that a picture is sampled from are optimised by the reward of the
finished picture, L = -r(D(x_0)), with gradients through the whole probability flow. What is optimised is

    noise       x_T, as the released code does for the vocabulary expansion of section 4.1.1.
    trajectory  every state from x_T to the last but x_0, as that section says: "in each time step t, [...] the gradient of guidance
                L with respect to the noisy state x_t [...] to drive the sampling trajectory". With x_s = step(x_t) + u_s, the moves
                u_s zero at first, dL/du_s is dL/dx_s, the adjoint state that the way back meets at s: one pass gives it for all s.
                The optimiser moves x_T and the u_s: each state along its own gradient, on top of what moved before it.
    embedding   the prompt's embedding of each sample, all tokens of it; x_T stays.

With `epsilon` every element stays within that distance of its first value: the security audit of section 4.1.2, which
looks for x_T + delta, |delta|_inf <= epsilon, whose picture slips past a content filter (reward=evasion).

Cost, with S steps (those of the grid that go somewhere) and m updates: 2S(2m + 1) rows forward and 2Sm backward with euler,
checkpoint at the same; backprop 2S(m + 1) and 2Sm; other solvers as guidedgen.gradients.adjoint says. m + 1 decodes and reward
calls, with keep=last m; with C crops 2m + 1 decodes and Cm + m + 1 reward calls, with keep=last m and Cm; and one decode of the
finished image. Null setting: num_updates = 0, or epsilon = 0: the unguided chain of the solver, which is DDIM for euler
where the flow is reparameterised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.noise import Noise
from guidedgen.gradients import GradientEngine
from guidedgen.gradients.reversible import Reversible
from guidedgen.methods import Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts
from guidedgen.methods.problem import Problem
from guidedgen.methods.views import Crops, draw_crops
from guidedgen.methods.whole_chain import Best, walked
from guidedgen.process.flow import OdeChain, TimeChain, flow_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdjointDpm:
    """The defaults of the numbers are the released code's (HanshuYAN/AdjointDPM, adjoint/examples/vocabulary_expansion/run.sh; the
    paper's appendix has none for Stable Diffusion). `keep` is the best picture of all updates, or the last; the code never renders
    its last latent.

    "adam" is AdamW, whose step depends little on the reward's scale: `lr` is about how far an element moves in an update. "sgd"
    moves by lr times the gradient. `weight_decay` draws what is optimised towards zero, by lr times that share an update: for
    a trajectory, x_T and the moves.

    `epsilon` is the radius of the ball that what is optimised is brought back into after every update: around the first x_T or
    embedding, and around 0 for the moves of a trajectory. The released code's audit clamps to a ball around `initial`, which is
    another name of the x_T that is updated, so that it has no effect; and it takes the verdict on the picture of before the update
    (ddpm_and_guided-diffusion/runners/diffusion.py:795 and :831). Here the picture that is returned is the one that is judged.

    Without `reparameterise` the flow is solved in time (Eq. 4 instead of Eq. 10), as the paper's Table 1 compares: plain sampling
    with num_updates=0. It cannot end clean.

    Crops are DOODL's, as the code has for its vocabulary expansion: 16 of them with a power of 0.3. Those are of 512 px, the whole
    picture, so none are drawn unless asked for.
    """

    gradients: GradientEngine
    what: Literal["noise", "trajectory", "embedding"] = "noise"
    reparameterise: bool = True
    num_updates: int = 30
    lr: float = 0.01
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: float = 0.01
    epsilon: float | None = None
    num_crops: int = 0
    crop_power: float = 0.3
    smallest_crop: float = 0.4375
    crop_reduction: Literal["mean", "best"] = "mean"
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        check_counts(self, "num_updates", "lr", "weight_decay", "num_crops", "crop_power", least=0)
        if self.epsilon is not None and not self.epsilon >= 0:
            raise BadValue("epsilon", self.epsilon, "must be at least 0, or null for no ball")
        if not 0 <= self.smallest_crop <= 1:
            raise BadValue("smallest_crop", self.smallest_crop, "must be from 0 to 1")
        if isinstance(self.gradients, Reversible):
            raise UsageError(
                "method/gradients=reversible undoes EDICT's steps, and method=adjoint_dpm has a flow: checkpoint or adjoint"
            )

    @property
    def needs(self) -> Needs:
        return Needs(
            reward=self.num_updates > 0, gradient=self.num_updates > 0, sampler="deterministic", noisy_end=not self.reparameterise,
            signal_at_start=not self.reparameterise, chains=self.num_updates + 1, prompted=self.what == "embedding", flow=True,
        )  # fmt: skip

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        x_t = problem.start()
        free = self._free(problem, x_t)
        initial = [value.detach().clone() for value in free]
        optimizer, crops = self._optimizer(free), problem.noise.fork("crops")
        best = Best()
        for i in range(self.num_updates):
            with torch.enable_grad():
                x_0 = self._drawn(problem, x_t, free)
            rewards, by_x_0 = problem.score_and_gradient(x_0.detach(), self._crops(crops))
            with problem.timed("backward"):
                gradients = torch.autograd.grad(x_0, free, -by_x_0)
            if self.keep == "best":
                best.see(x_0.detach(), (problem.score(x_0.detach()) if self.num_crops else rewards)[:, 0])
            observe("update", i, {"rewards": rewards[:, 0], "gradient": _lengths(gradients)})
            for value, gradient in zip(free, gradients, strict=True):
                value.grad = _finite(gradient)
            optimizer.step()
            self._bring_back(free, initial)
            walked(problem, observe, x_0)
        with torch.no_grad():
            x_0 = self._drawn(problem, x_t, free)
        walked(problem, observe, x_0)
        if self.keep == "last" or not self.num_updates:
            return x_0[:, 0]
        best.see(x_0, problem.score(x_0)[:, 0])
        return best.x_0[:, 0]

    def _free(self, problem: Problem, x_t: Tensor) -> list[Tensor]:
        """What is optimised, each b ...: leaves in the latents' type, whatever the network's."""
        if self.what == "embedding":
            initial = [problem.denoise.conditioning.to(x_t.dtype)]
        else:
            between = len(self._chain(problem)) - 1 if self.what == "trajectory" else 0
            initial = [x_t, *(torch.zeros_like(x_t) for _ in range(between))]
        return [value.detach().clone().requires_grad_() for value in initial]

    def _optimizer(self, free: Sequence[Tensor]) -> torch.optim.Optimizer:
        """An optimiser that updates every element by itself, so that no sample depends on the others."""
        make = torch.optim.AdamW if self.optimizer == "adam" else torch.optim.SGD
        return make(free, lr=self.lr, weight_decay=self.weight_decay)

    def _bring_back(self, free: Sequence[Tensor], initial: Sequence[Tensor]) -> None:
        """Projects what has left the ball onto it, in place."""
        if self.epsilon is None:
            return
        with torch.no_grad():
            for value, start in zip(free, initial, strict=True):
                value.clamp_(start - self.epsilon, start + self.epsilon)

    def _crops(self, noise: Noise) -> Crops | None:
        return draw_crops(
            noise, 1, count=self.num_crops, power=self.crop_power, smallest=self.smallest_crop, reduction=self.crop_reduction
        )

    def _chain(self, problem: Problem) -> OdeChain:
        if self.reparameterise:
            return flow_of(problem.denoise, problem.grid, problem.schedule)
        return TimeChain(denoise=problem.denoise, grid=problem.grid, schedule=problem.schedule)

    def _drawn(self, problem: Problem, x_t: Tensor, free: Sequence[Tensor]) -> Tensor:
        """x_0, b 1 c h w, differentiable in what is free."""
        chain = self._chain(problem)
        if self.what == "embedding":
            chain = dataclasses.replace(chain, denoise=problem.denoise.conditioned_on(free[0]))
            (x_0,) = self.gradients(chain, chain.start(x_t), free)
        else:
            chain = dataclasses.replace(chain, offsets=free[1:])
            (x_0,) = self.gradients(chain, chain.start(free[0]))
        return x_0


def _lengths(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of each sample's gradient (b), over all that is optimised."""
    return torch.cat([gradient.flatten(1) for gradient in gradients], 1).norm(dim=1)


def _finite(gradient: Tensor) -> Tensor:
    """b ...: with 0 for every sample that is not finite."""
    rows = gradient.flatten(1)
    return torch.where(rows.isfinite().all(1, keepdim=True), rows, 0).view_as(gradient)
