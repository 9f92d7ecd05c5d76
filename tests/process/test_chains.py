"""Whole chains: against the plain loop, the papers' equations, exact solutions, and back again."""

import copy
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from steps import step
from torch import Tensor

from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process import Prediction
from guidedgen.process.chains import Chain, DdimChain, EdictChain, State, mix, unmix
from guidedgen.process.formulas import from_eps
from guidedgen.process.grid import Grid, NoiseSchedule, Point
from guidedgen.process.schedulers import Ddim

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
SHAPE = (2, 1, 4, 8, 8)


def edict_grid(steps: int) -> Grid:
    """That of the released code: t = 1000 - 1000 / S down to 0, and a last step from there to where it is."""
    return Ddim(num_steps=steps, offset=0).grid(SCHEDULE)


def normal(seed: int, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run(chain: Chain, state: State) -> State:
    for i in range(len(chain)):
        state = chain.step(state, i)
    return state


def run_back(chain: EdictChain, state: State) -> State:
    for i in reversed(range(len(chain))):
        state = chain.unstep(state, i)
    return state


def error(one: State, other: State) -> float:
    """The largest difference, relative to the largest element of the second."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))


class Counted:
    def __init__(self, denoise: Callable[[Tensor, Point], Prediction]) -> None:
        self.denoise, self.times = denoise, []

    def __call__(self, x_t: Tensor, t: Point) -> Prediction:
        self.times.append(t.t)
        return self.denoise(x_t, t)


@pytest.fixture
def denoise() -> GaussianDenoiser:
    """Guided, so that it is not linear in any way."""
    means = normal(7, shape=(3, *SHAPE[2:]))
    cond = GaussianMixture(means=means, std=0.6, weights=torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))
    uncond = GaussianMixture(means=torch.zeros_like(means[:1]), std=1.2, weights=torch.ones(1, dtype=torch.float64))
    return GaussianDenoiser(cond=cond, uncond=uncond, guidance_scale=3.0)


@pytest.fixture(scope="module")
def unet() -> Callable[[torch.dtype], Callable[[Tensor, Point], Prediction]]:
    """A tiny UNet of SD's kind with random weights, computing in some dtype whatever the latents are in."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4, norm_num_groups=4,
        ).eval().requires_grad_(False)  # fmt: skip

    def make(dtype: torch.dtype) -> Callable[[Tensor, Point], Prediction]:
        text, net = normal(5, dtype, (1, 6, 16)), copy.deepcopy(network).to(dtype)

        @torch.no_grad()
        def predict(x_t: Tensor, t: Point) -> Prediction:
            rows = x_t.flatten(0, 1)
            eps = net(rows.to(dtype), t.t, text.expand(len(rows), -1, -1)).sample
            return from_eps(x_t, eps.to(x_t.dtype).unflatten(0, x_t.shape[:2]), t)

        return predict

    return make


# DDIM


@pytest.mark.parametrize("scheduler", [Ddim(num_steps=7), Ddim(num_steps=6, spacing="trailing", end="clean")])
def test_a_ddim_chain_is_the_scheduler_s_loop(denoise: GaussianDenoiser, scheduler: Ddim) -> None:
    grid, x = scheduler.grid(SCHEDULE), normal(0)
    chain = DdimChain(denoise=denoise, grid=grid)
    expected = x
    for t, s in pairwise(grid):
        expected = step(scheduler, expected, denoise(expected, t).eps, t, s, None)
    assert len(chain) == scheduler.num_steps
    torch.testing.assert_close(*run(chain, chain.start(x)), expected, rtol=0, atol=1e-13)


def test_a_step_that_goes_nowhere_costs_nothing(denoise: GaussianDenoiser) -> None:
    scheduler, x, counted = Ddim(num_steps=5, offset=0), normal(0), Counted(denoise)
    grid = scheduler.grid(SCHEDULE)
    chain = DdimChain(denoise=counted, grid=grid)
    (end,) = run(chain, chain.start(x))
    assert counted.times == [800, 600, 400, 200]
    expected = x
    for t, s in pairwise(grid):  # all five
        expected = step(scheduler, expected, denoise(expected, t).eps, t, s, None)
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-14)
    pair = EdictChain(denoise=(counted := Counted(denoise)), grid=grid)
    run(pair, pair.start(x))
    assert counted.times == [800, 800, 600, 600, 400, 400, 200, 200]
    assert chain.moves == pair.moves and len(chain) == len(pair) == 4


# EDICT


