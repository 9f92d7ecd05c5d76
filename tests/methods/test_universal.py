"""Universal Guidance against a plain loop, the backward step's fixed point, its null setting and its stated costs."""

import dataclasses
import functools
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from nonlinear import W, by_task, decode, rated
from nonlinear import nonlinear as of_any_chain
from steps import ddpm_step
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods.base import Base
from guidedgen.methods.problem import Problem
from guidedgen.methods.universal import Universal
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.grid import tail
from guidedgen.process.schedulers import Ddim, Ddpm

Make = Callable[..., Problem]
CLEAN = {"spacing": "trailing", "end": "clean"}
ONE_STEP = Ddim(num_steps=1, **CLEAN)
TARGET = torch.tensor([0.4, -0.9], dtype=torch.float64).view(2, 1, 1)
nonlinear = functools.partial(of_any_chain, scheduler=Ddim(num_steps=10))  # DDIM as the released code


def quadratic(rows: Tensor) -> Tensor:
    return -(rows - TARGET).square().flatten(1).sum(1) / 2


def plain_universal(problem: Problem, b: int, o: Universal) -> Tensor:
    """Algorithm 5 for one sample, its loss being -r; DDIM's step written out, DDPM's from the formulas."""
    noise, again = (Noise([name], dtype=torch.float64) for name in (f"sample-{b}", f"sample-{b}/renoise"))
    steps, models, shape = len(problem.grid) - 1, problem.denoise.denoiser, problem.latent_shape

    def loss(x_0: Tensor) -> Tensor:
        return -rated(decode(x_0[0])).sum()

    x = noise.draw(1, shape)
    for i, (t, s) in enumerate(pairwise(problem.grid)):
        guided, keep = o.window[0] * steps > steps - 1 - i >= o.window[1] * steps, (t.alpha / s.alpha) ** 2
        repeats = o.num_repeats if guided else 1
        for repeat in range(repeats):
            leaf = x.clone().requires_grad_()
            u, c = models.uncond(leaf, t).eps, models.cond(leaf, t).eps
            eps = u + W * (c - u)
            x_0 = (leaf - t.sigma * eps) / t.alpha
            (g,) = torch.autograd.grad(loss(x_0), leaf)
            eps, x_0 = eps.detach(), x_0.detach()
            if guided:
                eps = eps + o.strength * t.sigma * g
                delta = torch.zeros_like(x_0).requires_grad_()
                for _ in range(o.backward_steps):
                    (h,) = torch.autograd.grad(loss(x_0 + delta), delta)
                    delta = (delta - o.backward_lr * h).detach().requires_grad_()
                eps = eps - (t.alpha**2 / (1 - t.alpha**2)) ** 0.5 * delta.detach()
            if problem.scheduler.stochastic:
                x_s = ddpm_step(x, eps, t, s, noise=noise.draw(1, shape))
            else:
                x_s = s.alpha * (x - t.sigma * eps) / t.alpha + s.sigma * eps
            x = keep**0.5 * x_s + (1 - keep) ** 0.5 * again.draw(1, shape) if repeat < repeats - 1 else x_s
    return x[0, 0]


@pytest.mark.parametrize("scheduler", [Ddim(num_steps=10), Ddpm(num_steps=10)], ids=["ddim", "ddpm"])
@pytest.mark.parametrize(
    "options",
    [
        {"num_repeats": 1}, {}, {"backward_steps": 3, "backward_lr": 0.1, "num_repeats": 2}, {"window": (0.7, 0.3)},
        {"strength": 0.0, "backward_steps": 2, "backward_lr": 0.1, "num_repeats": 1},
    ],
    ids=str,
)  # fmt: skip
def test_universal_equals_a_plain_loop(make_problem: Make, options: dict, scheduler) -> None:
    method = Universal(**{"strength": 0.3, **options})
    made = method(nonlinear(make_problem, scheduler=scheduler))
    plain = [plain_universal(nonlinear(make_problem, scheduler=scheduler), b, method) for b in range(2)]
    torch.testing.assert_close(made, torch.stack(plain), rtol=0, atol=1e-9)
    unguided = dataclasses.replace(method, strength=0.0, backward_steps=0)(nonlinear(make_problem, scheduler=scheduler))
    assert (made - unguided).abs().max() > 1e-3


# Closed forms


