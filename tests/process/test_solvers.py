"""Euler, DPM-Solver++ and the steps of rectified flows: against diffusers on the same points, exact flows and published grids."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.models.gaussian import GaussianMixture
from guidedgen.process import Prediction, Scheduler
from guidedgen.process.formulas import ddim_step, from_eps
from guidedgen.process.grid import FlowSchedule, Grid, NoiseSchedule, Point, Schedule
from guidedgen.process.schedulers import Ddim, Ddpm, DpmSolver, Euler, Flow

# diffusers' set_timesteps, with numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
BETAS = (1000, 0.00085, 0.012, "scaled_linear")
SHAPE = (2, 1, 4, 3, 3)


def normal(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predict(x: Tensor, t: float) -> Tensor:
    """What a network says of x: not linear in anything."""
    return 0.9 * torch.sin(x + t / 300) + 0.1 * x


def walk(scheduler: Scheduler, grid: Grid, denoise: Callable[[Tensor, Point], Prediction], x: Tensor) -> list[Tensor]:
    chain, past = [x], None
    for t, s in pairwise(grid):
        prediction = denoise(x, t).after(past)
        mean, std = scheduler.transition(x, prediction, t, s)
        assert std == 0
        x, past = mean, (prediction, t)
        chain.append(x)
    return chain


# On schedules of betas


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize(("spacing", "offset", "end"), [("leading", 1, "clean"), ("leading", 0, "first"), ("trailing", 0, "clean")])
@pytest.mark.parametrize("steps", [10, 30])
def test_euler_is_diffusers(steps: int, spacing: str, offset: int, end: str, karras: bool) -> None:
    from diffusers import EulerDiscreteScheduler

    theirs = EulerDiscreteScheduler(
        *BETAS, timestep_spacing=spacing, steps_offset=offset, use_karras_sigmas=karras,
        final_sigmas_type="sigma_min" if end == "first" else "zero",
    )  # fmt: skip
    theirs.set_timesteps(steps)
    scheduler = Euler(num_steps=steps, spacing=spacing, offset=offset, end=end, karras=karras)
    grid = scheduler.grid(SCHEDULE)
    assert [point.t for point in grid[:-1]] == pytest.approx(theirs.timesteps.tolist(), abs=2e-2 if karras else 0)
    assert [point.sigma / point.alpha for point in grid] == pytest.approx(theirs.sigmas.tolist(), rel=2e-5, abs=1e-9)
    first, z = grid[0], normal()
    y = z * math.hypot(1, first.sigma / first.alpha)  # diffusers' sample is x / alpha
    chain = walk(scheduler, grid, lambda x, t: from_eps(x, predict(x, t.t), t), z)
    for i, (t, ours) in enumerate(zip(theirs.timesteps, chain[1:], strict=True)):
        model_input = theirs.scale_model_input(y, t)
        y = theirs.step(predict(model_input, grid[i].t), t, y).prev_sample
        torch.testing.assert_close(ours, y * grid[i + 1].alpha, rtol=0, atol=1e-4)


@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_dpm_solver_is_diffusers(steps: int, spacing: str, karras: bool) -> None:
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(*BETAS, timestep_spacing=spacing, use_karras_sigmas=karras)
    theirs.set_timesteps(steps)
    scheduler = DpmSolver(num_steps=steps, spacing=spacing, karras=karras)
    grid = scheduler.grid(SCHEDULE)
    assert [point.t for point in grid[:-1]] == theirs.timesteps.tolist()
    assert [point.sigma / point.alpha for point in grid] == pytest.approx(theirs.sigmas.tolist(), rel=2e-5, abs=1e-9)
    x, chain = normal(), walk(scheduler, grid, lambda x, t: from_eps(x, predict(x, t.t), t), normal())
    for t, ours in zip(theirs.timesteps, chain[1:], strict=True):
        x = theirs.step(predict(x, int(t)), t, x).prev_sample
        torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-4)  # diffusers' levels are in float32


@pytest.mark.parametrize(
    ("scheduler", "order"), [(Ddim(num_steps=1, spacing="linspace", end="first"), 1), (DpmSolver(num_steps=1), 2)]
)
def test_the_order_of_convergence(scheduler: Ddim | DpmSolver, order: int) -> None:
    """On a Gaussian, whose flow is known: x / sqrt(alpha^2 std^2 + sigma^2) stays. From the same points, evenly spaced in log SNR."""
    gaussian = GaussianMixture(
        means=torch.zeros(1, *SHAPE[2:], dtype=torch.float64), std=0.6, weights=torch.ones(1, dtype=torch.float64)
    )

    def error(steps: int) -> float:
        ratios = torch.logspace(1, -1, steps + 1, dtype=torch.float64).tolist()
        grid = tuple(SCHEDULE.when(ratio) for ratio in ratios)
        first, last = grid[0], grid[-1]
        exact = normal() * math.hypot(0.6 * last.alpha, last.sigma) / math.hypot(0.6 * first.alpha, first.sigma)
        return float((walk(scheduler, grid, gaussian, normal())[-1] - exact).abs().max())

    errors = [error(steps) for steps in (20, 40, 80)]
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes == pytest.approx([order, order], abs=0.2), errors


def test_one_step_of_dpm_solver_without_a_past_is_ddim_s() -> None:
    t, s, x = SCHEDULE.at(700), SCHEDULE.at(500), normal()
    prediction = from_eps(x, predict(x, 700), t)
    ours, _ = DpmSolver().transition(x, prediction, t, s)
    torch.testing.assert_close(ours, ddim_step(prediction, t, s), rtol=0, atol=1e-13)
    past = prediction.after((from_eps(x, predict(x, 900), SCHEDULE.at(900)), SCHEDULE.at(900)))
    assert (DpmSolver().transition(x, past, t, s)[0] - ours).abs().max() > 1e-2
    clean = Point(0.0, 1.0, 0.0)
    torch.testing.assert_close(DpmSolver().transition(x, past, t, clean)[0], prediction.x_0, rtol=0, atol=1e-13)


# Rectified flows


def velocity(x: Tensor, t: float) -> Tensor:
    return torch.cos(2 * x - t / 400) + 0.2 * x


def flow_denoiser(x: Tensor, t: Point) -> Prediction:
    """Of a network of x in the flow's own scale."""
    u = t.sigma / (t.alpha + t.sigma)
    own = x / (t.alpha + t.sigma)
    v = velocity(own, t.t)
    return Prediction(own - u * v, own + (1 - u) * v)


