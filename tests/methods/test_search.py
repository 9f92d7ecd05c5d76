"""Base, best-of-N and CoDe against plain loops, exact distributions and their stated costs."""

import math
from collections.abc import Callable

import pytest
import torch
from steps import ddpm_step
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods.base import Base
from guidedgen.methods.best_of_n import BestOfN
from guidedgen.methods.code import Code
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, pick
from guidedgen.process.formulas import x0_from_eps
from guidedgen.process.schedulers import Ddim, Ddpm

Make = Callable[..., Problem]


def test_base_is_the_scheduler_s_chain(make_problem: Make, mixture) -> None:
    problem = make_problem(2)
    noise = Noise(["sample-0", "sample-1"], dtype=torch.float64)
    x = noise.draw(1, problem.latent_shape)
    for t, s in zip(problem.grid, problem.grid[1:], strict=False):
        x = ddpm_step(x, mixture(x, t).eps, t, s, noise=noise.draw(1, problem.latent_shape))
    torch.testing.assert_close(Base()(problem), x[:, 0], rtol=0, atol=1e-12)
    assert problem.denoise.rows == 2 * 20


@pytest.mark.parametrize("method", [BestOfN(num_particles=1), Code(num_particles=1), Code(num_particles=1, block_size=1)])
def test_the_null_setting_is_the_unguided_sample(make_problem: Make, method) -> None:
    assert torch.allclose(method(make_problem()), Base()(make_problem()), atol=1e-12, rtol=0)


def test_best_of_n_returns_the_best_of_n_independent_samples(make_problem: Make) -> None:
    n = 5
    chosen = BestOfN(num_particles=n)(make_problem())
    everything = []
    for particle in range(n):
        problem = make_problem()
        noise = problem.noise

        class One(Noise):
            def draw(self, particles: int, shape, noise=noise, particle=particle) -> Tensor:
                return noise.draw(particle + 1, shape)[:, particle:]

        object.__setattr__(problem, "noise", One([]))
        everything.append(Base()(problem))
    samples = torch.stack(everything, 1)
    expected = samples[torch.arange(3), samples[:, :, 0, 0, 0].argmax(1)]
    assert torch.allclose(chosen, expected, atol=1e-12, rtol=0)


def test_best_of_n_follows_the_law_of_the_maximum(make_problem: Make) -> None:
    """The reward's distribution function at the best of N is that of the base to the power N."""
    base = Base()(make_problem(3000, prefix="base"))[:, 0, 0, 0].sort().values
    chosen = BestOfN(num_particles=4)(make_problem(1000, prefix="other"))[:, 0, 0, 0]
    quantile = torch.searchsorted(base, chosen.contiguous()) / len(base)
    distance = (quantile.pow(4).sort().values - (torch.arange(1000) + 0.5) / 1000).abs().max()  # uniform if the law holds
    assert distance < 1.95 * math.sqrt(1 / 1000 + 4**2 / 3000)  # Kolmogorov's bound at 0.1 %, both samplings' errors


def plain_code(problem: Problem, n: int, block: int, *, shared: bool) -> Tensor:
    """CoDe as Algorithm 6 of the thesis reads, one stream and one network call at a time, nothing reused."""
    results = []
    for b in range(len(problem)):
        noise = Noise([f"sample-{b}"], dtype=torch.float64)
        start = noise.draw(1 if shared else n, problem.latent_shape)
        streams = [start[:, :1] if shared else start[:, k : k + 1] for k in range(n)]
        for i, (t, s) in enumerate(zip(problem.grid, problem.grid[1:], strict=False)):
            draws = noise.draw(n, problem.latent_shape)
            streams = [ddpm_step(x, problem.denoise(x, t).eps, t, s, noise=draws[:, k : k + 1]) for k, x in enumerate(streams)]
            last = i == len(problem.grid) - 2
            if (i + 1) % block == 0 or last:
                looks = streams if last else [x0_from_eps(x, problem.denoise(x, s).eps, s) for x in streams]
                winner = max(range(n), key=lambda k: float(looks[k][0, 0, 0, 0, 0]))
                streams = [streams[winner]] * n
        results.append(streams[0][:, 0])
    return torch.cat(results)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("block", [1, 3, 5, 20, 50])
def test_code_equals_the_algorithm_box(make_problem: Make, block: int, shared: bool) -> None:
    chosen = Code(num_particles=3, block_size=block, shared_start=shared)(make_problem())
    assert torch.allclose(chosen, plain_code(make_problem(), 3, block, shared=shared), atol=1e-10, rtol=0)


