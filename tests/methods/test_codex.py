"""CoDeX against Algorithms 1 to 3 as plain loops, closed forms on a Gaussian, its null settings and its stated costs."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from nonlinear import W, by_task, decode, nonlinear, rated
from steps import ddpm_step
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise, stream
from guidedgen.methods.base import Base
from guidedgen.methods.best_of_n import BestOfN
from guidedgen.methods.code import Code
from guidedgen.methods.codex import Codex
from guidedgen.methods.problem import Problem
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.grid import Point, tail
from guidedgen.process.schedulers import Ddpm

Make = Callable[..., Problem]
rated_at_full_size = rated


# Algorithms 1 to 3, one stream and one network call at a time, nothing reused, every gradient by autograd on its own


def predicted(problem: Problem, x: Tensor, t: Point) -> tuple[Tensor, Tensor]:
    """The noise prediction of one latent (1 1 c h w), and the correction w (c - u)."""
    u, c = problem.denoise.denoiser.uncond(x, t).eps, problem.denoise.denoiser.cond(x, t).eps
    return u + W * (c - u), W * (c - u)


def value(problem: Problem, x_0: Tensor) -> Tensor:
    return rated(problem.decode(x_0[0]))[0]


def plain_gradient(problem: Problem, z: Tensor, s: Point, o: Codex, directions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """GRAD, Algorithm 2, or Eq. 13; and the correction."""
    constant, correction = predicted(problem, z, s)
    if directions:
        total = torch.zeros_like(z)
        for e in directions:
            ahead, behind = (value(problem, (z + k * o.zero_order_sigma * e - s.sigma * constant) / s.alpha) for k in (1, -1))
            total += (ahead - behind) * e / (2 * o.zero_order_sigma)
        return total / len(directions), correction
    leaf = z.clone().requires_grad_()
    eps = predicted(problem, leaf, s)[0] if o.through == "unet" else constant
    (gradient,) = torch.autograd.grad(value(problem, (leaf - s.sigma * eps) / s.alpha), leaf)
    return gradient, correction


def clusters(streams: list[Tensor], numbers: np.random.Generator) -> tuple[list[Tensor], list[int]]:
    from sklearn.cluster import KMeans

    k = len(streams) // 2
    rows = np.stack([x.flatten().numpy() for x in streams])
    labels = KMeans(n_clusters=k, n_init=10, random_state=int(numbers.random() * 2**32)).fit_predict(rows).tolist()
    members = [[x for x, label in zip(streams, labels, strict=True) if label == j] for j in range(k)]
    return [sum(group) / len(group) for group in members], labels


def sampled(rewards: list[float], tau: float | None, uniforms: list[float]) -> list[int]:
    """Algorithm 3: who goes on; the best alone where there is no temperature."""
    if tau is None:
        return [max(range(len(rewards)), key=lambda k: rewards[k])] * len(rewards)
    weights = [math.exp((r - max(rewards)) / tau) for r in rewards]
    upto = [sum(weights[: k + 1]) / sum(weights) for k in range(len(weights))]
    return [next(k for k, bound in enumerate(upto) if bound > u) for u in uniforms]


def plain_codex(problem: Problem, b: int, o: Codex) -> Tensor:
    """Sample b, window and block rules as in the released code (i counts steps, t is a trained time)."""
    key, steps, shape = f"sample-{b}", len(problem.grid) - 1, problem.latent_shape
    noise, directions = (Noise([name], dtype=torch.float64) for name in (key, f"{key}/zero-order"))
    choosing, grouping = [stream(f"{key}/select", k) for k in range(20)], stream(f"{key}/cluster", 0)
    counts = [o.num_particles] if isinstance(o.num_particles, int) else o.num_particles
    n = counts[0]
    start = noise.draw(1 if o.shared_start else n, shape)
    streams = [start[:, :1] if o.shared_start else start[:, k : k + 1] for k in range(n)]
    for i, (t, s) in enumerate(pairwise(problem.grid)):
        if i % o.block_size == 0:
            n = next(count for j, count in enumerate(counts) if i < (j + 1) * steps / len(counts))
            streams = [streams[k % len(streams)] for k in range(n)]
        draws, last = noise.draw(n, shape), i == steps - 1
        streams = [ddpm_step(x, predicted(problem, x, t)[0], t, s, noise=draws[:, k : k + 1]) for k, x in enumerate(streams)]
        due = o.strength and (i + 1) % o.gradient_block_size == 0 and 1000 * o.window[1] <= t.t <= 1000 * o.window[0] and not last

        def moved(z: Tensor, drawn: Sequence[Tensor]) -> Tensor:
            gradient, correction = plain_gradient(problem, z, s, o, drawn)  # noqa: B023
            scale = o.strength
            if o.rescale:
                scale *= float((correction**2).mean() ** 0.5 / ((gradient**2).mean() ** 0.5 + 1e-8))  # Eq. A.1, and the code
                scale = scale if o.max_scale is None else min(scale, o.max_scale)
            return scale * gradient

        if due and (o.guide == "all" or n == 1):
            points, owner = clusters(streams, grouping) if o.cluster and n >= 4 else (streams, range(n))
            drawn = [directions.draw(len(points), shape) for _ in range(o.zero_order_samples)]
            moves = [moved(z, [e[:, k : k + 1] for e in drawn]) for k, z in enumerate(points)]
            streams = [x + moves[k] for x, k in zip(streams, owner, strict=True)]
        if n > 1 and ((i + 1) % o.block_size == 0 or last):
            looks = [x if last else (x - s.sigma * predicted(problem, x, s)[0]) / s.alpha for x in streams]
            final = o.temperature if o.final_temperature is None else o.final_temperature
            tau = None if o.selection == "greedy" or last else o.temperature * (final / o.temperature) ** (i / (steps - 1))
            uniforms = [choosing[k].random() for k in range(n)] if tau is not None else []
            streams = [streams[k] for k in sampled([float(value(problem, x)) for x in looks], tau, uniforms)]
            if due and o.guide == "selected":
                drawn = [directions.draw(1, shape) for _ in range(o.zero_order_samples)]
                streams = [streams[0] + moved(streams[0], drawn)] * n
    return streams[0][0, 0]


BOXES = {
    "thesis": {},
    "released code": {"through": "decoder", "shared_start": True, "max_scale": 0.05, "window": (0.6, 0.0)},
    "unet, shared": {"shared_start": True, "block_size": 3, "gradient_block_size": 2},
    "decoder, independent": {"through": "decoder", "block_size": 4, "gradient_block_size": 1, "window": (0.8, 0.3)},
    "gradient oftener": {"block_size": 7, "gradient_block_size": 2, "num_particles": 3},
    "the selected alone": {"guide": "selected", "block_size": 2, "gradient_block_size": 2},
    "the selected, seldom": {
        "guide": "selected",
        "block_size": 2,
        "gradient_block_size": 4,
        "through": "decoder",
        "shared_start": True,
    },
    "one stream, selected": {"guide": "selected", "num_particles": 1, "block_size": 2, "gradient_block_size": 2},
    "one gradient": {"gradient_block_size": 1, "window": (0.5, 0.45)},
    "no rescaling": {"rescale": False, "strength": 0.05, "gradient_block_size": 2},
    "cap": {"max_scale": 0.3, "strength": 0.5, "gradient_block_size": 2},
    "one stream": {"num_particles": 1, "gradient_block_size": 2},
    "one block": {"block_size": 50, "gradient_block_size": 3},
    "block of 1": {"block_size": 1, "num_particles": 2},
    "multinomial": {"selection": "multinomial", "temperature": 0.3, "block_size": 3},
    "multinomial, shared": {"selection": "multinomial", "temperature": 1.0, "shared_start": True, "through": "decoder"},
    "cold multinomial": {"selection": "multinomial", "temperature": 0.001},
    "falling temperature": {"selection": "multinomial", "temperature": 10.0, "final_temperature": 0.01, "block_size": 2},
    "schedule": {"num_particles": [2, 4, 6, 3], "block_size": 1, "gradient_block_size": 2},
    "schedule, multinomial": {"num_particles": [5, 2, 3, 1, 4], "selection": "multinomial", "temperature": 1.0, "block_size": 2},
    "schedule, blocks across": {"num_particles": [2, 7, 3], "selection": "multinomial", "temperature": 1.0, "block_size": 3},
    "schedule, shared": {"num_particles": [1, 3, 2], "shared_start": True},
    "clusters": {"num_particles": 6, "cluster": True, "gradient_block_size": 2},
    "clusters, decoder": {
        "num_particles": 5,
        "cluster": True,
        "through": "decoder",
        "selection": "multinomial",
        "temperature": 1.0,
    },
    "zero-order": {"zero_order_samples": 3, "zero_order_sigma": 0.5, "gradient_block_size": 2},
    "zero-order, no rescaling": {"zero_order_samples": 1, "rescale": False, "strength": 0.05, "num_particles": 2},
    "zero-order, clusters": {
        "num_particles": [4, 3],
        "zero_order_samples": 2,
        "cluster": True,
        "block_size": 2,
        "gradient_block_size": 2,
    },
}


@pytest.mark.parametrize("name", BOXES)
def test_codex_equals_the_algorithm_boxes(make_problem: Make, name: str) -> None:
    codex = Codex(**BOXES[name])
    made = codex(nonlinear(make_problem))
    plain = torch.stack([plain_codex(nonlinear(make_problem), b, codex) for b in range(2)])
    torch.testing.assert_close(made, plain, rtol=0, atol=1e-8)
    unguided = dataclasses.replace(codex, strength=0.0)(nonlinear(make_problem))
    assert (made - unguided).abs().max() > 1e-3  # the gradient did something


@pytest.mark.parametrize("name", ["thesis", "released code"])
def test_gradients_as_small_as_the_epsilon_take_shorter_steps(
    make_problem: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eq. A.1 and the released code divide by rms(grad) + 1e-8, so the scale of such a reward is seen."""
    codex, tiny = Codex(**BOXES[name]), 1e-8
    made = codex(by_task(nonlinear(make_problem), [tiny] * 2))
    monkeypatch.setitem(globals(), "rated", lambda rows: tiny * rated_at_full_size(rows))
    plain = torch.stack([plain_codex(nonlinear(make_problem), b, codex) for b in range(2)])
    torch.testing.assert_close(made, plain, rtol=0, atol=1e-8)
    assert (made - codex(nonlinear(make_problem))).abs().max() > 1e-3