PUBLISHED = {  # of diffusers' pipelines at their defaults (0.42.1)
    "sd3": (FlowSchedule(shift=3.0), 28, [1, 0.987381, 0.974108], [0.110906, 0.0089286, 0]),
    "flux_dev": (FlowSchedule(shift=math.exp(1.15), even=True), 28, [1, 0.988409, 0.976222], [0.195455, 0.104721, 0]),
    "flux_schnell": (FlowSchedule(even=True), 4, [1, 0.75, 0.5], [0.5, 0.25, 0]),
    "sana_euler": (FlowSchedule(shift=3.0), 20, [1, 0.981875], [0.0089286, 0]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_flow_s_grid_is_the_published_one(name: str) -> None:
    schedule, steps, first, last = PUBLISHED[name]
    grid = Flow(num_steps=steps).grid(schedule)
    levels = [point.sigma / (point.alpha + point.sigma) for point in grid]
    assert len(levels) == steps + 1
    assert levels[: len(first)] == pytest.approx(first, abs=6e-7)
    assert levels[-len(last) :] == pytest.approx(last, abs=6e-7)
    assert [point.t for point in grid] == pytest.approx([1000 * level for level in levels])


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_a_flow_is_diffusers(shift: float, steps: int) -> None:
    """Grid and steps of FlowMatchEulerDiscreteScheduler, its double shift included."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    grid = Flow(num_steps=steps).grid(FlowSchedule(shift=shift))
    assert [point.sigma / (point.alpha + point.sigma) for point in grid] == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)
    assert Flow(num_steps=steps, shift=shift).grid(FlowSchedule()) == grid  # the user's shift goes before the model's
    x, chain = normal().float(), walk(Flow(), grid, flow_denoiser, normal())
    for i, t in enumerate(theirs.timesteps):
        x = theirs.step(velocity(x, float(t)), t, x).prev_sample
        ours = chain[i + 1] / (grid[i + 1].alpha + grid[i + 1].sigma)
        torch.testing.assert_close(ours.float(), x, rtol=0, atol=3e-5)


@pytest.mark.parametrize("steps", [5, 20])
def test_dpm_solver_on_a_flow_is_diffusers(steps: int) -> None:
    """SANA's default, of 20 steps."""
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    theirs.set_timesteps(steps)
    grid = DpmSolver(num_steps=steps).grid(FlowSchedule(shift=3.0))
    levels = [point.sigma / (point.alpha + point.sigma) for point in grid]
    assert levels == pytest.approx(theirs.sigmas.tolist(), abs=1e-6)
    if steps == 20:
        assert levels[:3] == pytest.approx([0.999666, 0.982419, 0.963941], abs=6e-7)
        assert levels[-3:] == pytest.approx([0.249792, 0.136240, 0], abs=6e-7)
        assert [point.t for point in grid[:3]] == [999, 982, 963] and grid[-2].t == 136
    first = grid[0].alpha + grid[0].sigma
    x, chain = normal(), walk(DpmSolver(), grid, flow_denoiser, normal() * first)
    for i, t in enumerate(theirs.timesteps):
        x = theirs.step(velocity(x, grid[i].t), t, x).prev_sample
        torch.testing.assert_close(chain[i + 1] / (grid[i + 1].alpha + grid[i + 1].sigma), x, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("shift", "trained"), [(1.0, 1000), (3.0, 1000), (2.5, 500), (6.0, 1000)])
def test_dpm_solver_gives_a_flow_whole_times(shift: float, trained: int) -> None:
    """Those that diffusers gives it, also where they are whole but for rounding errors."""
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=trained
    )
    for steps in (*range(1, 51), 100, 250, 999):
        theirs.set_timesteps(steps)
        grid = DpmSolver(num_steps=steps).grid(FlowSchedule(shift=shift, steps=trained))
        assert [point.t for point in grid[:-1]] == theirs.timesteps.tolist()
        assert [point.sigma / (point.alpha + point.sigma) for point in grid] == pytest.approx(theirs.sigmas.tolist(), abs=6e-8)


def test_the_schedule_of_a_flow_is_its_interpolation() -> None:
    schedule = FlowSchedule()
    for t in (0.0, 1.0, 250.5, 999.0, 1000.0):
        point, u = schedule.at(t), t / 1000
        assert point.alpha**2 + point.sigma**2 == pytest.approx(1)
        assert (point.alpha + point.sigma) * u == pytest.approx(point.sigma)
        again = schedule.when(point.sigma / point.alpha if point.alpha else math.inf)
        assert (again.t, again.alpha, again.sigma) == pytest.approx((point.t, point.alpha, point.sigma))
    for wrong in (-1, 1000.1, math.nan):
        with pytest.raises(ValueError, match="t="):
            schedule.at(wrong)
    with pytest.raises(ValueError, match="ratio=-1"):
        schedule.when(-1)


SPREAD = 0.5


def spread_after(scheduler: Scheduler, steps: int) -> float:
    """Deviation of what a chain makes of N(0, SPREAD^2): every step is linear, so it is carried along exactly."""
    gaussian = GaussianMixture(
        means=torch.zeros(1, 1, 1, 1, dtype=torch.float64), std=SPREAD, weights=torch.ones(1, dtype=torch.float64)
    )
    one, variance = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64), 1.0
    for t, s in pairwise(scheduler.grid(FlowSchedule(shift=3.0))):
        mean, std = scheduler.transition(one, gaussian(one, t), t, s)
        variance = float(mean) ** 2 * variance + std**2
    return math.sqrt(variance)


