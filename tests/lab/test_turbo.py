"""The few-step generator learns where the guided generator ends, and samples as diffusers' own pipeline has it."""

import types
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress
from torch import Tensor

from guidedgen.basics.tasks import Task
from guidedgen.lab import exam, networks, training, turbo
from guidedgen.lab.fitting import Settings, fit
from guidedgen.lab.levels import Levels
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.process.schedulers import Lcm

LEVELS = Levels(training.alphas_cumprod())


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Gaussian:
    """The perfect noise prediction for data of standard deviation 1/2, whatever the text."""

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> types.SimpleNamespace:
        alpha, sigma = LEVELS.scales(LEVELS.half_log_snr(t))
        return types.SimpleNamespace(sample=sigma * x / (alpha.square() / 4 + sigma.square()))


def test_levels_are_the_schedules() -> None:
    t = torch.tensor([0, 1, 499, 998, 999])
    alpha, sigma = LEVELS.scales(LEVELS.half_log_snr(t.float()))
    torch.testing.assert_close(alpha.flatten().square(), training.alphas_cumprod()[t], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones_like(alpha))
    between = torch.tensor([0.0, 0.25, 17.5, 700.1, 999.0])
    torch.testing.assert_close(LEVELS.time(LEVELS.half_log_snr(between)), between, rtol=1e-4, atol=1e-3)


def test_the_ode_is_solved() -> None:
    """Of a Gaussian it is known: x over its standard deviation stays the same."""
    t = torch.tensor([999.0, 600.0, 300.0])
    x, empty = normal(3, 4, 16, 16), torch.zeros(1, 2, 3)
    alpha, sigma = LEVELS.scales(LEVELS.half_log_snr(t))
    last, rest = LEVELS.scales(LEVELS.half_log_snr(torch.zeros(3)))
    exact = x * (last.square() / 4 + rest.square()).sqrt() / (alpha.square() / 4 + sigma.square()).sqrt()
    errors = []
    for steps in (8, 64):
        path = turbo.solve(Gaussian(), LEVELS, x, t, torch.ones(3, 2, 3), empty, steps)  # type: ignore[arg-type]
        assert len(path) == steps + 1 and torch.equal(path[0][0], x) and torch.equal(path[0][1], t)
        assert all((after < before).all() for (_, before), (_, after) in pairwise(path)) and not path[-1][1].any()
        errors.append((path[-1][0] - exact).abs().max().item())
    assert errors[1] < 0.01 and errors[1] < errors[0] / 8


