"""Searches over noise: of whole chains, of paths, and of each step's noise."""

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods import Method
from guidedgen.methods.base import Base
from guidedgen.methods.best_of_n import BestOfN
from guidedgen.methods.demon import Demon
from guidedgen.methods.epsilon_greedy import EpsilonGreedy
from guidedgen.methods.evosearch import EvoSearch
from guidedgen.methods.problem import Problem
from guidedgen.methods.random_search import RandomSearch
from guidedgen.methods.rbf import Rbf
from guidedgen.methods.search_over_paths import SearchOverPaths
from guidedgen.methods.zero_order import ZeroOrder, neighbours
from guidedgen.process import Prediction
from guidedgen.process.formulas import renoise
from guidedgen.process.grid import FlowSchedule
from guidedgen.process.schedulers import Ddim, Ddpm, Flow

Make = Callable[..., Problem]
PLAIN, CLEAN, NOISY = Ddim(num_steps=20), Ddpm(num_steps=20), Ddim(num_steps=20, eta=1.0)
EVO = EvoSearch(population_sizes=(5, 4, 3), evolution_steps=(0.0, 0.5), num_elites=1)
RBF = Rbf(num_particles=2, num_starts=3, budget=100)
METHODS: dict[str, tuple[Method, Ddim | Ddpm]] = {
    "random_search": (RandomSearch(num_particles=3, num_rounds=2), CLEAN), "zero_order": (ZeroOrder(), PLAIN),
    "search_over_paths": (SearchOverPaths(), PLAIN), "evosearch": (EVO, NOISY), "demon": (Demon(num_candidates=6), NOISY),
    "epsilon_greedy": (EpsilonGreedy(num_rounds=2), NOISY), "rbf": (RBF, CLEAN),
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "scheduler"),
    [
        (RandomSearch(num_particles=1, num_rounds=1), CLEAN), (ZeroOrder(num_rounds=0), PLAIN), (Demon(num_candidates=1), NOISY),
        (EvoSearch(population_sizes=(1,), evolution_steps=()), NOISY), (EpsilonGreedy(num_rounds=0), NOISY),
        (Demon(num_candidates=5, window=(0.0, 0.0)), NOISY),
    ],
)  # fmt: skip
def test_the_null_setting_is_plain_sampling(make_problem: Make, method: Method, scheduler: Ddim) -> None:
    assert torch.equal(method(make_problem(scheduler=scheduler)), Base()(make_problem(scheduler=scheduler)))


def test_rbf_with_one_draw_a_step_is_plain_sampling(make_problem: Make) -> None:
    """Its picture is the look-ahead at the last point with noise, which is where a chain that ends clean steps to."""
    null = Rbf(num_particles=1, num_starts=1, budget=20, keep="last")(make_problem(scheduler=CLEAN))
    assert torch.allclose(null, Base()(make_problem(scheduler=CLEAN)), atol=1e-12, rtol=0)


