"""FreeDoM against a plain loop of the released code, a closed form on Gaussians, its null setting and its stated costs."""

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
from guidedgen.methods.freedom import FreeDom
from guidedgen.methods.problem import Problem
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.grid import Point, tail
from guidedgen.process.schedulers import Ddim, Ddpm

Make = Callable[..., Problem]
ONE_STEP = Ddim(num_steps=1, spacing="trailing", end="clean")


def plain_freedom(problem: Problem, b: int, o: FreeDom) -> Tensor:
    """One sample by the released code's rules: the posterior step less rho times the loss's gradient, then noise again."""
    noise, again = (Noise([name], dtype=torch.float64) for name in (f"sample-{b}", f"sample-{b}/renoise"))
    steps, models, shape = len(problem.grid) - 1, problem.denoise.denoiser, problem.latent_shape
    x = noise.draw(1, shape)
    for i, (t, s) in enumerate(pairwise(problem.grid)):
        index, keep = steps - 1 - i, (t.alpha / s.alpha) ** 2
        repeats = o.num_repeats if o.repeat_window[0] * steps > index >= o.repeat_window[1] * steps else 1
        for repeat in range(repeats):
            leaf = x.clone().requires_grad_()
            u, c = models.uncond(leaf, t).eps, models.cond(leaf, t).eps
            x_0 = (leaf - t.sigma * (u + W * (c - u))) / t.alpha
            loss = -rated(decode(x_0[0])).sum()
            (g,) = torch.autograd.grad(loss, leaf)
            x_0 = x_0.detach()
            c1, c2 = s.alpha * (1 - keep) / t.sigma**2, keep**0.5 * s.sigma**2 / t.sigma**2
            x_s = c1 * x_0 + c2 * x + (s.sigma**2 * (1 - keep) / t.sigma**2) ** 0.5 * noise.draw(1, shape)
            if o.window[0] * steps > index >= o.window[1] * steps:
                rho = o.strength
                if o.rescale:
                    rho = W * float((c - u).detach().square().mean().sqrt() / g.square().mean().sqrt()) * o.strength
                x_s = x_s - rho * g
            x = keep**0.5 * x_s + (1 - keep) ** 0.5 * again.draw(1, shape) if repeat < repeats - 1 else x_s
    return x[0, 0]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"num_repeats": 1}, {"rescale": False}, {"num_repeats": 2, "window": (1.0, 0.0), "repeat_window": (1.0, 0.0)},
        {"num_repeats": 2, "window": (0.5, 0.2), "repeat_window": (0.9, 0.6)},
    ],
    ids=str,
)  # fmt: skip
def test_freedom_equals_a_plain_loop(make_problem: Make, options: dict) -> None:
    method = FreeDom(**options)
    made = method(nonlinear(make_problem))
    plain = torch.stack([plain_freedom(nonlinear(make_problem), b, method) for b in range(2)])
    torch.testing.assert_close(made, plain, rtol=0, atol=1e-9)
    assert (made - dataclasses.replace(method, strength=0.0)(nonlinear(make_problem))).abs().max() > 1e-3