def edict_by_the_papers(denoise: Callable, x: Tensor, y: Tensor, steps: int, p: float, leapfrog: bool) -> State:
    """DOODL, Eq. 5, in cumulative products of alpha; `leapfrog`: in odd steps y goes first, as salesforce/DOODL has it."""
    bar = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    for i in range(steps):
        time = 1000 // steps * (steps - 1 - i)
        now, then = bar[time], bar[max(time - 1000 // steps, 0)]
        a = (then / now).sqrt()
        b = (1 - then).sqrt() - (then * (1 - now) / now).sqrt()
        point = Point(time, math.sqrt(now), math.sqrt(1 - now))
        if leapfrog and i % 2 == 1:
            y_inter = a * y + b * denoise(x, point).eps
            x_inter = a * x + b * denoise(y_inter, point).eps
        else:
            x_inter = a * x + b * denoise(y, point).eps
            y_inter = a * y + b * denoise(x_inter, point).eps
        x = p * x_inter + (1 - p) * y_inter
        y = p * y_inter + (1 - p) * x
    return x, y


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("mixing", [1.0, 0.93, 0.5])
def test_an_edict_chain_is_the_papers(denoise: GaussianDenoiser, mixing: float, alternate: bool) -> None:
    """The last of the five steps goes nowhere, and still mixes."""
    chain = EdictChain(denoise=denoise, grid=edict_grid(5), mixing=mixing, alternate=alternate)
    x, y = normal(0), normal(1)
    theirs = edict_by_the_papers(denoise, x, y, 5, mixing, alternate)
    assert len(chain) == 4
    assert error(run(chain, (x, y)), theirs) < 1e-13


def test_alternating_swaps_the_roles_in_odd_steps(denoise: GaussianDenoiser) -> None:
    plain, other = (EdictChain(denoise=denoise, grid=edict_grid(5), mixing=1.0, alternate=alternate) for alternate in (False, True))
    x, y = normal(0), normal(1)
    assert error(other.step((x, y), 2), plain.step((x, y), 2)) == 0
    assert error(other.step((x, y), 1), plain.step((y, x), 1)[::-1]) == 0
    assert error(other.step((x, y), 1), plain.step((x, y), 1)) > 1e-3


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("mixing", [1.0, 0.93, 0.5])
def test_a_noise_prediction_that_does_not_depend_on_the_latent_makes_it_ddim(mixing: float, alternate: bool) -> None:
    """Both latents then move alike, and mixing leaves equals as they are."""
    noise = normal(3)
    constant = lambda x_t, t: from_eps(x_t, (1 + t.t / 1000) * noise, t)  # noqa: E731
    pair = EdictChain(denoise=constant, grid=edict_grid(6), mixing=mixing, alternate=alternate)
    single = DdimChain(denoise=constant, grid=edict_grid(6))
    x, y = run(pair, pair.start(normal(0)))
    (expected,) = run(single, single.start(normal(0)))
    assert error((x, y), (expected, expected)) < 1e-14


def test_mixing_is_undone_and_one_is_none() -> None:
    state = normal(0), normal(1)
    assert error(mix(state, 1.0), state) == error(unmix(state, 1.0), state) == 0
    for p in (0.93, 0.5):
        assert error(mix(state, p), state) > 0.1
        assert error(unmix(mix(state, p), p), state) < 1e-14
    x, y = mix((normal(0), normal(0)), 0.93)
    assert error((x, y), (normal(0), normal(0))) < 1e-15


def test_many_steps_follow_the_flow_s_exact_solution() -> None:
    """Of one Gaussian: (x_t - alpha_t mean) / std_t is constant along the probability flow; EDICT is of first order."""
    mean, std = normal(2, shape=(1, *SHAPE[2:])), 0.5
    single = GaussianMixture(means=mean, std=std, weights=torch.ones(1, dtype=torch.float64))
    errors = []
    for steps in (50, 100, 200):
        chain = EdictChain(denoise=GaussianDenoiser(cond=single, uncond=single), grid=edict_grid(steps))
        first, last = chain.grid[0], chain.grid[-1]
        standard = (normal(0) - first.alpha * mean) / math.hypot(first.alpha * std, first.sigma)
        exact = last.alpha * mean + math.hypot(last.alpha * std, last.sigma) * standard
        errors.append(error(run(chain, chain.start(normal(0))), (exact, exact)))
    assert errors[-1] < 0.02
    assert all(1.7 < before / after < 2.6 for before, after in pairwise(errors)), errors


# And back


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("mixing", [1.0, 0.93, 0.5])
def test_every_step_is_undone(denoise: GaussianDenoiser, mixing: float, alternate: bool) -> None:
    chain = EdictChain(denoise=denoise, grid=edict_grid(6), mixing=mixing, alternate=alternate)
    state = normal(0), normal(1)
    for i in range(len(chain)):
        assert error(chain.step(state, i), state) > 1e-3
        assert error(chain.unstep(chain.step(state, i), i), state) < 1e-12
        assert error(chain.step(chain.unstep(state, i), i), state) < 1e-12


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("steps", [4, 5])
def test_an_image_is_inverted_and_drawn_again(unet: Callable, steps: int, alternate: bool) -> None:
    """Even and odd numbers of steps; the released code measures 4e-14 and 1e-13 on such a network."""
    chain = EdictChain(denoise=unet(torch.float64), grid=edict_grid(steps), alternate=alternate)
    image = chain.start(normal(0))
    noise = run_back(chain, image)
    assert error(noise, image) > 0.1
    assert error(run(chain, noise), image) < 1e-12


@pytest.mark.parametrize("network", [torch.float32, torch.bfloat16])
def test_latents_in_float64_are_found_again_whatever_the_network_computes_in(unet: Callable, network: torch.dtype) -> None:
    """50 steps: about 1e-13, but 3e-5 and 2e-2 with latents in float32."""
    chain = EdictChain(denoise=unet(network), grid=edict_grid(50))
    noise = chain.start(normal(0))
    assert error(run_back(chain, run(chain, noise)), noise) < 5e-12
    coarse = chain.start(normal(0, torch.float32))
    assert 1e-6 < error(run_back(chain, run(chain, coarse)), coarse) < 1