def test_a_reward_that_is_always_the_same_leaves_demons_sample_unguided(make_problem: Make) -> None:
    for weights in ("tanh", "softmax"):
        made = Demon(num_candidates=5, weights=weights)(make_problem(scheduler=NOISY, reward=lambda rows: 0 * rows[:, 0, 0, 0]))
        assert torch.equal(made, Base()(make_problem(scheduler=NOISY)))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_costs(make_problem: Make, guidance_scale: float) -> None:
    b, pair = 2, 1 if guidance_scale == 1 else 2

    def spent(method: Method, scheduler: Ddim | Ddpm) -> tuple[float, float]:
        problem = make_problem(b, scheduler=scheduler, guidance_scale=guidance_scale)
        method(problem)
        assert not problem.denoise.backward
        return problem.denoise.rows / (b * pair), problem.reward.calls / b

    assert spent(RandomSearch(num_particles=3, num_rounds=4), CLEAN) == (20 * 12, 12)
    assert spent(RandomSearch(num_particles=3, num_rounds=3, doubling=True), CLEAN) == (20 * 21, 21)
    assert spent(ZeroOrder(num_neighbours=3, num_rounds=4), PLAIN) == (20 * 13, 13)
    assert spent(SearchOverPaths(num_particles=2, num_copies=3, num_rounds=4), PLAIN) == (4 * (2 + 4 * 6) - 0, 4 * 6)
    left = SearchOverPaths(num_particles=2, num_copies=3, num_rounds=1, start=0.5, back=0.2, ahead=0.4)
    assert spent(left, PLAIN) == (4 * (2 + 6) + 2 * 6, 6 + 2)
    assert spent(EVO, NOISY) == (5 * 20 + 4 * 20 + 3 * 10, 12)
    assert spent(Demon(num_candidates=6), NOISY) == (20 + 6 * 19, 6 * 20)
    assert spent(Demon(num_candidates=6), CLEAN) == (20 + 6 * 19, 6 * 19)
    assert spent(Demon(num_candidates=6, window=(1.0, 0.5)), NOISY) == (20 + 6 * 10, 6 * 10)
    assert spent(EpsilonGreedy(num_rounds=2, num_candidates=3), NOISY) == (20 + 19 * 6, 20 * 7)
    assert spent(EpsilonGreedy(num_rounds=2, num_candidates=3), CLEAN) == (20 + 19 * 6, 19 * 7)
    for budget in (60, 100, 300):
        assert spent(Rbf(num_particles=2, num_starts=3, budget=budget), CLEAN) == (budget, budget)
    assert spent(Rbf(num_particles=2, num_starts=3, budget=5), CLEAN) == (2 * (3 + 19), 2 * (3 + 19))


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_does_not_depend_on_its_batch(make_problem: Make, name: str) -> None:
    """Also where samples are at different points of the chain at the same time."""
    method, scheduler = METHODS[name]
    together, alone = method(make_problem(4, scheduler=scheduler)), make_problem(4, scheduler=scheduler).subset([2])
    assert torch.allclose(method(alone)[0], together[2], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_rewards_rise_also_where_they_have_no_gradient(make_problem: Make, name: str) -> None:
    method, scheduler = METHODS[name]
    reward = lambda rows: rows.detach()[:, 0, 0, 0].mul(4).round()  # noqa: E731
    gain = (
        method(make_problem(100, scheduler=scheduler, reward=reward))[:, 0] - Base()(make_problem(100, scheduler=scheduler))[:, 0]
    )
    assert gain.mean() > 0.3


@pytest.mark.parametrize("name", [name for name in METHODS if name != "demon"])  # whose noise is no candidate's
def test_a_score_that_is_not_a_number_never_wins(make_problem: Make, name: str) -> None:
    """Where only a few pictures have one, these are found more often than by plain sampling."""
    method, scheduler = METHODS[name]
    reward = lambda rows: torch.where(rows[:, 1, 0, 0] > -1.0, float("nan"), rows[:, 0, 0, 0])  # noqa: E731
    made = method(make_problem(60, scheduler=scheduler, reward=reward))
    assert made.isfinite().all()
    plain = Base()(make_problem(60, scheduler=scheduler))
    assert reward(made).isfinite().sum() >= reward(plain).isfinite().sum()


# Whole chains


def test_one_round_is_best_of_n(make_problem: Make) -> None:
    made = RandomSearch(num_particles=5, num_rounds=1)(make_problem())
    assert torch.equal(made, BestOfN(num_particles=5)(make_problem()))


def test_random_search_keeps_the_best_of_all_rounds(make_problem: Make) -> None:
    seen: list[Tensor] = []

    def observe(event: str, step: int, values) -> None:
        if event == "select":
            seen.append(values["scores"])

    made = RandomSearch(num_particles=2, num_rounds=3, doubling=True)(make_problem(), observe)
    assert [scores.shape for scores in seen] == [(3, 2), (3, 4), (3, 8)]
    assert torch.equal(made[:, 0, 0, 0], torch.cat(seen, 1).amax(1))


def test_neighbours_lie_on_the_pivots_sphere_at_the_angle_that_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    pivot = torch.randn(3, 1, 4, 8, 8, generator=generator, dtype=torch.float64)
    near = neighbours(pivot, torch.randn(3, 5, 4, 8, 8, generator=generator, dtype=torch.float64), 0.9)
    a, b = pivot.flatten(2), near.flatten(2)
    assert torch.allclose(b.norm(dim=2), a.norm(dim=2).expand(3, 5))
    assert torch.allclose((a * b).sum(2) / a.norm(dim=2) / b.norm(dim=2), torch.full((3, 5), 0.9, dtype=torch.float64))
    assert (near[:, 0] - near[:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("restart", [False, True])
def test_zero_order_equals_a_plain_loop(make_problem: Make, restart: bool) -> None:
    made = ZeroOrder(num_neighbours=2, num_rounds=5, similarity=0.8, restart=restart)(make_problem(2, scheduler=PLAIN))
    for b in range(2):
        problem = make_problem(2, scheduler=PLAIN)
        streams = [Noise([f"sample-{b}{fork}"], dtype=torch.float64) for fork in ("", "/neighbours", "/restart")]

        def picture(x: Tensor, problem: Problem = problem) -> Tensor:
            for t, s in pairwise(problem.grid):
                x = problem.scheduler.transition(x, problem.denoise(x, t), t, s)[0]
            return x

        pivot = streams[0].draw(1, problem.latent_shape)
        found = picture(pivot)
        level = float(found.flatten()[0])
        best = level
        for _ in range(5):
            near = neighbours(pivot, streams[1].draw(2, problem.latent_shape), 0.8).split(1, 1)
            pictures, other = [picture(x) for x in near], streams[2].draw(1, problem.latent_shape) if restart else None
            k = max(range(2), key=lambda k: float(pictures[k].flatten()[0]))
            reached = float(pictures[k].flatten()[0])
            if reached > best:
                best, found = reached, pictures[k]
            if reached > level:
                pivot, level = near[k], reached
            elif other is not None:
                pivot, level = other, -math.inf
        assert torch.allclose(made[b], found[0, 0], atol=1e-12)


def test_paths_equal_a_plain_loop(make_problem: Make) -> None:
    method = SearchOverPaths(num_particles=2, num_copies=3, num_rounds=2, start=0.5, back=0.3, ahead=0.5, path_steps=2)
    made = method(make_problem(1, scheduler=PLAIN))
    problem = make_problem(1, scheduler=PLAIN)
    grid, noise = problem.grid, Noise(["sample-0"], dtype=torch.float64)
    draws = noise.fork("paths")

    def path(x: Tensor, points: list[int]) -> tuple[Tensor, Tensor]:
        for i, j in pairwise(points):
            prediction = problem.denoise(x, grid[i])
            x = problem.scheduler.transition(x, prediction, grid[i], grid[j])[0]
        return x, prediction.x_0

    xs = [path(x, [0, 5, 10])[0] for x in noise.draw(2, problem.latent_shape).split(1, 1)]
    for low, high, points in ((10, 4, [4, 9, 14]), (14, 8, [8, 13, 18])):
        z = list(draws.draw(6, problem.latent_shape).split(1, 1))
        ends = [path(renoise(xs[k // 3], grid[low], grid[high], z[k]), points) for k in range(6)]
        order = sorted(range(6), key=lambda k: -float(ends[k][1].flatten()[0]))
        xs = [ends[k][0] for k in order[:2]]
    for t, s in pairwise(grid[18:]):
        xs = [problem.scheduler.transition(x, problem.denoise(x, t), t, s)[0] for x in xs]
    best = max(xs, key=lambda x: float(x.flatten()[0]))
    assert torch.allclose(made[0], best[0, 0], atol=1e-12)


def test_evosearch_breeds_from_the_states_that_chains_had(make_problem: Make) -> None:
    """Without mutation and with a sampler that draws next to nothing, children end where their parents did. The released code takes the
    breeding step twice, which ends elsewhere.
    """
    scheduler = Ddim(num_steps=20, eta=1e-6)
    seen: list[Tensor] = []

    def observe(event: str, step: int, values) -> None:
        if event == "select":
            seen.append(values["scores"])

    method = EvoSearch(population_sizes=(6, 6), evolution_steps=(0.5,), num_elites=2, tournament=1.0)
    method(make_problem(4, scheduler=scheduler), observe)
    best = seen[0].sort(1, descending=True).values
    assert torch.allclose(seen[1][:, :2], best[:, :2], atol=1e-4)  # the elites
    assert torch.allclose(seen[1][:, 2:], best[:, :1].expand(4, 4), atol=1e-3)  # of tournaments among all, the best wins


def test_evosearch_mutates_starting_noises_as_it_says(make_problem: Make) -> None:
    starts: list[Tensor] = []
    method = EvoSearch(population_sizes=(4, 400), evolution_steps=(0.0,), num_elites=1, mutation=0.3, tournament=1.0)
    problem = make_problem(1, scheduler=NOISY)
    watched = problem.denoise

    class Watching:
        guidance_scale = 1.0

        def __call__(self, x_t: Tensor, t, guidance_scale=None) -> Prediction:
            if t == problem.grid[0]:
                starts.append(x_t)
            return watched(x_t, t, guidance_scale)

    method(dataclasses.replace(problem, denoise=Watching()))
    parents, children = starts[0][0].flatten(1), starts[1][0].flatten(1)
    elite = (parents.unsqueeze(1) == children[0]).all(2).any(0)
    assert elite.all() or (children[:1] == parents).all(1).any()
    parent, away = children[0], children[1:] - math.sqrt(1 - 0.09) * children[0]
    assert away.mean(0).abs().max() < 4 * 0.3 / math.sqrt(399) and away.std() == pytest.approx(0.3, rel=0.1)
    assert parent.shape == (2,)


# Each step's noise


@pytest.mark.parametrize("weights", ["tanh", "softmax"])
def test_demon_equals_a_plain_loop(make_problem: Make, weights: str) -> None:
    k = 4
    made = Demon(num_candidates=k, weights=weights, temperature=0.4)(make_problem(2, scheduler=NOISY))
    for b in range(2):
        problem = make_problem(2, scheduler=NOISY)
        noise = Noise([f"sample-{b}"], dtype=torch.float64)
        x = noise.draw(1, problem.latent_shape)
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            mean, std = problem.scheduler.transition(x, problem.denoise(x, t), t, s)
            zs = list(noise.draw(k, problem.latent_shape).split(1, 1))
            ends = [mean + std * z for z in zs]
            looks = [end if i == 19 else problem.denoise(end, s).x_0 for end in ends]
            rewards = [float(look.flatten()[0]) for look in looks]
            average = sum(rewards) / k
            if weights == "tanh":
                w = [math.tanh((reward - average) / 0.4) for reward in rewards]
            else:
                w = [math.exp((reward - average) / 0.4) for reward in rewards]
            total = sum(a * z for a, z in zip(w, zs, strict=True))
            x = mean + std * math.sqrt(2) * total / total.norm()
        assert torch.allclose(made[b], x[0, 0], atol=1e-9)


def test_demons_noise_has_the_length_of_a_noise() -> None:
    noises = torch.randn(3, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    for weights in ("tanh", "softmax"):
        mixed = Demon(weights=weights)._combined(noises, scores)
        assert torch.allclose(mixed.flatten(1).norm(dim=1), torch.full((3,), 16.0, dtype=torch.float64))
        shifted = Demon(weights=weights)._combined(noises, 100 * scores - 7)
        assert torch.allclose(shifted, mixed, atol=1e-5)  # tau is the rewards' own deviation


def test_candidates_without_a_score_have_no_weight() -> None:
    noises = torch.randn(1, 6, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = torch.tensor([[1.0, float("nan"), 3.0, -1.0, float("inf"), 0.5]])
    for weights in ("tanh", "softmax"):
        some = Demon(weights=weights)._combined(noises[:, [0, 2, 3, 5]], scores[:, [0, 2, 3, 5]])
        assert torch.allclose(Demon(weights=weights)._combined(noises, scores), some)


def test_the_pivot_never_moves_to_a_worse_noise(make_problem: Make) -> None:
    """The reward of what is held never falls within a step; the released code's pivot does."""
    held: list[float] = []
    problem = make_problem(1, scheduler=NOISY)
    method = EpsilonGreedy(num_rounds=6, num_candidates=2)
    better = EpsilonGreedy._better

    class Watching(EpsilonGreedy):
        def _better(self, problem: Problem, mean: Tensor, std: float, noises: Tensor, s, before):
            after = better(self, problem, mean, std, noises, s, before)
            held.append(float(after[3]) - float(before[3]))
            return after

    watching = Watching(num_rounds=6, num_candidates=2)
    assert torch.equal(watching(problem), method(make_problem(1, scheduler=NOISY)))
    assert min(held) == 0 < max(held) and len(held) == 20 * 6


def test_more_rounds_reach_higher_rewards(make_problem: Make) -> None:
    means = [EpsilonGreedy(num_rounds=n)(make_problem(60, scheduler=NOISY))[:, 0].mean() for n in (0, 1, 5)]
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize("budget", [40, 120])
def test_rbf_equals_a_plain_loop(make_problem: Make, budget: int) -> None:
    """One sample at a time, by the rules of Algorithm 1."""
    made = Rbf(num_particles=1, num_starts=4, budget=budget)(make_problem(3, scheduler=CLEAN))
    for b in range(3):
        problem = make_problem(3, scheduler=CLEAN)
        noise = Noise([f"sample-{b}"], dtype=torch.float64)
        look = lambda x, point, problem=problem: problem.denoise(x, problem.grid[point]).x_0  # noqa: E731
        value = lambda x_0: float(x_0.flatten()[0])  # noqa: E731
        starts = noise.draw(4, problem.latent_shape).split(1, 1)
        x = max(starts, key=lambda x: value(look(x, 0)))
        best, spent, share = look(x, 0), 4, max(1, (budget - 4) // 20)
        quota = share
        for point in range(18):
            here, used = [], 0
            while True:
                t, s = problem.grid[point], problem.grid[point + 1]
                mean, std = problem.scheduler.transition(x, problem.denoise(x, t), t, s)
                drawn = mean + std * noise.draw(1, problem.latent_shape)
                ahead, spent, used = look(drawn, point + 1), spent + 1, used + 1
                here.append((value(ahead), drawn))
                if value(ahead) > value(best):
                    best, x, quota = ahead, drawn, share + quota - used
                    break
                if used >= quota:
                    x, quota = max(here, key=lambda pair: pair[0])[1], share
                    break
        first = True
        while first or spent < budget:
            t, s = problem.grid[18], problem.grid[19]
            mean, std = problem.scheduler.transition(x, problem.denoise(x, t), t, s)
            ahead, spent, first = look(mean + std * noise.draw(1, problem.latent_shape), 19), spent + 1, False
            best = max(best, ahead, key=value)
        assert torch.allclose(made[b], best[0, 0], atol=1e-10)


def test_rbf_keeps_the_best_that_it_has_seen(make_problem: Make) -> None:
    """The released code forgets better estimates of earlier steps; here they are nearer to the middle, which is rewarded."""
    reward = lambda rows: -rows.square().sum((1, 2, 3))  # noqa: E731
    best, last = (
        reward(Rbf(num_particles=1, num_starts=4, budget=80, keep=keep)(make_problem(50, scheduler=CLEAN, reward=reward)))
        for keep in ("best", "last")
    )
    assert (best >= last).all() and (best > last).double().mean() > 0.5


def test_searches_run_on_a_flow_that_begins_at_noise_alone(make_problem: Make) -> None:
    for name, (method, scheduler) in METHODS.items():
        stochastic = scheduler is not PLAIN
        flow = Flow(num_steps=10, eta=1.0 if stochastic else 0.0)
        schedule = FlowSchedule(shift=3.0)
        problem = dataclasses.replace(
            make_problem(20, scheduler=CLEAN), scheduler=flow, grid=flow.grid(schedule), schedule=schedule, num_steps=10
        )
        plain = dataclasses.replace(problem, noise=Noise([f"sample-{i}" for i in range(20)], dtype=torch.float64))
        assert method(problem)[:, 0].mean() > Base()(plain)[:, 0].mean(), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomSearch(num_rounds=0), "num_rounds=0"), (lambda: ZeroOrder(similarity=1.0), "similarity=1.0"),
        (lambda: ZeroOrder(num_neighbours=0), "num_neighbours=0"), (lambda: SearchOverPaths(ahead=0.5), "ahead=0.5"),
        (lambda: SearchOverPaths(start=0.5), "back=0.78"), (lambda: EvoSearch(population_sizes=[4]), "evolution_steps"),
        (lambda: EvoSearch(population_sizes=[4, 0], evolution_steps=[0.5]), "population_sizes"),
        (lambda: EvoSearch(evolution_steps=[0.5, 0.4, 0.6, 0.8]), "evolution_steps"), (lambda: Demon(num_candidates=0), "num_candidates=0"),
        (lambda: Demon(temperature=0.0), "temperature=0.0"), (lambda: EpsilonGreedy(epsilon=2.0), "epsilon=2.0"),
        (lambda: EpsilonGreedy(radius=0.0), "radius=0.0"), (lambda: Rbf(budget=0), "budget=0"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(make: Callable[[], Method], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        make()
