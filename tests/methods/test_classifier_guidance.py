"""One-step classifier guidance against closed forms on Gaussians, a plain loop, its null setting and its stated costs."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from nonlinear import W, by_task, decode, nonlinear, rated
from steps import ddpm_step, step
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods.base import Base
from guidedgen.methods.classifier_guidance import ClassifierGuidance
from guidedgen.methods.problem import Problem
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.grid import Point
from guidedgen.process.schedulers import Ddim, Ddpm

Make = Callable[..., Problem]
SOURCES = ("uncond", "cond", "cfg")
MEAN, STD, WIDE = 0.8, 0.7, 1.4  # of the condition, and of what it is guided from, which is at 0
TARGET = torch.tensor([0.4, -0.9], dtype=torch.float64).view(2, 1, 1)
ONE_STEP = Ddim(num_steps=1, spacing="trailing", end="clean")


def gaussian(make_problem: Make, b: int = 3, **options) -> Problem:
    """One Gaussian each, and a quadratic reward."""
    one = torch.ones(1, dtype=torch.float64)
    denoise = GaussianDenoiser(
        cond=GaussianMixture(means=torch.full((1, 2, 1, 1), MEAN, dtype=torch.float64), std=STD, weights=one),
        uncond=GaussianMixture(means=torch.zeros(1, 2, 1, 1, dtype=torch.float64), std=WIDE, weights=one),
        guidance_scale=W,
    )
    problem = make_problem(b, **{"reward": lambda rows: -(rows - TARGET).square().flatten(1).sum(1) / 2, **options})
    return dataclasses.replace(problem, denoise=type(problem.denoise)(denoise))


# Closed forms


def estimates(x: Tensor, t: Point) -> dict[str, tuple[Tensor, float]]:
    """x0_hat by source, and its slope."""
    k_c, k_u = (t.alpha * std**2 / (t.alpha**2 * std**2 + t.sigma**2) for std in (STD, WIDE))
    c, u = MEAN + k_c * (x - t.alpha * MEAN), k_u * x
    return {"uncond": (u, k_u), "cond": (c, k_c), "cfg": (u + W * (c - u), k_u + W * (k_c - k_u))}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("blend", [False, True])
@pytest.mark.parametrize("scheduler", [Ddpm(num_steps=20), Ddim(num_steps=20)], ids=["ddpm", "ddim"])
def test_on_gaussians_with_a_quadratic_reward_the_noise_prediction_has_a_closed_form(
    make_problem: Make, source: str, blend: bool, scheduler
) -> None:
    """eps = (x - alpha x0_hat) / sigma - sigma s dlook/dx (y - look), look = x0_hat or sigma x0_hat + (1 - sigma) x; every step."""
    strength, noise = 0.4, Noise([f"sample-{i}" for i in range(3)], dtype=torch.float64)
    problem = gaussian(make_problem, scheduler=scheduler)
    x = noise.draw(1, (2, 1, 1))
    for t, s in pairwise(problem.grid):
        parts = estimates(x, t)
        look, slope = parts[source]
        if blend:
            look, slope = t.sigma * look + (1 - t.sigma) * x, t.sigma * slope + 1 - t.sigma
        eps = (x - t.alpha * parts["cfg"][0]) / t.sigma - t.sigma * strength * slope * (TARGET - look)
        z = noise.draw(1, (2, 1, 1)) if scheduler.stochastic else None
        x = step(scheduler, x, eps, t, s, z)
    made = ClassifierGuidance(strength=strength, source=source, blend=blend)(problem)
    torch.testing.assert_close(made, x[:, 0], rtol=0, atol=1e-10)
    assert (made - Base()(gaussian(make_problem, scheduler=scheduler))).abs().min() > 1e-3


def test_where_there_is_only_noise_the_blend_is_the_estimate_and_where_there_is_none_the_latent(make_problem: Make) -> None:
    for point, blended in ((Point(999.0, 1e-7, 1.0), False), (Point(1.0, 1.0, 1e-7), True)):
        problem, seen = gaussian(make_problem, reward=lambda rows: rows[:, 0, 0, 0]), []
        x = problem.start()
        problem = dataclasses.replace(
            gaussian(make_problem, reward=lambda rows: rows[:, 0, 0, 0]), grid=(point, Point(0.0, 1.0, 0.0))
        )
        ClassifierGuidance(blend=True)(problem, lambda event, i, values, seen=seen: seen.append(values.get("rewards")))
        expected = x if blended else estimates(x, point)["uncond"][0]
        torch.testing.assert_close(seen[0], expected[:, :, 0, 0, 0], rtol=0, atol=1e-6)


# The plain loop


def plain(problem: Problem, b: int, o: ClassifierGuidance) -> Tensor:
    """One sample, the prediction evaluated anew for each use, window by the index that counts down."""
    noise, steps, models = Noise([f"sample-{b}"], dtype=torch.float64), len(problem.grid) - 1, problem.denoise.denoiser
    x = noise.draw(1, problem.latent_shape)
    for i, (t, s) in enumerate(pairwise(problem.grid)):
        eps = models.uncond(x, t).eps + W * (models.cond(x, t).eps - models.uncond(x, t).eps)
        if o.window[0] * steps > steps - 1 - i >= o.window[1] * steps:
            leaf = x.clone().requires_grad_()
            u, c = models.uncond(leaf, t).eps, models.cond(leaf, t).eps
            look = (leaf - t.sigma * {"uncond": u, "cond": c, "cfg": u + W * (c - u)}[o.source]) / t.alpha
            look = t.sigma * look + (1 - t.sigma) * leaf if o.blend else look
            (gradient,) = torch.autograd.grad(rated(decode(look[0])).sum(), leaf)
            eps = eps - t.sigma * o.strength * gradient
        x = ddpm_step(x, eps, t, s, noise=noise.draw(1, problem.latent_shape))
    return x[0, 0]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("blend", "window"), [(False, (1.0, 0.0)), (True, (1.0, 0.0)), (False, (0.7, 0.3)), (True, (0.45, 0.2))])
def test_it_equals_a_plain_loop(make_problem: Make, source: str, blend: bool, window: tuple[float, float]) -> None:
    method = ClassifierGuidance(strength=0.3, source=source, blend=blend, window=window)
    made = method(nonlinear(make_problem))
    torch.testing.assert_close(made, torch.stack([plain(nonlinear(make_problem), b, method) for b in range(2)]), rtol=0, atol=1e-9)
    assert (made - Base()(nonlinear(make_problem))).abs().max() > 1e-3


# Null setting, sign, scale


@pytest.mark.parametrize("source", SOURCES)
def test_without_strength_it_is_the_unguided_sample(make_problem: Make, source: str) -> None:
    base = Base()(nonlinear(make_problem))
    null, flat = nonlinear(make_problem), nonlinear(make_problem, reward=lambda rows: 0 * rows[:, 0, 0, 0])
    assert torch.equal(ClassifierGuidance(strength=0.0, source=source)(null), base)
    assert null.denoise.backward == null.reward.calls == 0
    torch.testing.assert_close(ClassifierGuidance(source=source)(flat), base, rtol=0, atol=1e-12)


@pytest.mark.parametrize("source", SOURCES)
def test_a_push_is_proportional_to_the_strength_and_to_the_reward(make_problem: Make, source: str) -> None:
    """A chain of one step: its change mirrors with the strength's sign, and doubles with the reward or the strength."""

    def change(strength: float, factor: float) -> Tensor:
        problem = by_task(nonlinear(make_problem, scheduler=ONE_STEP), [factor] * 2)
        return ClassifierGuidance(strength=strength, source=source)(problem) - Base()(nonlinear(make_problem, scheduler=ONE_STEP))

    once = change(0.01, 1.0)
    assert once.abs().min() > 1e-6
    for other, ratio in ((change(-0.01, 1.0), -1), (change(0.02, 1.0), 2), (change(0.01, 2.0), 2), (change(0.01, 7.0), 7)):
        torch.testing.assert_close(other, ratio * once, rtol=1e-8, atol=1e-12)


