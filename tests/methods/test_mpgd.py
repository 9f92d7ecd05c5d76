"""MPGD against a plain loop, closed forms on a Gaussian, its null setting and its stated costs; the denoiser is not differentiated."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from nonlinear import W, by_task, decode, nonlinear, rated
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods.base import Base
from guidedgen.methods.mpgd import Mpgd
from guidedgen.methods.problem import Problem
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.grid import Point, tail
from guidedgen.process.schedulers import Ddim, Ddpm

Make = Callable[..., Problem]
ONE_STEP = Ddim(num_steps=1, spacing="trailing", end="clean")
CHAINS = {"ddpm": Ddpm(num_steps=20), "ddim": Ddim(num_steps=20)}


# The plain loop


def plain_mpgd(problem: Problem, b: int, o: Mpgd) -> Tensor:
    """One sample. The steps are written out: with the network's eps, alpha_s x_0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z, v being the
    posterior's variance or 0 for DDIM; with x_t, c1 x_0 + c2 x_t + sqrt(v) z, which for v = 0 is DDIM with eps of the moved x_0."""
    noise, again = (Noise([name], dtype=torch.float64) for name in (f"sample-{b}", f"sample-{b}/renoise"))
    steps, models, shape = len(problem.grid) - 1, problem.denoise.denoiser, problem.latent_shape
    x = noise.draw(1, shape)
    for i, (t, s) in enumerate(pairwise(problem.grid)):
        index = steps - 1 - i
        repeats = o.num_repeats if o.repeat_window[0] * steps > index >= o.repeat_window[1] * steps else 1
        for repeat in range(repeats):
            u, c = models.uncond(x, t).eps, models.cond(x, t).eps
            eps = u + W * (c - u)
            x_0 = (x - t.sigma * eps) / t.alpha
            if o.window[0] * steps > index >= o.window[1] * steps:
                leaf = x_0.clone().requires_grad_()
                (g,) = torch.autograd.grad(rated(decode(leaf[0])).sum(), leaf)
                scale = (
                    o.strength * W * float((c - u).square().mean().sqrt() / g.square().mean().sqrt()) if o.rescale else o.strength
                )
                x_0 = x_0 + (scale / s.alpha if o.over_alpha else scale) * g
            ratio = (t.alpha / s.alpha) ** 2
            v = (1 - ratio) * s.sigma**2 / t.sigma**2 if problem.scheduler.stochastic else 0.0
            if not o.keep_eps:
                eps = (x - t.alpha * x_0) / t.sigma
            x_s = s.alpha * x_0 + max(s.sigma**2 - v, 0.0) ** 0.5 * eps
            if problem.scheduler.stochastic:
                x_s = x_s + v**0.5 * noise.draw(1, shape)
            if repeat < repeats - 1:
                x = ratio**0.5 * x_s + (1 - ratio) ** 0.5 * again.draw(1, shape)
        x = x_s
    return x[0, 0]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(
    "options",
    [
        {}, {"keep_eps": False}, {"over_alpha": False}, {"rescale": False, "strength": 0.1}, {"num_repeats": 3},
        {"keep_eps": False, "over_alpha": False, "num_repeats": 2, "window": (1.0, 0.0), "repeat_window": (1.0, 0.0)},
        {"rescale": False, "keep_eps": False, "window": (0.5, 0.2), "num_repeats": 2, "repeat_window": (0.9, 0.6), "strength": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_mpgd_equals_a_plain_loop(make_problem: Make, chain: str, options: dict) -> None:
    method = Mpgd(**{"strength": 0.3, **options})
    made = method(nonlinear(make_problem, scheduler=CHAINS[chain]))
    plain = [plain_mpgd(nonlinear(make_problem, scheduler=CHAINS[chain]), b, method) for b in range(2)]
    torch.testing.assert_close(made, torch.stack(plain), rtol=0, atol=1e-9)
    unguided = dataclasses.replace(method, strength=0.0)(nonlinear(make_problem, scheduler=CHAINS[chain]))
    assert (made - unguided).abs().max() > 1e-3


# Closed forms


def test_a_linear_decoder_and_reward_move_the_estimate_along_the_transpose(make_problem: Make) -> None:
    """One step to no noise: x_0 is the estimate itself, moved by strength A^T a."""
    matrix = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 1.5]], dtype=torch.float64)
    a = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)
    problem = make_problem(reward=lambda rows: rows.flatten(1) @ a, scheduler=ONE_STEP, guidance_scale=W)
    problem = dataclasses.replace(problem, decode=lambda x: (x.flatten(1) @ matrix.T).view(-1, 3, 1, 1))
    moved = Mpgd(strength=0.8, rescale=False, window=(1, 0))(problem) - Base()(make_problem(scheduler=ONE_STEP, guidance_scale=W))
    torch.testing.assert_close(moved.flatten(1), (0.8 * matrix.T @ a).expand(3, 2), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("keep_eps", [True, False])
@pytest.mark.parametrize("over_alpha", [True, False])
@pytest.mark.parametrize("chain", CHAINS)
def test_on_a_gaussian_the_shift_has_a_closed_form(make_problem: Make, keep_eps: bool, over_alpha: bool, chain: str) -> None:
    """x0_hat is affine with slope k, so a step is, with slope c1 k + c2; the estimate's shift by m enters x_s as alpha_s m with the
    network's eps and as c1 m with x_t (c1, c2: the posterior's weights; of DDIM alpha_s - sigma_s alpha_t / sigma_t and
    sigma_s / sigma_t)."""
    a, std, mean, rho = torch.tensor([0.7, -1.1], dtype=torch.float64), 0.8, 0.5, 0.05
    one = GaussianMixture(
        means=torch.full((1, 2, 1, 1), mean, dtype=torch.float64), std=std, weights=torch.ones(1, dtype=torch.float64)
    )
    ddpm = chain == "ddpm"

    def problem() -> Problem:
        made = make_problem(reward=lambda rows: rows.flatten(1) @ a, scheduler=CHAINS[chain])
        return dataclasses.replace(made, denoise=GaussianDenoiser(cond=one, uncond=one))

    def weights(t: Point, s: Point) -> tuple[float, float]:
        ratio = (t.alpha / s.alpha) ** 2
        if ddpm:
            return s.alpha * (1 - ratio) / t.sigma**2, ratio**0.5 * s.sigma**2 / t.sigma**2
        return s.alpha - s.sigma * t.alpha / t.sigma, s.sigma / t.sigma

    shift = torch.zeros(2, dtype=torch.float64)
    for i, (t, s) in enumerate(pairwise(problem().grid)):
        c1, c2 = weights(t, s)
        shift = (c1 * t.alpha * std**2 / (t.alpha**2 * std**2 + t.sigma**2) + c2) * shift
        if 14 > 19 - i >= 6:
            shift = shift + (s.alpha if keep_eps else c1) * rho * a / (s.alpha if over_alpha else 1)
    moved = Mpgd(strength=rho, rescale=False, keep_eps=keep_eps, over_alpha=over_alpha)(problem()) - Base()(problem())
    torch.testing.assert_close(moved.flatten(1), shift.expand(3, 2), rtol=1e-9, atol=1e-12)
    assert shift.abs().min() > 1e-3


# The denoiser is never differentiated


def test_the_denoiser_is_not_differentiated_even_where_it_could_be(make_problem: Make) -> None:
    """Its outputs carry a graph, and taking their gradient is an error."""
    problem = nonlinear(make_problem)
    leaf = torch.ones((), dtype=torch.float64, requires_grad=True)

    def refuse(_: Tensor) -> None:
        raise AssertionError("the denoiser was differentiated")

    class Refusing(type(problem.denoise)):
        def _watched(self, each: int, *answer: Tensor) -> tuple[Tensor, ...]:
            watched = super()._watched(each, *(leaf * part for part in answer))
            for part in watched:
                part.register_hook(refuse)
            return watched

    method, plain = Mpgd(strength=0.3, num_repeats=2), nonlinear(make_problem)
    made = method(dataclasses.replace(problem, denoise=Refusing(problem.denoise.denoiser)))
    with pytest.raises(AssertionError, match="was differentiated"):  # the trap works
        made.sum().backward()
    torch.testing.assert_close(made.detach(), method(plain), rtol=0, atol=1e-12)
    assert plain.denoise.backward == 0


# Null setting, costs, windows


@pytest.mark.parametrize("options", [{}, {"keep_eps": False}, {"rescale": False}, {"window": (1.0, 0.0)}])
def test_without_strength_it_is_the_unguided_sample(make_problem: Make, options: dict) -> None:
    base = Base()(nonlinear(make_problem))
    null, flat = nonlinear(make_problem), nonlinear(make_problem, reward=lambda rows: 0 * rows[:, 0, 0, 0])
    torch.testing.assert_close(Mpgd(strength=0.0, **options)(null), base, rtol=0, atol=1e-12)
    assert null.reward.calls == 0
    torch.testing.assert_close(Mpgd(**options)(flat), base, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "window", "repeats", "repeat_window", "guided", "evaluations"),
    [
        (20, (0.7, 0.3), 1, (0.7, 0.4), 8, 20), (20, (0.7, 0.3), 3, (0.7, 0.4), 6 * 3 + 2, 14 + 6 * 3),
        (20, (0.5, 0.0), 2, (1.0, 0.8), 10, 24), (100, (0.7, 0.3), 1, (0.7, 0.4), 40, 100), (10, (1.0, 0.0), 4, (1.0, 0.0), 40, 40),
    ],
)  # fmt: skip
def test_mpgd_costs_what_it_says(make_problem: Make, steps, window, repeats, repeat_window, guided, evaluations) -> None:
    """2 rows an evaluation, none backward; a decode and a reward call a guided one."""
    problem, decoded = nonlinear(make_problem, scheduler=Ddpm(num_steps=steps)), []
    problem = dataclasses.replace(problem, decode=lambda x: (decoded.append(len(x)), decode(x))[1])
    Mpgd(window=window, num_repeats=repeats, repeat_window=repeat_window)(problem)
    assert (problem.denoise.rows, problem.denoise.backward) == (2 * 2 * evaluations, 0)
    assert problem.reward.calls == sum(decoded) == 2 * guided