@pytest.mark.parametrize(
    ("options", "measured"),
    [  # measured by sampling, at 10, 28 and 100 steps
        ({}, (0.357, 0.449, 0.486)), ({"eta": 1.0}, (0.320, 0.408, 0.467)), ({"eta": 0.5}, (0.351, 0.441, 0.482)),
        ({"sde": 0.7}, (0.419, 0.470, 0.492)),
    ],
)  # fmt: skip
def test_stochastic_steps_of_a_flow_keep_the_data_s_spread(options: dict[str, float], measured: tuple[float, ...]) -> None:
    """They converge to it; diffusers' full renoising and CPS do not."""
    found = [spread_after(Flow(num_steps=steps, **options), steps) for steps in (10, 28, 100)]
    assert found == pytest.approx(measured, abs=3e-3), found
    assert abs(found[-1] - SPREAD) < 0.035 and spread_after(Flow(num_steps=1000, **options), 1000) == pytest.approx(
        SPREAD, abs=5e-3
    )


@pytest.mark.parametrize("i", [0, 3, 26])
def test_the_sde_s_step_is_flow_grpo_s(i: int) -> None:
    """sd3_sde_with_logprob.py, in the flow's own scale: the noise level, the mean and the deviation of a step."""
    grid = Flow().grid(FlowSchedule(shift=3.0))
    levels = [point.sigma / (point.alpha + point.sigma) for point in grid]
    sigma, after, x = levels[i], levels[i + 1], normal()
    v, dt, a = velocity(x, grid[i].t), after - sigma, 0.7
    std_dev_t = math.sqrt(sigma / (1 - (levels[1] if sigma == 1 else sigma))) * a
    mean = x * (1 + std_dev_t**2 / (2 * sigma) * dt) + v * (1 + std_dev_t**2 * (1 - sigma) / (2 * sigma)) * dt
    scale = grid[i].alpha + grid[i].sigma
    ours, std = Flow(sde=a).transition(x * scale, flow_denoiser(x * scale, grid[i]), grid[i], grid[i + 1])
    back = grid[i + 1].alpha + grid[i + 1].sigma
    torch.testing.assert_close(ours / back, mean, rtol=0, atol=1e-12)
    assert std / back == pytest.approx(std_dev_t * math.sqrt(-dt))


