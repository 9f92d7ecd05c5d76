"""ReNO, DNO and D-Flow: noise optimised through the chain."""

import dataclasses
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise
from guidedgen.gradients.backprop import Backprop
from guidedgen.gradients.checkpoint import Checkpoint
from guidedgen.methods import Method
from guidedgen.methods.base import Base
from guidedgen.methods.d_flow import DFlow
from guidedgen.methods.dno import Dno, concentration
from guidedgen.methods.problem import Problem
from guidedgen.methods.reno import Reno, by_norm
from guidedgen.methods.whole_chain import shortened
from guidedgen.process.chains import SamplerChain, walk
from guidedgen.process.flow import MidpointChain, flow_of
from guidedgen.process.grid import FlowSchedule
from guidedgen.process.schedulers import Ddim, Ddpm, DpmSolver, Flow, Lcm

Make = Callable[..., Problem]
PLAIN = Ddim(num_steps=8, spacing="trailing", offset=0, end="clean")
SAMPLERS = [PLAIN, Ddim(num_steps=8, eta=1.0), Ddpm(num_steps=8), Lcm(num_steps=4), DpmSolver(num_steps=8)]
GRADIENTS = {"gradients": Checkpoint()}


@pytest.mark.parametrize("scheduler", SAMPLERS, ids=lambda scheduler: type(scheduler).__name__)
@pytest.mark.parametrize("method", [Reno(**GRADIENTS, num_updates=0), Dno(**GRADIENTS, num_updates=0)], ids=["reno", "dno"])
def test_without_updates_it_is_plain_sampling(make_problem: Make, method: Method, scheduler: Ddim) -> None:
    assert torch.equal(method(make_problem(scheduler=scheduler)), Base()(make_problem(scheduler=scheduler)))


def test_without_updates_d_flow_by_euler_is_ddim(make_problem: Make) -> None:
    null = DFlow(**GRADIENTS, num_updates=0, solver="euler")
    assert torch.equal(null(make_problem(scheduler=PLAIN)), Base()(make_problem(scheduler=PLAIN)))


@pytest.mark.parametrize("scheduler", SAMPLERS, ids=lambda scheduler: type(scheduler).__name__)
def test_a_samplers_chain_is_the_sampler(make_problem: Make, scheduler: Ddim) -> None:
    """With given noises, also of multistep solvers, whose state holds what was predicted last."""
    problem = make_problem(scheduler=scheduler)
    x_t = problem.start(2)
    noises = [problem.noise.draw(2, problem.latent_shape) for _ in range(len(problem.grid) - 1)]
    chain = SamplerChain(denoise=problem.denoise, scheduler=scheduler, grid=problem.grid, noises=noises)
    made, past, x = walk(chain, chain.start(x_t))[0], None, x_t
    for i, (t, s) in enumerate(pairwise(problem.grid)):
        prediction = problem.denoise(x, t).after(past)
        mean, std = scheduler.transition(x, prediction, t, s)
        x, past = mean + std * noises[i], (prediction, t)
    assert torch.equal(made, x)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("updates", [1, 3])
def test_costs(make_problem: Make, updates: int, guidance_scale: float) -> None:
    b, pair, steps = 2, 1 if guidance_scale == 1 else 2, 8

    def spent(method: Method, b: int = b) -> tuple[float, float, float]:
        problem = make_problem(b, scheduler=PLAIN, guidance_scale=guidance_scale)
        method(problem)
        return problem.denoise.rows / (b * pair), problem.denoise.backward / (b * pair), problem.reward.calls / b

    for method in (Reno(**GRADIENTS, num_updates=updates), Dno(**GRADIENTS, num_updates=updates)):
        assert spent(method) == (steps * (2 * updates + 1), steps * updates, updates + 1)
    for solver, calls in (("euler", 1), ("midpoint", 2)):
        seen: list[int] = []

        def observe(event: str, step: int, values, seen: list[int] = seen) -> None:
            if event == "update":
                seen.append(int(values["evaluations"]))

        problem = make_problem(1, scheduler=PLAIN, guidance_scale=guidance_scale)
        DFlow(**GRADIENTS, num_updates=updates, solver=solver, max_evaluations=4)(problem, observe)
        evaluations = seen[-1]
        assert problem.denoise.rows == pair * calls * steps * (2 * evaluations + 1)
        assert problem.denoise.backward == pair * calls * steps * evaluations
        assert problem.reward.calls == evaluations + 1 and updates <= evaluations <= 6 * updates


