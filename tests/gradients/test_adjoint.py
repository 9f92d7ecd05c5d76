"""The continuous adjoint against plain autograd, closed forms on a Gaussian, and its stated costs."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.gradients import GradientEngine
from guidedgen.gradients.adjoint import Adjoint
from guidedgen.gradients.backprop import Backprop
from guidedgen.gradients.checkpoint import Checkpoint
from guidedgen.gradients.memory import saved_bytes
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process import Prediction
from guidedgen.process.chains import DdimChain, EdictChain
from guidedgen.process.flow import FlowChain, OdeChain, TimeChain
from guidedgen.process.formulas import from_eps
from guidedgen.process.grid import Grid, NoiseSchedule, Point
from guidedgen.process.schedulers import Ddim

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
SHAPE, STD = (2, 1, 1), 0.6
CONSTANT = NoiseSchedule.from_betas(0.006, 0.006, 1000, "linear")  # whose ODEs are smooth
FIXED = ("euler", "midpoint", "rk4", "explicit_adams")
ODES = pytest.mark.parametrize("kind", [FlowChain, TimeChain])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, TOWARDS = normal(4, 1, *SHAPE), normal(4, 1, *SHAPE, seed=1)
MEANS = torch.tensor([[1.5, 0.0], [-1.5, 0.5], [0.0, -2.0]], dtype=torch.float64).view(3, *SHAPE)


class Watched:
    """A denoiser that remembers when it was asked, and whether under autocast."""

    def __init__(self, denoise: GaussianDenoiser) -> None:
        self.denoise, self.times, self.autocast = denoise, [], []

    def __call__(self, x_t: Tensor, t: Point) -> Prediction:
        self.times.append(t.t)
        self.autocast.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return self.denoise(x_t, t)

    def subset(self, rows) -> "Watched":
        return self


def chain_of(
    steps: int, *, k: int = 3, shift: Tensor | None = None, grid: Grid | None = None, kind: type[OdeChain] = FlowChain,
    schedule: NoiseSchedule = SCHEDULE, std: float = STD, **options,
) -> OdeChain:  # fmt: skip
    """On the mixture of three, or on one Gaussian of deviation `std`."""
    std = 0.3 if k > 1 else std
    mixture = GaussianMixture(means=MEANS[:k], std=std, weights=torch.full((k,), 1 / k, dtype=torch.float64))
    denoise = Watched(GaussianDenoiser(cond=mixture, uncond=mixture, shift=shift))
    grid = Ddim(num_steps=steps, **options).grid(schedule) if grid is None else grid
    return kind(denoise=denoise, grid=grid, schedule=schedule)


def run(engine: GradientEngine, chain: OdeChain, params=(), x: Tensor = X) -> tuple[Tensor, ...]:
    """x_0, and the gradients of <TOWARDS, x_0> by x_T and the params."""
    x = x.clone().requires_grad_()
    (x_0,) = engine(chain, (x,), params)
    return x_0.detach(), *torch.autograd.grad(x_0, [x, *params], TOWARDS[: len(x)])


def off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def exact(grid: Grid, std: float = STD) -> tuple[Tensor, float]:
    """Where the flow of one Gaussian takes X, and what it multiplies differences by: the standardised latent does not move."""
    first, last = grid[0], grid[-1]
    factor = math.hypot(last.alpha * std, last.sigma) / math.hypot(first.alpha * std, first.sigma)
    return last.alpha * MEANS[0] + factor * (X - first.alpha * MEANS[0]), factor


# Against plain autograd


@pytest.mark.parametrize(
    "options", [{}, {"spacing": "linspace"}, {"spacing": "trailing", "end": "clean"}, {"kind": TimeChain}], ids=str
)
def test_euler_makes_the_chain_s_own_picture(options: dict) -> None:
    chain = chain_of(9, **options)
    torch.testing.assert_close(run(Adjoint(), chain)[0], run(Backprop(), chain)[0], rtol=0, atol=1e-13)
    with torch.no_grad():
        assert not Adjoint()(chain, (X,))[0].requires_grad


def test_its_gradient_differs_from_the_chain_s_by_order_one_over_t() -> None:
    """By the state and by a tensor the denoiser closes over; the slope of log error over log T from T = 10 to 160."""
    steps, errors = (10, 20, 40, 80, 160), []
    for n in steps:
        shift = torch.zeros(4, *SHAPE, dtype=torch.float64, requires_grad=True)
        chain = chain_of(n, shift=shift)
        adjoint, plain = run(Adjoint(), chain, [shift]), run(Backprop(), chain, [shift])
        errors.append([off(a, b) for a, b in zip(adjoint[1:], plain[1:], strict=True)])
    logs = torch.tensor(errors).log()
    x = torch.tensor(steps).log()
    slopes = ((x - x.mean())[:, None] * logs).sum(0) / (x - x.mean()).square().sum()
    assert ((slopes > -1.3) & (slopes < -0.8)).all(), (slopes, errors)
    assert not Adjoint.exact and Backprop.exact


def test_on_a_random_network_it_is_as_far_off_as_the_released_code_s() -> None:
    """Measured on AdjointDPM's code with a tiny random UNet: relative error 0.47, 0.27 and 0.115 at 10, 20 and 50 intervals, cosine
    0.89, 0.966 and 0.994. How far off depends on the weights, so these are bounds within a factor of two."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
        ).double().eval().requires_grad_(False)  # fmt: skip
    for parameter in unet.parameters():
        parameter.mul_(1.5)
    prompt, x, towards = normal(1, 4, 16), normal(1, 1, 2, 8, 8), normal(1, 1, 2, 8, 8, seed=1)

    def denoise(x_t: Tensor, t: Point) -> Prediction:
        return from_eps(x_t, unet(x_t[:, 0], torch.full((1,), t.t, dtype=torch.float64), prompt).sample[:, None], t)

    for intervals, error, cosine in ((10, 0.47, 0.89), (20, 0.27, 0.966), (50, 0.115, 0.994)):
        grid = Ddim(num_steps=intervals + 1, spacing="linspace").grid(SCHEDULE)
        chain, gradients = FlowChain(denoise=denoise, grid=grid, schedule=SCHEDULE), []
        assert len(chain) == intervals
        for engine in (Adjoint(), Checkpoint()):
            leaf = x.clone().requires_grad_()
            gradients.append(torch.autograd.grad(engine(chain, (leaf,))[0], leaf, towards)[0])
        assert error / 2 < off(*gradients) < error * 2
        angle = math.acos(torch.cosine_similarity(*(g.flatten() for g in gradients), dim=0))
        assert math.acos(cosine) / 2 < angle < math.acos(cosine) * 2