@pytest.mark.parametrize("block", [1, 4, 5, 7, 20])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_code_costs_what_it_says(make_problem: Make, n: int, block: int) -> None:
    """2N(T-1) + 2 rows with one x_T and 2NT with independent ones, guidance pairs being two; N ceil(T/B) reward calls."""
    b, steps = 3, 20
    problem = make_problem(b)
    Code(num_particles=n, block_size=block)(problem)
    assert 2 * problem.denoise.rows == b * (2 * n * (steps - 1) + 2)
    assert problem.reward.calls == b * n * math.ceil(steps / block)
    problem = make_problem(b)
    Code(num_particles=n, block_size=block, shared_start=False)(problem)
    assert 2 * problem.denoise.rows == b * 2 * n * steps


def test_best_of_n_costs_what_it_says(make_problem: Make) -> None:
    problem = make_problem(2)
    BestOfN(num_particles=7)(problem)
    assert problem.denoise.rows == 2 * 7 * 20


def test_code_with_one_block_and_independent_starts_is_best_of_n(make_problem: Make) -> None:
    code = Code(num_particles=4, block_size=20, shared_start=False)(make_problem())
    assert torch.allclose(code, BestOfN(num_particles=4)(make_problem()), atol=1e-12, rtol=0)


def test_code_does_not_care_for_the_rewards_scale(make_problem: Make) -> None:
    plain = Code(num_particles=4)(make_problem())
    scaled = Code(num_particles=4)(make_problem(reward=lambda rows: 1000 * rows[:, 0, 0, 0] - 7))
    assert torch.equal(plain, scaled)


def test_shorter_blocks_reach_higher_rewards(make_problem: Make) -> None:
    """More selections, stronger control: the order of the paper's ablation, on 400 samples."""
    means = [Code(num_particles=4, block_size=b)(make_problem(400))[:, 0].mean() for b in (1, 5, 20)]
    assert means[0] > means[1] > means[2] > Base()(make_problem(400))[:, 0].mean() + 0.2


def test_a_sample_does_not_depend_on_its_batch(make_problem: Make) -> None:
    together = Code(num_particles=3)(make_problem(3))
    alone = make_problem(1, prefix="other")
    object.__setattr__(alone, "noise", Noise(["sample-2"], dtype=torch.float64))
    assert torch.allclose(Code(num_particles=3)(alone)[0], together[2], atol=1e-12, rtol=0)


def test_the_extra_draw_changes_the_noise_and_nothing_else(make_problem: Make) -> None:
    """With one block there is no look-ahead before the end, so no draw is lost; with several the samples differ."""
    assert torch.equal(
        Code(num_particles=3, block_size=20, extra_draw=True)(make_problem()), Code(num_particles=3, block_size=20)(make_problem())
    )
    assert not torch.equal(Code(num_particles=3, extra_draw=True)(make_problem()), Code(num_particles=3)(make_problem()))


def test_deterministic_chains_need_no_noise(make_problem: Make) -> None:
    ddim = Ddim(num_steps=10)
    assert torch.equal(Base()(make_problem(scheduler=ddim)), Base()(make_problem(scheduler=ddim)))
    stochastic = Base()(make_problem(scheduler=Ddpm(num_steps=10)))
    assert not torch.equal(Base()(make_problem(scheduler=ddim)), stochastic)


def test_a_score_that_is_not_a_number_never_wins() -> None:
    scores = torch.tensor([[1.0, float("nan"), 0.5], [float("nan"), -3.0, float("-inf")], [float("nan")] * 3])
    assert best(scores).tolist()[:2] == [0, 1]
    x = torch.arange(9.0).view(3, 3, 1, 1, 1)
    assert pick(x, torch.tensor([2, 0, 1])).flatten().tolist() == [2, 3, 7]


@pytest.mark.parametrize(("cls", "name"), [(BestOfN, "num_particles"), (Code, "num_particles"), (Code, "block_size")])
def test_counts_below_one_are_refused(cls, name: str) -> None:
    with pytest.raises(BadValue, match=f"{name}=0"):
        cls(**{name: 0})


def test_observers_hear_every_step_and_selection(make_problem: Make) -> None:
    heard: list[tuple[str, int]] = []
    shapes = set()

    def observe(event: str, step: int, values) -> None:
        heard.append((event, step))
        if "scores" in values:
            shapes.add(tuple(values["scores"].shape))

    Code(num_particles=4, block_size=6)(make_problem(), observe)
    assert [step for event, step in heard if event == "step"] == list(range(20))
    assert [step for event, step in heard if event == "select"] == [5, 11, 17, 19]
    assert shapes == {(3, 4)}
