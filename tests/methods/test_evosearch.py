"""EvoSearch beyond what tests/methods/test_noise_search.py says: the whole algorithm as a plain loop, short chains, the released fault."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods.base import Base
from guidedgen.methods.evosearch import EvoSearch
from guidedgen.methods.problem import Problem
from guidedgen.models.gaussian import GaussianMixture
from guidedgen.process.grid import FlowSchedule
from guidedgen.process.schedulers import Ddim, Flow, Lcm

Make = Callable[..., Problem]
NOISY = Ddim(num_steps=20, eta=1.0)


def reward(x: Tensor) -> float:
    return float(x.flatten()[0])


def plain_evosearch(
    problem: Problem, b: int, sizes: list[int], steps: list[int], elites: int, mutation: float, part: float
) -> Tensor:
    """One chain at a time, every chain as the list of all of its states, of which the cached ones are looked up."""
    noise, grid = Noise([f"sample-{b}"], dtype=torch.float64), problem.grid
    mutations, tournaments = noise.fork("mutation"), noise.fork("tournament")
    end = len(grid) - 1

    def run(starts: list[Tensor], first: int) -> list[dict[int, Tensor]]:
        chains = [{first: x} for x in starts]
        for i in range(first, end):
            draws = noise.draw(len(chains), problem.latent_shape)
            for k, chain in enumerate(chains):
                mean, std = problem.scheduler.transition(chain[i], problem.denoise(chain[i], grid[i]), grid[i], grid[i + 1])
                chain[i + 1] = mean + std * draws[:, k : k + 1]
        return chains

    population = run(list(noise.draw(sizes[0], problem.latent_shape).split(1, 1)), 0)
    for size, step in zip(sizes[1:], steps, strict=True):
        rank = sorted(range(len(population)), key=lambda k: -reward(population[k][end]))
        starts = [population[k][step] for k in rank[:elites]]
        winners = []
        for _ in range(size - elites):
            order = tournaments.uniform(len(population)).argsort(1)[0].tolist()[: int(len(population) * part)]
            winners.append(max(order, key=lambda k: reward(population[k][end])))
        z = mutations.draw(size - elites, problem.latent_shape)
        for k, winner in enumerate(winners):
            parent = population[winner][step]
            if step == 0:
                starts.append(math.sqrt(1 - mutation**2) * parent + mutation * z[:, k : k + 1])
            else:
                t, s = grid[step - 1], grid[step]
                starts.append(parent + s.sigma / t.sigma * math.sqrt(1 - (t.alpha / s.alpha) ** 2) * z[:, k : k + 1])
        population += run(starts, step)
    return max((chain[end] for chain in population), key=reward)


@pytest.mark.parametrize(
    ("sizes", "shares", "elites"), [((5, 4, 3), (0.0, 0.5), 1), ((4, 4, 5, 3), (0.1, 0.5, 0.8), 2), ((3, 3, 3), (0.4, 0.4), 0)]
)
def test_it_equals_a_plain_loop(make_problem: Make, sizes: tuple[int, ...], shares: tuple[float, ...], elites: int) -> None:
    method = EvoSearch(population_sizes=sizes, evolution_steps=shares, num_elites=elites, tournament=0.6)
    made = method(make_problem(2, scheduler=NOISY))
    for b in range(2):
        steps = [round(20 * share) for share in shares]
        expected = plain_evosearch(make_problem(2, scheduler=NOISY), b, list(sizes), steps, elites, 0.2, 0.6)
        assert torch.allclose(made[b], expected[0, 0], atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_chains_of_few_steps_are_bred_at_their_last_step_at_the_latest(make_problem: Make, steps: int) -> None:
    """With the published shares, of which the last would be the end of a chain of one or two steps."""
    method = EvoSearch(population_sizes=(4, 3, 3, 3, 3))
    flow, schedule = Flow(num_steps=steps, eta=1.0), FlowSchedule(shift=3.0)
    problems = [make_problem(5, scheduler=scheduler) for scheduler in (Ddim(num_steps=steps, eta=1.0), Lcm(num_steps=steps))]
    problems.append(
        dataclasses.replace(make_problem(5), scheduler=flow, grid=flow.grid(schedule), schedule=schedule, num_steps=steps)
    )
    firsts = [min(round(share * steps), steps - 1) for share in (0.0, 0.4, 0.6, 0.8)]
    for problem in problems:
        made = method(problem)
        assert made.isfinite().all() and problem.reward.calls == 5 * 16
        assert problem.denoise.rows == 5 * (4 * steps + sum(3 * (steps - first) for first in firsts))


def test_the_published_schedule_costs_best_of_100(make_problem: Make) -> None:
    problem = make_problem(1, scheduler=Ddim(num_steps=50, eta=1.0))
    EvoSearch()(problem)
    assert problem.denoise.rows == 100 * 50 and problem.reward.calls == 150


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_more_generations_are_never_worse(make_problem: Make, guidance_scale: float) -> None:
    """The first generation holds the unguided picture, and the best of all is kept."""
    make = lambda: make_problem(40, scheduler=NOISY, guidance_scale=guidance_scale)  # noqa: E731
    before = Base()(make())[:, 0]
    for sizes, shares in (((3,), ()), ((3, 4), (0.0,)), ((3, 4, 4), (0.0, 0.5))):
        after = EvoSearch(population_sizes=sizes, evolution_steps=shares, num_elites=1)(make())[:, 0]
        assert (after >= before).all() and after.mean() > before.mean()
        before = after


@pytest.mark.parametrize(("step", "least", "most"), [(0, 0.9999, 1.0), (20, 0.999, 0.9999), (30, 0.995, 0.998), (40, 0.98, 0.99)])
def test_a_step_that_is_taken_twice_shrinks_the_law_a_little(make_problem: Make, step: int, least: float, most: float) -> None:
    """The released code's fault at its breeding steps, in numbers. Of a Gaussian with mean 0 each step multiplies the variance by a^2
    and adds that of its noise: the deviation at the end, with this step twice, against what it should be.
    """
    problem = make_problem(1, scheduler=Ddim(num_steps=50, eta=1.0, spacing="trailing", offset=0, end="clean"))
    normal = GaussianMixture(
        means=torch.zeros(1, 1, 1, 1, dtype=torch.float64), std=0.5, weights=torch.ones(1, dtype=torch.float64)
    )
    one = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)

    def variance(steps: list[int]) -> float:
        v = 1.0
        for i in steps:
            t, s = problem.grid[i], problem.grid[i + 1]
            a, std = problem.scheduler.transition(one, normal(one, t), t, s)
            v = float(a) ** 2 * v + std**2
        return v

    every = list(range(50))
    shrunk = math.sqrt(variance(every[: step + 1] + every[step:]) / variance(every))
    assert least < shrunk < most


def test_progress_counts_every_generation(make_problem: Make) -> None:
    method, heard = EvoSearch(population_sizes=(4, 3, 3), evolution_steps=(0.0, 0.5), num_elites=1), []
    method(make_problem(2, scheduler=NOISY), lambda event, step, values: heard.append(event))
    assert heard.count("step") == 20 * method.needs.chains and heard.count("select") == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mutation": 0.0}, "mutation=0.0"), ({"tournament": 1.5}, "tournament=1.5"), ({"num_elites": -1}, "num_elites=-1"),
        ({"population_sizes": []}, "population_sizes"), ({"evolution_steps": (0.0, 0.4, 0.6, 1.0)}, "evolution_steps"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        EvoSearch(**options)
