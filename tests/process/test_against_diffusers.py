"""Whole chains against diffusers' schedulers, with the same predictions and the same noise."""

from itertools import pairwise

import pytest
import torch
from steps import step
from torch import Tensor

from guidedgen.process import Scheduler
from guidedgen.process.grid import End, Grid, NoiseSchedule, Spacing
from guidedgen.process.schedulers import Ddim, Ddpm

BETAS = (1000, 0.00085, 0.012, "scaled_linear")
SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")
SHAPE = (2, 3, 4, 4)


def predict(x: Tensor, t: float) -> Tensor:
    """Any smooth function that depends on both."""
    return 0.9 * torch.sin(x + t / 300) + 0.1 * x


def normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def walk(scheduler: Scheduler, grid: Grid) -> list[Tensor]:
    x, chain = normal(0), []
    for i, (t, s) in enumerate(pairwise(grid)):
        x = step(scheduler, x, predict(x, t.t), t, s, normal(1 + i))
        chain.append(x)
    return chain


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize(("spacing", "offset", "end"), [("leading", 1, "first"), ("leading", 0, "clean"), ("trailing", 0, "clean")])
def test_ddim(eta: float, steps: int, spacing: Spacing, offset: int, end: End) -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        *BETAS, clip_sample=False, set_alpha_to_one=end == "clean", steps_offset=offset, timestep_spacing=spacing
    )
    theirs.alphas_cumprod = SCHEDULE.alphas_cumprod  # the same levels in float64, so that only the step is compared
    theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64) if end == "clean" else SCHEDULE.alphas_cumprod[0]
    theirs.set_timesteps(steps)
    scheduler = Ddim(num_steps=steps, eta=eta, spacing=spacing, offset=offset, end=end)
    x = normal(0)
    chain = walk(scheduler, scheduler.grid(SCHEDULE))
    assert len(chain) == steps
    for i, t in enumerate(theirs.timesteps.tolist()):
        x = theirs.step(predict(x, t), t, x, eta=eta, variance_noise=normal(1 + i) if eta else None).prev_sample
        torch.testing.assert_close(chain[i], x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("steps", "spacing"), [(10, "trailing"), (50, "trailing"), (37, "trailing"), (20, "leading")])
def test_ddpm(steps: int, spacing: Spacing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fixed_small variance; step counts that do not divide 1000 too, where diffusers takes the neighbours in its list."""
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    theirs = DDPMScheduler(*BETAS, variance_type="fixed_small", clip_sample=False, timestep_spacing=spacing)
    theirs.alphas_cumprod = SCHEDULE.alphas_cumprod
    theirs.one = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(steps)
    draws = iter(range(1, steps + 1))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: normal(next(draws)))
    scheduler = Ddpm(num_steps=steps, spacing=spacing)
    x = normal(0)
    chain = walk(scheduler, scheduler.grid(SCHEDULE))
    for i, t in enumerate(theirs.timesteps.tolist()):
        x = theirs.step(predict(x, t), t, x).prev_sample
        # diffusers keeps a variance of 1e-20 at the last step
        torch.testing.assert_close(chain[i], x, rtol=1e-9, atol=1e-9)


def test_single_precision_stays_close() -> None:
    """As people run diffusers: float32 levels and latents, 50 steps."""
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(*BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.set_timesteps(50)
    x = normal(0).float()
    for t in theirs.timesteps.tolist():
        x = theirs.step(predict(x, t), t, x).prev_sample
    ours = walk(Ddim(), Ddim().grid(SCHEDULE))[-1]
    torch.testing.assert_close(x.double(), ours, rtol=1e-4, atol=1e-4)
