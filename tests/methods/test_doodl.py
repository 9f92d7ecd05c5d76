"""DOODL against a hand-written trace of its update, its null setting, closed forms and its stated costs."""

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
from guidedgen.gradients.reversible import Reversible
from guidedgen.methods.base import Base
from guidedgen.methods.doodl import Doodl
from guidedgen.methods.problem import Problem
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.chains import EdictChain
from guidedgen.process.schedulers import Ddim

Make = Callable[..., Problem]
PLAIN = {"num_crops": 0, "perturbation": 0.0}  # nothing random
EDICT = Ddim(num_steps=8, offset=0)


def curved(rows: Tensor) -> Tensor:
    """A reward whose gradient is nowhere the same."""
    return rows.flatten(1).sin().sum(1) - 0.1 * rows.flatten(1).square().sum(1)


def doodl(**options) -> Doodl:
    return Doodl(**{"gradients": Backprop(), "num_updates": 3, **options})


def test_without_updates_a_ddim_chain_is_the_unguided_one(make_problem: Make) -> None:
    scheduler = Ddim(num_steps=10)
    plain = Base()(make_problem(scheduler=scheduler))
    assert torch.allclose(doodl(num_updates=0, process="ddim")(make_problem(scheduler=scheduler)), plain, atol=1e-12, rtol=0)
    assert torch.allclose(  # or where the gradient is not followed
        doodl(lr=0, process="ddim", **PLAIN)(make_problem(scheduler=scheduler)), plain, atol=1e-12, rtol=0
    )


def test_without_updates_edict_is_its_own_unguided_chain(make_problem: Make) -> None:
    problem = make_problem(scheduler=EDICT)
    chain = EdictChain(denoise=problem.denoise, grid=problem.grid, mixing=0.9)
    state = chain.start(make_problem(scheduler=EDICT).start())
    for i in range(len(chain)):
        state = chain.step(state, i)
    assert torch.equal(doodl(num_updates=0, mixing=0.9)(problem), state[0][:, 0])


