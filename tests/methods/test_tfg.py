"""TFG, and the methods that are special cases of it."""

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.methods import Method, tfg
from guidedgen.methods.base import Base
from guidedgen.methods.dps import Dps
from guidedgen.methods.freedom import FreeDom
from guidedgen.methods.lgd_mc import LgdMc
from guidedgen.methods.mpgd import Mpgd
from guidedgen.methods.problem import Problem
from guidedgen.methods.tfg import Tfg
from guidedgen.methods.universal import Universal
from guidedgen.process.grid import Point
from guidedgen.process.schedulers import Ddim, Ddpm

Make = Callable[..., Problem]
ETA = Ddim(num_steps=20, eta=1.0)
NONE = {
    "rho": 0.0,
    "mu": 0.0,
    "sigma": 0.0,
    "num_samples": 1,
    "rho_schedule": "constant",
    "mu_schedule": "constant",
    "over_alpha": False,
}


@pytest.mark.parametrize("method", [Tfg(rho=0.0, mu=0.0, num_repeats=3), Tfg(rho=0.0, inner_steps=0), Dps(rho=0.0), LgdMc(rho=0.0)])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_null_setting_is_plain_sampling(make_problem: Make, method: Method, guidance_scale: float) -> None:
    options = {"scheduler": ETA, "guidance_scale": guidance_scale}
    assert torch.equal(method(make_problem(**options)), Base()(make_problem(**options)))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("k", [1, 3])
def test_costs(make_problem: Make, k: int, guidance_scale: float) -> None:
    b, pair = 2, 1 if guidance_scale == 1 else 2

    def spent(method: Method) -> tuple[float, ...]:
        decoded: list[int] = []
        problem = make_problem(b, scheduler=ETA, guidance_scale=guidance_scale)
        problem = dataclasses.replace(problem, decode=lambda x: decoded.append(len(x)) or x)
        method(problem)
        rows = (problem.denoise.rows / (b * pair), problem.denoise.backward / (b * pair))
        assert sum(decoded) == problem.reward.calls
        return *rows, problem.reward.calls / b

    assert spent(Tfg(rho=0.1, mu=0.1, num_samples=k, inner_steps=4)) == (20, 20, 20 * k * 5)
    assert spent(Tfg(rho=0.0, mu=0.1, num_samples=k, inner_steps=4)) == (20, 0, 20 * k * 4)
    assert spent(Tfg(rho=0.1, mu=0.0, num_samples=k)) == (20, 20, 20 * k)
    assert spent(Tfg(rho=0.1, mu=0.1, sigma=0.0, num_samples=k, inner_steps=2)) == (20, 20, 20 * 3)
    assert spent(Tfg(rho=0.1, mu=0.1, num_samples=k, inner_steps=1, num_repeats=3)) == (60, 60, 60 * k * 2)
    assert spent(Tfg(rho=0.1, mu=0.0, num_samples=k, num_repeats=2, window=(0.7, 0.3))) == (20 + 8, 16, 16 * k)
    assert spent(Dps()) == (20, 20, 20)
    assert spent(LgdMc(num_samples=k)) == (20, 20, 20 * k)


