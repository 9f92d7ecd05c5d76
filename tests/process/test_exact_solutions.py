"""Samplers on distributions whose score is known: where they have to arrive, and how fast."""

import math
from itertools import pairwise

import pytest
import torch
from steps import step
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
        x = step(scheduler, x, gaussian(x, t).eps, t, s, None)
    return float((x - flow(gaussian, x_T, grid)).square().mean().sqrt())


@pytest.mark.parametrize("options", [{"spacing": "trailing", "end": "clean"}, {"spacing": "leading", "end": "first"}])
def test_ddim_converges_to_the_probability_flow_at_first_order(options: dict[str, str]) -> None:
    errors = [error(steps, **options) for steps in (100, 200, 500)]
    slopes = [math.log(a / b) / math.log(ratio) for (a, b), ratio in zip(pairwise(errors), (2, 2.5), strict=True)]
    assert errors[0] < 0.03, errors
    assert slopes == pytest.approx([1, 1], abs=0.15), errors


def variance_after(steps: int, std: float) -> float:
    """Of DDPM's samples of N(0, std^2): a step is linear, so the variance is carried along exactly."""
    gaussian = GaussianMixture(
        means=torch.zeros(1, 1, 1, 1, dtype=torch.float64), std=std, weights=torch.ones(1, dtype=torch.float64)
    )
    scheduler = Ddpm(num_steps=steps)
    grid = scheduler.grid(SCHEDULE)
    zero, one = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    variance = (grid[0].alpha * std) ** 2 + grid[0].sigma ** 2
    for t, s in pairwise(grid):
        of_x = float(step(scheduler, one, gaussian(one, t).eps, t, s, zero))
        of_noise = float(step(scheduler, zero, zero, t, s, one))
        variance = of_x**2 * variance + of_noise**2
    return variance


def test_ddpm_converges_to_the_variance() -> None:
    """As log T / T: towards the end sigma^2 is about proportional to t, so the k-th step from the end shrinks it by the share 1 / k
    and errs in proportion; these add up to a logarithm."""
    steps = (100, 250, 500, 1000)
    errors = [abs(variance_after(n, 0.6) - 0.36) for n in steps]
    assert errors[0] < 0.04, errors
    rates = [error * n / math.log(n) for error, n in zip(errors, steps, strict=True)]
    assert rates == pytest.approx([rates[-1]] * 4, rel=0.06), rates


def test_ddpm_samples_the_mixture() -> None:
    """Mean, covariance, weights and widths of 20,000 samples of 250 steps within four standard errors.

    The width of a component is what the discrete chain makes of it; the rest is allowed the same share of error.
    """
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
        x = step(scheduler, x, mixture(x, t).eps, t, s, torch.randn(x.shape, generator=generator, dtype=torch.float64))
    x = x.flatten(1)

    flat, width = means.flatten(1), variance_after(250, 0.3)
    bias = abs(width - 0.09)
    assert bias < 0.15 * 0.09
    mean = weights @ flat
    covariance = (weights[:, None] * flat).T @ flat - mean[:, None] * mean + width * torch.eye(2, dtype=torch.float64)
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt() + bias).all()
    assert ((torch.cov(x.T) - covariance).abs() < 4 * (2 / n) ** 0.5 * covariance.diagonal().max() + bias).all()
    nearest = torch.cdist(x, flat).argmin(1)
    counts = torch.bincount(nearest, minlength=3)
    assert ((counts / n - weights).abs() < 4 * (weights * (1 - weights) / n).sqrt()).all()
    for k in range(3):  # two independent variances each
        found = float(x[nearest == k].var(0).mean())
        assert found == pytest.approx(width, rel=4 / float(counts[k]) ** 0.5), k
