"""AdjointDPM on parameters that all pictures share (Pan et al. 2024, arXiv:2307.10711, section 4.2 and appendix A): the network's
weights, or a word's embedding, are tuned by the reward of finished pictures, with gradients through the whole probability flow.
Then every sample is drawn with them, unguided, by the solver that they were learned with: DDIM's steps, which are Euler's method,
unless the adjoint has another.

    min_theta  1/N sum_i -r(D(x_0(x_T^i, c_i; theta)))        over N pairs of noise and prompt

    weights     all of the denoising network's.
    attention   those of its attention layers.
    adapter     low-rank adapters of the projections of its attention layers.
    token       the embedding of a new word at the beginning of every prompt (appendix A; the released code tunes the prompt's
                padding instead, which no other program can take over).

Cost of learning, with S steps (those of the grid that go somewhere) and m updates of k pairs by checkpoint or by the adjoint with
euler: 4Skm rows forward, 2Skm backward, km decodes and reward calls. Of a sample: 2S rows by DDIM, and one decode. Null setting:
num_updates = 0, the model as it is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.noise import stream
from guidedgen.basics.tasks import Dataset
from guidedgen.gradients import GradientEngine
from guidedgen.gradients.adjoint import Adjoint
from guidedgen.gradients.reversible import Reversible
from guidedgen.methods import Lessons, MakeProblems, Needs, Observer, ignore
from guidedgen.methods.guidance import check_counts
from guidedgen.methods.problem import Problem
from guidedgen.methods.whole_chain import walked
from guidedgen.process import Tuning
from guidedgen.process.chains import DdimChain, walk
from guidedgen.process.flow import flow_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdjointTuning:
    """The paper tunes on 10 prompts from 10 noises each; optimiser, rate and batch are not in it, nor in its code.

    Each update takes the gradient of the mean reward of `samples_per_update` of the pairs (of all, where there are fewer), drawn
    without replacement until all have had their turn, by AdamW. `max_norm` bounds the gradient's norm over all that is tuned.
    `target` is the prompt of the originals, which some rewards compare with: {prompt} alone, or with an effect's name. `rank` is
    the adapter's; `token` and `initial` name the new word and the one that it begins as, `num_vectors` is how many embeddings it
    has.
    """

    gradients: GradientEngine
    prompts: Dataset
    what: Literal["weights", "attention", "adapter", "token"] = "adapter"
    noises_per_prompt: int = 10
    seed: int = 0
    target: str = "{prompt}"
    num_updates: int = 100
    samples_per_update: int = 8
    lr: float = 1e-4
    weight_decay: float = 0.01
    max_norm: float | None = 1.0
    rank: int = 4
    token: str = "<effect>"
    num_vectors: int = 1
    initial: str | None = None
    save_every: int = 10

    def __post_init__(self) -> None:
        check_counts(self, "noises_per_prompt", "samples_per_update", "rank", "num_vectors", "save_every")
        check_counts(self, "seed", "num_updates", "lr", "weight_decay", least=0)
        if self.max_norm is not None and not self.max_norm > 0:
            raise BadValue("max_norm", self.max_norm, "must be above 0, or null")
        if not self.token.strip() or any(letter.isspace() for letter in self.token):
            raise BadValue("token", self.token, "must be one word")
        if isinstance(self.gradients, Reversible):
            raise UsageError(
                "method/gradients=reversible undoes EDICT's steps, and method=adjoint_tuning has a flow: checkpoint or adjoint"
            )

    @property
    def needs(self) -> Needs:
        return Needs(gradient=self.num_updates > 0, sampler="deterministic", reference="ignored")

    @property
    def lessons(self) -> Lessons:
        return Lessons(prompts=self.prompts, noises_per_prompt=self.noises_per_prompt, seed=self.seed, target=self.target)

    @property
    def tuning(self) -> Tuning:
        return Tuning(
            what=self.what, rank=self.rank, token=self.token, num_vectors=self.num_vectors, initial=self.initial, seed=self.seed
        )  # fmt: skip

    def __call__(self, problem: Problem, observe: Observer = ignore) -> Tensor:
        if isinstance(self.gradients, Adjoint) and self.gradients.solver != "euler":
            flow = flow_of(problem.denoise, problem.grid, problem.schedule)
            with torch.no_grad():
                (x_0,) = self.gradients(flow, flow.start(problem.start()))
        else:
            chain = DdimChain(denoise=problem.denoise, grid=problem.grid)
            (x_0,) = walk(chain, chain.start(problem.start()))
        walked(problem, observe, x_0)
        return x_0[:, 0]

    def learn(
        self,
        make_problems: MakeProblems,
        count: int,
        free: Sequence[Tensor],
        saved: Mapping[str, Any],
        save: Callable[[Mapping[str, Any]], None],
        observe: Observer = ignore,
    ) -> None:
        optimizer = torch.optim.AdamW(free, lr=self.lr, weight_decay=self.weight_decay)
        done = self._restored(saved, optimizer, free)
        for i in range(done, self.num_updates):
            rewards, gradients = self._mean_gradient(make_problems, self._drawn(i, count), free)
            for value, gradient in zip(free, gradients, strict=True):
                value.grad = gradient
            norm = torch.nn.utils.clip_grad_norm_(free, torch.inf if self.max_norm is None else self.max_norm)
            observe("learn", i, {"reward": rewards.mean(), "gradient": norm})
            if norm.isfinite():  # else the update is left out
                optimizer.step()
            if (i + 1) % self.save_every == 0 and i + 1 < self.num_updates:
                save({"done": i + 1, "optimizer": optimizer.state_dict(), "free": [value.detach() for value in free]})

    def _restored(self, saved: Mapping[str, Any], optimizer: torch.optim.Optimizer, free: Sequence[Tensor]) -> int:
        """How many updates were made before; the optimiser and what it tunes are as they were then."""
        if not saved:
            return 0
        optimizer.load_state_dict(saved["optimizer"])
        with torch.no_grad():
            for value, stored in zip(free, saved["free"], strict=True):
                value.copy_(stored)
        return saved["done"]

    def _drawn(self, i: int, count: int) -> list[int]:
        """The pairs of update i, taken in turn from random permutations of all pairs."""
        k = self.samples_per_update
        positions = range(i * k, (i + 1) * k)
        orders = {position // count: None for position in positions}
        shuffled = {epoch: stream("learn", self.seed, epoch).permutation(count) for epoch in orders}
        return sorted({int(shuffled[position // count][position % count]) for position in positions})

    def _mean_gradient(
        self, make_problems: MakeProblems, indices: Sequence[int], free: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The rewards of the finished pictures of some pairs, and the gradients of minus their mean by what is tuned."""
        rewards: list[Tensor] = []
        sums: list[Tensor] = []
        for seen, gradients in make_problems(indices, functools.partial(self._gradient, free=free, count=len(indices))):
            rewards.append(seen)
            if not sums:
                sums = list(gradients)
                continue
            for k, gradient in enumerate(gradients):  # one at a time: all of the weights may be tuned
                sums[k] = sums[k] + gradient
        return torch.cat(rewards), sums

    def _gradient(self, problem: Problem, free: Sequence[Tensor], count: int) -> tuple[Tensor, Sequence[Tensor]]:
        """The rewards of finished pictures (b), and the gradients of minus their sum / `count` by what is tuned."""
        chain = flow_of(problem.denoise, problem.grid, problem.schedule)
        # A word reaches the chain through the prompts' embeddings, which are what the chain's steps close over.
        params = [problem.denoise.conditioning] if self.what == "token" else free
        with torch.enable_grad():
            (x_0,) = self.gradients(chain, chain.start(problem.start()), params)
        rewards, by_x_0 = problem.score_and_gradient(x_0.detach())
        with problem.timed("backward"):
            gradients = torch.autograd.grad(x_0, free, -by_x_0 / count, allow_unused=True)
        used = [torch.zeros_like(value) if g is None else g for value, g in zip(free, gradients, strict=True)]
        return rewards[:, 0], used