@pytest.mark.parametrize("chain", ["ddpm", "ddim"])
def test_on_gaussians_the_shift_has_a_closed_form(make_problem: Make, chain: str) -> None:
    """x0_hat is affine with slope k = k_u + w (k_c - k_u), so the gradient of a.x0_hat is k a whatever x is, and a step maps a shift d
    of x_t to (c1 k + c2) d."""
    a, std, wide, rho = torch.tensor([0.7, -1.1], dtype=torch.float64), 0.8, 1.4, 0.3
    one = torch.ones(1, dtype=torch.float64)
    denoise = GaussianDenoiser(
        cond=GaussianMixture(means=torch.full((1, 2, 1, 1), 0.5, dtype=torch.float64), std=std, weights=one),
        uncond=GaussianMixture(means=torch.zeros(1, 2, 1, 1, dtype=torch.float64), std=wide, weights=one),
        guidance_scale=W,
    )
    scheduler = Ddpm(num_steps=20) if chain == "ddpm" else Ddim(num_steps=20)

    def problem() -> Problem:
        return dataclasses.replace(make_problem(reward=lambda rows: rows.flatten(1) @ a, scheduler=scheduler), denoise=denoise)

    def slope(t: Point) -> float:
        k_c, k_u = (t.alpha * v**2 / (t.alpha**2 * v**2 + t.sigma**2) for v in (std, wide))
        return k_u + W * (k_c - k_u)

    shift = torch.zeros(2, dtype=torch.float64)
    for i, (t, s) in enumerate(pairwise(problem().grid)):
        keep = (t.alpha / s.alpha) ** 2
        c1, c2 = s.alpha * (1 - keep) / t.sigma**2, keep**0.5 * s.sigma**2 / t.sigma**2
        if chain == "ddim":
            c1, c2 = s.alpha - s.sigma * t.alpha / t.sigma, s.sigma / t.sigma
        shift = (c1 * slope(t) + c2) * shift
        if 14 > 19 - i >= 6:
            shift = shift + rho * slope(t) * a
    moved = FreeDom(strength=rho, rescale=False, num_repeats=1)(problem()) - Base()(problem())
    torch.testing.assert_close(moved.flatten(1), shift.expand(3, 2), rtol=1e-9, atol=1e-12)
    assert shift.abs().min() > 1e-3


# Null setting


@pytest.mark.parametrize("rescale", [True, False])
def test_without_strength_and_repeats_it_is_the_unguided_sample(make_problem: Make, rescale: bool) -> None:
    base = Base()(nonlinear(make_problem))
    null, flat = nonlinear(make_problem), nonlinear(make_problem, reward=lambda rows: 0 * rows[:, 0, 0, 0])
    torch.testing.assert_close(FreeDom(strength=0.0, num_repeats=1, rescale=rescale)(null), base, rtol=0, atol=1e-12)
    assert null.denoise.backward == null.reward.calls == 0
    torch.testing.assert_close(FreeDom(num_repeats=1, rescale=rescale)(flat), base, rtol=0, atol=1e-12)
    assert (FreeDom(strength=0.0)(nonlinear(make_problem)) - base).abs().max() > 1e-3  # repeats alone change the sample


def test_repeats_without_strength_draw_from_the_same_marginal(make_problem: Make) -> None:
    """Going back and forth is the process's own: on the exact denoiser of a Gaussian the reward's mean stays that of the base."""
    options = {"guidance_scale": 1.0, "prefix": "many"}
    base = Base()(make_problem(1500, **options)).flatten(1)
    again = FreeDom(strength=0.0, num_repeats=3)(make_problem(1500, **options)).flatten(1)
    error = (base.var(0) / 1500 + again.var(0) / 1500).sqrt()
    assert ((base.mean(0) - again.mean(0)).abs() < 4.5 * error).all()


# Costs and windows


def test_at_the_official_setting_it_costs_160_pairs_and_100_backward(make_problem: Make) -> None:
    """100 steps; 30 taken three times, and 10 once, with a gradient (peers: SD_style/ldm/models/diffusion/ddim.py)."""
    problem, decoded = nonlinear(make_problem, 1, scheduler=Ddpm(num_steps=100)), []
    problem = dataclasses.replace(problem, decode=lambda x: (decoded.append(len(x)), decode(x))[1])
    FreeDom()(problem)
    assert (problem.denoise.rows, problem.denoise.backward) == (2 * 160, 2 * 100)
    assert problem.reward.calls == sum(decoded) == 100


@pytest.mark.parametrize(
    ("steps", "window", "repeats", "repeat_window", "guided", "evaluations"),
    [
        (20, (0.7, 0.3), 1, (0.7, 0.4), 8, 20), (20, (0.7, 0.3), 3, (0.7, 0.4), 6 * 3 + 2, 14 + 6 * 3),
        (20, (0.5, 0.0), 2, (1.0, 0.8), 10, 24), (10, (1.0, 0.0), 4, (1.0, 0.0), 40, 40), (10, (0.2, 0.2), 2, (0.5, 0.4), 0, 11),
    ],
)  # fmt: skip
def test_freedom_costs_what_it_says(make_problem: Make, steps, window, repeats, repeat_window, guided, evaluations) -> None:
    """2E rows forward and 2G backward; G decodes and reward calls."""
    problem = nonlinear(make_problem, 3, scheduler=Ddpm(num_steps=steps))
    FreeDom(window=window, num_repeats=repeats, repeat_window=repeat_window)(problem)
    assert (problem.denoise.rows, problem.denoise.backward) == (3 * 2 * evaluations, 3 * 2 * guided)
    assert problem.reward.calls == 3 * guided