# Null settings


@pytest.mark.parametrize(
    "options", [{}, {"block_size": 1}, {"selection": "multinomial"}, {"cluster": True}, {"shared_start": True}]
)
def test_one_stream_without_strength_is_the_unguided_sample(make_problem: Make, options: dict) -> None:
    codex = Codex(num_particles=1, strength=0.0, **options)
    torch.testing.assert_close(codex(nonlinear(make_problem)), Base()(nonlinear(make_problem)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("block", [1, 5, 8, 20])
def test_without_strength_it_is_code(make_problem: Make, block: int, shared: bool) -> None:
    options = {"num_particles": 4, "block_size": block, "shared_start": shared}
    ours, problems = Codex(strength=0.0, **options), (nonlinear(make_problem), nonlinear(make_problem))
    torch.testing.assert_close(ours(problems[0]), Code(**options)(problems[1]), rtol=0, atol=1e-12)
    assert problems[0].denoise.rows == problems[1].denoise.rows
    assert problems[0].reward.calls == problems[1].reward.calls


def test_without_strength_and_in_one_block_it_is_best_of_n(make_problem: Make) -> None:
    """For either selection: the last one is always greedy."""
    expected = BestOfN(num_particles=5)(nonlinear(make_problem))
    for selection in ("greedy", "multinomial"):
        codex = Codex(num_particles=5, strength=0.0, block_size=20, selection=selection, temperature=100.0)
        torch.testing.assert_close(codex(nonlinear(make_problem)), expected, rtol=0, atol=1e-12)


def test_the_last_selection_is_greedy_in_a_chain_of_one_step_too(make_problem: Make) -> None:
    hot = Codex(num_particles=8, strength=0.0, selection="multinomial", temperature=1e9)
    made = hot(nonlinear(make_problem, 5, scheduler=Ddpm(num_steps=1)))
    assert torch.equal(made, BestOfN(num_particles=8)(nonlinear(make_problem, 5, scheduler=Ddpm(num_steps=1))))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fewer_than_four_streams_are_not_clustered(make_problem: Make, n: int) -> None:
    plain, clustered = (Codex(num_particles=n, cluster=cluster)(nonlinear(make_problem)) for cluster in (False, True))
    assert torch.equal(plain, clustered)


# Closed forms


@pytest.mark.parametrize("through", ["unet", "decoder"])
def test_on_a_gaussian_the_gradient_has_a_closed_form(make_problem: Make, through: str) -> None:
    """With Gaussians as condition and as what is guided from, x0_hat is affine, u's slope k_u, c's k_c, ours k = k_u + w (k_c - k_u).
    A linear reward a.x has the gradient k a through the UNet and a / alpha through the decoder, and a shift d of x_t is one of
    (c1 k + c2) d after a step, c1 and c2 being the posterior's weights: the guided sample is the unguided one and a known shift."""
    a, mean, std, wide, rho = torch.tensor([0.7, -1.1], dtype=torch.float64), 0.8, 0.8, 1.4, 0.03
    one = torch.ones(1, dtype=torch.float64)
    cond = GaussianMixture(means=torch.full((1, 2, 1, 1), mean, dtype=torch.float64), std=std, weights=one)
    uncond = GaussianMixture(means=torch.zeros(1, 2, 1, 1, dtype=torch.float64), std=wide, weights=one)

    def problem() -> Problem:
        return dataclasses.replace(
            make_problem(reward=lambda rows: rows.flatten(1) @ a),
            denoise=GaussianDenoiser(cond=cond, uncond=uncond, guidance_scale=W),
        )

    def slope(p: Point) -> float:
        k_c, k_u = (p.alpha * v**2 / (p.alpha**2 * v**2 + p.sigma**2) for v in (std, wide))
        return k_u + W * (k_c - k_u)

    shift, grid = torch.zeros(2, dtype=torch.float64), problem().grid
    for i, (t, s) in enumerate(pairwise(grid)):
        ratio = (t.alpha / s.alpha) ** 2
        c1, c2 = s.alpha * (1 - ratio) / t.sigma**2, ratio**0.5 * s.sigma**2 / t.sigma**2
        shift = (c1 * slope(t) + c2) * shift
        if (i + 1) % 2 == 0 and t.t <= 600 and s.sigma > 0:
            shift = shift + rho * (slope(s) if through == "unet" else 1 / s.alpha) * a
    codex = Codex(num_particles=1, strength=rho, rescale=False, gradient_block_size=2, window=(0.6, 0.0), through=through)
    moved = (codex(problem()) - Base()(problem())).flatten(1)
    torch.testing.assert_close(moved, shift.expand(3, 2), rtol=1e-9, atol=1e-12)
    assert shift.abs().min() > 0.01


def test_many_zero_order_samples_are_the_gradient(make_problem: Make) -> None:
    """Of a linear reward, to Monte-Carlo error."""
    options = {"num_particles": 1, "rescale": False, "strength": 0.02}
    exact = Codex(through="decoder", **options)(make_problem(1, guidance_scale=W))
    base = Base()(make_problem(1, guidance_scale=W))
    estimates = [Codex(zero_order_samples=m, **options)(make_problem(1, guidance_scale=W)) for m in (10, 1000)]
    errors = [float((estimate - exact).norm() / (exact - base).norm()) for estimate in estimates]
    assert errors[1] < 0.15 < 1.5 * errors[0]


def test_guided_steps_are_those_of_the_released_code_s_setting(make_problem: Make) -> None:
    """500 steps, start .6, every fifth: t <= 600 at the step, never the last; clusters have one gradient each."""
    heard: list[tuple[int, tuple[int, ...]]] = []

    def observe(event: str, step: int, values) -> None:
        if event == "guide":
            heard.append((step, tuple(values["gradient"].shape)))

    problem = nonlinear(make_problem, 1, scheduler=Ddpm(num_steps=500))
    Codex(num_particles=5, window=(0.6, 0.0), through="decoder", cluster=True, block_size=500, gradient_block_size=5)(
        problem, observe
    )
    expected = [i for i, t in enumerate(problem.grid[:-1]) if (i + 1) % 5 == 0 and t.t <= 600 and i != 499]
    assert [step for step, _ in heard] == expected
    assert {shape for _, shape in heard} == {(1, 2)}


def test_from_a_reference_the_window_is_of_the_whole_chain(make_problem: Make) -> None:
    whole = nonlinear(make_problem, 1, scheduler=Ddpm(num_steps=20))
    problem = dataclasses.replace(whole, grid=tail(whole.grid, 0.5), reference=torch.ones(1, 2, 1, 1, dtype=torch.float64))
    steps: list[int] = []
    Codex(num_particles=1, window=(0.3, 0.1), gradient_block_size=1)(
        problem, lambda event, i, _: steps.append(i) if event == "guide" else None
    )
    assert [float(problem.grid[i].t) for i in steps] == [299, 249, 199, 149]


# Costs


def stated(o: Codex, steps: int) -> tuple[int, int, int]:
    """Rows forward, rows backward, decodes and reward calls of one sample, by the docstring."""
    n, m = o.num_particles, o.zero_order_samples
    events = sum(
        (i + 1) % o.gradient_block_size == 0 and 1000 * o.window[1] <= 1000 - 1000 * i / steps - 1 <= 1000 * o.window[0]
        for i in range(steps - 1)
    )
    each = 1 if o.guide == "selected" else n // 2 if o.cluster and n >= 4 else n
    g = events * each if o.strength else 0
    rows = (2 * n * (steps - 1) + 2 if o.shared_start else 2 * n * steps) + 2 * g
    rows += 2 * g if o.guide == "selected" and n > 1 else 0  # the moved stream is looked at again
    calls = (n * math.ceil(steps / o.block_size) if n > 1 else 0) + (2 * m * g if m else g)
    return rows, 2 * g if o.through == "unet" and not m else 0, calls


COSTS = [
    {"num_particles": n, "block_size": block, "gradient_block_size": every, **more}
    for (n, block, every), more in zip(
        [(1, 5, 5), (4, 5, 5), (4, 3, 2), (5, 7, 1), (2, 20, 4), (6, 1, 3), (4, 5, 2), (7, 4, 5), (3, 5, 5), (4, 6, 1), (4, 5, 5), (9, 3, 2)],
        [
            {}, {}, {"shared_start": True}, {"through": "decoder"}, {"window": (0.6, 0.0)}, {"window": (0.8, 0.2), "shared_start": True},
            {"zero_order_samples": 3}, {"cluster": True}, {"cluster": True, "through": "decoder"}, {"cluster": True, "zero_order_samples": 2},
            {"strength": 0.0}, {"selection": "multinomial", "cluster": True, "shared_start": True},
        ],
        strict=True,
    )
]  # fmt: skip
COSTS += [
    {"guide": "selected", "num_particles": 4, "block_size": 2, "gradient_block_size": 4, "through": through, "shared_start": shared}
    for through in ("unet", "decoder")
    for shared in (True, False)
]


@pytest.mark.parametrize("options", COSTS, ids=str)
@pytest.mark.parametrize("steps", [10, 20])
def test_codex_costs_what_it_says(make_problem: Make, options: dict, steps: int) -> None:
    problem, decoded = nonlinear(make_problem, scheduler=Ddpm(num_steps=steps)), []
    problem = dataclasses.replace(problem, decode=lambda x: (decoded.append(len(x)), decode(x))[1])
    Codex(**options)(problem)
    spent = problem.denoise.rows, problem.denoise.backward, problem.reward.calls
    assert spent == tuple(2 * count for count in stated(Codex(**options), steps))
    assert sum(decoded) == problem.reward.calls


def test_a_schedule_costs_the_streams_of_each_step(make_problem: Make) -> None:
    """Blocks of 5 in segments of 4 steps: streams change at steps 5, 10 and 15, to those of the segment they are in."""
    problem = nonlinear(make_problem, 1)
    Codex(num_particles=[2, 6, 3, 4, 1], gradient_block_size=2, block_size=5)(problem)
    each = [2] * 5 + [6] * 5 + [3] * 5 + [4] * 5  # at steps 0, 5, 10, 15: segments 0, 1, 2, 3
    guided = sum(each[i] for i in range(19) if (i + 1) % 2 == 0)
    assert problem.denoise.rows == 2 * (2 + sum(each[:19]) + guided)
    assert problem.denoise.backward == 2 * guided
    assert problem.reward.calls == 2 + 6 + 3 + 4 + guided


# Batches, chunks, scales


@pytest.mark.parametrize("name", ["thesis", "released code", "clusters", "zero-order", "schedule, multinomial"])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_chunks_change_nothing(make_problem: Make, name: str, batch_size: int) -> None:
    problem = nonlinear(make_problem, batch_size=batch_size)
    chunked = Codex(**BOXES[name])(problem)
    torch.testing.assert_close(chunked, Codex(**BOXES[name])(nonlinear(make_problem)), rtol=0, atol=1e-10)
    assert max(problem.reward.batches) == batch_size


@pytest.mark.parametrize("name", ["thesis", "released code", "no rescaling", "clusters", "zero-order", "schedule, multinomial"])
def test_a_batch_of_three_is_three_batches_of_one(make_problem: Make, name: str) -> None:
    """With gradients of very different lengths."""
    codex, factors = Codex(**BOXES[name]), (1e-4, 1.0, 30.0)
    together = codex(by_task(nonlinear(make_problem, 3), factors))
    for b in range(3):
        alone = codex(by_task(nonlinear(make_problem, 3), factors).subset([b]))
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"through": "decoder"}, {"cluster": True, "num_particles": 5}, {"zero_order_samples": 2}])
def test_with_rescaling_the_reward_s_scale_does_not_matter(make_problem: Make, options: dict) -> None:
    """Gradients here are some 10^8 times the epsilon of Eq. A.1."""
    results = [Codex(**options)(by_task(nonlinear(make_problem), [factor] * 2)) for factor in (1.0, 7.0)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-7)
    results = [Codex(rescale=False, **options)(by_task(nonlinear(make_problem), [factor] * 2)) for factor in (1.0, 7.0)]
    assert (results[0] - results[1]).abs().max() > 1e-2


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_sample_without_gradients_is_unguided_and_the_others_do_not_notice(make_problem: Make, n: int, bad: float) -> None:
    codex = Codex(num_particles=n, through="decoder")
    whole = codex(by_task(nonlinear(make_problem, 3), [1.0, 1.0, 1.0]))
    broken = codex(by_task(nonlinear(make_problem, 3), [1.0, bad, 1.0]))
    torch.testing.assert_close(broken[[0, 2]], whole[[0, 2]], rtol=0, atol=1e-12)
    if n == 1:
        torch.testing.assert_close(broken[1], Base()(nonlinear(make_problem, 3))[1], rtol=0, atol=1e-12)
    assert broken.isfinite().all()