# The algorithm


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize(("rho_schedule", "mu_schedule"), [("increase", "decrease"), ("constant", "increase")])
def test_it_equals_a_plain_loop_of_the_paper_s_algorithm(
    make_problem: Make, rho_schedule: str, mu_schedule: str, guidance_scale: float
) -> None:
    """Algorithm 1 in the paper's own a_t = alpha_t^2, over one sample, with DDIM's step at eta = 1 written out."""
    rho, mu, width, k, inner, repeats = 0.3, 0.2, 0.4, 3, 2, 2
    reward = lambda rows: -(rows - 0.5).square().sum((1, 2, 3))  # noqa: E731
    problem = make_problem(1, scheduler=ETA, guidance_scale=guidance_scale)
    noise = Noise(["sample-0"], dtype=torch.float64)
    again, smoothing = noise.fork("renoise"), noise.fork("smoothing")
    a = [point.alpha**2 for point in problem.grid]
    steps = len(a) - 1
    shapes = {
        "increase": [a[i] / a[i + 1] for i in range(steps)],
        "decrease": [1 - a[i] / a[i + 1] for i in range(steps)],
        "constant": [1.0 for i in range(steps)],
    }
    x = noise.draw(1, problem.latent_shape)
    for i in range(steps):
        now, after = a[i], a[i + 1]
        rho_t = rho * shapes[rho_schedule][i] / (sum(shapes[rho_schedule]) / steps)
        mu_t = mu * shapes[mu_schedule][i] / (sum(shapes[mu_schedule]) / steps)
        for repeat in range(repeats):
            z = smoothing.draw(k, problem.latent_shape)[0] * width * math.sqrt(1 - now)

            def smoothed(x_0: Tensor, z: Tensor = z) -> Tensor:
                return reward(x_0[0] + z).exp().mean().log()

            with torch.enable_grad():
                leaf = x.clone().requires_grad_()
                x_0 = problem.denoise(leaf, problem.grid[i]).x_0
                delta_t = rho_t * torch.autograd.grad(smoothed(x_0), leaf)[0]
            moved = x_0 = x_0.detach()
            for _ in range(inner):
                with torch.enable_grad():
                    leaf = moved.clone().requires_grad_()
                    moved = (leaf + mu_t * torch.autograd.grad(smoothed(leaf), leaf)[0]).detach()
            eps = (x - math.sqrt(now) * x_0) / math.sqrt(1 - now)
            std = math.sqrt((1 - after) / (1 - now) * (1 - now / after))
            x_s = math.sqrt(after) * x_0 + math.sqrt(1 - after - std**2) * eps + std * noise.draw(1, problem.latent_shape)
            x_s = x_s + delta_t / math.sqrt(now / after) + math.sqrt(after) * (moved - x_0)
            if repeat < repeats - 1:
                x = math.sqrt(now / after) * x_s + math.sqrt(1 - now / after) * again.draw(1, problem.latent_shape)
        x = x_s
    ours = Tfg(
        rho=rho, mu=mu, sigma=width, num_samples=k, inner_steps=inner, num_repeats=repeats, rho_schedule=rho_schedule,
        mu_schedule=mu_schedule,
    )  # fmt: skip
    made = ours(make_problem(1, scheduler=ETA, guidance_scale=guidance_scale, reward=reward))
    assert torch.allclose(made, x[:, 0], atol=1e-9, rtol=0)
    assert not torch.allclose(made, Base()(make_problem(1, scheduler=ETA, guidance_scale=guidance_scale)), atol=0.01)


# Special cases


@pytest.mark.parametrize("scheduler", [ETA, Ddpm(num_steps=20)])
def test_variance_guidance_alone_is_mpgd(make_problem: Make, scheduler: Ddim) -> None:
    """To the bit: without MPGD's rescaling, with the step's own noise prediction."""
    ours = Tfg(**{**NONE, "mu": 0.3}, inner_steps=1)
    theirs = Mpgd(strength=0.3, rescale=False, over_alpha=False, keep_eps=True, window=(1.0, 0.0))
    assert torch.equal(ours(make_problem(scheduler=scheduler)), theirs(make_problem(scheduler=scheduler)))


@pytest.mark.parametrize("repeats", [1, 3])
def test_mean_guidance_alone_is_freedom(make_problem: Make, repeats: int) -> None:
    """Without FreeDoM's rescaling; with time travel too, which is TFG's recurrence."""
    ours = Tfg(**{**NONE, "rho": 0.3}, num_repeats=repeats)
    theirs = FreeDom(strength=0.3, rescale=False, window=(1.0, 0.0), num_repeats=repeats, repeat_window=(1.0, 0.0))
    assert torch.allclose(ours(make_problem(scheduler=ETA)), theirs(make_problem(scheduler=ETA)), atol=1e-12, rtol=0)


