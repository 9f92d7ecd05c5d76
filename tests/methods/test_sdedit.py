"""Chains from a noised reference: SDEdit against a plain loop and closed forms, and every method's null setting from one."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from steps import ddpm_step
from torch import Tensor

from guidedgen.basics.noise import Noise
from guidedgen.methods.base import Base
from guidedgen.methods.best_of_n import BestOfN
from guidedgen.methods.classifier_guidance import ClassifierGuidance
from guidedgen.methods.code import Code
from guidedgen.methods.codex import Codex
from guidedgen.methods.freedom import FreeDom
from guidedgen.methods.mpgd import Mpgd
from guidedgen.methods.problem import Problem
from guidedgen.methods.sdedit import SdEdit
from guidedgen.methods.universal import Universal
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.formulas import add_noise
from guidedgen.process.grid import tail
from guidedgen.process.schedulers import Ddim, Ddpm

Make = Callable[..., Problem]
W = 2.0


def references(b: int, seed: int = 0) -> Tensor:
    return torch.randn(b, 2, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def from_reference(problem: Problem, share: float, reference: Tensor) -> Problem:
    return dataclasses.replace(problem, grid=tail(problem.grid, share), reference=reference)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_sdedit_equals_a_plain_loop(make_problem: Make, share: float) -> None:
    """One sample at a time: the reference noised to the last round(20 r) steps, then those."""
    whole = make_problem(2, guidance_scale=W)
    models, steps = whole.denoise.denoiser, round(20 * share)
    for b in range(2):
        noise = Noise([f"sample-{b}"], dtype=torch.float64)
        points = whole.grid[20 - steps :]
        x = add_noise(references(2)[b], noise.draw(1, (2, 1, 1)), points[0])
        for t, s in pairwise(points):
            u, c = models.uncond(x, t).eps, models.cond(x, t).eps
            x = ddpm_step(x, u + W * (c - u), t, s, noise=noise.draw(1, (2, 1, 1)))
        made = SdEdit()(from_reference(make_problem(2, guidance_scale=W), share, references(2)))
        torch.testing.assert_close(made[b], x[0, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.6])
@pytest.mark.parametrize("steps", [10, 20])
def test_it_costs_the_share_of_the_chain(make_problem: Make, share: float, steps: int) -> None:
    problem = from_reference(make_problem(3, guidance_scale=W, scheduler=Ddpm(num_steps=steps)), share, references(3))
    SdEdit()(problem)
    assert problem.denoise.rows == 3 * 2 * round(share * steps)
    assert (problem.denoise.backward, problem.reward.calls) == (0, 0)


def test_over_the_whole_chain_without_a_reference_it_is_plain_sampling(make_problem: Make) -> None:
    """At r = 1 tasks have no reference to start from; the tail of the whole chain is the chain."""
    problem = make_problem()
    whole = dataclasses.replace(problem, grid=tail(problem.grid, 1.0))
    assert torch.equal(SdEdit()(whole), Base()(make_problem()))
    assert (SdEdit().needs.reference, Base().needs.reference) == ("required", "ignored")


@pytest.mark.parametrize("scheduler", [Ddpm(num_steps=20), Ddim(num_steps=20)], ids=["ddpm", "ddim"])
def test_on_a_gaussian_what_is_left_of_the_reference_has_a_closed_form(make_problem: Make, scheduler) -> None:
    """The chain is affine: with the same noise two references end apart by alpha_t times the product of the steps' slopes."""
    std = 0.8
    one = GaussianMixture(
        means=torch.full((1, 2, 1, 1), 0.5, dtype=torch.float64), std=std, weights=torch.ones(1, dtype=torch.float64)
    )

    def made(seed: int) -> tuple[Tensor, Problem]:
        problem = dataclasses.replace(make_problem(scheduler=scheduler), denoise=GaussianDenoiser(cond=one, uncond=one))
        problem = from_reference(problem, 0.4, references(3, seed))
        return SdEdit()(problem), problem

    (first, problem), (second, _) = made(0), made(1)
    left = problem.grid[0].alpha
    for t, s in pairwise(problem.grid):
        ratio, k = (t.alpha / s.alpha) ** 2, t.alpha * std**2 / (t.alpha**2 * std**2 + t.sigma**2)
        c1, c2 = s.alpha * (1 - ratio) / t.sigma**2, ratio**0.5 * s.sigma**2 / t.sigma**2
        if not scheduler.stochastic:
            c1, c2 = s.alpha - s.sigma * t.alpha / t.sigma, s.sigma / t.sigma
        left *= c1 * k + c2
    torch.testing.assert_close(first - second, left * (references(3, 0) - references(3, 1)), rtol=1e-10, atol=1e-12)
    assert left > 0.1


def test_the_less_noise_the_nearer_to_the_reference(make_problem: Make) -> None:
    reference = references(200)
    far = [
        (SdEdit()(from_reference(make_problem(200, prefix="near"), share, reference)) - reference).square().mean()
        for share in (0.05, 0.2, 0.4, 0.7)
    ]
    assert far == sorted(far)


NULLS = [
    BestOfN(num_particles=1),
    Code(num_particles=1),
    Codex(num_particles=1, strength=0.0),
    ClassifierGuidance(strength=0.0),
    Mpgd(strength=0.0),
    FreeDom(strength=0.0, num_repeats=1),
    Universal(strength=0.0, num_repeats=1),
]


@pytest.mark.parametrize("method", NULLS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_from_a_reference_every_null_setting_is_sdedit(make_problem: Make, method, share: float) -> None:
    made = method(from_reference(make_problem(guidance_scale=W), share, references(3)))
    expected = SdEdit()(from_reference(make_problem(guidance_scale=W), share, references(3)))
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_streams_from_a_reference_are_code_s_and_start_from_one_noise_or_from_several(make_problem: Make, shared: bool) -> None:
    ours, code = (
        method(from_reference(make_problem(guidance_scale=W), 0.6, references(3)))
        for method in (Codex(strength=0.0, shared_start=shared), Code(shared_start=shared))
    )
    torch.testing.assert_close(ours, code, rtol=0, atol=1e-12)
