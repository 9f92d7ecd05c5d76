"""Random search beyond what tests/methods/test_noise_search.py says: its law, its memory and its progress."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from guidedgen.methods.base import Base
from guidedgen.methods.problem import Problem
from guidedgen.methods.random_search import RandomSearch
from guidedgen.process import Prediction
from guidedgen.process.schedulers import Ddim

Make = Callable[..., Problem]


def test_all_rounds_together_follow_the_law_of_the_maximum(make_problem: Make) -> None:
    """Noises of different rounds are independent: the reward's distribution function at the best of 2 x 2 is the base's to the power 4."""
    base = Base()(make_problem(3000, prefix="base"))[:, 0, 0, 0].sort().values
    chosen = RandomSearch(num_particles=2, num_rounds=2)(make_problem(1000, prefix="other"))[:, 0, 0, 0]
    quantile = torch.searchsorted(base, chosen.contiguous()) / len(base)
    distance = (quantile.pow(4).sort().values - (torch.arange(1000) + 0.5) / 1000).abs().max()
    assert distance < 1.95 * math.sqrt(1 / 1000 + 4**2 / 3000)  # Kolmogorov's bound at 0.1 %, both samplings' errors


@pytest.mark.parametrize("doubling", [False, True])
def test_at_most_n_chains_are_held_at_once(make_problem: Make, doubling: bool) -> None:
    problem, held = make_problem(2), []
    inner = problem.denoise

    class Watching:
        guidance_scale = 1.0

        def __call__(self, x_t: Tensor, t, guidance_scale=None) -> Prediction:
            held.append(x_t.shape[1])
            return inner(x_t, t, guidance_scale)

    RandomSearch(num_particles=3, num_rounds=4, doubling=doubling)(dataclasses.replace(problem, denoise=Watching()))
    assert set(held) == {3} and len(held) == 20 * (15 if doubling else 4)


@pytest.mark.parametrize("doubling", [False, True])
def test_progress_counts_every_chain(make_problem: Make, doubling: bool) -> None:
    method, heard = RandomSearch(num_particles=2, num_rounds=3, doubling=doubling), []
    method(make_problem(2), lambda event, step, values: heard.append((event, step)))
    assert [event for event, _ in heard].count("step") == 20 * method.needs.chains
    assert [step for event, step in heard if event == "select"] == [0, 1, 2]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_picture_is_never_worse_than_the_unguided_one(make_problem: Make, guidance_scale: float) -> None:
    """Which is the first that it looks at, also where the chain draws no noise."""
    for scheduler in (None, Ddim(num_steps=10)):
        made = RandomSearch(num_particles=1, num_rounds=4)(make_problem(20, scheduler=scheduler, guidance_scale=guidance_scale))
        plain = Base()(make_problem(20, scheduler=scheduler, guidance_scale=guidance_scale))
        assert (made[:, 0] >= plain[:, 0]).all() and (made[:, 0] > plain[:, 0]).any()