def test_in_one_step_to_a_clean_latent_it_is_universal_guidance(make_problem: Make) -> None:
    """Elsewhere UG moves the noise prediction too, of which a clean latent keeps nothing: there rho = s sigma_t^2, and the m backward steps
    are the inner steps, of the unguided estimate in both.
    """
    one = Ddim(num_steps=1, spacing="trailing", offset=0, end="clean")
    sigma = make_problem(scheduler=one).grid[0].sigma
    ours = Tfg(**{**NONE, "rho": 0.2 * sigma**2, "mu": 0.4, "over_alpha": True}, inner_steps=3)
    theirs = Universal(strength=0.2, num_repeats=1, backward_steps=3, backward_lr=0.4)
    assert torch.allclose(ours(make_problem(scheduler=one)), theirs(make_problem(scheduler=one)), atol=1e-9, rtol=1e-9)


def test_with_its_strengths_of_each_step_it_is_universal_guidance(make_problem: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a whole chain: DDIM's x_s is alpha_s x_0 + c eps, and UG moves eps too. Put in, its forward step is rho_t = s sigma_t (sigma_t -
    c alpha_t / alpha_s) and its one backward step mu_t = lr (1 - c alpha_t / (alpha_s sigma_t)). Of more backward steps the moves before
    the last would be scaled too, so that no mu_t is the same.
    """
    forward, lr = 0.2, 0.4

    def strengths(grid, strength: float, schedule: str) -> list[float]:
        values = []
        for t, s in pairwise(grid):
            c = s.sigma * math.sqrt(1 - (1 - (t.alpha / s.alpha) ** 2) / t.sigma**2)  # with eta = 1
            ratio = c * t.alpha / (s.alpha * t.sigma)
            values.append(forward * t.sigma**2 * (1 - ratio) if schedule == "increase" else lr * (1 - ratio))
        return values

    monkeypatch.setattr(tfg, "_scheduled", strengths)
    ours = Tfg(rho=1.0, mu=1.0, sigma=0.0, inner_steps=1, num_repeats=2, rho_schedule="increase", mu_schedule="constant")
    theirs = Universal(strength=forward, num_repeats=2, backward_steps=1, backward_lr=lr)
    reward = lambda rows: -(rows - 0.5).square().sum((1, 2, 3))  # noqa: E731
    made, expected = (method(make_problem(scheduler=ETA, guidance_scale=3.0, reward=reward)) for method in (ours, theirs))
    assert torch.allclose(made, expected, atol=1e-9, rtol=0)
    assert not torch.allclose(made, Base()(make_problem(scheduler=ETA, guidance_scale=3.0)), atol=0.01)


def loop(problem: Problem, move: Callable[..., Tensor]) -> Tensor:
    """A plain loop over one sample: the sampler's step, then what `move` adds to it, of the network's estimate at x_t."""
    noise = Noise(["sample-0"], dtype=torch.float64)
    x, smoothing = noise.draw(1, problem.latent_shape), noise.fork("smoothing")
    for t, s in pairwise(problem.grid):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            prediction = problem.denoise(leaf, t)
            added = move(leaf, prediction.x_0, t, smoothing)
        mean, std = problem.scheduler.transition(x, prediction.map(Tensor.detach), t, s)
        x = mean + std * noise.draw(1, problem.latent_shape) + added
    return x[:, 0]


def first(x_0: Tensor) -> Tensor:
    """The fixture's reward, less 9 so that it is negative."""
    return x_0.flatten()[0] - 9