@pytest.mark.parametrize(("share", "first"), [(1.0, 69), (0.5, 49)])
def test_window_edges_and_repeats_are_the_released_code_s(make_problem: Make, share: float, first: int) -> None:
    """Index 69 is guided, 70 not, 30 is, 29 not; 3 repeats from 69 to 40. From a reference the index is still that of 100 steps."""
    problem, seen = nonlinear(make_problem, 1, scheduler=Ddpm(num_steps=100)), []
    problem = dataclasses.replace(problem, grid=tail(problem.grid, share), reference=None if share == 1 else problem.start()[:, 0])
    steps = len(problem.grid) - 1
    FreeDom()(problem, lambda event, i, _: seen.append(steps - 1 - i) if event == "guide" else None)
    assert seen == [index for index in range(first, 29, -1) for _ in range(3 if index >= 40 else 1)]


# Scales and batches


def test_with_rescaling_the_reward_s_scale_does_not_matter(make_problem: Make) -> None:
    for rescale in (True, False):
        once, seven = (FreeDom(rescale=rescale)(by_task(nonlinear(make_problem), [factor] * 2)) for factor in (1.0, 7.0))
        assert ((once - seven).abs().max() < 1e-9) == rescale
        assert rescale or (once - seven).abs().max() > 1e-2


def test_a_step_s_length_is_the_strength_times_the_correction_s(make_problem: Make) -> None:
    """rho rms(g) = strength rms(w (c - u)) exactly, in a chain of one step, whatever the length of each sample's gradient."""
    problem = nonlinear(make_problem, 3, scheduler=ONE_STEP)
    u, c = problem.denoise.denoiser.pair(nonlinear(make_problem, 3).start(), problem.grid[0])
    made = FreeDom(window=(1, 0), num_repeats=1)(by_task(problem, [1e-5, 1.0, 1e5]))
    length = (made - Base()(nonlinear(make_problem, 3, scheduler=ONE_STEP))).flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(length, 0.2 * W * (c.eps - u.eps).flatten(1).square().mean(1).sqrt(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("rescale", [True, False])
def test_a_batch_of_three_is_three_batches_of_one(make_problem: Make, rescale: bool) -> None:
    method, factors = FreeDom(rescale=rescale), (1e-4, 1.0, 5.0)
    together = method(by_task(nonlinear(make_problem, 3), factors))
    for b in range(3):
        alone = method(by_task(nonlinear(make_problem, 3), factors).subset([b]))
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-11)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_chunks_change_nothing(make_problem: Make, batch_size: int) -> None:
    problem = nonlinear(make_problem, 3, batch_size=batch_size)
    torch.testing.assert_close(FreeDom()(problem), FreeDom()(nonlinear(make_problem, 3)), rtol=0, atol=1e-11)
    assert max(problem.reward.batches) == batch_size


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("rescale", [True, False])
def test_a_sample_without_gradients_is_unguided_and_the_others_do_not_notice(make_problem: Make, bad: float, rescale: bool) -> None:
    method = FreeDom(rescale=rescale, num_repeats=1)
    broken = method(by_task(nonlinear(make_problem, 3), [1.0, bad, 1.0]))
    torch.testing.assert_close(broken[[0, 2]], method(nonlinear(make_problem, 3))[[0, 2]], rtol=0, atol=1e-11)
    torch.testing.assert_close(broken[1], Base()(nonlinear(make_problem, 3))[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["window", "repeat_window", "num_repeats"])
def test_wrong_options_are_named(name: str) -> None:
    with pytest.raises(BadValue, match=f"^{name}="):
        FreeDom(**{name: 0 if name == "num_repeats" else (0.3, 0.7)})