def test_sources_differ_unless_there_is_nothing_to_guide_from(make_problem: Make) -> None:
    results = [ClassifierGuidance(strength=0.3, source=source)(nonlinear(make_problem)) for source in SOURCES]
    assert all((results[i] - results[j]).abs().max() > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))
    same = [
        ClassifierGuidance(strength=0.3, source=source)(nonlinear(make_problem, guidance_scale=1.0)) for source in ("cond", "cfg")
    ]
    torch.testing.assert_close(*same, rtol=0, atol=1e-12)


# Costs


@pytest.mark.parametrize(
    ("source", "w", "forward", "backward"),
    [("uncond", W, 2, 1), ("cond", W, 2, 1), ("cfg", W, 2, 2), ("cfg", 1.0, 1, 1), ("cond", 1.0, 1, 1), ("uncond", 0.0, 1, 1)],
)
@pytest.mark.parametrize(("window", "guided"), [((1.0, 0.0), 20), ((0.7, 0.3), 8)])
def test_it_costs_what_it_says(make_problem: Make, source: str, w: float, forward: int, backward: int, window, guided: int) -> None:
    """2T rows, one of each guided step's backward, both with cfg; where there is no guidance, one row each."""
    problem = nonlinear(make_problem, 3, guidance_scale=w)
    ClassifierGuidance(source=source, window=window)(problem)
    assert (problem.denoise.rows, problem.denoise.backward) == (3 * 20 * forward, 3 * guided * backward)
    assert problem.reward.calls == 3 * guided