@pytest.mark.parametrize(("share", "first"), [(1.0, 69), (0.5, 49)])
def test_window_edges_and_repeats_are_the_released_code_s(make_problem: Make, share: float, first: int) -> None:
    """Index 69 is guided, 70 not, 30 is, 29 not; repeated are 69 to 40. From a reference the index is still that of 100 steps."""
    problem, seen = nonlinear(make_problem, 1, scheduler=Ddpm(num_steps=100)), []
    problem = dataclasses.replace(problem, grid=tail(problem.grid, share), reference=None if share == 1 else problem.start()[:, 0])
    steps = len(problem.grid) - 1
    Mpgd(num_repeats=3)(problem, lambda event, i, _: seen.append(steps - 1 - i) if event == "guide" else None)
    assert seen == [index for index in range(first, 29, -1) for _ in range(3 if index >= 40 else 1)]


# Scales and batches


@pytest.mark.parametrize("keep_eps", [True, False])
def test_with_rescaling_the_reward_s_scale_does_not_matter(make_problem: Make, keep_eps: bool) -> None:
    for rescale in (True, False):
        method = Mpgd(strength=0.3, rescale=rescale, keep_eps=keep_eps, num_repeats=2)
        once, seven = (method(by_task(nonlinear(make_problem), [factor] * 2)) for factor in (1.0, 7.0))
        assert ((once - seven).abs().max() < 1e-9) == rescale
        assert rescale or (once - seven).abs().max() > 1e-2


