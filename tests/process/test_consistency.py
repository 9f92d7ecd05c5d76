"""The scheduler of latent consistency models against diffusers' own, with the same predictions and the same noise."""

from itertools import pairwise

import pytest
import torch
from steps import step
from torch import Tensor

from guidedgen.basics.errors import BadValue
from guidedgen.process.formulas import from_eps
from guidedgen.process.grid import FlowSchedule, NoiseSchedule
from guidedgen.process.schedulers import Lcm

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")


def predict(x: Tensor, t: float) -> Tensor:
    """Any smooth function that depends on both."""
    return 0.9 * torch.sin(x + t / 300) + 0.1 * x


def normal(seed: int) -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("steps", "original", "scaling"), [(1, 50, 10.0), (4, 50, 10.0), (8, 50, 10.0), (5, 7, 3.0), (3, 1000, 0.01)]
)
def test_a_chain_is_diffusers(steps: int, original: int, scaling: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small scalings, so that x_t counts too."""
    from diffusers import LCMScheduler
    from diffusers.schedulers import scheduling_lcm

    theirs = LCMScheduler(original_inference_steps=original, timestep_scaling=scaling)
    theirs.alphas_cumprod = SCHEDULE.alphas_cumprod  # the same levels in float64, so that only the step is compared
    theirs.set_timesteps(steps)
    draws = iter(range(1, steps + 1))
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: normal(next(draws)))
    scheduler, x, x_theirs = Lcm(num_steps=steps, original_steps=original, scaling=scaling), normal(0), normal(0)
    for i, ((t, s), time) in enumerate(zip(pairwise(scheduler.grid(SCHEDULE)), theirs.timesteps, strict=True)):
        x = step(scheduler, x, predict(x, t.t), t, s, normal(1 + i))
        x_theirs = theirs.step(predict(x_theirs, int(time)), time, x_theirs).prev_sample
        torch.testing.assert_close(x, x_theirs, rtol=1e-6, atol=1e-6)  # their weights are in float32


@pytest.mark.parametrize("original", [50, 7, 64])
def test_times_are_diffusers(original: int) -> None:
    from diffusers import LCMScheduler

    theirs = LCMScheduler(original_inference_steps=original)
    for steps in range(1, original + 1):
        theirs.set_timesteps(steps)
        ours = [point.t for point in Lcm(num_steps=steps, original_steps=original).grid(SCHEDULE)[:-1]]
        assert ours == theirs.timesteps.tolist()
    assert [point.t for point in Lcm().grid(SCHEDULE)] == [999.0, 759.0, 499.0, 259.0, 0.0]


def test_noise_is_drawn_but_at_the_end() -> None:
    grid = Lcm().grid(SCHEDULE)
    x, eps = normal(0), normal(1)
    stds = [Lcm().transition(x, from_eps(x, eps, t), t, s)[1] for t, s in pairwise(grid)]
    assert stds == [s.sigma for s in grid[1:]] and stds[-1] == 0


def test_what_it_does_not_fit_is_refused() -> None:
    for name, value in (("num_steps", 0), ("num_steps", 51), ("original_steps", 0), ("scaling", 0.0)):
        with pytest.raises(BadValue) as caught:
            Lcm(**{name: value})
        assert caught.value.name == name
    with pytest.raises(BadValue, match="original_steps"):
        Lcm(original_steps=1001).grid(SCHEDULE)
    with pytest.raises(BadValue, match="rectified flow"):
        Lcm().grid(FlowSchedule())