@pytest.mark.parametrize("normalise", ["reward", "root"])
def test_dps_equals_a_plain_loop(make_problem: Make, normalise: str) -> None:
    def move(x_t: Tensor, x_0: Tensor, t, smoothing) -> Tensor:
        reward = first(x_0)
        size = reward.detach().abs() if normalise == "reward" else reward.detach().abs().sqrt()
        return 0.8 * torch.autograd.grad(reward, x_t)[0] / size

    problem = make_problem(1, scheduler=ETA, reward=lambda rows: rows[:, 0, 0, 0] - 9)
    assert torch.allclose(Dps(rho=0.8, normalise=normalise)(problem), loop(make_problem(1, scheduler=ETA), move), atol=1e-10)


def test_lgd_mc_equals_a_plain_loop_and_the_released_code_is_k_times_weaker(make_problem: Make) -> None:
    """The released code divides the gradient of the log-mean-exp by K again."""
    k, kl = 5, 0.7

    def move(x_t: Tensor, x_0: Tensor, t, smoothing, again: float = 1.0) -> Tensor:
        z = smoothing.draw(k, x_0.shape[2:])
        value = torch.stack([first(x_0[0, 0] + t.sigma * z[0, j]) / kl for j in range(k)]).logsumexp(0) - math.log(k)
        return 0.8 * torch.autograd.grad(value, x_t)[0] / again

    problem = make_problem(1, scheduler=ETA, reward=lambda rows: rows[:, 0, 0, 0] - 9)
    ours = LgdMc(rho=0.8, num_samples=k, kl_weight=kl)(problem)
    assert torch.allclose(ours, loop(make_problem(1, scheduler=ETA), move), atol=1e-10)
    released = loop(make_problem(1, scheduler=ETA), lambda *seen: move(*seen, again=k))
    weak = LgdMc(rho=0.8 / k, num_samples=k, kl_weight=kl)(make_problem(1, scheduler=ETA))
    assert torch.allclose(weak, released, atol=1e-10) and not torch.allclose(ours, released, atol=1e-3)