def test_the_ode_is_the_guided_one() -> None:
    class ByText:
        def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> types.SimpleNamespace:
            return types.SimpleNamespace(sample=Gaussian()(x, t, text).sample + text.mean((1, 2))[:, None, None, None])

    class Mixed:
        def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> types.SimpleNamespace:
            return types.SimpleNamespace(sample=Gaussian()(x, t, text).sample + 0.1 + turbo.GUIDANCE * (0.3 - 0.1))

    x, t = normal(2, 4, 16, 16), torch.tensor([999.0, 499.0])
    empty, text = torch.full((1, 2, 3), 0.1), torch.full((2, 2, 3), 0.3)
    found, expected = (turbo.solve(teacher, LEVELS, x, t, text, empty, 4)[-1][0] for teacher in (ByText(), Mixed()))  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_points_are_those_of_their_own_solution() -> None:
    path = [
        (torch.full((2, 1, 1, 1), 10.0 * i) + torch.arange(2.0)[:, None, None, None], torch.full((2,), 900.0 - i)) for i in range(5)
    ]
    points, times, ends = turbo.draw_points(path, torch.Generator().manual_seed(0))
    assert points.shape == (6, 1, 1, 1) and points[:2].flatten().tolist() == [0, 1] and times[:2].tolist() == [900, 900]
    assert ends.flatten().tolist() == [40, 41] * 3  # never the end itself, and each with its own
    assert ((points.flatten() // 10) == 900 - times).all() and points.max() < 40


def test_later_points_are_the_samplers() -> None:
    """The student's own prediction, noised anew to times that the sampler may choose, half of them the second of two steps."""

    class Student:
        def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> types.SimpleNamespace:
            alpha, sigma = LEVELS.scales(LEVELS.half_log_snr(t))
            return types.SimpleNamespace(sample=(alpha * x - 3) / sigma)  # x_0 is 3

    x, t = turbo.noised_anew(Student(), LEVELS, normal(400, 4, 4, 4), torch.zeros(400, 1, 1), torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    grid = {point.t for point in Lcm(num_steps=50).grid(StableDiffusion(path="lab", name="lab").schedule)}
    assert (
        set(t.tolist()) <= grid - {999.0}
        and 0.4 < (t == Lcm(num_steps=2).grid(StableDiffusion(path="lab", name="lab").schedule)[1].t).float().mean() < 0.6
    )
    alpha, sigma = LEVELS.scales(LEVELS.half_log_snr(t))
    noise = (x - 3 * alpha) / sigma
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_the_distance_is_between_square_and_absolute() -> None:
    zero = torch.zeros(1)
    assert turbo.distance(torch.full((1,), 1e-3), zero) == pytest.approx(1e-6 / 0.2, rel=0.01)
    assert turbo.distance(torch.full((1,), 100.0), zero) == pytest.approx(100 - 0.1, rel=1e-3)


def test_a_short_training_lowers_the_loss_and_starts_from_the_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_TURBO_BATCH", 4)
    settings = Settings(folder=tmp_path, scale=1.0)
    unet, text = networks.load_generator()
    part = training.few_steps(settings, unet, text, networks.train_tokenizer())
    for (name, ours), theirs in zip(part.network.state_dict().items(), unet.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs) or name.startswith("conv_out"), name

    def seen() -> float:
        """The loss on points that training has not seen."""
        with torch.no_grad():
            return sum(part.loss(0, torch.Generator().manual_seed(i))["loss"].item() for i in range(3))

    before = seen()
    part.steps, part.warm_up = 30, 2
    with Progress(disable=True) as progress:
        fit(part, settings, progress)
    assert seen() < 0.95 * before
    assert all(parameter.grad is None for parameter in unet.parameters())


def shipped() -> None:
    if not all((networks.WEIGHTS / name).exists() for name in exam.PARTS["turbo"]):
        pytest.skip("no few-step generator is shipped")


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_it_samples_as_diffusers_own_pipeline(steps: int) -> None:
    """With the noise that the pipeline's generator draws between steps."""
    shipped()
    ours, pipe = StableDiffusion(path="lab:turbo", name="lab_turbo", guidance_scale=1.0), exam.load_turbo()
    prompts, x_T = ["a red circle", "a blue star"], normal(2, 4, 16, 16)  # noqa: N806
    theirs: Any = pipe(
        prompts, latents=x_T, num_inference_steps=steps, guidance_scale=1.0, output_type="latent", generator=torch.Generator().manual_seed(7),
    ).images  # fmt: skip
    draw, scheduler, x = torch.Generator().manual_seed(7), Lcm(num_steps=steps), x_T[:, None]
    grid, denoise = (
        scheduler.grid(ours.schedule),
        ours.denoiser([Task(id=str(i), prompt=prompt) for i, prompt in enumerate(prompts)]),
    )
    with torch.no_grad():
        for i, (t, s) in enumerate(pairwise(grid)):
            mean, std = scheduler.transition(x, denoise(x, t), t, s)
            x = mean + std * torch.randn(x_T.shape, generator=draw)[:, None] if i < steps - 1 else mean
    torch.testing.assert_close(x[:, 0], theirs, rtol=1e-4, atol=1e-4)


def test_the_folder_has_what_differs_alone() -> None:
    """The other parts are the generator's, which are not stored twice."""
    shipped()
    model = StableDiffusion(path="lab:turbo", name="lab_turbo", guidance_scale=1.0)
    found = {path.relative_to(networks.WEIGHTS).as_posix() for path in model.files}
    assert found == {"turbo/unet", "turbo/scheduler", "generator/vae", "generator/text_encoder", "generator/tokenizer"}
    assert model.predicts == "v_prediction" and StableDiffusion(path="lab", name="lab").predicts == "epsilon"