# Streams as they are needed


def adaptive(problem: Problem, **options) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    seen: list[tuple[int, Tensor]] = []
    codex = Codex(**{"block_size": 2, "gradient_block_size": 4, **options})
    return codex(problem, lambda event, i, values: seen.append((i, values["scores"])) if event == "select" else None), seen


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("options", [{}, {"selection": "multinomial", "temperature": 0.5}, {"shared_start": True}])
def test_adaptive_streams_follow_the_spread_and_never_cost_more(make_problem: Make, seed: int, options: dict) -> None:
    problems = [nonlinear(make_problem, 1, prefix=f"{seed}") for _ in range(2)]
    _, seen = adaptive(problems[0], num_particles=8, min_particles=2, **options)
    adaptive(problems[1], num_particles=8, **options)
    assert problems[0].denoise.rows <= problems[1].denoise.rows
    assert problems[0].denoise.backward <= problems[1].denoise.backward
    assert problems[0].reward.calls <= problems[1].reward.calls
    assert seen[0][1].shape == (1, 8)
    spreads = [float(np.std(scores[0].numpy(), ddof=1)) for _, scores in seen]
    for j, (_, scores) in enumerate(seen[1:], 1):
        assert scores.shape[1] == max(2, math.ceil(8 * spreads[j - 1] / max(spreads[:j])))
    assert [i for i, _ in seen] == list(range(1, 20, 2))


