"""The probability flow: its time, its velocities on a Gaussian, and what Euler's method for its two ODEs is."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process import Prediction
from guidedgen.process.chains import DdimChain
from guidedgen.process.flow import FlowChain, OdeChain, TimeChain
from guidedgen.process.formulas import from_eps
from guidedgen.process.grid import NoiseSchedule, Point
from guidedgen.process.schedulers import Ddim

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
SHAPE = (2, 1, 1)
GRIDS = {
    "leading": Ddim(num_steps=7),
    "ending where the last step goes nowhere": Ddim(num_steps=10, offset=0),
    "linspace": Ddim(num_steps=8, spacing="linspace"),
    "clean": Ddim(num_steps=5, spacing="trailing", end="clean"),
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(std: float = 0.6, k: int = 1) -> GaussianDenoiser:
    one = GaussianMixture(means=normal(k, *SHAPE, seed=1), std=std, weights=torch.full((k,), 1 / k, dtype=torch.float64))
    return GaussianDenoiser(cond=one, uncond=one)


class Watched:
    """A denoiser that remembers the points it is asked about."""

    def __init__(self, denoise: GaussianDenoiser) -> None:
        self.denoise, self.points = denoise, []

    def __call__(self, x_t: Tensor, t: Point) -> Prediction:
        self.points.append(t)
        return self.denoise(x_t, t)


# Time


@pytest.mark.parametrize("shape", ["linear", "scaled_linear"])
def test_when_undoes_at(shape: str) -> None:
    schedule = NoiseSchedule.from_betas(0.00085, 0.012, 1000, shape)
    for t in (*range(0, 1000, 37), 999, 0.25, 0.999, 1.001, 300.5, 777.125, 998.75):
        point = schedule.at(t)
        found = schedule.when(point.sigma / point.alpha)
        assert found.t == pytest.approx(t, abs=1e-9)
        assert (found.alpha, found.sigma) == pytest.approx((point.alpha, point.sigma), rel=1e-12)


def test_at_undoes_when() -> None:
    for ratio in torch.linspace(0.0292, 14.6, 200, dtype=torch.float64).tolist():
        point = SCHEDULE.at(SCHEDULE.when(ratio).t)
        assert point.sigma / point.alpha == pytest.approx(ratio, rel=1e-9)


def test_beyond_the_trained_levels_only_the_time_is_held() -> None:
    assert SCHEDULE.when(0.0) == Point(0.0, 1.0, 0.0)
    for ratio, t in ((0.01, 0.0), (20.0, 999.0), (1e6, 999.0)):
        point = SCHEDULE.when(ratio)
        assert point.t == t
        assert point.sigma / point.alpha == pytest.approx(ratio, rel=1e-12)
        assert math.hypot(point.alpha, point.sigma) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("ratio", [-1e-9, -3.0, math.nan])
def test_there_is_no_time_of_a_negative_ratio(ratio: float) -> None:
    with pytest.raises(ValueError, match="must be at least 0"):
        SCHEDULE.when(ratio)


# The flow


def test_the_velocity_of_a_gaussian_is_that_of_its_trajectories() -> None:
    """y(r) = m + c sqrt(std^2 + r^2): the standardised latent does not move."""
    denoise, c = gaussian(0.6), normal(4, 3, *SHAPE)
    chain = FlowChain(denoise=denoise, grid=Ddim().grid(SCHEDULE), schedule=SCHEDULE)
    for r in (0.0, 1e-9, 0.03, 1.0, 5.5, 14.0):
        y = denoise.cond.means[0] + c * math.hypot(0.6, r)
        torch.testing.assert_close(chain.velocity(r, y), c * r / math.hypot(0.6, r), rtol=1e-9, atol=1e-12)


def test_between_the_points_of_the_grid_time_is_interpolated() -> None:
    watched = Watched(gaussian())
    chain = FlowChain(denoise=watched, grid=Ddim(num_steps=4).grid(SCHEDULE), schedule=SCHEDULE)
    for t in (123.25, 500.5, 998.125):
        point = SCHEDULE.at(t)
        chain.velocity(point.sigma / point.alpha, normal(1, 1, *SHAPE))
        assert watched.points[-1].t == pytest.approx(t, abs=1e-8)
    chain.velocity(-0.5, normal(1, 1, *SHAPE))  # past the clean end
    assert watched.points[-1] == Point(0.0, 1.0, 0.0)


@pytest.mark.parametrize("grid", GRIDS)
def test_ddim_is_euler_s_method_for_it(grid: str) -> None:
    points, denoise = GRIDS[grid].grid(SCHEDULE), gaussian(0.3, 3)
    flow = FlowChain(denoise=denoise, grid=points, schedule=SCHEDULE)
    ddim = DdimChain(denoise=denoise, grid=points)
    state = other = flow.start(normal(4, 2, *SHAPE))
    y = state[0] / points[0].alpha
    for i in range(len(flow)):
        state, other = flow.step(state, i), ddim.step(other, i)
        assert torch.equal(state[0], other[0])
    ratios = [point.sigma / point.alpha for point in points]
    for r, s in pairwise(ratios):
        y = y + (s - r) * flow.velocity(r, y)
    torch.testing.assert_close(state[0], points[-1].alpha * y, rtol=1e-10, atol=1e-11)
    assert len(flow) == len(ddim) == sum(a != b for a, b in pairwise(ratios))


def test_of_a_point_every_step_is_exact_however_long() -> None:
    """All pictures are one: the flow is a straight line in r, and none in time."""
    denoise, x = gaussian(std=0.0), normal(4, 2, *SHAPE)
    grid = Ddim(num_steps=2, spacing="linspace").grid(SCHEDULE)  # from the last trained time to the first
    first, last = grid[0], grid[-1]
    where = last.alpha * denoise.cond.means[0] + last.sigma / first.sigma * (x - first.alpha * denoise.cond.means[0])
    (at_once,) = FlowChain(denoise=denoise, grid=grid, schedule=SCHEDULE).step((x,), 0)
    torch.testing.assert_close(at_once, where, rtol=1e-11, atol=1e-11)
    (in_time,) = TimeChain(denoise=denoise, grid=grid, schedule=SCHEDULE).step((x,), 0)
    assert (in_time - where).norm() > 0.3 * where.norm()


# The flow in time


def slope(schedule: NoiseSchedule, t: float) -> float:
    """The f that a velocity in time has at t: without a denoiser's noise it is f x."""
    chain = TimeChain(denoise=lambda x_t, t: from_eps(x_t, 0 * x_t, t), grid=Ddim().grid(SCHEDULE), schedule=schedule)
    return chain.velocity(t, torch.ones(1, 1, *SHAPE, dtype=torch.float64)).mean().item()