def test_smoothing_has_the_closed_form_of_a_quadratic_reward(make_problem: Make) -> None:
    """log E exp(-(x + s z)^2 / (2 w)) has the gradient -x / (w + s^2), which the mean over many samples comes to."""
    width, sigma = 0.5, 0.8
    problem = make_problem(1, reward=lambda rows: -rows.square().sum((1, 2, 3)) / (2 * width), batch_size=10**6)
    x_0 = torch.tensor([0.9, -0.4], dtype=torch.float64).view(1, 1, 2, 1, 1)
    offsets = sigma * torch.randn(1, 400_000, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = dataclasses.replace(problem, batch_size=10**6)
    value, gradient = Tfg(num_samples=1)._smoothed(problem, x_0, offsets)
    assert torch.allclose(gradient, -x_0 / (width + sigma**2), atol=0.01)
    exact = math.log(width / (width + sigma**2)) - float(x_0.square().sum()) / (2 * (width + sigma**2))
    assert float(value) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("schedule", ["increase", "decrease", "constant"])
def test_schedules_have_the_strength_as_their_mean(make_problem: Make, schedule: str) -> None:
    grid = make_problem(scheduler=ETA).grid
    values = tfg._scheduled(grid, 0.7, schedule)
    assert sum(values) / len(values) == pytest.approx(0.7)
    rises = [b > a for a, b in pairwise(values)]
    assert all(rises) if schedule == "increase" else not any(rises)


def test_a_schedule_that_is_zero_at_every_step_is_constant() -> None:
    """A flow's chain of one step: alpha is 0 where it begins."""
    noisy, clean = Point(1000.0, 0.0, 1.0), Point(0.0, 1.0, 0.0)
    assert tfg._scheduled((noisy, clean), 0.7, "increase") == [0.7]
    assert tfg._scheduled((noisy, Point(500.0, 0.6, 0.8), clean), 0.7, "increase") == [0.0, pytest.approx(1.4)]


def test_where_alpha_is_0_only_the_clean_estimate_is_moved(make_problem: Make) -> None:
    """One step from pure noise to a clean latent: rho does nothing and is not computed, mu moves by mu grad r."""
    grid = (Point(999.0, 0.0, 1.0), Point(0.0, 1.0, 0.0))

    def made(method: Method) -> tuple[Tensor, int, int]:
        problem = dataclasses.replace(make_problem(scheduler=Ddim(num_steps=1)), grid=grid, num_steps=1)
        return method(problem), problem.denoise.backward, problem.reward.calls

    (moved, backward, calls), (unmoved, _, _) = made(Tfg(rho=5.0, mu=0.3, sigma=0.0, inner_steps=2)), made(Base())
    assert torch.allclose(moved - unmoved, torch.tensor([0.6, 0.0], dtype=torch.float64).view(2, 1, 1), atol=1e-12)
    assert (backward, calls) == (0, 3 * 2)


@pytest.mark.parametrize(
    ("options", "times"), [({"rho": 0.2, "mu": 0.2}, 40), ({"rho": 0.0, "mu": 0.2}, 40), ({"window": (0.7, 0.3)}, 16)]
)
def test_the_rewards_that_guide_are_those_of_the_estimate(make_problem: Make, options: dict, times: int) -> None:
    """In units of the reward, whatever kl_weight is; the first of a chain is that of the unguided estimate."""
    seen: list[Tensor] = []
    problem = make_problem(scheduler=ETA)
    Tfg(**options, kl_weight=0.5, sigma=0.0, num_repeats=2)(
        problem, lambda event, i, values: seen.append(values["rewards"]) if event == "guide" else None
    )
    assert len(seen) == times and all(rewards.shape == (3, 1) for rewards in seen)
    if "window" not in options:
        plain = make_problem(scheduler=ETA)
        estimate = plain.denoise(plain.start(), plain.grid[0]).x_0
        assert torch.allclose(seen[0], estimate[:, :, 0, 0, 0], atol=1e-12)


def test_a_sample_does_not_depend_on_its_batch(make_problem: Make) -> None:
    method = Tfg(rho=0.2, mu=0.2, num_samples=2, num_repeats=2, sigma=0.3)
    alone = make_problem(3, scheduler=ETA).subset([1])
    assert torch.allclose(method(alone)[0], method(make_problem(3, scheduler=ETA))[1], atol=1e-10, rtol=0)


def test_gradients_that_are_not_finite_move_nothing(make_problem: Make) -> None:
    reward = lambda rows: (rows[:, 0, 0, 0] - rows[:, 0, 0, 0]).sqrt()  # noqa: E731
    made = Tfg(rho=0.2, mu=0.2)(make_problem(scheduler=ETA, reward=reward))
    assert torch.equal(made, Base()(make_problem(scheduler=ETA)))


def test_a_smoothing_sample_without_a_reward_has_no_weight(make_problem: Make) -> None:
    """The others' log-mean-exp goes on, over K as before."""
    reward = lambda rows: rows[:, 1, 0, 0] + 0 * rows[:, 0, 0, 0].sqrt()  # noqa: E731
    x_0 = torch.zeros(1, 1, 2, 1, 1, dtype=torch.float64)
    offsets = torch.tensor([[1.0, 0.3], [-1.0, 0.9], [2.0, -0.4]], dtype=torch.float64).view(1, 3, 2, 1, 1)
    value, gradient = Tfg()._smoothed(make_problem(1, reward=reward), x_0, offsets)
    assert float(value) == pytest.approx(math.log((math.exp(0.3) + math.exp(-0.4)) / 3))
    assert torch.allclose(gradient.flatten(), torch.tensor([0.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -1.0}, "rho=-1.0"), ({"num_samples": 0}, "num_samples=0"), ({"inner_steps": -1}, "inner_steps=-1"),
        ({"kl_weight": 0.0}, "kl_weight=0.0"), ({"window": (0.2, 0.5)}, "window"), ({"mu": math.nan}, "mu=nan"),
        ({"num_repeats": 0}, "num_repeats=0"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(BadValue, match=message):
        Tfg(**options)