def by_hand(
    problem: Problem, updates: int, *, tied: bool, halve: bool, nesterov: bool, lr: float, clip: float, std: float
) -> Tensor:
    """The update in the paper's order, autograd and EDICT written out: scale, clip, momentum, add, perturb, renormalise."""
    mixture, p = problem.denoise.denoiser.cond, 0.93
    names = [f"sample-{i}/perturbation" for i in range(len(problem))]
    noise = Noise(names, dtype=torch.float64)
    x = problem.start()
    pair = [x.clone(), x.clone()]
    sizes = [z.flatten(2).norm(dim=2) for z in pair]
    velocity = [torch.zeros_like(x), torch.zeros_like(x)]

    def chain(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for t, s in list(pairwise(problem.grid))[:-1]:  # the last goes nowhere
            a = s.alpha / t.alpha
            b = s.sigma - a * t.sigma
            x = a * x + b * mixture(y, t).eps
            y = a * y + b * mixture(x, t).eps
            x = p * x + (1 - p) * y
            y = p * y + (1 - p) * x
        x = p * x + (1 - p) * y  # of the last step, which goes nowhere and mixes
        return x, p * y + (1 - p) * x

    for _ in range(updates):
        leaves = [z.clone().requires_grad_() for z in pair]
        ends = chain(*leaves)
        loss = -0.5 * sum(curved(end.flatten(0, 1)).sum() for end in ends)
        g = [-z for z in torch.autograd.grad(loss, leaves)]
        if tied:  # the released code, doodl.py:936-940: the mean over the pair, and only of a tied one
            g = [(0.5 if halve else 1.0) * (g[0] + g[1])] * 2
        eps = std * noise.draw(1, problem.latent_shape)
        for k in range(2):
            step = (lr * g[k]).clamp(-clip, clip)
            velocity[k] = 0.9 * velocity[k] + step
            pair[k] = pair[k] + (step + 0.9 * velocity[k] if nesterov else velocity[k]) + eps
            pair[k] = pair[k] * (sizes[k] / pair[k].flatten(2).norm(dim=2))[..., None, None, None]
    return chain(*pair)[0].detach()[:, 0]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("halve", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_the_update_is_the_paper_s(make_problem: Make, tied: bool, halve: bool, nesterov: bool) -> None:
    problem = make_problem(scheduler=EDICT, reward=curved)
    method = doodl(
        tied=tied, pair_gradient="mean" if halve else "total", nesterov=nesterov, lr=0.3, clip=0.05, perturbation=0.02,
        num_crops=0, keep="last",
    )  # fmt: skip
    expected = by_hand(
        make_problem(scheduler=EDICT, reward=curved), 3, tied=tied, halve=halve, nesterov=nesterov, lr=0.3, clip=0.05, std=0.02
    )
    assert torch.allclose(method(problem), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("engine", [Checkpoint(), Checkpoint(memory_gb=1.0), Reversible()])
def test_engines_are_interchangeable(make_problem: Make, engine) -> None:
    results = [
        doodl(gradients=g, keep="last", lr=1.0, clip=0.1, **PLAIN)(make_problem(scheduler=EDICT, reward=curved))
        for g in (Backprop(), engine)
    ]
    assert torch.allclose(*results, atol=1e-10, rtol=0)


def test_the_optimum_is_reached(make_problem: Make) -> None:
    """A single Gaussian: x_0 is affine in x_T, so a quadratic reward can be met exactly."""
    target = torch.tensor([0.7, -0.4], dtype=torch.float64).view(2, 1, 1)
    single = GaussianMixture(
        means=torch.full((1, 2, 1, 1), 0.2, dtype=torch.float64), std=0.8, weights=torch.ones(1, dtype=torch.float64)
    )
    problem = make_problem(scheduler=Ddim(num_steps=10), reward=lambda rows: -(rows - target).square().sum((1, 2, 3)))
    problem = dataclasses.replace(problem, denoise=GaussianDenoiser(cond=single, uncond=single))
    method = doodl(process="ddim", num_updates=300, lr=0.3, clip=None, momentum=0.5, renormalise=False, **PLAIN)
    assert (method(problem) - target).abs().max() < 1e-6


def test_renormalising_keeps_the_norm_and_clipping_the_step(make_problem: Make) -> None:
    problem = make_problem(scheduler=Ddim(num_steps=4), reward=lambda rows: 1e6 * curved(rows))
    method, seen = doodl(process="ddim", lr=1.0, clip=0.01, momentum=0.0, num_updates=5, keep="last", **PLAIN), []
    original = Doodl._moved

    def watched(self, z, velocity, gradient, size, noise):
        moved = original(self, z, velocity, gradient, size, noise)
        seen.append((z, moved, velocity.clone()))
        return moved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Doodl, "_moved", watched)
        method(problem)
    assert len(seen) == 5
    for before, after, velocity in seen:
        assert torch.allclose(after.flatten(2).norm(dim=2), before.flatten(2).norm(dim=2), atol=1e-12)
        assert velocity.abs().max() <= 0.01


def test_the_best_picture_is_kept(make_problem: Make) -> None:
    """An absurd step makes pictures worse: the best of all is then the unguided one, and the last is not."""
    options = {"process": "ddim", "lr": 50.0, "clip": None, "renormalise": False, "num_updates": 4, **PLAIN}
    scheduler = Ddim(num_steps=6)
    plain, wild = Base()(make_problem(scheduler=scheduler)), lambda rows: -rows.flatten(1).square().sum(1).square()
    best = doodl(**options)(make_problem(scheduler=scheduler, reward=wild))
    last = doodl(**options, keep="last")(make_problem(scheduler=scheduler, reward=wild))
    assert (wild(best) >= wild(plain) - 1e-12).all()
    assert (wild(last) < wild(plain)).any()


def test_of_edicts_pair_the_picture_that_is_returned_is_the_one_that_is_compared(make_problem: Make) -> None:
    """Walks at random under a rippled reward, in some of which the mean of a pair is highest elsewhere than its x."""
    rewards: list[Tensor] = []

    def rippled(rows: Tensor, tasks: object = None) -> Tensor:
        values = rows.flatten(1).mul(100).sin().sum(1)
        rewards.append(values.detach().view(4, -1)[:, 0])  # x before y
        return values

    problem = dataclasses.replace(make_problem(4, scheduler=EDICT), reward=rippled)
    pictures = doodl(lr=0, perturbation=1.0, num_updates=8, num_crops=0)(problem)
    assert len(rewards) == 9
    highest = torch.stack(rewards).amax(0)
    assert torch.equal(rippled(pictures), highest)


def test_more_updates_never_end_lower(make_problem: Make) -> None:
    rewards = [
        curved(
            doodl(process="ddim", num_updates=m, lr=0.5, clip=0.1, **PLAIN)(
                make_problem(scheduler=Ddim(num_steps=6), reward=curved)
            )
        )
        for m in (0, 2, 5, 10)
    ]
    assert all((later >= earlier - 1e-12).all() for earlier, later in pairwise(rewards))
    assert (rewards[-1] > rewards[0] + 0.1).any()


@pytest.mark.parametrize("crops", [0, 3])
def test_a_batch_is_its_samples(make_problem: Make, crops: int) -> None:
    method = doodl(num_crops=crops, perturbation=0.01, lr=0.5, clip=0.1)
    together = method(make_problem(3, scheduler=EDICT, reward=curved))
    for i in range(3):
        alone = dataclasses.replace(
            make_problem(1, scheduler=EDICT, reward=curved), noise=Noise([f"sample-{i}"], dtype=torch.float64)
        )
        assert torch.allclose(method(alone)[0], together[i], atol=1e-12, rtol=0)


@pytest.mark.parametrize("process", ["edict", "ddim"])
@pytest.mark.parametrize("crops", [0, 4])
@pytest.mark.parametrize("m", [0, 1, 3])
@pytest.mark.parametrize("engine", [Checkpoint(), Backprop()])
def test_it_costs_what_it_says(make_problem: Make, process: str, crops: int, m: int, engine) -> None:
    """S steps, c latents a step: 2cS(2m + 1) rows forward by checkpoint, 2cSm backward; decodes and reward calls as stated."""
    decoded: list[int] = []
    problem = make_problem(2, scheduler=EDICT, reward=curved, guidance_scale=2.0)
    problem = dataclasses.replace(problem, decode=lambda x: (decoded.append(len(x)), x)[1])
    doodl(gradients=engine, process=process, num_crops=crops, num_updates=m, smallest_crop=1.0)(problem)
    steps, c = 7, 2 if process == "edict" else 1  # the eighth step goes nowhere
    passes = 2 * m + 1 if isinstance(engine, Checkpoint) else m + 1
    assert (problem.denoise.rows, problem.denoise.backward) == (2 * 2 * c * steps * passes, 2 * 2 * c * steps * m)
    whole = m + 1 if m else 0
    whole = whole if crops else whole - m if m else 0
    assert sum(decoded) == 2 * (c * m + whole)
    assert problem.reward.calls == 2 * (c * m * max(crops, 1) + whole)


def test_a_picture_is_inverted_and_found_again(make_problem: Make) -> None:
    reference = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = dataclasses.replace(make_problem(scheduler=EDICT), reference=reference)
    method = doodl(source_image="picture.png", tied=False, num_updates=0)
    assert torch.allclose(method(problem), reference, atol=1e-10, rtol=0)
    assert method.needs.reference == "inverted"


def test_patience_stops(make_problem: Make) -> None:
    """A reward that cannot be raised: one look, then as many updates as patience allows."""
    steps: list[int] = []
    problem = make_problem(1, scheduler=Ddim(num_steps=4), reward=lambda rows: 0 * rows.sum((1, 2, 3)))
    method = doodl(process="ddim", num_updates=30, patience=2, **PLAIN)
    method(problem, lambda event, i, _: steps.append(i) if event == "update" else None)
    assert steps == [0, 1, 2]
    assert method.needs.one_sample


def test_a_gradient_that_is_not_finite_moves_nothing_and_no_neighbour(make_problem: Make) -> None:
    def broken(rows: Tensor) -> Tensor:
        return curved(rows) * torch.where(torch.arange(len(rows)) % 3 == 1, math.nan, 1.0)

    options = {"process": "ddim", "lr": 0.5, "clip": 0.1, "keep": "last", **PLAIN}
    whole = doodl(**options)(make_problem(scheduler=Ddim(num_steps=6), reward=curved))
    spoiled = doodl(**options)(make_problem(scheduler=Ddim(num_steps=6), reward=broken))
    plain = Base()(make_problem(scheduler=Ddim(num_steps=6)))
    assert torch.allclose(spoiled[[0, 2]], whole[[0, 2]], atol=1e-12)
    assert torch.allclose(spoiled[1], plain[1], atol=1e-12)


@pytest.mark.parametrize(
    ("option", "value"),
    [("num_updates", -1), ("momentum", 2.0), ("clip", 0.0), ("patience", 0), ("mixing", 0.0), ("smallest_crop", 1.5)],
)
def test_wrong_values_are_refused(option: str, value: float) -> None:
    with pytest.raises(BadValue, match=option):
        doodl(**{option: value})


def test_a_source_image_needs_the_pair() -> None:
    with pytest.raises(BadValue, match="tied=false"):
        doodl(source_image="a.png")