@ODES
def test_other_engines_run_on_a_flow_with_offsets_too(kind: type[OdeChain]) -> None:
    offsets = [normal(4, 1, *SHAPE, seed=i).mul(0.1).requires_grad_() for i in range(11)]
    chain = dataclasses.replace(chain_of(12, kind=kind), offsets=offsets)
    plain, checkpointed, adjoint = (run(engine, chain, offsets) for engine in (Backprop(), Checkpoint(), Adjoint()))
    for a, b in zip(plain, checkpointed, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(adjoint[0], plain[0], rtol=0, atol=1e-13)
    without = run(Backprop(), chain_of(12, kind=kind))
    assert off(plain[0], without[0]) > 0.01


@pytest.mark.parametrize("solver", ["rk4", "explicit_adams", "dopri5"])
def test_in_time_its_gradient_is_autograd_s_through_many_fine_steps(solver: str) -> None:
    """Of Euler's method, extrapolated to steps of no length; by the state and by a tensor the denoiser closes over."""
    found = {}
    for engine, steps in ((Adjoint(solver=solver), 80), (Backprop(), 126), (Backprop(), 251)):
        shift = torch.zeros(4, *SHAPE, dtype=torch.float64, requires_grad=True)
        chain = chain_of(steps, kind=TimeChain, shift=shift, spacing="linspace")
        chain = dataclasses.replace(chain, denoise=chain.denoise.denoise)
        found[steps] = run(engine, chain, [shift])
    for ours, coarse, fine in zip(found[80], found[126], found[251], strict=True):
        assert off(ours, 2 * fine - coarse) < min(2e-4, off(fine, 2 * fine - coarse) / 4)


@pytest.mark.parametrize("solver", ["rk4", "explicit_adams", "dopri5"])
def test_the_gradient_by_an_offset_is_that_by_the_state_it_moves(solver: str) -> None:
    offsets = [torch.zeros_like(X, requires_grad=True) for _ in range(9)]
    chain = dataclasses.replace(chain_of(10, k=1), offsets=offsets)
    _, by_x, *by_offsets = run(Adjoint(solver=solver), chain, offsets)
    for point, gradient in zip(chain.grid, [by_x, *by_offsets], strict=False):
        last = chain.grid[-1]
        factor = math.hypot(last.alpha * STD, last.sigma) / math.hypot(point.alpha * STD, point.sigma)
        assert off(gradient, factor * TOWARDS) < 1e-3


def plain_adams(chain: OdeChain, offsets: list[Tensor], x: Tensor) -> Tensor:
    """Adams and Bashforth's method as tables have it, from two steps of the 3/8 rule; each offset is added to the state after a step."""
    table = {3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    y, slopes = x / chain.scale(chain.grid[0]), []
    for i, (t, s) in enumerate(chain.moves):
        u, end = chain.variable(t), chain.variable(s)
        h = end - u
        slopes = [chain.velocity(u, y), *slopes][:4]
        if i < 2:
            k1 = slopes[0]
            k2 = chain.velocity(u + h / 3, y + h * k1 / 3)
            k3 = chain.velocity(u + h * 2 / 3, y + h * (k2 - k1 / 3))
            k4 = chain.velocity(end, y + h * (k1 - k2 + k3))
            y = y + h * (k1 + 3 * k2 + 3 * k3 + k4) / 8
        else:
            y = y + h * sum(c * slope for c, slope in zip(table[len(slopes)], slopes, strict=True))
        if i < len(offsets):
            y = y + offsets[i] / chain.scale(s)
    return chain.scale(chain.grid[-1]) * y


@ODES
@pytest.mark.parametrize("count", [0, 5, 11, 12])
def test_adams_remembers_its_steps_over_offsets(kind: type[OdeChain], count: int) -> None:
    """Of the first steps, of all but the last, or of all."""
    offsets = [normal(4, 1, *SHAPE, seed=i).mul(0.1).requires_grad_() for i in range(count)]
    chain = dataclasses.replace(chain_of(12, kind=kind), offsets=offsets)
    made, *_ = run(Adjoint(solver="explicit_adams"), chain, offsets)
    with torch.no_grad():
        torch.testing.assert_close(made, plain_adams(chain, offsets, X), rtol=0, atol=1e-10)
    if count:
        still = dataclasses.replace(chain, offsets=[torch.zeros_like(offset, requires_grad=True) for offset in offsets])
        zero, by_x, *_ = run(Adjoint(solver="explicit_adams"), still, still.offsets)
        without = run(Adjoint(solver="explicit_adams"), chain_of(12, kind=kind))
        torch.testing.assert_close(zero, without[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(by_x, without[1], rtol=1e-8, atol=1e-10)
        assert off(made, zero) > 0.01


@ODES
@pytest.mark.parametrize(("k", "steps", "tolerance", "named"), [(1, 12, 1e-8, True), (1, 12, 1e-8, False), (3, 50, 0.03, True)])
def test_over_offsets_adams_has_the_gradients_of_rk4(
    kind: type[OdeChain], k: int, steps: int, tolerance: float, named: bool
) -> None:
    """Both go back by rk4: the same where the flow is affine, else from states that differ by their errors forward. By the state, by a
    tensor the denoiser closes over and by every offset, whether these are named among the parameters or not."""
    found = []
    for solver in ("explicit_adams", "rk4"):
        shift = torch.zeros(4, *SHAPE, dtype=torch.float64, requires_grad=True)
        chain = chain_of(steps, k=k, kind=kind, schedule=CONSTANT, spacing="linspace", shift=shift)
        offsets = [normal(4, 1, *SHAPE, seed=i).mul(0.05).requires_grad_() for i in range(len(chain))]
        chain = dataclasses.replace(chain, denoise=chain.denoise.denoise, offsets=offsets)
        x = X.clone().requires_grad_()
        (x_0,) = Adjoint(solver=solver)(chain, (x,), [shift, *offsets] if named else [shift])
        found.append(torch.autograd.grad(x_0, [x, shift, *offsets], TOWARDS))
    for ours, theirs in zip(*found, strict=True):
        assert off(ours, theirs) < tolerance


# Solvers


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 3)])
def test_on_a_gaussian_the_flow_is_met_at_the_solver_s_order(solver: str, order: int) -> None:
    """Of the picture and its gradient. rk4's is 4; grids of times, whose steps shrink towards the end, and a schedule that is only
    piecewise smooth cost it some."""
    steps, errors = (10, 20, 40), []
    for n in steps:
        chain = chain_of(n, k=1)
        x_0, gradient = run(Adjoint(solver=solver), chain)
        where, factor = exact(chain.grid)
        errors.append((off(x_0, where), off(gradient, factor * TOWARDS)))
    for fine, coarse in zip(errors[1:], errors[:-1], strict=True):
        assert all(a < b * 0.5 ** (order - 0.3) for a, b in zip(fine, coarse, strict=True)), errors
    assert errors[1] < {"euler": (0.1, 0.5), "midpoint": (3e-4, 0.1), "rk4": (2e-5, 2e-5)}[solver]


def test_adams_is_of_order_four_on_equal_steps_and_better_than_euler_on_others() -> None:
    errors = []
    for n in (20, 40):
        ratios = torch.linspace(2, 0.5, n + 1, dtype=torch.float64).tolist()
        chain = chain_of(n, k=1, grid=tuple(map(SCHEDULE.when, ratios)))
        errors.append(off(run(Adjoint(solver="explicit_adams"), chain)[0], exact(chain.grid)[0]))
    assert errors[1] < errors[0] / 2**3.5 < 1e-5, errors
    for options in ({}, {"spacing": "linspace"}, {"spacing": "trailing", "end": "clean"}):
        chain = chain_of(20, k=1, **options)
        adams, euler = (off(run(Adjoint(solver=s), chain)[0], exact(chain.grid)[0]) for s in ("explicit_adams", "euler"))
        assert adams < euler / 3


@ODES
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4), ("explicit_adams", 4)])
def test_on_equal_steps_both_odes_are_met_at_the_solver_s_order(kind: type[OdeChain], solver: str, order: int) -> None:
    """Equal in the ODE's own variable, from r = 2 to 0.5: the slope of log error over log T."""
    ends = [CONSTANT.when(2.0), CONSTANT.when(0.5)]
    steps, errors = (20, 40, 80), []
    for n in steps:
        first, last = (chain_of(n, kind=kind, schedule=CONSTANT).variable(point) for point in ends)
        variables = torch.linspace(first, last, n + 1, dtype=torch.float64).tolist()
        grid = tuple(map(CONSTANT.at if kind is TimeChain else CONSTANT.when, variables))
        chain = chain_of(n, k=1, kind=kind, schedule=CONSTANT, grid=grid)
        errors.append(off(run(Adjoint(solver=solver), chain)[0], exact(grid)[0]))
    slopes = [math.log(a / b, 2) for a, b in pairwise(errors)]
    assert all(order - 0.5 < slope < order + 1.1 for slope in slopes), (errors, slopes)


