"""What a method is given: b samples to make, and everything it may use for them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from guidedgen.basics.noise import Noise
from guidedgen.basics.tasks import Task
from guidedgen.methods.views import Reduction, Views
from guidedgen.process import Denoiser, Prediction, Scheduler
from guidedgen.process.formulas import add_noise
from guidedgen.process.grid import Grid, Point, Schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """Rows, decodes and reward calls are counted where they are computed; images are decoded and scored `batch_size` at a time."""

    tasks: Sequence[Task]  # b
    denoise: Denoiser
    scheduler: Scheduler
    grid: Grid
    schedule: Schedule  # that the grid's points are of
    num_steps: int  # of the whole chain, of which the grid is the end where it starts from references
    noise: Noise  # b streams
    latent_shape: tuple[int, int, int]  # c h w
    decode: Callable[[Tensor], Tensor]  # latents (k c h w) -> images (k 3 H W) in [0, 1], differentiable
    reward: Callable[[Tensor, Sequence[Task]], Tensor] | None  # k images, their tasks -> k
    batch_size: int
    reference: Tensor | None = None  # b c h w: clean latents that the chain starts from
    timed: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext  # by kind of work

    @classmethod
    def from_model(
        cls, model: Any, prompts: Sequence[str], scheduler: Scheduler, *, seed: int = 0, batch_size: int = 8,
        reward: Callable[[Tensor, Sequence[str]], Tensor] | None = None,
    ) -> Problem:  # fmt: skip
        """The problem of some prompts, for a method that is called by hand: `method(problem)` gives latents, which `problem.decode`
        makes images of.

        Args:
            model: what `guidedgen.load_model` gives.
            scheduler: of `guidedgen.process.schedulers`.
            reward: of images (b 3 H W in [0, 1]) and their b prompts -> b, higher is better.
        """
        tasks, grid = [Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)], scheduler.grid(model.schedule)
        return cls(
            tasks=tasks, denoise=model.guided_denoiser(tasks, grid, len(grid) - 1), scheduler=scheduler, grid=grid,
            schedule=model.schedule, num_steps=len(grid) - 1,
            noise=Noise([f"{seed}/{task.id}" for task in tasks], device=model.device),
            latent_shape=model.latent_shape, decode=model.decode, batch_size=batch_size, timed=model.ledger.timed,
            reward=None if reward is None else lambda images, owners: reward(images, [task.prompt for task in owners]),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.tasks)

    def start(self, particles: int = 1) -> Tensor:
        """x at the first point: b particles c h w, standard normal or the noised reference."""
        return self.noised(self.noise.draw(particles, self.latent_shape))

    def noised(self, noise: Tensor) -> Tensor:
        """x at the first point that this noise gives (b n c h w): the noise itself, or the reference noised with it."""
        return noise if self.reference is None else add_noise(self.reference.unsqueeze(1), noise, self.grid[0])

    def step(self, x_t: Tensor, prediction: Prediction, t: Point, s: Point) -> Tensor:
        """x_s by the scheduler's rule, with fresh noise for every particle where it draws any."""
        if self.scheduler.multistep and prediction.before is None and t != self.grid[0]:
            raise ValueError("a multistep solver needs what was predicted before: prediction.after((previous, its point))")
        mean, std = self.scheduler.transition(x_t, prediction, t, s)
        return mean + std * self.noise.draw(x_t.shape[1], self.latent_shape) if self.scheduler.stochastic else mean

    def noise_ratio(self, i: int) -> float:
        """The share of the whole chain that is left at step i, itself included: 1 at the first step, 1 / num_steps at the last."""
        return (len(self.grid) - 1 - i) / self.num_steps

    def score(self, x_0: Tensor) -> Tensor:
        """Rewards (b n) of the images of clean latents (b n c h w); no gradient."""
        with torch.no_grad():
            values = [self._reward(rows, tasks) for rows, tasks in self._chunks(x_0)]
        return torch.cat(values).unflatten(0, x_0.shape[:2])

    def score_and_gradient(self, x_0: Tensor, views: Views | None = None) -> tuple[Tensor, Tensor]:
        """Rewards (b n) of clean latents and their gradients by them (b n c h w), back through reward and decoder.

        With views, these are scored instead, each as a picture of its own that counts towards `batch_size`.
        """
        if views is not None:
            return self._score_views(x_0, views)
        values, gradients = [], []
        for rows, tasks in self._chunks(x_0):
            with torch.enable_grad():
                rows = rows.detach().requires_grad_()
                rewards = self._reward(rows, tasks)
                total = rewards.sum()
            with self.timed("backward"):
                (gradient,) = torch.autograd.grad(total, rows)
            values.append(rewards.detach())
            gradients.append(gradient)
        return torch.cat(values).unflatten(0, x_0.shape[:2]), torch.cat(gradients).unflatten(0, x_0.shape[:2])

    def _score_views(self, x_0: Tensor, views: Views) -> tuple[Tensor, Tensor]:
        """The same for latents whose pictures are scored by views.

        Every picture is decoded once; the graphs of at most `batch_size` views are held at once, and of the decoding of those
        pictures alone that they are of.
        """
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        latents = x_0.flatten(0, 1)
        for own in torch.arange(len(latents)).split(max(1, self.batch_size // views.count)):
            with torch.enable_grad():
                rows = latents[own].detach().requires_grad_()
                pictures = self.decode(rows)
            tasks = [self.tasks[i // x_0.shape[1]] for i in own.tolist()]
            parts = [
                self._viewed_reward(pictures.detach(), tasks, functools.partial(views, own=own, which=which), views.reduction)
                for which in torch.arange(views.count).split(self.batch_size)
            ]
            rewards, by_pictures = (torch.stack(part) for part in zip(*parts, strict=True))
            if views.reduction == "mean":
                rewards, by_pictures = rewards.sum(0) / views.count, by_pictures.sum(0) / views.count
            else:
                best = rewards.argmax(0), torch.arange(len(own), device=rewards.device)
                rewards, by_pictures = rewards[best], by_pictures[best]
            with self.timed("backward"):
                gradients += torch.autograd.grad(pictures, rows, by_pictures)
            values.append(rewards)
        return torch.cat(values).unflatten(0, x_0.shape[:2]), torch.cat(gradients).unflatten(0, x_0.shape[:2])

    def _viewed_reward(
        self, pictures: Tensor, tasks: Sequence[Task], view: Callable[[Tensor], Tensor], reduction: Reduction
    ) -> tuple[Tensor, Tensor]:
        """The sums, or the best, of the rewards of equally many views of each of k pictures (k), and their gradients by these."""
        assert self.reward is not None
        with torch.enable_grad():
            leaves = pictures.clone().requires_grad_()
            views = view(leaves)
            v = len(views) // len(leaves)
            rewards = self.reward(views, [task for task in tasks for _ in range(v)]).unflatten(0, (-1, v))
            rewards = rewards.sum(1) if reduction == "mean" else rewards.amax(1)
            total = rewards.sum()
        with self.timed("backward"):
            (gradient,) = torch.autograd.grad(total, leaves)
        return rewards.detach(), gradient

    def subset(self, rows: Sequence[int]) -> Problem:
        """The problem for some of its samples; their noise streams continue from their current state."""
        if list(rows) == list(range(len(self))):
            return self
        return dataclasses.replace(
            self, tasks=[self.tasks[row] for row in rows], denoise=self.denoise.subset(rows), noise=self.noise.subset(rows),
            reference=None if self.reference is None else self.reference[list(rows)],
        )  # fmt: skip

    def _reward(self, x_0: Tensor, tasks: Sequence[Task]) -> Tensor:
        if self.reward is None:
            raise ValueError("this problem has no reward")
        return self.reward(self.decode(x_0), tasks)

    def _chunks(self, x_0: Tensor) -> list[tuple[Tensor, Sequence[Task]]]:
        owners = [task for task in self.tasks for _ in range(x_0.shape[1])]
        starts = range(0, len(owners), self.batch_size)
        rows = x_0.flatten(0, 1)
        return [(rows[i : i + self.batch_size], owners[i : i + self.batch_size]) for i in starts]