@pytest.mark.parametrize("name", ["reno", "dno"])
def test_a_sample_does_not_depend_on_its_batch(make_problem: Make, name: str) -> None:
    method = {"reno": Reno(**GRADIENTS, num_updates=4, lr=0.3), "dno": Dno(**GRADIENTS, num_updates=4, gamma=0.1, subsample=0)}[
        name
    ]
    scheduler = Ddim(num_steps=8, eta=1.0)
    together, alone = method(make_problem(3, scheduler=scheduler)), make_problem(3, scheduler=scheduler).subset([1])
    assert torch.allclose(method(alone)[0], together[1], atol=1e-10, rtol=0)


def test_reno_equals_torchs_own_optimiser(make_problem: Make) -> None:
    """SGD with Nesterov's momentum, gradients shortened by clip_grad_norm_, the loss differentiated by autograd as a whole."""
    method = Reno(**GRADIENTS, num_updates=6, lr=0.4, reward_weight=2.0, norm_weight=0.05, clip=0.7)
    seen: list[Tensor] = []

    def observe(event: str, step: int, values) -> None:
        if event == "update":
            seen.append(values["rewards"])

    made = method(make_problem(1, scheduler=PLAIN), observe)
    problem = make_problem(1, scheduler=PLAIN)
    z = problem.noise.draw(1, problem.latent_shape).requires_grad_()
    optimiser, rewards = torch.optim.SGD([z], lr=0.4, momentum=0.9, nesterov=True), []

    def picture() -> Tensor:
        x = z
        for t, s in pairwise(problem.grid):
            x = problem.scheduler.transition(x, problem.denoise(x, t), t, s)[0]
        return x

    for _ in range(6):
        optimiser.zero_grad()
        reward = picture()[0, 0, 0, 0, 0]
        rewards.append(float(reward.detach()))
        length = z.norm()
        (-2 * reward + 0.05 * (length**2 / 2 - (z.numel() - 1) * length.log())).backward()
        torch.nn.utils.clip_grad_norm_([z], 0.7)
        optimiser.step()
    assert torch.allclose(torch.cat(seen), torch.tensor(rewards, dtype=torch.float64), atol=1e-5)
    best = max([*rewards, float(picture().detach().flatten()[0])])
    assert float(made[0, 0, 0, 0]) == pytest.approx(best, abs=1e-5)


def test_dno_equals_torchs_own_optimiser(make_problem: Make) -> None:
    scheduler, given = (
        Ddim(num_steps=6, eta=1.0),
        {"num_updates": 5, "lr": 0.05, "gamma": 0.3, "subsample": 0, "num_permutations": 2},
    )
    seen: list[Tensor] = []

    def observe(event: str, step: int, values) -> None:
        if event == "update":
            seen.append(values["rewards"])

    Dno(**GRADIENTS, **given)(make_problem(1, scheduler=scheduler), observe)
    problem = make_problem(1, scheduler=scheduler)
    permutations = problem.noise.fork("permutations")
    z = torch.cat([problem.noise.draw(1, problem.latent_shape) for _ in range(7)], 1).requires_grad_()
    optimiser, rewards = torch.optim.AdamW([z], lr=0.05), []
    for _ in range(5):
        optimiser.zero_grad()
        x = z[:, :1]
        for i, (t, s) in enumerate(pairwise(problem.grid)):
            mean, std = scheduler.transition(x, problem.denoise(x, t), t, s)
            x = mean + std * z[:, i + 1 : i + 2]
        rewards.append(float(x.detach().flatten()[0]))
        flat = z.flatten(1)
        penalty = concentration(flat, 1).sum()
        for _ in range(2):
            penalty = penalty + concentration(flat[:, permutations.draw(1, flat.shape[1:])[0, 0].argsort()], 1).sum() / 2
        (-x.flatten()[0] + 0.3 * penalty).backward()
        torch.nn.utils.clip_grad_norm_([z], 1.0)
        optimiser.step()
    assert torch.allclose(torch.cat(seen), torch.tensor(rewards, dtype=torch.float64), atol=1e-6)


