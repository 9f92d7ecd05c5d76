"""The algebra of x_t = alpha x_0 + sigma eps: every way there has a way back."""

import itertools
import math

import pytest
import torch

from guidedgen.process import Prediction
from guidedgen.process import formulas as f
from guidedgen.process.grid import NoiseSchedule, Point
from guidedgen.process.schedulers import Ddim, Ddpm

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
POINTS = [SCHEDULE.at(t) for t in (0, 1, 250.5, 999)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("t", POINTS, ids=lambda t: f"t={t.t}")
def test_every_conversion_and_back(t: Point) -> None:
    """x_0, eps and v of one x_t: from any of them to any other and back, and around."""
    x_0, eps = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    x_t = f.add_noise(x_0, eps, t)
    v = t.alpha * eps - t.sigma * x_0  # Salimans & Ho 2022
    known = {"x0": x_0, "eps": eps, "v": v}
    convert = {
        ("eps", "x0"): f.x0_from_eps, ("x0", "eps"): f.eps_from_x0, ("eps", "v"): f.v_from_eps, ("v", "eps"): f.eps_from_v,
        ("v", "x0"): f.x0_from_v,
    }  # fmt: skip
    tolerance = 1e-14 / min(t.alpha, t.sigma) ** 2  # what is divided by, at most twice
    for (source, target), function in convert.items():
        torch.testing.assert_close(function(x_t, known[source], t), known[target], rtol=0, atol=tolerance)
    for (a, b), (c, d) in itertools.product(convert, repeat=2):
        if b == c:
            around = convert[c, d](x_t, convert[a, b](x_t, known[a], t), t)
            torch.testing.assert_close(around, known[d], rtol=0, atol=4 * tolerance)


def test_noise_of_unit_images_keeps_unit_variance() -> None:
    for t in POINTS:
        assert t.alpha**2 + t.sigma**2 == pytest.approx(1, abs=1e-15)


def test_classifier_free() -> None:
    u, c = normal(2, 3), normal(2, 3, seed=1)
    torch.testing.assert_close(f.classifier_free(u, c, 1.0), c)
    torch.testing.assert_close(f.classifier_free(u, c, 0.0), u, rtol=0, atol=0)
    torch.testing.assert_close(f.classifier_free(u, c, 7.5), 7.5 * c - 6.5 * u)


@pytest.mark.parametrize(("t", "s"), [(999, 979), (500, 499), (21, 1), (300, 100)])
def test_posterior_variance_is_bayes_rule(t: int, s: int) -> None:
    """q(x_s | x_t, x_0) from q(x_s | x_0) and q(x_t | x_s): precisions add."""
    late, early = SCHEDULE.at(t), SCHEDULE.at(s)
    ratio = late.alpha / early.alpha  # x_t = ratio x_s + noise
    precision = 1 / early.sigma**2 + ratio**2 / (1 - ratio**2)
    assert f.posterior_variance(late, early) == pytest.approx(1 / precision, rel=1e-10)


def test_ddpm_mean_is_bayes_rule() -> None:
    late, early = SCHEDULE.at(500), SCHEDULE.at(480)
    x_0, eps = normal(6), normal(6, seed=1)
    x_t = f.add_noise(x_0, eps, late)
    ratio = late.alpha / early.alpha
    variance = f.posterior_variance(late, early)
    mean = variance * (early.alpha * x_0 / early.sigma**2 + ratio * x_t / (1 - ratio**2))
    ours, std = f.ddpm_transition(x_t, Prediction(x_0, eps), late, early)
    torch.testing.assert_close(ours, mean, rtol=1e-10, atol=0)
    assert std**2 == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("end", [SCHEDULE.at(0), Point(0.0, 1.0, 0.0)], ids=["first", "clean"])
def test_ddpm_is_ddim_with_eta_1(end: Point) -> None:
    """On the same grid, whatever the prediction (Song et al. 2021, section 4.1): mean and deviation."""
    grid = [*(SCHEDULE.at(t) for t in (999, 700, 450, 200, 19)), end]
    x = y = normal(2, 3, 4)
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        noise = normal(2, 3, 4, seed=10 + i)
        (x, one), (y, other) = (
            f.ddpm_transition(x, f.from_eps(x, torch.sin(3 * x), t), t, s),
            f.ddim_transition(f.from_eps(y, torch.sin(3 * y), t), t, s, eta=1.0),
        )
        assert one == other
        x, y = x + one * noise, y + other * noise
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


def test_a_perfect_prediction_is_followed_in_one_step() -> None:
    """With the true noise, a DDIM step of any length lands on add_noise of the same x_0 and eps."""
    x_0, eps = normal(5), normal(5, seed=1)
    for t, s in itertools.pairwise((999, 600, 20, 0)):
        late, early = SCHEDULE.at(t), SCHEDULE.at(s)
        torch.testing.assert_close(
            f.ddim_step(f.from_eps(f.add_noise(x_0, eps, late), eps, late), late, early),
            f.add_noise(x_0, eps, early),
            rtol=1e-11,
            atol=0,
        )


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_a_stochastic_step_keeps_the_marginal(eta: float) -> None:
    """Given x_0, the step maps q(x_t | x_0) to q(x_s | x_0): the coefficients of eps and noise have sigma_s as length."""
    late, early = SCHEDULE.at(500), SCHEDULE.at(480)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    of_eps, of_noise = f.ddim_transition(Prediction(zero, one), late, early, eta=eta)
    assert math.hypot(of_eps, of_noise) == pytest.approx(early.sigma, rel=1e-12)
    assert of_noise == pytest.approx(eta * f.posterior_variance(late, early) ** 0.5, rel=1e-12)


@pytest.mark.parametrize(("s", "t"), [(0, 999), (480, 500), (1, 21), (100, 300)])
def test_going_back_keeps_the_marginal(s: int, t: int) -> None:
    """x_s = alpha_s x_0 + sigma_s eps renoised has the mean alpha_t x_0, and eps and the noise have sigma_t as length together."""
    early, late = SCHEDULE.at(s), SCHEDULE.at(t)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert float(f.renoise(early.alpha * one, early, late, zero)) == pytest.approx(late.alpha, rel=1e-12)
    of_eps, of_noise = f.renoise(early.sigma * one, early, late, zero), f.renoise(zero, early, late, one)
    assert math.hypot(of_eps, of_noise) == pytest.approx(late.sigma, rel=1e-12)
    ratio = float(SCHEDULE.alphas_cumprod[t] / SCHEDULE.alphas_cumprod[s])  # the released codes' coefficients
    x, z = normal(3, 4), normal(3, 4, seed=1)
    torch.testing.assert_close(f.renoise(x, early, late, z), ratio**0.5 * x + (1 - ratio) ** 0.5 * z, rtol=1e-10, atol=1e-10)


def test_going_back_from_no_noise_is_adding_noise() -> None:
    late, x, z = SCHEDULE.at(300), normal(3, 4), normal(3, 4, seed=1)
    torch.testing.assert_close(f.renoise(x, Point(0.0, 1.0, 0.0), late, z), f.add_noise(x, z, late), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(f.renoise(x, late, late, z), x, rtol=0, atol=0)


def test_going_back_in_two_leaps_is_going_back_in_one() -> None:
    """The process is Markov: the kept shares multiply, and the variances add up."""
    a, b, c = (SCHEDULE.at(t) for t in (100, 300, 700))
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    once, twice = f.renoise(one, a, c, zero), f.renoise(f.renoise(one, a, b, zero), b, c, zero)
    assert float(once) == pytest.approx(float(twice), rel=1e-12)
    noises = f.renoise(f.renoise(zero, a, b, one), b, c, zero), f.renoise(zero, b, c, one)
    assert float(f.renoise(zero, a, c, one)) == pytest.approx(math.hypot(*noises), rel=1e-12)


def test_steps_are_differentiable() -> None:
    t, s = SCHEDULE.at(500), SCHEDULE.at(400)
    x = normal(4).requires_grad_()
    for predicted in (f.from_eps, f.from_v, f.from_x0):
        assert torch.autograd.gradcheck(lambda x: f.ddim_transition(predicted(x, torch.tanh(x), t), t, s, eta=0.5)[0], x)  # noqa: B023
        assert torch.autograd.gradcheck(lambda x: f.ddpm_transition(x, predicted(x, torch.tanh(x), t), t, s)[0], x)  # noqa: B023


def test_predictions_agree_whatever_the_network_predicts() -> None:
    x_0, eps, t = normal(3, 4), normal(3, 4, seed=1), SCHEDULE.at(400)
    x_t = f.add_noise(x_0, eps, t)
    for prediction in (f.from_eps(x_t, eps, t), f.from_x0(x_t, x_0, t), f.from_v(x_t, t.alpha * eps - t.sigma * x_0, t)):
        torch.testing.assert_close(prediction.x_0, x_0, rtol=0, atol=1e-13)
        torch.testing.assert_close(prediction.eps, eps, rtol=0, atol=1e-13)


def test_at_pure_noise_v_still_says_both() -> None:
    """Where alpha is 0: x_t is the noise, and v is -x_0."""
    x_0, eps, end = normal(5), normal(5, seed=1), Point(999.0, 0.0, 1.0)
    prediction = f.from_v(eps, -x_0, end)
    assert torch.equal(prediction.x_0, x_0) and torch.equal(prediction.eps, eps)
    s = SCHEDULE.at(900)
    torch.testing.assert_close(f.ddim_step(prediction, end, s), f.add_noise(x_0, eps, s), rtol=0, atol=1e-15)
    mean, std = f.ddpm_transition(eps, prediction, end, s)
    torch.testing.assert_close(mean, s.alpha * x_0, rtol=0, atol=1e-15)  # nothing of x_t is left
    assert std == pytest.approx(s.sigma)


def test_guidance_is_linear_in_predictions() -> None:
    u, c = (f.from_eps(normal(6), normal(6, seed=k), SCHEDULE.at(400)) for k in (1, 2))
    both = f.guided(u, c, 3.0)
    torch.testing.assert_close(both.eps, u.eps + 3 * (c.eps - u.eps))
    torch.testing.assert_close(both.x_0, f.x0_from_eps(normal(6), both.eps, SCHEDULE.at(400)), rtol=0, atol=1e-13)


def test_schedulers_know_whether_they_draw() -> None:
    t, s = SCHEDULE.at(500), SCHEDULE.at(400)
    x = normal(4)
    for scheduler in (Ddim(), Ddim(eta=0.1), Ddpm()):
        _, std = scheduler.transition(x, Prediction(x, x), t, s)
        assert (std > 0) == scheduler.stochastic
    torch.testing.assert_close(Ddim().transition(x, Prediction(x, x), t, s)[0], f.ddim_step(Prediction(x, x), t, s), rtol=0, atol=0)
    assert (Ddim().stochastic, Ddim(eta=0.1).stochastic, Ddpm().stochastic) == (False, True, True)
