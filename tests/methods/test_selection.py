"""Choosing among particles: against exact probabilities, and on a Gaussian against the exact tilted distribution."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from steps import step
from torch import Tensor

from guidedgen.basics.noise import Noise
from guidedgen.methods.best_of_n import BestOfN
from guidedgen.methods.clustering import kmeans
from guidedgen.methods.problem import Problem
from guidedgen.methods.selection import best, multinomial, pick, spread_over, take
from guidedgen.models.gaussian import GaussianMixture
from guidedgen.process.grid import NoiseSchedule
from guidedgen.process.schedulers import Ddpm

Make = Callable[..., Problem]
NAN, INF = float("nan"), float("inf")


def evenly(m: int, rows: int = 1) -> Tensor:
    """m numbers spread over [0, 1)."""
    return ((torch.arange(m, dtype=torch.float64) + 0.5) / m).repeat(rows, 1)


def frequencies(scores: list[float], temperature: float, m: int = 20_000) -> list[float]:
    drawn = multinomial(torch.tensor([scores], dtype=torch.float64), temperature, evenly(m))
    return (torch.bincount(drawn[0], minlength=len(scores)) / m).tolist()


# Multinomial selection


@pytest.mark.parametrize("temperature", [0.01, 0.3, 1.0, 50.0])
def test_every_particle_is_drawn_with_its_probability(temperature: float) -> None:
    """Evenly spread uniforms give each its share of them, to one in their number."""
    scores = [0.3, -1.2, 0.31, 0.0, 0.29, -0.1]
    exponentials = [math.exp((score - max(scores)) / temperature) for score in scores]
    exact = [e / sum(exponentials) for e in exponentials]
    assert frequencies(scores, temperature) == pytest.approx(exact, abs=1.01 / 20_000)


def test_draws_are_with_replacement_and_with_chance() -> None:
    """Chi-square of 30,000 draws of 3 streams each, which are independent, against the exact probabilities: 99.9 % bound."""
    draws, n = 10_000, 3
    scores = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64).expand(draws, n)
    uniform = torch.rand(draws, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = multinomial(scores, 0.7, uniform)
    p = (torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64) / 0.7).exp()
    p = p / p.sum()
    counts = torch.bincount(drawn.flatten(), minlength=3)
    assert float(((counts - 3 * draws * p) ** 2 / (3 * draws * p)).sum()) < 13.8  # 2 degrees of freedom
    pairs = torch.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9)
    exact = draws * torch.outer(p, p).flatten()
    assert float(((pairs - exact) ** 2 / exact).sum()) < 26.1  # 8 degrees of freedom


def test_samples_are_drawn_from_their_own_scores() -> None:
    scores = torch.tensor([[0.0, 1.0], [1.0, 0.0], [NAN, 0.0], [5.0, 5.0]], dtype=torch.float64)
    uniform = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.9]).repeat(4, 1)
    together = multinomial(scores, 1.0, uniform)
    assert together.shape == (4, 5)
    for b in range(4):
        assert torch.equal(together[b : b + 1], multinomial(scores[b : b + 1], 1.0, uniform[b : b + 1]))


def test_a_common_shift_of_the_scores_changes_nothing() -> None:
    scores = torch.tensor([[0.25, -1.0, 0.5, 0.125]], dtype=torch.float64)
    plain = multinomial(scores, 0.125, evenly(1000))
    for shift in (1024.0, -1024.0):
        assert torch.equal(multinomial(scores + shift, 0.125, evenly(1000)), plain)
    assert torch.equal(multinomial(8 * scores, 1.0, evenly(1000)), plain)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300, 5e-324])
def test_cold_selection_is_greedy(temperature: float) -> None:
    scores = torch.tensor([[800.0, -3.0, 900.0], [-1e30, 1e30, 0.0], [-5.0, -5.5, -7.0]], dtype=torch.float64)
    drawn = multinomial(scores, temperature, evenly(50, 3))
    assert torch.equal(drawn, best(scores).unsqueeze(1).expand(3, 50))


def test_hot_selection_is_uniform() -> None:
    assert frequencies([-1e6, 0.0, 1e6, 3.0], 1e300) == pytest.approx([0.25] * 4, abs=1e-4)
    assert frequencies([-7.0, 0.0, 3.0, 1.0], 1e12) == pytest.approx([0.25] * 4, abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "exact"),
    [
        ([0.0, NAN, 0.0], [0.5, 0.0, 0.5]),
        ([NAN, NAN, 2.0], [0.0, 0.0, 1.0]),
        ([NAN, NAN, NAN, NAN], [0.25] * 4),
        ([-INF, 1.0, 1.0], [0.0, 0.5, 0.5]),
        ([-INF, -INF], [0.5, 0.5]),
        ([INF, 1.0, 0.0], [1.0, 0.0, 0.0]),
        ([0.0, INF, INF, NAN], [0.0, 0.5, 0.5, 0.0]),
    ],
)
@pytest.mark.parametrize("temperature", [1e-300, 1.0])
def test_scores_that_are_no_numbers_or_not_finite(scores: list[float], exact: list[float], temperature: float) -> None:
    assert frequencies(scores, temperature) == pytest.approx(exact, abs=1e-4)


def test_the_ends_of_the_unit_interval() -> None:
    """0 draws the first that can be drawn, the number before 1 the last."""
    scores = torch.tensor([[NAN, 0.0, 1.0, -INF]], dtype=torch.float64)
    ends = torch.tensor([[0.0, 1 - 2**-53]], dtype=torch.float64)
    assert multinomial(scores, 1.0, ends).tolist() == [[1, 2]]
    for n in range(2, 60):  # shares do not add up to 1 exactly
        many = torch.zeros(1, n + 1, dtype=torch.float64)
        many[:, n] = NAN
        assert multinomial(many, 1.0, ends).tolist() == [[0, n - 1]]


def test_half_precision_scores_are_compared_in_double() -> None:
    scores = torch.tensor([[1.0, 1.0078125]], dtype=torch.bfloat16)
    exact = torch.tensor([[1.0, 1.0078125]], dtype=torch.float64)
    assert torch.equal(multinomial(scores, 0.01, evenly(1000)), multinomial(exact, 0.01, evenly(1000)))


# Greedy selection and indices


def test_best_breaks_ties_by_the_first_and_takes_infinity() -> None:
    assert best(torch.tensor([[1.0, 3.0, 3.0], [NAN, INF, 5.0], [-INF, NAN, -2.0]])).tolist() == [1, 1, 2]


def test_take_pick_and_spread_over() -> None:
    x = torch.arange(24.0).view(2, 3, 2, 2, 1)
    index = torch.tensor([[2, 2, 0, 1], [0, 1, 1, 1]])
    taken = take(x, index)
    assert taken.shape == (2, 4, 2, 2, 1)
    assert all(torch.equal(taken[b, k], x[b, index[b, k]]) for b in range(2) for k in range(4))
    assert torch.equal(pick(x, torch.tensor([1, 2])), torch.stack([x[0, 1:2], x[1, 2:3]]))
    assert torch.equal(spread_over(x, 2), x[:, :2])
    assert torch.equal(spread_over(x, 3), x)
    assert torch.equal(spread_over(x, 7), torch.cat([x, x, x[:, :1]], 1))


# Against the tilted distribution


class Quick(Noise):
    """Standard normal numbers, thousands of streams at a time."""

    def __init__(self, b: int, seed: int) -> None:
        self.b, self.numbers = b, torch.Generator().manual_seed(seed)

    def draw(self, particles: int, shape) -> Tensor:
        return torch.randn(self.b, particles, *shape, generator=self.numbers, dtype=torch.float64)


@pytest.fixture
def gaussian_samples(make_problem: Make) -> tuple[Tensor, float, float]:
    """4000 x 400 samples that a DDPM chain of 5 steps makes of a Gaussian, and the exact mean and variance of their coordinates."""
    gaussian = GaussianMixture(
        means=torch.full((1, 2, 1, 1), 0.6, dtype=torch.float64), std=0.8, weights=torch.ones(1, dtype=torch.float64)
    )
    scheduler, noise = Ddpm(num_steps=5), Quick(4000, 0)
    grid = scheduler.grid(NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear"))
    x, mean, variance = noise.draw(400, (2, 1, 1)), 0.0, 1.0
    for t, s in pairwise(grid):
        x = step(scheduler, x, gaussian(x, t).eps, t, s, noise.draw(400, (2, 1, 1)))
        zero, one = (
            step(scheduler, v, gaussian(v, t).eps, t, s, torch.zeros(1))
            for v in (torch.zeros_like(x[:1, :1]), torch.ones_like(x[:1, :1]))
        )
        slope, offset = float((one - zero)[0, 0, 0]), float(zero[0, 0, 0])  # the step is affine
        added = (s.sigma / t.sigma) ** 2 * (1 - (t.alpha / s.alpha) ** 2)
        mean, variance = slope * mean + offset, slope**2 * variance + added
    return x, mean, variance


def test_multinomial_selection_is_the_exact_tilted_distribution(gaussian_samples) -> None:
    """p(x) exp(a.x / tau) / Z of N(m, v) is N(m + v a / tau, v): one draw from each of 4000 sets of 400 samples. Mean and variance
    within 4.5 standard errors and the bias of a set of 400, which is exp(|a|^2 v / tau^2) / 400 of the shift."""
    x, mean, variance = gaussian_samples
    a, tau = torch.tensor([1.0, -0.5], dtype=torch.float64), 1.3
    assert abs(float(x.mean()) - mean) < 4.5 * (variance / x.numel()) ** 0.5
    scores = x.flatten(2) @ a
    uniform = torch.rand(4000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = take(x, multinomial(scores, tau, uniform))[:, 0].flatten(1)
    shift = variance * a / tau
    bias = math.exp(float(a @ a) * variance / tau**2) / 400 * shift.abs()
    assert ((drawn.mean(0) - (mean + shift)).abs() < 4.5 * (variance / 4000) ** 0.5 + bias).all()
    assert ((drawn.var(0) / variance - 1).abs() < 4.5 * (2 / 4000) ** 0.5 + 0.02).all()
    assert (shift.abs() > 10 * (variance / 4000) ** 0.5).all()  # there is something to miss


def test_greedy_selection_is_the_law_of_the_maximum(gaussian_samples) -> None:
    """The highest of N rewards has the distribution function Phi^N: Kolmogorov's distance of 4000, bound at 0.1 %."""
    x, mean, variance = gaussian_samples
    a = torch.tensor([1.0, -0.5], dtype=torch.float64)
    scores = x.flatten(2)[:, :6] @ a
    chosen = pick(x[:, :6], best(scores))[:, 0].flatten(1) @ a
    standard = (chosen - mean * float(a.sum())) / (variance * float(a @ a)) ** 0.5
    quantile = torch.special.ndtr(standard).pow(6).sort().values
    assert (quantile - evenly(4000)[0]).abs().max() < 1.95 / 4000**0.5