def test_both_odes_have_one_limit() -> None:
    """On a schedule of Stable Diffusion's shape, from the last trained time to the first: of the picture and its gradient."""
    for kind in (FlowChain, TimeChain):
        chain = chain_of(101, k=1, kind=kind, spacing="linspace")
        x_0, gradient = run(Adjoint(solver="rk4"), chain)
        where, factor = exact(chain.grid)
        assert off(x_0, where) < 1e-5 and off(gradient, factor * TOWARDS) < 1e-4


@pytest.mark.parametrize("solver", ["euler", "explicit_adams"])
@pytest.mark.parametrize("calls", [10, 20, 50])
def test_with_few_calls_the_reparameterised_ode_is_closer_where_data_are_narrow(solver: str, calls: int) -> None:
    """AdjointDPM's Table 1. It is the data that decide: those that are nearly points pull with 1 / sigma^2 in time, and along a
    straight line in r, while data as wide as the noise hardly move in time. Pictures are narrow in most directions.
    """
    errors = {}
    for std in (0.05, 1.0):
        for kind in (FlowChain, TimeChain):
            steps = calls if solver == "euler" else calls - 6
            chain = chain_of(steps + 1, k=1, std=std, kind=kind, spacing="linspace")
            with torch.no_grad():
                (x_0,) = Adjoint(solver=solver)(chain, (X,))
            assert len(chain.denoise.times) == calls
            errors[std, kind] = off(x_0, exact(chain.grid, std)[0])
    assert errors[0.05, FlowChain] < errors[0.05, TimeChain] / 1.25
    if solver == "euler":
        assert errors[1.0, TimeChain] < errors[1.0, FlowChain] / 10


