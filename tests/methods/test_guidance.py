"""What the step-guided methods share: windows, the step along a gradient, zero-order estimates, and gradients in chunks."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods.guidance import ascent, check_counts, inside, predicted, reward_gradient, rms, zero_order
from guidedgen.methods.problem import Problem
from guidedgen.process.grid import tail
from guidedgen.process.schedulers import Ddpm
from guidedgen.process.windows import check_window

Make = Callable[..., Problem]
SHAPE = (3, 2, 2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chain(make_problem: Make, steps: int, share: float = 1.0) -> Problem:
    problem = make_problem(1, scheduler=Ddpm(num_steps=steps))
    return dataclasses.replace(problem, grid=tail(problem.grid, share))


def steps_inside(problem: Problem, window: tuple[float, float]) -> list[int]:
    return [i for i in range(len(problem.grid) - 1) if inside(problem, i, window)]


# Windows


@pytest.mark.parametrize(
    ("window", "first", "last"), [((0.7, 0.3), 69, 30), ((0.7, 0.4), 69, 40), ((1, 0), 99, 0), ((0.5, 0), 49, 0)]
)
def test_in_100_steps_windows_are_freedom_s_and_mpgd_s(make_problem: Make, window, first: int, last: int) -> None:
    """`70 > index >= 30`, the index counting down from 99; repeats for `70 > index >= 40` (FreeDoM, MPGD: ddim.py)."""
    indices = [99 - i for i in steps_inside(chain(make_problem, 100), window)]
    assert indices == list(range(first, last - 1, -1))


@pytest.mark.parametrize("steps", [20, 50, 100, 500])
def test_windows_are_codex_s(make_problem: Make, steps: int) -> None:
    """`end * 1000 <= t <= start * 1000` on trailing times (CoDe_ext: cd_grad_final_general.py)."""
    problem = chain(make_problem, steps)
    for a in range(1, 11):
        for b in range(a):
            theirs = [i for i, point in enumerate(problem.grid[:-1]) if 100 * b <= point.t <= 100 * a]
            assert steps_inside(problem, (a / 10, b / 10)) == theirs
    if steps == 500:
        assert problem.grid[steps_inside(problem, (0.6, 0.0))[0]].t == 599


@pytest.mark.parametrize("steps", [7, 30, 90, 1000])
def test_window_edges_are_those_of_exact_numbers(make_problem: Make, steps: int) -> None:
    problem = chain(make_problem, steps)
    for a in range(1, 11):
        for b in range(a):
            exact = [i for i in range(steps) if Fraction(b, 10) * steps < steps - i <= Fraction(a, 10) * steps]
            assert steps_inside(problem, (a / 10, b / 10)) == exact


def test_window_edges_forgive_rounding(make_problem: Make) -> None:
    problem = chain(make_problem, 100)
    assert 1 - 0.9 < 0.1 < 0.3 < 3 * 0.1
    assert steps_inside(problem, (1 - 0.9, 0.0)) == steps_inside(problem, (0.1, 0.0)) == list(range(90, 100))
    assert steps_inside(problem, (1.0, 1 - 0.9)) == list(range(90))


def test_windows_divide_every_chain_without_gap_or_overlap(make_problem: Make) -> None:
    for steps in (7, 20, 100):
        problem = chain(make_problem, steps)
        parts = [steps_inside(problem, window) for window in ((1.0, 0.7), (0.7, 0.4), (0.4, 0.0))]
        assert sum(parts, []) == list(range(steps))  # noqa: RUF017


def test_from_a_reference_windows_are_of_the_whole_chain(make_problem: Make) -> None:
    """Half a chain of 100 steps: its first step has index 49, so that [0.7, 0.3] holds from there to index 30."""
    half = chain(make_problem, 100, 0.5)
    assert len(half.grid) == 51
    assert [49 - i for i in steps_inside(half, (0.7, 0.3))] == list(range(49, 29, -1))
    assert steps_inside(half, (1.0, 0.5)) == []
    assert steps_inside(half, (0.5, 0.0)) == list(range(50))


@pytest.mark.parametrize(
    "window", [[0.3, 0.7], [1.1, 0], [1, -0.1], [1], [1, 0.5, 0], ["a", 0], [float("nan"), 0], [1, float("nan")]]
)
def test_windows_that_are_none_are_refused(window: list) -> None:
    with pytest.raises(BadValue, match="window=.*noise ratios"):
        check_window("window", window)


def test_windows_and_counts_that_are_some_are_not() -> None:
    for window in ([1, 0], (0.5, 0.5), [0, 0], [1.0, 1.0]):
        check_window("window", window)
    options = Ddpm(num_steps=3)
    check_counts(options, "num_steps", least=3)
    with pytest.raises(BadValue, match="num_steps=3: must be at least 4"):
        check_counts(options, "num_steps", least=4)


# The step along a gradient


def test_without_a_correction_a_step_is_the_strength_times_the_gradient() -> None:
    gradient = normal(2, 3, *SHAPE)
    torch.testing.assert_close(ascent(gradient, -2.5), -2.5 * gradient, rtol=0, atol=0)


def test_a_rescaled_step_has_the_strength_times_the_correction_s_length() -> None:
    """rho rms(g) = strength rms(w (c - u)) for every latent, whatever its own gradient's length."""
    lengths = 10.0 ** torch.arange(-9.0, 9.0, 3.0, dtype=torch.float64).view(2, 3, 1, 1, 1)
    gradient, correction = lengths * normal(2, 3, *SHAPE), normal(2, 3, *SHAPE, seed=1)
    move = ascent(gradient, 0.2, correction)
    length = (move**2).mean((2, 3, 4)).sqrt()
    torch.testing.assert_close(length, 0.2 * (correction**2).mean((2, 3, 4)).sqrt(), rtol=1e-13, atol=0)
    torch.testing.assert_close(move / move.abs().amax((2, 3, 4), True), gradient / gradient.abs().amax((2, 3, 4), True))
    for b in range(2):
        for n in range(3):
            alone = ascent(gradient[b : b + 1, n : n + 1], 0.2, correction[b : b + 1, n : n + 1])
            torch.testing.assert_close(move[b, n], alone[0, 0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [7.0, 1e-30, 1e30])
def test_a_rescaled_step_does_not_see_the_rewards_scale(scale: float) -> None:
    gradient, correction = normal(2, 3, *SHAPE), normal(2, 3, *SHAPE, seed=1)
    torch.testing.assert_close(ascent(scale * gradient, 0.2, correction), ascent(gradient, 0.2, correction), rtol=1e-13, atol=0)


@pytest.mark.parametrize("length", [1e-12, 1e-8, 1e-3])
def test_an_epsilon_shortens_the_steps_of_gradients_of_its_size(length: float) -> None:
    """Eq. A.1 of the CoDeX thesis: strength |correction| / (|gradient| + epsilon), here of gradients of a known length."""
    gradient, correction = normal(1, 2, *SHAPE), normal(1, 2, *SHAPE, seed=1)
    gradient *= length / rms(gradient)
    expected = ascent(gradient, 0.2, correction) * (length / (length + 1e-8))
    torch.testing.assert_close(ascent(gradient, 0.2, correction, epsilon=1e-8), expected, rtol=1e-12, atol=0)


def test_a_cap_bounds_the_factor_before_the_gradient() -> None:
    gradient, correction = normal(1, 2, *SHAPE), normal(1, 2, *SHAPE, seed=1)
    gradient[:, 1] /= 1e6
    move = ascent(gradient, 0.2, correction, cap=150)
    torch.testing.assert_close(move[:, 0], ascent(gradient, 0.2, correction)[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(move[:, 1], 150 * gradient[:, 1], rtol=1e-14, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), 0.0])
@pytest.mark.parametrize("rescaled", [True, False])
def test_a_latent_without_a_direction_stays_and_the_others_do_not_notice(bad: float, rescaled: bool) -> None:
    gradient, correction = normal(2, 2, *SHAPE), normal(2, 2, *SHAPE, seed=1) if rescaled else None
    expected = ascent(gradient, 0.2, correction)
    expected[1, 0] = 0
    if bad == 0:
        gradient[1, 0] = 0
    gradient[1, 0, 0, 0, 0] = bad
    assert torch.equal(ascent(gradient, 0.2, correction), expected)


def test_rms() -> None:
    x = torch.tensor([3.0, 4.0, 0.0, 0.0]).view(1, 1, 4, 1, 1)
    assert rms(x).shape == (1, 1, 1, 1, 1)
    assert float(rms(torch.cat([x, -2 * x], 1))[0, 1]) == 5


# Zero-order gradients


def wavy(x: Tensor) -> Tensor:
    """A nonlinear objective of every latent: b n c h w -> b n."""
    return (x.flatten(2).sin() * torch.arange(1, x[0, 0].numel() + 1)).sum(2) + x.flatten(2).prod(2)


@pytest.mark.parametrize(("samples", "sigma"), [(1, 1.0), (10, 0.3), (3, 5.0)])
def test_zero_order_is_torchopt_s_antithetic_estimator(samples: int, sigma: float) -> None:
    """torchopt's decorator, latent by latent, given the same draws through its distribution."""
    import torchopt

    x, keys = normal(2, 3, *SHAPE), ["a", "b"]
    ours = zero_order(wavy, x, Noise(keys, dtype=torch.float64), samples, sigma)
    for b, key in enumerate(keys):
        noise = Noise([key], dtype=torch.float64)
        draws = [noise.draw(3, SHAPE) for _ in range(samples)]
        for n in range(3):
            mine = iter([draw[0, n] for draw in draws])
            estimator = torchopt.diff.zero_order.zero_order(
                lambda sample_shape, mine=mine: next(mine), method="antithetic", argnums=0, num_samples=samples, sigma=sigma
            )
            latent = x[b, n].clone().requires_grad_()
            (theirs,) = torch.autograd.grad(estimator(lambda z: wavy(z[None, None]).sum())(latent), latent)
            torch.testing.assert_close(ours[b, n], theirs, rtol=1e-12, atol=1e-12)


def test_zero_order_is_unbiased_on_a_quadratic() -> None:
    """Smoothing by any sigma leaves a quadratic's gradient: the mean of 4000 estimates is within 4 standard errors of it."""
    d, many = 3, 4000
    a, c = normal(d, d), normal(d, seed=1)
    hessian, x = a + a.T, normal(d, seed=2)

    def score(x: Tensor) -> Tensor:
        x = x.flatten(2)
        return 0.5 * torch.einsum("bni,ij,bnj->bn", x, hessian, x) + x @ c

    estimates = zero_order(score, x.view(1, 1, d, 1, 1).expand(1, many, d, 1, 1), Noise(["k"], dtype=torch.float64), 1, 2.0)
    estimates = estimates.flatten(0, 1).flatten(1)
    error = estimates.std(0) / many**0.5
    assert ((estimates.mean(0) - (hessian @ x + c)).abs() < 4 * error).all()
    assert (error < 0.3 * (hessian @ x + c).norm()).all()  # there is something to miss


def test_zero_order_averages_its_samples() -> None:
    noise, again = Noise(["a"], dtype=torch.float64), Noise(["a"], dtype=torch.float64)
    x = normal(1, 2, *SHAPE)
    one_by_one = [zero_order(wavy, x, again, 1, 0.5) for _ in range(4)]
    torch.testing.assert_close(zero_order(wavy, x, noise, 4, 0.5), sum(one_by_one) / 4, rtol=1e-13, atol=1e-13)


# Predictions


def test_without_guidance_the_noise_stands_in_for_the_correction(make_problem: Make) -> None:
    problem = make_problem(3, guidance_scale=1.0)
    x, t = normal(3, 2, *problem.latent_shape), problem.grid[5]
    prediction, correction = predicted(problem, x, t)
    assert problem.denoise.rows == 3 * 2 and correction is prediction.eps
    expected = problem.denoise.denoiser(x, t)
    torch.testing.assert_close(prediction.x_0, expected.x_0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(prediction.eps, expected.eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("w", [0.0, 3.0])
def test_the_prediction_is_the_denoiser_s_and_the_correction_w_times_the_difference(make_problem: Make, w: float) -> None:
    problem = make_problem(3, guidance_scale=w)
    x, t, exact = normal(3, 2, *problem.latent_shape), problem.grid[5], problem.denoise.denoiser
    prediction, correction = predicted(problem, x, t)
    assert problem.denoise.rows == 2 * 3 * 2
    for ours, theirs in zip((prediction.x_0, prediction.eps), (exact(x, t).x_0, exact(x, t).eps), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(correction, w * (exact.cond(x, t).eps - exact.uncond(x, t).eps), rtol=1e-12, atol=1e-12)


# Gradients in chunks


def look_of(problem: Problem, sizes: list[int]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def look(x: Tensor) -> tuple[Tensor, ...]:
        sizes.append(x.shape[0] * x.shape[1])
        prediction = problem.denoise(x, problem.grid[5])
        return prediction.x_0, prediction.eps

    return look


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 15, 1000])
def test_reward_gradients_do_not_depend_on_the_chunks(make_problem: Make, batch_size: int) -> None:
    problem = make_problem(3, batch_size=batch_size, guidance_scale=3.0, reward=lambda rows: rows.flatten(1).sin().prod(1))
    x, sizes = normal(3, 5, *problem.latent_shape), []
    with torch.no_grad():  # as methods run
        rewards, gradient, (x_0, eps) = reward_gradient(problem, x, look_of(problem, sizes))
    assert sum(problem.reward.batches) == sum(sizes) == 15
    assert max(problem.reward.batches) <= batch_size
    assert max(sizes) <= max(batch_size, 3)  # a sample's first particle goes with those of the others
    assert (problem.denoise.rows, problem.denoise.backward) == (30, 30)

    for b in range(3):
        for n in range(5):
            latent = x[b : b + 1, n : n + 1].clone().requires_grad_()
            seen = look_of(problem, [])(latent)
            reward = seen[0].sin().prod()
            torch.testing.assert_close(rewards[b, n], reward.detach(), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(gradient[b, n], torch.autograd.grad(reward, latent)[0][0, 0], rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(x_0[b, n], seen[0].detach()[0, 0], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(eps[b, n], seen[1].detach()[0, 0], rtol=1e-12, atol=1e-12)
    assert not (rewards.requires_grad or gradient.requires_grad or x_0.requires_grad or eps.requires_grad)
