"""Zero-order search beyond what tests/methods/test_noise_search.py says: where it leads to, and when it stays."""

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch

from guidedgen.methods.base import Base
from guidedgen.methods.problem import Problem
from guidedgen.methods.zero_order import ZeroOrder
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.schedulers import Ddim

Make = Callable[..., Problem]
PLAIN = Ddim(num_steps=20)


def test_it_climbs_to_the_best_point_of_the_pivots_sphere(make_problem: Make) -> None:
    """Of one Gaussian x_0 = a + c x_T, so a reward of the first coordinate is best at x_T = (|x_T|, 0), and never better."""
    problem = make_problem(30, scheduler=PLAIN)
    normal = GaussianMixture(
        means=torch.tensor([0.4, -0.2], dtype=torch.float64).view(1, 2, 1, 1), std=0.5, weights=torch.ones(1, dtype=torch.float64)
    )
    problem = dataclasses.replace(problem, denoise=GaussianDenoiser(cond=normal, uncond=normal))
    noises = make_problem(30, scheduler=PLAIN).noise.draw(1, problem.latent_shape)[:, 0]

    def end(x: torch.Tensor) -> torch.Tensor:
        x = x.unsqueeze(1)
        for t, s in itertools.pairwise(problem.grid):
            x = problem.scheduler.transition(x, problem.denoise(x, t), t, s)[0]
        return x[:, 0]

    top = torch.zeros_like(noises)
    top[:, 0] = noises.flatten(1).norm(dim=1)[:, None, None]
    reached, most, plain = (x[:, 0, 0, 0] for x in (ZeroOrder(num_rounds=40, similarity=0.9)(problem), end(top), end(noises)))
    assert (reached <= most + 1e-12).all()
    assert ((most - reached) < 0.1 * (most - plain) + 0.02).all()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_more_rounds_are_never_worse(make_problem: Make, guidance_scale: float, restart: bool) -> None:
    rewards = [
        ZeroOrder(num_rounds=n, restart=restart)(make_problem(30, scheduler=PLAIN, guidance_scale=guidance_scale))[:, 0, 0, 0]
        for n in (0, 1, 3, 6)
    ]
    for fewer, more in itertools.pairwise(rewards):
        assert (more >= fewer).all() and more.mean() > fewer.mean()


@pytest.mark.parametrize("restart", [False, True])
def test_a_reward_that_is_always_the_same_leaves_the_sample_unguided(make_problem: Make, restart: bool) -> None:
    made = ZeroOrder(restart=restart)(make_problem(scheduler=PLAIN, reward=lambda rows: 0 * rows[:, 0, 0, 0]))
    assert torch.equal(made, Base()(make_problem(scheduler=PLAIN)))


def test_neighbours_that_are_nearer_look_more_alike(make_problem: Make) -> None:
    """Where the first neighbour ends, which a reward that rises from call to call always takes."""
    away = []
    for similarity in (0.5, 0.95, 0.999):
        rising = itertools.count()
        problem = make_problem(
            100, scheduler=PLAIN, reward=lambda rows, rising=rising: torch.full((len(rows),), float(next(rising)))
        )
        made = ZeroOrder(num_neighbours=1, num_rounds=1, similarity=similarity)(problem)
        away.append((made - Base()(make_problem(100, scheduler=PLAIN))).square().mean())
    assert away[0] > away[1] > away[2]


def test_progress_counts_every_round(make_problem: Make) -> None:
    method, heard = ZeroOrder(num_rounds=3), []
    method(make_problem(2, scheduler=PLAIN), lambda event, step, values: heard.append(event))
    assert heard.count("step") == 20 * method.needs.chains and heard.count("select") == 3


def test_without_rounds_no_reward_is_needed(make_problem: Make) -> None:
    assert not ZeroOrder(num_rounds=0).needs.reward and ZeroOrder(num_rounds=1).needs.reward
    problem = make_problem(scheduler=PLAIN)
    ZeroOrder(num_rounds=0)(problem)
    assert problem.reward.calls == 0
