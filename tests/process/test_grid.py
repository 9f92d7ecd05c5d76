"""The noise schedule between its trained steps, and the points a sampler visits."""

import itertools

import numpy as np
import pytest
import torch

from guidedgen.basics.errors import BadValue
from guidedgen.process.grid import NoiseSchedule, Point, Spacing, make_grid, tail, timesteps
from guidedgen.process.schedulers import Ddim, Ddpm

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")


@pytest.mark.parametrize("shape", ["linear", "scaled_linear"])
def test_noise_levels_are_diffusers(shape: str) -> None:
    """diffusers computes them in float32, we in float64."""
    from diffusers import DDPMScheduler

    ours = NoiseSchedule.from_betas(0.00085, 0.012, 1000, shape).alphas_cumprod
    theirs = DDPMScheduler(1000, 0.00085, 0.012, shape).alphas_cumprod
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-4, atol=0)


def test_other_noise_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="squaredcos_cap_v2.*linear and scaled_linear"):
        NoiseSchedule.from_betas(0.00085, 0.012, 1000, "squaredcos_cap_v2")


def test_trained_steps_are_exact() -> None:
    for t in (0, 1, 17, 500, 998, 999):
        point = SCHEDULE.at(t)
        assert point.t == t
        assert point.alpha**2 == pytest.approx(float(SCHEDULE.alphas_cumprod[t]), rel=1e-12)
        assert point.sigma**2 == pytest.approx(1 - float(SCHEDULE.alphas_cumprod[t]), rel=1e-10)
    assert len(SCHEDULE) == 1000


def test_between_them_noise_grows_steadily() -> None:
    times = [i / 4 for i in range(4 * 999 + 1)]
    points = [SCHEDULE.at(t) for t in times]
    assert all(a.alpha > b.alpha and a.sigma < b.sigma for a, b in itertools.pairwise(points))
    assert max(abs(p.alpha**2 + p.sigma**2 - 1) for p in points) < 1e-14
    half = SCHEDULE.at(300.5)  # the geometric mean
    assert half.alpha == pytest.approx((SCHEDULE.at(300).alpha * SCHEDULE.at(301).alpha) ** 0.5, rel=1e-13)


@pytest.mark.parametrize("offset", [0, 1])
def test_leading_times_are_diffusers_for_every_number_of_steps(offset: int) -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(timestep_spacing="leading", steps_offset=offset)
    for steps in range(1, 1000):
        theirs.set_timesteps(steps)
        assert timesteps(1000, steps, "leading", offset) == theirs.timesteps.tolist(), steps


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_other_times_are_diffusers_but_for_its_rounding_errors(spacing: Spacing) -> None:
    """diffusers adds up floating-point steps: where a time is half way between two it may take the other one, and for some numbers
    of trailing steps one step too many comes out. Ours are the exact times, rounded half to even as numpy does."""
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(timestep_spacing=spacing)
    equal = 0
    for steps in range(1, 1001):
        i = np.arange(steps)
        if spacing == "trailing":  # the exact times, as fractions: 1000 - i 1000 / steps - 1
            over, under = 999 * steps - 1000 * i, steps
        else:
            over, under = 999 * i[::-1], max(steps - 1, 1)
        ours = timesteps(1000, steps, spacing)
        assert len(ours) == steps and (abs(2 * under * np.array(ours) - 2 * over) <= under).all()
        theirs.set_timesteps(steps)
        listed = theirs.timesteps.tolist()
        assert len(listed) - steps in ((0, 1) if spacing == "trailing" else (0,))
        half_way = (over % under != 0) & (2 * over % under == 0)
        assert ((np.array(ours) == listed[:steps]) | half_way).all()
        equal += ours == listed
    assert equal > 700
    for steps in (1, 2, 4, 5, 7, 8, 10, 20, 25, 30, 33, 40, 50, 100, 125, 200, 250, 500, 1000):  # those that people use
        theirs.set_timesteps(steps)
        assert timesteps(1000, steps, spacing) == theirs.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 3, 7, 30, 50, 600, 999])
