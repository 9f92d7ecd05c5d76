"""The analytic mixture against autograd and closed forms."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.formulas import x0_from_eps
from guidedgen.process.grid import NoiseSchedule, Point

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
POINTS = [SCHEDULE.at(t) for t in (0, 100, 500, 999)]
SHAPE = (2, 2, 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(k: int = 3, std: float = 0.3) -> GaussianMixture:
    weights = torch.arange(1, k + 1, dtype=torch.float64)
    return GaussianMixture(means=2 * normal(k, *SHAPE, seed=5), std=std, weights=weights / weights.sum())


@pytest.mark.parametrize("t", POINTS, ids=lambda t: f"t={t.t}")
def test_noise_is_the_scaled_score(t: Point) -> None:
    """Tweedie: E[eps | x_t] = -sigma grad log p_t(x_t)."""
    model, x = mixture(), normal(4, 2, *SHAPE).requires_grad_()
    (score,) = torch.autograd.grad(model.log_density(x, t).sum(), x)
    torch.testing.assert_close(model(x, t).eps, -t.sigma * score, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(x0_from_eps(x, model(x, t).eps, t), model(x, t).x_0, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("t", POINTS, ids=lambda t: f"t={t.t}")
def test_one_component_is_a_gaussian(t: Point) -> None:
    """x_t ~ N(alpha m, alpha^2 std^2 + sigma^2); its posterior mean is the regression line."""
    model, x = mixture(1, std=0.7), normal(4, 2, *SHAPE)
    m, variance = model.means[0], (t.alpha * 0.7) ** 2 + t.sigma**2
    normals = torch.distributions.Normal(t.alpha * m, variance**0.5)
    torch.testing.assert_close(model.log_density(x, t), normals.log_prob(x).sum((2, 3, 4)))
    torch.testing.assert_close(model(x, t).x_0, m + t.alpha * 0.49 / variance * (x - t.alpha * m))
    torch.testing.assert_close(model(x, t).eps, t.sigma * (x - t.alpha * m) / variance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", POINTS, ids=lambda t: f"t={t.t}")
def test_density_is_the_weighted_sum(t: Point) -> None:
    model, x = mixture(), normal(4, 2, *SHAPE)
    parts = [
        w * GaussianMixture(means=m[None], std=0.3, weights=torch.ones(1, dtype=torch.float64)).log_density(x, t).exp()
        for m, w in zip(model.means, model.weights, strict=True)
    ]
    torch.testing.assert_close(model.log_density(x, t).exp(), torch.stack(parts).sum(0))


def test_at_low_noise_the_nearest_component_answers() -> None:
    t, model = SCHEDULE.at(0), mixture()
    for mean in model.means:
        x = (t.alpha * mean + 0.01)[None, None]
        own = GaussianMixture(means=mean[None], std=0.3, weights=torch.ones(1, dtype=torch.float64))
        torch.testing.assert_close(model(x, t).x_0, own(x, t).x_0, rtol=1e-6, atol=1e-6)


def test_without_signal_the_weights_answer() -> None:
    model, x = mixture(), normal(4, 2, *SHAPE)
    prior = (model.weights.view(3, 1, 1, 1) * model.means).sum(0)
    torch.testing.assert_close(model(x, Point(999.0, 0.0, 1.0)).x_0, prior.expand(x.shape))


def test_far_away_nothing_overflows() -> None:
    for t, scale in itertools.product(POINTS, (1e3, -1e3)):
        x = scale * torch.ones(1, 1, *SHAPE, dtype=torch.float64)
        assert all(part.isfinite().all() for part in (mixture()(x, t).x_0, mixture()(x, t).eps))


def test_rows_do_not_mix() -> None:
    model, x, t = mixture(), normal(4, 2, *SHAPE), SCHEDULE.at(300)
    torch.testing.assert_close(model(x, t).eps[2:3, 1:], model(x[2:3, 1:], t).eps, rtol=1e-12, atol=1e-12)


def test_without_noise_the_prediction_is_its_limit() -> None:
    """(x_t - alpha x_0) / sigma is 0 / 0 there."""
    model, x = mixture(), normal(4, 2, *SHAPE)
    assert model(x, Point(0.0, 1.0, 0.0)).eps.abs().max() == 0
    near = model(x, Point(0.0, math.sqrt(1 - 1e-12), 1e-6)).eps
    torch.testing.assert_close(near / 1e-6, 1e9 * model(x, Point(0.0, 1.0, 1e-9)).eps, rtol=1e-5, atol=1e-5)


def test_conditioning_shifts_each_task_s_means() -> None:
    exact, other, shifts = mixture(), mixture(1), normal(3, *SHAPE, seed=7)
    denoise = GaussianDenoiser(cond=exact, uncond=other, guidance_scale=3.0).conditioned_on(shifts)
    x, t = normal(3, 2, *SHAPE), SCHEDULE.at(300)
    for i, shift in enumerate(shifts):
        moved = GaussianDenoiser(cond=dataclasses.replace(exact, means=exact.means + shift), uncond=other, guidance_scale=3.0)
        for w in (None, 0, 1):
            ours, theirs = denoise(x, t, w), moved(x[i : i + 1], t, w)
            torch.testing.assert_close(ours.eps[i], theirs.eps[0], rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(ours.x_0[i], theirs.x_0[0], rtol=1e-11, atol=1e-11)
        assert torch.equal(denoise.subset([i])(x[i : i + 1], t).eps[0], denoise(x, t).eps[i])
    assert torch.equal(denoise.conditioning, shifts)
    with pytest.raises(ValueError, match="no conditioning"):
        _ = GaussianDenoiser(cond=exact, uncond=other).conditioning
