"""Problems with exact answers: an analytic Gaussian mixture, sampled by the project's own schedulers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from guidedgen.basics.noise import Noise
from guidedgen.basics.tasks import Task
from guidedgen.methods.problem import Problem
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process import Denoiser, Prediction, Scheduler
from guidedgen.process.grid import NoiseSchedule, Point
from guidedgen.process.schedulers import Ddpm

SHAPE = (2, 1, 1)


class Counting:
    """A denoiser that counts its rows, as the bundled model's does, and those whose gradient is taken."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.rows, self.backward = denoiser, 0, 0

    @property
    def guidance_scale(self) -> float:
        return self.denoiser.guidance_scale

    def __call__(self, x_t: Tensor, t: Point, guidance_scale: float | None = None) -> Prediction:
        w = self.guidance_scale if guidance_scale is None else guidance_scale
        prediction, each = self.denoiser(x_t, t, w), 1 if w in (0, 1) else 2
        self.rows += each * x_t.shape[0] * x_t.shape[1]
        return Prediction(*self._watched(each, prediction.x_0, prediction.eps))

    def pair(self, x_t: Tensor, t: Point) -> tuple[Prediction, Prediction]:
        uncond, cond = self.denoiser.pair(x_t, t)
        self.rows += 2 * x_t.shape[0] * x_t.shape[1]
        u_0, u, c_0, c = self._watched(2, uncond.x_0, uncond.eps, cond.x_0, cond.eps)
        return Prediction(u_0, u), Prediction(c_0, c)

    def scale_at(self, t: Point) -> float:
        return self.denoiser.scale_at(t)

    def mixed(self, uncond: Prediction, cond: Prediction, t: Point) -> tuple[Prediction, Tensor]:
        return self.denoiser.mixed(uncond, cond, t)

    def subset(self, rows) -> "Counting":
        return self

    def _watched(self, each: int, *answer: Tensor) -> tuple[Tensor, ...]:
        """The parts of one answer as they are; a way back through any of them counts once."""
        return _Watched.apply(self, each * answer[0].shape[0] * answer[0].shape[1], *answer)


class _Watched(torch.autograd.Function):
    @staticmethod
    def forward(ctx, counting: Counting, rows: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.counting, ctx.rows = counting, rows
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.counting.backward += ctx.rows
        return (None, None, *gradients)


class CountingReward:
    """The first coordinate of a decoded latent, or any function of rows (k c h w -> k); counts its calls."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.calls, self.batches = function, 0, []

    def __call__(self, images: Tensor, tasks) -> Tensor:
        assert len(images) == len(tasks)
        self.calls += len(images)
        self.batches.append(len(images))
        return self.function(images)


@pytest.fixture
def mixture() -> GaussianMixture:
    means = torch.tensor([[1.5, 0.0], [-1.5, 0.5], [0.0, -2.0]], dtype=torch.float64).view(3, *SHAPE)
    return GaussianMixture(means=means, std=0.3, weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


@pytest.fixture
def make_problem(mixture: GaussianMixture) -> Callable[..., Problem]:
    """A problem of b samples whose images are their latents; the reward is the first coordinate unless another is given.

    With a `guidance_scale` other than 1 the mixture is the condition, and a wider Gaussian at the origin is what it is guided from.
    """

    def make(
        b: int = 3,
        *,
        scheduler: Scheduler | None = None,
        reward: Callable[[Tensor], Tensor] = lambda rows: rows[:, 0, 0, 0],
        prefix: str = "sample",
        guidance_scale: float = 1.0,
        batch_size: int = 1000,
    ) -> Problem:
        scheduler = Ddpm(num_steps=20) if scheduler is None else scheduler
        schedule = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
        grid = scheduler.grid(schedule)
        anything = GaussianMixture(means=torch.zeros_like(mixture.means[:1]), std=1.5, weights=torch.ones(1, dtype=torch.float64))
        return Problem(
            tasks=[Task(id=f"{i}", prompt="") for i in range(b)],
            denoise=Counting(GaussianDenoiser(cond=mixture, uncond=anything, guidance_scale=guidance_scale)),
            scheduler=scheduler,
            grid=grid,
            schedule=schedule,
            num_steps=len(grid) - 1,
            noise=Noise([f"{prefix}-{i}" for i in range(b)], dtype=torch.float64),
            latent_shape=SHAPE,
            decode=lambda x: x,
            reward=CountingReward(reward),
            batch_size=batch_size,
        )

    return make