@pytest.mark.parametrize(("lr", "m"), [(1.0, 1), (0.5, 4), (0.3, 7), (1.5, 3), (0.5, 60)])
def test_the_backward_step_on_a_quadratic_goes_to_its_maximum(make_problem: Make, lr: float, m: int) -> None:
    """m steps leave (1 - lr)^m of the way from x0_hat to the target; one DDIM step to no noise returns the moved estimate."""
    options = {"reward": quadratic, "scheduler": ONE_STEP, "guidance_scale": W}
    start = Base()(make_problem(**options))
    made = Universal(strength=0.0, num_repeats=1, backward_steps=m, backward_lr=lr)(make_problem(**options))
    torch.testing.assert_close(made, TARGET + (1 - lr) ** m * (start - TARGET), rtol=0, atol=1e-9)


def test_at_its_fixed_point_every_chain_ends_at_the_target(make_problem: Make) -> None:
    """x0_hat + Delta is the target at every step, so the last step, to no noise, is there; with repeats and with DDPM too."""
    for scheduler in (Ddim(num_steps=8, **CLEAN), Ddpm(num_steps=8)):
        problem = make_problem(reward=quadratic, scheduler=scheduler, guidance_scale=W)
        made = Universal(strength=0.0, num_repeats=2, backward_steps=1, backward_lr=1.0)(problem)
        torch.testing.assert_close(made, TARGET.expand_as(made), rtol=0, atol=1e-9)


def test_on_gaussians_the_forward_step_has_a_closed_form(make_problem: Make) -> None:
    """A DDIM chain with eps - s sigma k (target - x0_hat), x0_hat being affine with slope k = k_u + w (k_c - k_u)."""
    mean, std, wide, strength = 0.5, 0.8, 1.4, 0.4
    one = torch.ones(1, dtype=torch.float64)
    denoise = GaussianDenoiser(
        cond=GaussianMixture(means=torch.full((1, 2, 1, 1), mean, dtype=torch.float64), std=std, weights=one),
        uncond=GaussianMixture(means=torch.zeros(1, 2, 1, 1, dtype=torch.float64), std=wide, weights=one),
        guidance_scale=W,
    )
    problem = dataclasses.replace(make_problem(reward=quadratic, scheduler=Ddim(num_steps=20)), denoise=denoise)
    x = Noise([f"sample-{i}" for i in range(3)], dtype=torch.float64).draw(1, (2, 1, 1))[:, 0]
    for t, s in pairwise(problem.grid):
        k_c, k_u = (t.alpha * v**2 / (t.alpha**2 * v**2 + t.sigma**2) for v in (std, wide))
        k = k_u + W * (k_c - k_u)
        x_0 = k * x + W * (1 - t.alpha * k_c) * mean
        eps = (x - t.alpha * x_0) / t.sigma - strength * t.sigma * k * (TARGET - x_0)
        x = s.alpha * (x - t.sigma * eps) / t.alpha + s.sigma * eps
    torch.testing.assert_close(Universal(strength=strength, num_repeats=1)(problem), x, rtol=0, atol=1e-10)


# Null setting and scale


def test_at_its_null_setting_it_is_the_unguided_sample(make_problem: Make) -> None:
    null = Universal(strength=0.0, num_repeats=1)
    for scheduler in (Ddim(num_steps=10), Ddpm(num_steps=10)):
        base = Base()(nonlinear(make_problem, scheduler=scheduler))
        torch.testing.assert_close(null(nonlinear(make_problem, scheduler=scheduler)), base, rtol=0, atol=1e-12)
        flat = nonlinear(make_problem, scheduler=scheduler, reward=lambda rows: 0 * rows[:, 0, 0, 0])
        torch.testing.assert_close(Universal(num_repeats=1, backward_steps=2)(flat), base, rtol=0, atol=1e-12)
    none = Universal(window=(0.0, 0.0))(nonlinear(make_problem))
    torch.testing.assert_close(none, Base()(nonlinear(make_problem)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{"strength": 0.01}, {"strength": 0.0, "backward_steps": 1, "backward_lr": 0.01}])
def test_a_push_is_proportional_to_the_reward(make_problem: Make, options: dict) -> None:
    """Twice the reward, twice the first push, of the forward step and of the backward one: it is not invariant to the scale."""

    def push(factor: float) -> Tensor:
        problem = by_task(nonlinear(make_problem, scheduler=ONE_STEP), [factor] * 2)
        return Universal(num_repeats=1, **options)(problem) - Base()(nonlinear(make_problem, scheduler=ONE_STEP))

    assert push(1.0).abs().min() > 1e-6
    for factor in (2.0, 7.0, -1.0):
        torch.testing.assert_close(push(factor), factor * push(1.0), rtol=1e-8, atol=1e-12)


# Costs and windows