def test_the_estimate_moves_by_the_strength_times_the_correction(make_problem: Make) -> None:
    """One step to no noise: rms(x_0 - unguided x_0) = strength rms(w (c - u)) for every sample."""
    problem = nonlinear(make_problem, 3, scheduler=ONE_STEP)
    t, x = problem.grid[0], nonlinear(make_problem, 3).start()
    u, c = problem.denoise.denoiser.pair(x, t)
    moved = Mpgd(strength=0.3, window=(1, 0))(by_task(problem, [1e-5, 1.0, 1e5])) - Base()(
        nonlinear(make_problem, 3, scheduler=ONE_STEP)
    )
    length = moved.flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(length, 0.3 * W * (c.eps - u.eps).flatten(1).square().mean(1).sqrt(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("options", [{}, {"rescale": False}, {"keep_eps": False, "num_repeats": 2}])
def test_a_batch_of_three_is_three_batches_of_one(make_problem: Make, options: dict) -> None:
    method, factors = Mpgd(strength=0.3, **options), (1e-4, 1.0, 10.0)
    together = method(by_task(nonlinear(make_problem, 3), factors))
    for b in range(3):
        alone = method(by_task(nonlinear(make_problem, 3), factors).subset([b]))
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-11)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_chunks_change_nothing(make_problem: Make, batch_size: int) -> None:
    problem = nonlinear(make_problem, 3, batch_size=batch_size)
    torch.testing.assert_close(Mpgd(strength=0.3)(problem), Mpgd(strength=0.3)(nonlinear(make_problem, 3)), rtol=0, atol=1e-11)
    assert max(problem.reward.batches) == batch_size


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rescale", [True, False])
def test_a_sample_without_gradients_is_unguided_and_the_others_do_not_notice(make_problem: Make, bad: float, rescale: bool) -> None:
    method = Mpgd(strength=0.3, rescale=rescale)
    broken = method(by_task(nonlinear(make_problem, 3), [1.0, bad, 1.0]))
    torch.testing.assert_close(broken[[0, 2]], method(nonlinear(make_problem, 3))[[0, 2]], rtol=0, atol=1e-11)
    torch.testing.assert_close(broken[1], Base()(nonlinear(make_problem, 3))[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["window", "repeat_window", "num_repeats"])
def test_wrong_options_are_named(name: str) -> None:
    with pytest.raises(BadValue, match=f"^{name}="):
        Mpgd(**{name: 0 if name == "num_repeats" else (0.3, 0.7)})