def test_schedulers_refuse_schedules_that_are_not_theirs() -> None:
    flow: Schedule = FlowSchedule(shift=3.0)
    with pytest.raises(BadValue, match="karras=True: the model is a rectified flow"):
        Euler(karras=True).grid(flow)
    with pytest.raises(BadValue, match="karras=True: the model is a rectified flow"):
        DpmSolver(karras=True).grid(flow)
    for scheduler in (Ddim(num_steps=28), Ddpm(num_steps=28), Euler(num_steps=28)):  # whose steps are the flow's own
        assert scheduler.grid(flow) == Flow().grid(flow)
    x, (t, s) = normal(), Flow().grid(flow)[2:4]
    assert Ddpm().transition(x, flow_denoiser(x, t), t, s)[1] == pytest.approx(
        Flow(eta=1.0).transition(x, flow_denoiser(x, t), t, s)[1]
    )
    with pytest.raises(BadValue, match="no rectified flow"):
        Flow().grid(SCHEDULE)
    for options in ({"eta": 1.1}, {"shift": 0.0}, {"sde": -1.0}, {"sde": 0.7, "eta": 1.0}, {"num_steps": 0}, {"shift": math.inf}):
        with pytest.raises(BadValue):
            Flow(**options)
    with pytest.raises(BadValue, match="below 1000"):
        DpmSolver(num_steps=1000).grid(SCHEDULE)
    assert [s.stochastic for s in (Euler(), DpmSolver(), Flow(), Flow(eta=0.5), Flow(sde=0.7))] == [False, False, False, True, True]
    assert [s.multistep for s in (Ddim(), Ddpm(), Euler(), DpmSolver(), Flow())] == [False, False, False, True, False]