@pytest.mark.parametrize("solver", ["midpoint", "rk4"])
def test_sub_steps_see_interpolated_times(solver: str) -> None:
    """In the middle in r, or at its thirds and the end (3/8 rule): never the time of the nearest point of the grid."""
    chain = chain_of(5)
    Adjoint(solver=solver)(chain, (X,))
    parts = {"midpoint": (0, 1 / 2), "rk4": (0, 1 / 3, 2 / 3, 1)}[solver]
    ratios = [point.sigma / point.alpha for point in chain.grid]
    expected = [SCHEDULE.when(r + part * (s - r)).t for r, s in pairwise(ratios) for part in parts]
    assert chain.denoise.times == pytest.approx(expected, abs=1e-7)


def test_dopri5_keeps_its_tolerances() -> None:
    errors, calls = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        chain = chain_of(10, k=1)
        x_0, gradient = run(Adjoint(solver="dopri5", rtol=tolerance, atol=tolerance), chain, x=X[:1])
        where, factor = exact(chain.grid)
        errors.append((off(x_0, where[:1]), off(gradient, factor * TOWARDS[:1])))
        calls.append(len(chain.denoise.times))
        assert max(chain.denoise.times) <= chain.grid[0].t + 1e-6
    assert max(errors[1]) < 1e-3 and max(errors[2]) < 1e-5, errors
    assert errors[0] > errors[1] > errors[2] and calls[0] < calls[1] < calls[2]