def test_where_all_agree_the_fewest_streams_go_on(make_problem: Make) -> None:
    for fewest in (1, 2, 5):
        problem = make_problem(1, guidance_scale=W, reward=lambda rows: 0 * rows[:, 0, 0, 0] + 3)
        _, seen = adaptive(problem, num_particles=8, min_particles=fewest, strength=0.0)
        assert [scores.shape[1] for _, scores in seen] == [8] + ([fewest] * 9 if fewest > 1 else [])
        assert problem.denoise.rows == 2 * (8 + 2 * 8 + 17 * fewest)


def test_where_scores_are_no_numbers_all_streams_go_on(make_problem: Make) -> None:
    problem = make_problem(1, guidance_scale=W, reward=lambda rows: float("nan") * rows[:, 0, 0, 0])
    made, seen = adaptive(problem, num_particles=8, min_particles=2)
    assert [scores.shape[1] for _, scores in seen] == [8] * 10
    assert made.isfinite().all()


def test_as_many_as_there_are_is_not_adaptive(make_problem: Make) -> None:
    adapted, plain = (Codex(min_particles=least)(nonlinear(make_problem, 1)) for least in (4, None))
    assert torch.equal(adapted, plain)


def test_adaptive_streams_are_of_one_sample_at_a_time(make_problem: Make) -> None:
    with pytest.raises(ValueError, match="min_particles.*one at a time"):
        Codex(min_particles=2)(nonlinear(make_problem, 2))
    assert Codex(min_particles=2).needs.one_sample and not Codex().needs.one_sample


