"""Search over paths beyond what tests/methods/test_noise_search.py says: its null setting, its law, and coarse grids."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from guidedgen.basics.errors import BadValue
from guidedgen.methods.base import Base
from guidedgen.methods.problem import Problem
from guidedgen.methods.search_over_paths import SearchOverPaths
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.grid import FlowSchedule
from guidedgen.process.schedulers import Ddim, Flow

Make = Callable[..., Problem]
PLAIN = Ddim(num_steps=20)
NULL = SearchOverPaths(num_particles=1, num_rounds=0, path_steps=None)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_null_setting_is_plain_sampling(make_problem: Make, guidance_scale: float) -> None:
    problem = make_problem(scheduler=PLAIN, guidance_scale=guidance_scale)
    assert torch.equal(NULL(problem), Base()(make_problem(scheduler=PLAIN, guidance_scale=guidance_scale)))
    assert not NULL.needs.reward and problem.reward.calls == 0


def test_paths_of_all_steps_cost_what_they_are_long(make_problem: Make) -> None:
    """From 20 steps left to 10; then 6 copies from 16 steps left to 6, and from 12 to 2; then 2 chains to the end."""
    problem = make_problem(2, scheduler=PLAIN)
    SearchOverPaths(num_particles=2, num_copies=3, num_rounds=2, start=0.5, back=0.3, ahead=0.5, path_steps=None)(problem)
    assert problem.denoise.rows == 2 * (2 * 10 + 6 * 10 + 6 * 10 + 2 * 2) and problem.reward.calls == 2 * (6 + 6 + 2)


def test_one_chain_needs_no_reward_at_its_end(make_problem: Make) -> None:
    problem = make_problem(2, scheduler=PLAIN)
    SearchOverPaths(num_particles=1, num_copies=4, num_rounds=1, start=0.5, back=0.2, ahead=0.4)(problem)
    assert problem.denoise.rows == 2 * (4 + 4 * 4 + 6) and problem.reward.calls == 2 * 4


@pytest.mark.parametrize(("start", "back", "ahead"), [(0.3, 0.5, 0.6), (0.3, 0.1, 0.2), (0.6, 0.3, 0.5), (0.7, 0.3, 0.4)])
def test_the_end_is_reached_whatever_the_rounding_of_shares(make_problem: Make, start: float, back: float, ahead: float) -> None:
    """Nothing is searched, or scored, once the sum of many shares says that nothing is left, up to its rounding."""
    problem = make_problem(1, scheduler=PLAIN)
    SearchOverPaths(num_particles=2, num_copies=2, num_rounds=50, start=start, back=back, ahead=ahead)(problem)
    assert problem.reward.calls == 4 * round(start / (ahead - back))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("method", [SearchOverPaths(), SearchOverPaths(start=0.95, back=0.04, ahead=0.05), NULL])
def test_grids_of_few_steps(make_problem: Make, method: SearchOverPaths, steps: int) -> None:
    """Every round goes at least one point back and one step ahead, also on a flow that begins at noise alone."""
    flow, schedule = Flow(num_steps=steps), FlowSchedule(shift=3.0)
    problems = [make_problem(20, scheduler=Ddim(num_steps=steps))]
    problems.append(dataclasses.replace(problems[0], scheduler=flow, grid=flow.grid(schedule), schedule=schedule, num_steps=steps))
    for problem in problems:
        made = method(problem)
        assert made.isfinite().all() and made.shape == (20, *problem.latent_shape)


def test_what_is_not_selected_keeps_its_law(make_problem: Make) -> None:
    """One copy of one chain, noised and denoised again and again: of a Gaussian it stays that Gaussian."""
    n, fine = 4000, Ddim(num_steps=200, end="clean", spacing="trailing", offset=0)
    normal = GaussianMixture(
        means=torch.tensor([0.4, -0.2], dtype=torch.float64).view(1, 2, 1, 1), std=0.5, weights=torch.ones(1, dtype=torch.float64)
    )
    problem = dataclasses.replace(make_problem(n, scheduler=fine), denoise=GaussianDenoiser(cond=normal, uncond=normal))
    made = SearchOverPaths(num_particles=1, num_copies=1, start=0.5, back=0.3, ahead=0.4, path_steps=None)(problem).flatten(1)
    assert (made.mean(0) - torch.tensor([0.4, -0.2])).abs().max() < 4 * 0.5 / math.sqrt(n) + 0.01
    assert (made.std(0) - 0.5).abs().max() < 4 * 0.5 / math.sqrt(2 * n) + 0.01


def test_more_copies_reach_higher_rewards(make_problem: Make) -> None:
    for guidance_scale in (1.0, 3.0):
        means = [
            SearchOverPaths(num_copies=k, path_steps=None)(make_problem(60, scheduler=PLAIN, guidance_scale=guidance_scale))[
                :, 0
            ].mean()
            for k in (1, 3, 9)
        ]
        assert means[0] < means[1] < means[2]


@pytest.mark.parametrize("path_steps", [4, None])
def test_progress_counts_every_path(make_problem: Make, path_steps: int | None) -> None:
    method, heard = SearchOverPaths(num_rounds=3, path_steps=path_steps), []
    method(make_problem(2, scheduler=PLAIN), lambda event, step, values: heard.append(event))
    assert heard.count("step") == (method.needs.steps or 20 * method.needs.chains) and heard.count("select") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rounds": -1}, "num_rounds=-1"), ({"path_steps": 0}, "path_steps=0"), ({"num_copies": 0}, "num_copies=0"),
        ({"start": 0.0}, "start=0.0"), ({"start": 1.0}, "start=1.0"), ({"back": 0.9}, "back=0.9"), ({"ahead": 0.78}, "ahead=0.78"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        SearchOverPaths(**options)