def test_dopri5_does_not_see_the_grid_nor_the_neighbours() -> None:
    fine, coarse = (run(Adjoint(solver="dopri5"), chain_of(n, spacing="trailing")) for n in (50, 2))
    for a, b in zip(fine, coarse, strict=True):
        assert torch.equal(a, b)
    alone = run(Adjoint(solver="dopri5"), chain_of(50, spacing="trailing"), x=X[:1])
    for a, b in zip(fine, alone, strict=True):
        assert torch.equal(a[:1], b)


@pytest.mark.parametrize("solver", [*FIXED, "dopri5"])
def test_every_solver_reaches_the_clean_end(solver: str) -> None:
    chain = chain_of(20, k=1, spacing="trailing", end="clean")
    x_0, gradient = run(Adjoint(solver=solver), chain)
    where, factor = exact(chain.grid)
    assert off(x_0, where) < 0.1 and off(gradient, factor * TOWARDS) < 0.5
    assert gradient.isfinite().all()


def test_each_sample_s_parameters_get_their_own_gradients_from_dopri5() -> None:
    shift = torch.zeros(4, *SHAPE, dtype=torch.float64, requires_grad=True)
    chain = chain_of(10, k=1, shift=shift)
    chain = dataclasses.replace(chain, denoise=chain.denoise.denoise)  # which knows subsets
    _, by_x, by_shift = run(Adjoint(solver="dopri5"), chain, [shift])
    _, factor = exact(chain.grid)
    expected = (chain.grid[-1].alpha - factor * chain.grid[0].alpha) * TOWARDS[:, 0]
    assert off(by_shift, expected) < 1e-3 and off(by_x, factor * TOWARDS) < 1e-3