def test_in_time_the_velocity_is_the_derivative_of_the_trajectories() -> None:
    """x(t) = alpha m + c sqrt(alpha^2 std^2 + sigma^2), where d log alpha / dt = f and d sigma^2 / dt = -2 f alpha^2. At every time
    where all beta are one, and in the middle between trained times on any schedule.
    """
    denoise, c, std = gaussian(0.6), normal(4, 3, *SHAPE), 0.6
    constant = NoiseSchedule.from_betas(0.006, 0.006, 1000, "linear")
    for schedule, times in ((constant, (0, 0.1, 3, 77.7, 500.5, 998.9, 999)), (SCHEDULE, (0.5, 42.5, 500.5, 998.5))):
        chain = TimeChain(denoise=denoise, grid=Ddim().grid(schedule), schedule=schedule)
        for t in times:
            k = min(int(t), 998)
            f = (schedule.alphas_cumprod[k + 1] / schedule.alphas_cumprod[k]).log().item() / 2
            point, m = schedule.at(t), denoise.cond.means[0]
            spread = math.hypot(point.alpha * std, point.sigma)
            derivative = f * (point.alpha * m + point.alpha**2 * (std**2 - 1) / spread * c)
            torch.testing.assert_close(chain.velocity(t, point.alpha * m + spread * c), derivative, rtol=1e-9, atol=1e-14)


def test_its_slope_does_not_jump_and_leads_where_alpha_is() -> None:
    for t in (1, 10, 500, 998):
        assert slope(SCHEDULE, t - 1e-6) == pytest.approx(slope(SCHEDULE, t + 1e-6), rel=1e-6)
    halves = [slope(SCHEDULE, i / 2) for i in range(401)]  # between which it is linear
    integral = sum(a + b for a, b in pairwise(halves)) / 4
    assert integral == pytest.approx(math.log(SCHEDULE.at(200).alpha / SCHEDULE.at(0).alpha), abs=1e-6)


def test_before_and_after_the_trained_times_it_is_as_at_the_ends() -> None:
    chain, x = TimeChain(denoise=gaussian(), grid=Ddim().grid(SCHEDULE), schedule=SCHEDULE), normal(1, 1, *SHAPE)
    assert torch.equal(chain.velocity(-0.5, x), chain.velocity(0.0, x))
    assert torch.equal(chain.velocity(999.5, x), chain.velocity(999.0, x))


def test_its_chain_is_euler_s_method_and_asks_where_the_grid_is() -> None:
    watched, points = Watched(gaussian(0.3, 3)), Ddim(num_steps=6).grid(SCHEDULE)
    chain = TimeChain(denoise=watched, grid=points, schedule=SCHEDULE)
    x = normal(2, 1, *SHAPE)
    state = chain.start(x)
    for i in range(len(chain)):
        state = chain.step(state, i)
    assert watched.points == list(points[:-1])
    for t, s in pairwise(points):
        x = x + (s.t - t.t) * chain.velocity(t.t, x)
    assert torch.equal(state[0], x)


def test_it_does_not_end_clean() -> None:
    with pytest.raises(ValueError, match="no noise is left"):
        TimeChain(denoise=gaussian(), grid=GRIDS["clean"].grid(SCHEDULE), schedule=SCHEDULE)


# Offsets


@pytest.mark.parametrize("kind", [FlowChain, TimeChain])
def test_offsets_move_the_states_and_have_their_gradients(kind: type[OdeChain]) -> None:
    """An offset of the state after step i is a start of the rest of the chain that is moved by it."""
    points, denoise, x = Ddim(num_steps=5).grid(SCHEDULE), gaussian(0.3, 3), normal(2, 1, *SHAPE)
    offsets = [normal(2, 1, *SHAPE, seed=i).requires_grad_() for i in range(4)]
    chain = kind(denoise=denoise, grid=points, schedule=SCHEDULE, offsets=offsets)
    plain = kind(denoise=denoise, grid=points, schedule=SCHEDULE)
    state, towards = chain.start(x), normal(2, 1, *SHAPE, seed=9)
    states = []
    for i in range(len(chain)):
        states.append(state[0].detach())
        state = chain.step(state, i)
    gradients = torch.autograd.grad(state[0], offsets, towards)
    for i, gradient in enumerate(gradients):
        moved = states[i + 1].clone().requires_grad_()
        rest = (moved,)
        for k in range(i + 1, len(chain)):
            rest = (chain.moved(plain.step(rest, k)[0], k),)
        torch.testing.assert_close(rest[0], state[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(torch.autograd.grad(rest[0], moved, towards)[0], gradient, rtol=1e-12, atol=1e-12)