def test_a_grid_goes_down(spacing: Spacing, steps: int) -> None:
    times = timesteps(1000, steps, spacing)
    assert len(times) == steps
    assert 999 >= times[0] >= times[-1] >= 0
    assert all(a > b for a, b in itertools.pairwise(times))
    grid = make_grid(SCHEDULE, times, "clean")
    assert len(grid) == steps + 1
    assert [point.t for point in grid[:-1]] == times
    assert all(a.sigma > b.sigma for a, b in itertools.pairwise(grid))


def test_ends() -> None:
    assert make_grid(SCHEDULE, [999, 500], "clean")[-1] == Point(0.0, 1.0, 0.0)
    assert make_grid(SCHEDULE, [999, 500], "first")[-1] == SCHEDULE.at(0)


def test_defaults_are_stable_diffusion_s_and_code_s() -> None:
    ddim, ddpm = Ddim().grid(SCHEDULE), Ddpm().grid(SCHEDULE)
    assert [point.t for point in ddim] == [*range(981, 0, -20), 0]
    assert [point.t for point in ddpm] == [*range(999, 0, -20), 0]
    assert ddim[-1].sigma == SCHEDULE.at(0).sigma > 0
    assert ddpm[-1].sigma == 0


@pytest.mark.parametrize("steps", [0, -1, 1001])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_impossible_numbers_of_steps(steps: int, spacing: Spacing) -> None:
    with pytest.raises(BadValue, match=f"num_steps={steps}: must be from 1 to 1000"):
        timesteps(1000, steps, spacing)


@pytest.mark.parametrize("scheduler", [Ddim, Ddpm])
def test_schedulers_refuse_them_as_early_as_they_can(scheduler: type[Ddim] | type[Ddpm]) -> None:
    with pytest.raises(BadValue, match="num_steps=0: must be at least 1"):
        scheduler(num_steps=0)
    with pytest.raises(BadValue, match="num_steps=1001: must be from 1 to 1000"):
        scheduler(num_steps=1001).grid(SCHEDULE)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_eta_is_a_share(eta: float) -> None:
    with pytest.raises(BadValue, match="from 0 to 1"):
        Ddim(eta=eta)


@pytest.mark.parametrize(("steps", "offset"), [(1000, 1), (50, -5), (200, 5)])
def test_times_stay_in_the_trained_range(steps: int, offset: int) -> None:
    with pytest.raises(BadValue, match="must stay in 0 to 999"):
        timesteps(1000, steps, "leading", offset)


@pytest.mark.parametrize("t", [-1, -0.001, 999.001, 1000])
def test_there_is_no_point_outside_the_trained_range(t: float) -> None:
    with pytest.raises(ValueError, match="must be from 0 to 999"):
        NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear").at(t)


@pytest.mark.parametrize("steps", [1, 5, 20, 50])
def test_a_tail_is_the_last_share_of_the_steps(steps: int) -> None:
    grid = Ddpm(num_steps=steps).grid(SCHEDULE)
    assert tail(grid, 1.0) == grid
    for left in range(1, steps + 1):
        part = tail(grid, left / steps)
        assert len(part) == left + 1
        assert part == grid[-left - 1 :]


def test_a_tail_is_to_the_nearest_step_and_of_one_at_least() -> None:
    grid = Ddpm(num_steps=10).grid(SCHEDULE)
    assert [len(tail(grid, share)) - 1 for share in (0.001, 0.04, 0.14, 0.16, 0.59, 0.94, 0.96, 0.999)] == [
        1,
        1,
        1,
        2,
        6,
        9,
        10,
        10,
    ]


def test_a_tail_starts_where_sdedit_s_released_grids_do() -> None:
    """The first trailing time at or below 1000 r, as CoDeX's image-to-image code skips those above (cd_grad_final_general_i2i.py)."""
    for steps in (50, 100, 500):
        grid = Ddpm(num_steps=steps).grid(SCHEDULE)
        for tenths in range(1, 11):
            theirs = next(i for i, point in enumerate(grid) if point.t <= 100 * tenths)
            assert tail(grid, tenths / 10) == grid[theirs:]