# Costs


@ODES
@pytest.mark.parametrize(
    ("solver", "forward", "back"), [("euler", 12, 12), ("midpoint", 24, 24), ("rk4", 48, 48), ("explicit_adams", 18, 48)]
)
@pytest.mark.parametrize("offsets", [0, 11])
def test_it_calls_the_network_as_often_as_it_says(solver: str, forward: int, back: int, kind: type[OdeChain], offsets: int) -> None:
    leaves = [torch.zeros_like(X, requires_grad=True) for _ in range(offsets)]
    chain, x = dataclasses.replace(chain_of(12, kind=kind), offsets=leaves), X.clone().requires_grad_()
    (x_0,) = Adjoint(solver=solver)(chain, (x,))
    assert len(chain.denoise.times) == forward
    torch.autograd.grad(x_0, [x, *leaves], TOWARDS)
    assert len(chain.denoise.times) == forward + back


@ODES
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 11])
def test_adams_has_few_calls_more_than_steps(steps: int, kind: type[OdeChain]) -> None:
    """17 for 11 steps, with offsets as without."""
    for count in (0, steps):
        chain = dataclasses.replace(chain_of(steps, kind=kind), offsets=[torch.zeros_like(X)] * count)
        with torch.no_grad():
            Adjoint(solver="explicit_adams")(chain, (X,))
        assert len(chain.denoise.times) == min(steps + 6, 4 * steps)


@pytest.mark.parametrize("solver", [*FIXED, "dopri5"])
def test_it_keeps_no_more_than_states(solver: str) -> None:
    x = X[:1].clone().requires_grad_()
    for n in (10, 40):
        states = 2 if solver == "dopri5" else n + 1
        assert saved_bytes(lambda n=n: Adjoint(solver=solver)(chain_of(n), (x,))) == states * 8 * (x.numel() + 1)  # and times


def test_the_way_back_runs_under_the_autocast_of_the_way_there() -> None:
    chain, x = chain_of(6), X.float().requires_grad_()
    chain = dataclasses.replace(chain, denoise=Watched(GaussianDenoiser(cond=_single(), uncond=_single())))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (x_0,) = Adjoint()(chain, (x,))
    assert x_0.dtype == torch.float32
    torch.autograd.grad(x_0, x, TOWARDS.float())
    assert chain.denoise.autocast == [torch.bfloat16] * 12


def _single() -> GaussianMixture:
    return GaussianMixture(means=MEANS.float(), std=0.3, weights=torch.full((3,), 1 / 3))


# What it takes


def test_parameters_that_need_no_gradient_get_none() -> None:
    shift = torch.zeros(4, *SHAPE, dtype=torch.float64)
    chain, x = chain_of(6, shift=shift), X.clone().requires_grad_()
    (x_0,) = Adjoint()(chain, (x,), [shift])
    x_0.sum().backward()
    assert shift.grad is None and x.grad is not None


def test_a_grid_that_goes_nowhere_is_the_identity() -> None:
    point = SCHEDULE.at(0)
    assert Adjoint()(chain_of(1, grid=(point, point)), (X,)) == (X,)


def test_other_chains_are_refused() -> None:
    flow = chain_of(5)
    for chain in (DdimChain(denoise=flow.denoise, grid=flow.grid), EdictChain(denoise=flow.denoise, grid=flow.grid)):
        with pytest.raises(UsageError, match=r"method/gradients=adjoint needs a chain that is a flow"):
            Adjoint()(chain, chain.start(X))


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [0.0, -1e-3, math.nan])
def test_tolerances_are_positive(name: str, value: float) -> None:
    with pytest.raises(BadValue, match=f"^{name}="):
        Adjoint(**{name: value})