def test_best_of_n_by_its_own_chain_is_the_same_selection(make_problem: Make) -> None:
    problem = make_problem(2)
    x = problem.start(6)
    for t, s in pairwise(problem.grid):
        x = problem.step(x, problem.denoise(x, t), t, s)
    assert torch.equal(BestOfN(num_particles=6)(make_problem(2)), pick(x, x[:, :, 0, 0, 0].argmax(1))[:, 0])


# Clusters


def blobs(b: int, sizes: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """b samples of particles around far centres in a shuffled order, and each particle's centre."""
    numbers = torch.Generator().manual_seed(seed)
    owner = torch.tensor([blob for blob, size in enumerate(sizes) for _ in range(size)])
    owner = torch.stack([owner[torch.randperm(len(owner), generator=numbers)] for _ in range(b)])
    x = torch.randn(b, owner.shape[1], 2, 2, 2, generator=numbers, dtype=torch.float64) + 100.0 * owner[..., None, None, None]
    return x, owner


def test_clusters_of_far_blobs_are_the_blobs_and_their_means() -> None:
    x, blob = blobs(3, [4, 2, 1])
    means, owner = kmeans(x, 3, [0, 1, 2])
    assert means.shape == (3, 3, 2, 2, 2) and owner.shape == (3, 7)
    for b in range(3):
        assert torch.equal(owner[b, :, None] == owner[b], blob[b, :, None] == blob[b])  # the same partition
        for k in range(7):
            mine = [x[b, j] for j in range(7) if blob[b, j] == blob[b, k]]
            torch.testing.assert_close(means[b, owner[b, k]], sum(mine) / len(mine), rtol=1e-12, atol=1e-12)


def test_a_sample_s_clusters_are_its_own() -> None:
    x = torch.randn(3, 6, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means, owner = kmeans(x, 3, [5, 6, 7])
    for b in range(3):
        alone = kmeans(x[b : b + 1], 3, [5 + b])
        assert torch.equal(alone[0][0], means[b]) and torch.equal(alone[1][0], owner[b])


def test_as_many_clusters_as_particles_are_the_particles() -> None:
    x, _ = blobs(1, [1, 1, 1, 1])
    means, owner = kmeans(x, 4, [2**32 - 1])
    torch.testing.assert_close(take(means, owner), x, rtol=0, atol=0)