# Options


def test_what_it_needs() -> None:
    assert Codex().needs.sampler == "stochastic" and Codex().needs.reward and Codex().needs.gradient
    assert not Codex(strength=0.0).needs.gradient and not Codex(zero_order_samples=2).needs.gradient


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_particles": 0}, "num_particles"), ({"num_particles": []}, "num_particles"), ({"num_particles": [2, 0]}, "num_particles"),
        ({"num_particles": [2, 2.5]}, "num_particles"), ({"block_size": 0}, "block_size"), ({"gradient_block_size": 0}, "gradient_block_size"),
        ({"zero_order_samples": -1}, "zero_order_samples"), ({"zero_order_sigma": 0}, "zero_order_sigma"), ({"temperature": 0}, "temperature"),
        ({"final_temperature": -1}, "final_temperature"), ({"max_scale": 0}, "max_scale"), ({"window": (0.2, 0.4)}, "window"),
        ({"min_particles": 5}, "min_particles"), ({"min_particles": 0}, "min_particles"), ({"num_particles": [4, 2], "min_particles": 3}, "min_particles"),
        ({"temperature": float("nan")}, "temperature"), ({"guide": "selected", "selection": "multinomial"}, "guide"),
        ({"guide": "selected", "block_size": 3, "gradient_block_size": 4}, "gradient_block_size"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(options: dict, name: str) -> None:
    with pytest.raises(BadValue, match=f"^{name}="):
        Codex(**options)