def test_dno_moves_the_noise_of_every_step_that_uses_any(make_problem: Make) -> None:
    """And reaches what x_T alone does not: with 40 small updates of each."""
    scheduler = Ddim(num_steps=8, eta=1.0)
    gain = Dno(**GRADIENTS, num_updates=40, lr=0.05)(make_problem(20, scheduler=scheduler))[:, 0].mean()
    base = Base()(make_problem(20, scheduler=scheduler))[:, 0].mean()
    assert gain > base + 0.5
    clean = Dno(**GRADIENTS, num_updates=2)(make_problem(2, scheduler=Ddpm(num_steps=8)))  # whose last noise is not used
    assert clean.isfinite().all()


def test_the_length_of_a_noise_is_most_likely_at_the_root_of_d_minus_one() -> None:
    z = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = z * math.sqrt(255) / z.flatten(1).norm(dim=1)[:, None, None, None, None]
    assert by_norm(at).abs().max() < 1e-12
    leaf = z.clone().requires_grad_()
    length = leaf.flatten(1).norm(dim=1)
    (gradient,) = torch.autograd.grad((length**2 / 2 - 255 * length.log()).sum(), leaf)
    assert torch.allclose(by_norm(z), gradient)
    half = torch.full((1, 1, 16, 64, 64), 1.1, dtype=torch.float16)  # its squared length is beyond float16
    assert by_norm(half).isfinite().all() and float(by_norm(half).max()) == pytest.approx(1.1 - 1 / 1.1, abs=1e-3)


def test_normal_noises_are_not_penalised_and_others_are() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(20, 4096, generator=generator, dtype=torch.float64)
    floor = 2 * math.log(2)
    assert (concentration(normal, 4) < floor + 3).all() and (concentration(normal, 4) >= floor - 1e-12).all()
    assert (concentration(torch.ones(1, 4096), 4) > 500).all()
    assert (concentration(1.5 * normal, 4) > 50).all()
    repeated = normal[:, :2048].repeat_interleave(2, 1)  # its neighbours are equal, as a smooth picture's are
    assert (concentration(repeated, 4) > 50).all()