def test_at_the_thesis_setting_it_costs_600_pairs_both_ways(make_problem: Make) -> None:
    """100 DDIM steps, six times each."""
    problem, decoded = nonlinear(make_problem, 1, scheduler=Ddim(num_steps=100)), []
    problem = dataclasses.replace(problem, decode=lambda x: (decoded.append(len(x)), decode(x))[1])
    Universal(strength=0.01)(problem)
    assert (problem.denoise.rows, problem.denoise.backward) == (2 * 600, 2 * 600)
    assert problem.reward.calls == sum(decoded) == 600


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("m", [0, 2])
@pytest.mark.parametrize("window", [(1.0, 0.0), (0.8, 0.4)])
def test_universal_costs_what_it_says(make_problem: Make, steps: int, k: int, m: int, window: tuple[float, float]) -> None:
    """2(T + (k-1)G) rows forward, 2kG backward; kG(1 + m) decodes and reward calls."""
    problem, g = nonlinear(make_problem, 3, scheduler=Ddim(num_steps=steps)), round((window[0] - window[1]) * steps)
    Universal(strength=0.1, num_repeats=k, backward_steps=m, backward_lr=0.1, window=window)(problem)
    assert (problem.denoise.rows, problem.denoise.backward) == (3 * 2 * (steps + (k - 1) * g), 3 * 2 * k * g)
    assert problem.reward.calls == 3 * k * g * (1 + m)


@pytest.mark.parametrize(("share", "first"), [(1.0, 69), (0.5, 49)])
def test_window_edges(make_problem: Make, share: float, first: int) -> None:
    problem, seen = nonlinear(make_problem, 1, scheduler=Ddim(num_steps=100)), []
    problem = dataclasses.replace(problem, grid=tail(problem.grid, share), reference=None if share == 1 else problem.start()[:, 0])
    steps = len(problem.grid) - 1
    Universal(strength=0.1, num_repeats=2, window=(0.7, 0.3))(
        problem, lambda event, i, _: seen.append(steps - 1 - i) if event == "guide" else None
    )
    assert seen == [index for index in range(first, 29, -1) for _ in range(2)]


# Batches


def test_a_batch_of_three_is_three_batches_of_one(make_problem: Make) -> None:
    method, factors = Universal(strength=0.3, num_repeats=2, backward_steps=2, backward_lr=0.1), (1e-3, 1.0, 2.0)
    together = method(by_task(nonlinear(make_problem, 3), factors))
    for b in range(3):
        alone = method(by_task(nonlinear(make_problem, 3), factors).subset([b]))
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_chunks_change_nothing(make_problem: Make, batch_size: int) -> None:
    method, problem = Universal(strength=0.3, backward_steps=1, backward_lr=0.1), nonlinear(make_problem, 3, batch_size=batch_size)
    torch.testing.assert_close(method(problem), method(nonlinear(make_problem, 3)), rtol=0, atol=1e-10)
    assert max(problem.reward.batches) == batch_size


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sample_without_gradients_is_unguided_and_the_others_do_not_notice(make_problem: Make, bad: float) -> None:
    method = Universal(strength=0.3, num_repeats=1, backward_steps=2, backward_lr=0.1)
    broken = method(by_task(nonlinear(make_problem, 3), [1.0, bad, 1.0]))
    torch.testing.assert_close(broken[[0, 2]], method(nonlinear(make_problem, 3))[[0, 2]], rtol=0, atol=1e-11)
    torch.testing.assert_close(broken[1], Base()(nonlinear(make_problem, 3))[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize(("name", "value"), [("window", (0.3, 0.7)), ("num_repeats", 0), ("backward_steps", -1)])
def test_wrong_options_are_named(name: str, value) -> None:
    with pytest.raises(BadValue, match=f"^{name}="):
        Universal(**{name: value})


# Backward guidance alone


def test_without_forward_strength_the_denoiser_is_not_differentiated(make_problem: Make) -> None:
    """kGm decodes, and the same result as a forward strength too small to matter."""
    alone, nearly = (nonlinear(make_problem, 2, scheduler=Ddim(num_steps=5)) for _ in range(2))
    x_0 = Universal(strength=0, num_repeats=2, backward_steps=3, backward_lr=0.1)(alone)
    assert torch.allclose(x_0, Universal(strength=1e-13, num_repeats=2, backward_steps=3, backward_lr=0.1)(nearly), atol=1e-9)
    assert (alone.denoise.backward, alone.reward.calls) == (0, 2 * 2 * 5 * 3)
    assert nearly.denoise.backward > 0
