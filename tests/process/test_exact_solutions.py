"""Samplers on distributions whose score is known: where they have to arrive, and how fast."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from guidedgen.models.gaussian import GaussianMixture
from guidedgen.process.grid import Grid, NoiseSchedule
from guidedgen.process.schedulers import Ddim, Ddpm

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
SHAPE = (2, 1, 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flow(gaussian: GaussianMixture, x_T: Tensor, grid: Grid) -> Tensor:  # noqa: N803
    """The probability flow of one Gaussian: the standardised latent does not move (Song et al. 2021, arXiv:2011.13456)."""
    first, last = grid[0], grid[-1]

    def scale(alpha: float, sigma: float) -> float:
        return math.hypot(alpha * gaussian.std, sigma)

    standard = (x_T - first.alpha * gaussian.means[0]) / scale(first.alpha, first.sigma)
    return last.alpha * gaussian.means[0] + scale(last.alpha, last.sigma) * standard


def error(steps: int, **options: str) -> float:
    gaussian = GaussianMixture(means=normal(1, *SHAPE, seed=1), std=0.6, weights=torch.ones(1, dtype=torch.float64))
    scheduler = Ddim(num_steps=steps, offset=0, **options)  # type: ignore[arg-type]
    grid = scheduler.grid(SCHEDULE)
    x = x_T = normal(16, 4, *SHAPE)  # noqa: N806
    for t, s in pairwise(grid):
        x = scheduler.step(x, gaussian(x, t), t, s, None)
    return float((x - flow(gaussian, x_T, grid)).square().mean().sqrt())


@pytest.mark.parametrize("options", [{"spacing": "trailing", "end": "clean"}, {"spacing": "leading", "end": "first"}])
def test_ddim_converges_to_the_probability_flow_at_first_order(options: dict[str, str]) -> None:
    errors = [error(steps, **options) for steps in (100, 200, 500)]
    slopes = [math.log(a / b) / math.log(ratio) for (a, b), ratio in zip(pairwise(errors), (2, 2.5), strict=True)]
    assert errors[0] < 0.03, errors
    assert slopes == pytest.approx([1, 1], abs=0.15), errors


def test_ddpm_samples_the_mixture() -> None:
    """Mean, variance and weights of 20,000 samples within four standard errors, plus the O(1/T) that T = 250 steps leave."""
    means = torch.tensor([[1.5, 0.0], [-1.5, 0.5], [0.0, -2.0]], dtype=torch.float64).view(3, *SHAPE)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    mixture = GaussianMixture(means=means, std=0.3, weights=weights)
    n, scheduler = 20_000, Ddpm(num_steps=250)
    grid = scheduler.grid(SCHEDULE)
    generator = torch.Generator().manual_seed(0)
    owner = torch.multinomial(weights, n, replacement=True, generator=generator)
    x_0 = means[owner] + 0.3 * torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)
    # From the true distribution at the first point: SD's last noise level is not pure noise.
    x = (grid[0].alpha * x_0 + grid[0].sigma * torch.randn(x_0.shape, generator=generator, dtype=torch.float64))[:, None]
    for t, s in pairwise(grid):
        x = scheduler.step(x, mixture(x, t), t, s, torch.randn(x.shape, generator=generator, dtype=torch.float64))
    x = x.flatten(1)

    flat = means.flatten(1)
    mean = weights @ flat
    covariance = (weights[:, None] * flat).T @ flat - mean[:, None] * mean + 0.3**2 * torch.eye(2, dtype=torch.float64)
    standard_error = covariance.diagonal().sqrt() / n**0.5
    assert ((x.mean(0) - mean).abs() < 4 * standard_error + 0.01).all()
    torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=0.05)
    nearest = torch.cdist(x, flat).argmin(1)
    share = torch.bincount(nearest, minlength=3) / n
    assert ((share - weights).abs() < 4 * (weights * (1 - weights) / n).sqrt() + 0.005).all()
    within = torch.stack([x[nearest == k].var(0).mean() for k in range(3)])
    torch.testing.assert_close(within, torch.full((3,), 0.09, dtype=torch.float64), rtol=0.05, atol=0)