def test_shortened_is_torchs_clip_of_one_sample() -> None:
    parts = [torch.randn(3, 1, 2, 2, 2, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    short = shortened(parts, 1.5)
    for i in range(3):
        own = [part[i].clone().requires_grad_() for part in parts]
        for leaf, part in zip(own, parts, strict=True):
            leaf.grad = part[i].clone()
        torch.nn.utils.clip_grad_norm_(own, 1.5)
        assert all(torch.allclose(a[i], leaf.grad) for a, leaf in zip(short, own, strict=True))
    assert shortened(parts, None) is parts


# D-Flow


@pytest.mark.parametrize("flow", [False, True])
def test_the_midpoint_rule_is_of_second_order(make_problem: Make, flow: bool) -> None:
    problem = make_problem(4)
    schedule = FlowSchedule() if flow else problem.schedule
    x_t = problem.start()

    def end(steps: int, midpoint: bool) -> Tensor:
        if flow:
            grid = Flow(num_steps=steps).grid(schedule)
        else:
            grid = Ddim(num_steps=steps, spacing="trailing", offset=0, end="clean").grid(schedule)
        ode = flow_of(problem.denoise, grid, schedule)
        chain = MidpointChain(ode=ode) if midpoint else ode
        return walk(chain, chain.start(x_t))[0]

    exact = end(800, midpoint=True)
    errors = {(steps, rule): float((end(steps, rule) - exact).abs().mean()) for steps in (25, 50, 100) for rule in (False, True)}
    assert errors[100, True] < 0.3 * errors[100, False]
    if flow:  # evenly spaced: halving the step quarters the error
        assert errors[50, True] / errors[100, True] > 3 and errors[50, False] / errors[100, False] < 2.5


def test_d_flow_finds_the_optimum_of_a_quadratic(make_problem: Make) -> None:
    """The reward's maximum lies within what the flow can draw, so that L-BFGS ends there."""
    goal = torch.tensor([1.4, 0.1], dtype=torch.float64).view(2, 1, 1)
    reward = lambda rows: -(rows - goal).square().sum((1, 2, 3))  # noqa: E731
    problem = make_problem(1, scheduler=PLAIN, reward=reward)
    found = DFlow(**GRADIENTS, num_updates=15)(problem)
    assert reward(found) > -1e-6
    assert reward(DFlow(gradients=Backprop(), num_updates=15)(make_problem(1, scheduler=PLAIN, reward=reward))) > -1e-6


def test_d_flow_makes_one_sample_at_a_time(make_problem: Make) -> None:
    method = DFlow(**GRADIENTS)
    assert method.needs.one_sample and method.needs.sampler == "deterministic"
    with pytest.raises(ValueError, match="one at a time"):
        method(make_problem(2, scheduler=PLAIN))


@pytest.mark.parametrize("make", [Reno, Dno, DFlow])
def test_what_is_kept_is_never_worse_than_the_unguided_picture(make_problem: Make, make: Callable[..., Method]) -> None:
    """Also with steps that are much too long."""
    scheduler = PLAIN if make is DFlow else Ddim(num_steps=6, eta=0.5)
    options = {"lr": 50.0, "num_updates": 3} | ({"solver": "euler"} if make is DFlow else {"clip": None})
    for i in range(4):
        one = lambda i=i: make_problem(5, scheduler=scheduler).subset([i])  # noqa: E731
        assert make(**GRADIENTS, **options)(one())[0, 0] >= Base()(one())[0, 0] - 1e-9


@pytest.mark.parametrize("make", [Reno, Dno])
def test_gradients_that_are_not_finite_move_nothing(make_problem: Make, make: Callable[..., Method]) -> None:
    reward = lambda rows: (rows[:, 0, 0, 0] - rows[:, 0, 0, 0]).sqrt() + rows[:, 1, 0, 0].detach()  # noqa: E731
    options = {"norm_weight": 0.0} if make is Reno else {"weight_decay": 0.0}
    made = make(**GRADIENTS, num_updates=3, **options)(make_problem(scheduler=PLAIN, reward=reward))
    assert torch.allclose(made, Base()(make_problem(scheduler=PLAIN)))


def test_reno_starts_from_a_reference_that_is_noised(make_problem: Make) -> None:
    problem = make_problem(2, scheduler=PLAIN)
    problem = dataclasses.replace(problem, reference=torch.full((2, 2, 1, 1), 0.7, dtype=torch.float64), grid=problem.grid[4:])
    plain = Base()(dataclasses.replace(problem, noise=Noise(["sample-0", "sample-1"], dtype=torch.float64)))
    assert torch.equal(Reno(**GRADIENTS, num_updates=0)(problem), plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reno(**GRADIENTS, lr=0.0), "lr=0.0"), (lambda: Reno(**GRADIENTS, momentum=1.0), "momentum=1.0"),
        (lambda: Dno(**GRADIENTS, gamma=-1.0), "gamma=-1.0"), (lambda: Dno(**GRADIENTS, num_updates=-1), "num_updates=-1"),
        (lambda: DFlow(**GRADIENTS, history=0), "history=0"), (lambda: DFlow(**GRADIENTS, norm_weight=-1.0), "norm_weight=-1.0"),
        (lambda: Reno(**GRADIENTS, clip=0.0), "clip=0.0"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(make: Callable[[], Method], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        make()
