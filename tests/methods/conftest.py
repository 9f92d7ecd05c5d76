"""Problems with exact answers: an analytic Gaussian mixture, sampled by the project's own schedulers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from guidedgen.models.gaussian import GaussianMixture
from guidedgen.noise import Noise
from guidedgen.process.grid import NoiseSchedule, Point
from guidedgen.process.schedulers import Ddpm
from guidedgen.types import Problem, Scheduler, Task

SHAPE = (2, 1, 1)


class Counting:
    """A denoiser that counts its rows, the batch of each call included."""

    def __init__(self, denoiser: Callable[[Tensor, Point], Tensor]) -> None:
        self.denoiser, self.rows, self.calls = denoiser, 0, 0

    def __call__(self, x_t: Tensor, t: Point) -> Tensor:
        self.rows += x_t.shape[0] * x_t.shape[1]
        self.calls += 1
        return self.denoiser(x_t, t)


@pytest.fixture
def mixture() -> GaussianMixture:
    means = torch.tensor([[1.5, 0.0], [-1.5, 0.5], [0.0, -2.0]], dtype=torch.float64).view(3, *SHAPE)
    return GaussianMixture(means=means, std=0.3, weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


@pytest.fixture
def make_problem(mixture: GaussianMixture) -> Callable[..., Problem]:
    """A problem of b samples; the reward is the first coordinate unless another is given."""

    def make(
        b: int = 3,
        *,
        scheduler: Scheduler | None = None,
        score: Callable[[Tensor], Tensor] = lambda x_0: x_0[:, :, 0, 0, 0],
        prefix: str = "sample",
    ) -> Problem:
        scheduler = Ddpm(num_steps=20) if scheduler is None else scheduler
        schedule = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
        return Problem(
            tasks=[Task(id=f"{i}", prompt="") for i in range(b)],
            denoise=Counting(mixture),
            scheduler=scheduler,
            grid=scheduler.grid(schedule),
            noise=Noise([f"{prefix}-{i}" for i in range(b)], dtype=torch.float64),
            latent_shape=SHAPE,
            score=score,
        )

    return make