@pytest.mark.parametrize(("window", "first", "last"), [((0.7, 0.3), 69, 30), ((1.0, 0.0), 99, 0)])
def test_window_edges(make_problem: Make, window, first: int, last: int) -> None:
    steps: list[int] = []
    problem = nonlinear(make_problem, 1, scheduler=Ddim(num_steps=100))
    ClassifierGuidance(window=window)(problem, lambda event, i, _: steps.append(99 - i) if event == "guide" else None)
    assert steps == list(range(first, last - 1, -1))


# Batches


@pytest.mark.parametrize("source", SOURCES)
def test_a_batch_of_three_is_three_batches_of_one(make_problem: Make, source: str) -> None:
    method, factors = ClassifierGuidance(strength=0.3, source=source), (1e-3, 1.0, 5.0)
    together = method(by_task(nonlinear(make_problem, 3), factors))
    for b in range(3):
        alone = method(by_task(nonlinear(make_problem, 3), factors).subset([b]))
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-11)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_chunks_change_nothing(make_problem: Make, batch_size: int) -> None:
    problem = nonlinear(make_problem, 3, batch_size=batch_size)
    expected = ClassifierGuidance(strength=0.3)(nonlinear(make_problem, 3))
    torch.testing.assert_close(ClassifierGuidance(strength=0.3)(problem), expected, rtol=0, atol=1e-11)
    assert max(problem.reward.batches) == batch_size


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sample_without_gradients_is_unguided_and_the_others_do_not_notice(make_problem: Make, bad: float) -> None:
    method = ClassifierGuidance(strength=0.3)
    broken = method(by_task(nonlinear(make_problem, 3), [1.0, bad, 1.0]))
    torch.testing.assert_close(broken[[0, 2]], method(nonlinear(make_problem, 3))[[0, 2]], rtol=0, atol=1e-11)
    torch.testing.assert_close(broken[1], Base()(nonlinear(make_problem, 3))[1], rtol=0, atol=1e-11)


def test_wrong_windows_are_named() -> None:
    with pytest.raises(BadValue, match="^window="):
        ClassifierGuidance(window=(0.3, 0.7))


# From the inversion of a picture


def _edited(make_problem: Make, steps: int, strength: float = 0.0) -> tuple[Tensor, Tensor, Problem]:
    """A clean latent each, what is drawn from its inversion, and the problem."""
    clean = torch.tensor([0.3, -1.1, 2.0], dtype=torch.float64)[:, None, None, None].expand(3, 2, 1, 1)
    problem = gaussian(make_problem, scheduler=Ddim(num_steps=steps, spacing="leading", offset=0, end="first"))
    problem = dataclasses.replace(problem, reference=clean, grid=problem.grid[-(steps // 2) - 1 :])
    return clean, ClassifierGuidance(strength=strength, invert=True)(problem), problem


def test_a_picture_that_is_inverted_is_drawn_again_as_it_was(make_problem: Make) -> None:
    """To the order of the steps: DDIM undoes its own step only in the limit."""
    errors = []
    for steps in (50, 100, 200, 400):
        clean, made, _ = _edited(make_problem, steps)
        errors.append((made - clean).abs().max().item())
    assert errors[0] < 0.3
    assert all(0.3 < fine / coarse < 0.6 for coarse, fine in pairwise(errors))


def test_an_inverted_picture_is_guided_from_there(make_problem: Make) -> None:
    clean, unguided, problem = _edited(make_problem, 100)
    _, guided, _ = _edited(make_problem, 100, strength=0.3)
    assert ((guided - TARGET).abs() < (unguided - TARGET).abs()).all()
    x = clean.unsqueeze(1)
    for t, s in reversed(list(pairwise(problem.grid))):  # a plain loop, at w = 1: the condition's score alone
        eps = problem.denoise(x, s).eps
        x = t.alpha * (x - s.sigma * eps) / s.alpha + t.sigma * eps
    for t, s in pairwise(problem.grid):
        x = step(problem.scheduler, x, problem.denoise(x, t).eps, t, s, None)
    torch.testing.assert_close(unguided, x[:, 0], rtol=0, atol=1e-12)


def test_an_inversion_costs_as_many_rows_as_the_chain(make_problem: Make) -> None:
    problem = nonlinear(make_problem, 2)
    noised = dataclasses.replace(problem, reference=torch.zeros(2, *problem.latent_shape, dtype=torch.float64))
    ClassifierGuidance(strength=0.0)(noised)
    rows = noised.denoise.rows
    ClassifierGuidance(strength=0.0, invert=True)(noised)
    assert noised.denoise.rows == 3 * rows
    assert ClassifierGuidance(invert=True).needs.reference == "required"
