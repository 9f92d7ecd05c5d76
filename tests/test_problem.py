"""What a method is given: starts, steps, scores and gradients, in chunks and for some of the samples."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.noise import Noise
from guidedgen.basics.tasks import Task
from guidedgen.methods.problem import Problem
from guidedgen.methods.views import Crops
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process import Prediction, Scheduler
from guidedgen.process.grid import NoiseSchedule, tail
from guidedgen.process.schedulers import Ddim, Ddpm

SHAPE = (2, 2, 1)
SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear")


class Prompted(GaussianDenoiser):
    """A denoiser that knows whose it is."""

    def subset(self, rows) -> GaussianDenoiser:
        chosen = Prompted(cond=self.cond, uncond=self.uncond)
        object.__setattr__(chosen, "rows", list(rows))
        return chosen


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(b: int = 3, *, scheduler: Scheduler | None = None, batch_size: int = 1000, log: list | None = None) -> Problem:
    """Images are half their latents; a task's reward is its number times the sum of sines."""
    scheduler = Ddpm(num_steps=10) if scheduler is None else scheduler
    grid, log = scheduler.grid(SCHEDULE), [] if log is None else log
    gaussian = GaussianMixture(
        means=torch.zeros(1, *SHAPE, dtype=torch.float64), std=1.0, weights=torch.ones(1, dtype=torch.float64)
    )

    def reward(images: Tensor, tasks) -> Tensor:
        log.append([task.id for task in tasks])
        assert len(images) == len(tasks)
        return images.sin().flatten(1).sum(1) * torch.tensor([float(task.id) for task in tasks], dtype=torch.float64)

    return Problem(
        tasks=[Task(id=f"{i + 1}", prompt="") for i in range(b)], denoise=Prompted(cond=gaussian, uncond=gaussian),
        scheduler=scheduler, grid=grid, schedule=SCHEDULE, num_steps=len(grid) - 1, noise=Noise([f"sample-{i}" for i in range(b)], dtype=torch.float64),
        latent_shape=SHAPE, decode=lambda x: x / 2, reward=reward, batch_size=batch_size,
    )  # fmt: skip


def test_a_chain_starts_from_its_noise() -> None:
    assert torch.equal(make().start(4), Noise([f"sample-{i}" for i in range(3)], dtype=torch.float64).draw(4, SHAPE))
    assert len(make(5)) == 5


def test_from_a_reference_it_starts_from_the_noised_one() -> None:
    """Every particle with noise of its own; the noise is what the unguided chain would start from."""
    problem, reference = make(), normal(3, *SHAPE)
    problem = dataclasses.replace(problem, reference=reference, grid=tail(problem.grid, 0.4))
    point, noise = problem.grid[0], make().start(2)
    assert len(problem.grid) == 5
    expected = math.sqrt(SCHEDULE.alphas_cumprod[int(point.t)]) * reference[:, None] + point.sigma * noise
    torch.testing.assert_close(problem.start(2), expected, rtol=1e-12, atol=1e-12)


def test_a_step_draws_noise_only_where_the_rule_does() -> None:
    x = normal(3, 2, *SHAPE)
    for scheduler, drawn in ((Ddpm(num_steps=10), 1), (Ddim(num_steps=10), 0), (Ddim(num_steps=10, eta=0.5), 1)):
        problem, noise = make(scheduler=scheduler), make().noise
        t, s = problem.grid[:2]
        z = noise.draw(2, SHAPE) if drawn else None
        mean, std = scheduler.transition(x, Prediction(x, x), t, s)
        expected = mean + std * z if drawn else mean
        torch.testing.assert_close(problem.step(x, Prediction(x, x), t, s), expected, rtol=0, atol=0)
        assert torch.equal(problem.noise.draw(2, SHAPE), noise.draw(2, SHAPE))  # they stand at the same place


def test_noise_ratios_are_of_the_whole_chain() -> None:
    problem = make()
    assert [problem.noise_ratio(i) for i in range(10)] == pytest.approx([1 - i / 10 for i in range(10)], abs=1e-15)
    late = dataclasses.replace(problem, grid=tail(problem.grid, 0.3))
    assert [late.noise_ratio(i) for i in range(3)] == pytest.approx([0.3, 0.2, 0.1], abs=1e-15)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 12, 100])
def test_scores_and_gradients_are_those_of_each_latent_with_its_task(batch_size: int) -> None:
    log: list[list[str]] = []
    problem, x = make(batch_size=batch_size, log=log), normal(3, 4, *SHAPE)
    task = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(3, 1)
    exact = task * (x / 2).sin().flatten(2).sum(2)
    torch.testing.assert_close(problem.score(x), exact, rtol=1e-13, atol=1e-13)
    assert [len(chunk) for chunk in log] == [batch_size] * (12 // batch_size) + [12 % batch_size] * (12 % batch_size > 0)
    assert sum(log, []) == ["1"] * 4 + ["2"] * 4 + ["3"] * 4  # noqa: RUF017
    with torch.no_grad():  # as methods run
        rewards, gradient = problem.score_and_gradient(x)
    torch.testing.assert_close(rewards, exact, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, task.view(3, 1, 1, 1, 1) * (x / 2).cos() / 2, rtol=1e-13, atol=1e-13)
    assert not rewards.requires_grad and not gradient.requires_grad and not x.requires_grad
    assert log[len(log) // 2 :] == log[: len(log) // 2]


def test_scoring_keeps_no_graph() -> None:
    x = normal(3, 2, *SHAPE).requires_grad_()
    assert not make().score(x).requires_grad


def test_a_problem_without_a_reward_says_so() -> None:
    problem = dataclasses.replace(make(), reward=None)
    for ask in (problem.score, problem.score_and_gradient):
        with pytest.raises(ValueError, match="no reward"):
            ask(normal(3, 1, *SHAPE))


def test_a_subset_is_the_problem_of_some_of_its_samples() -> None:
    whole = dataclasses.replace(make(), reference=normal(3, *SHAPE))
    part = whole.subset([2, 0])
    assert [task.id for task in part.tasks] == ["3", "1"]
    assert torch.equal(part.reference, whole.reference[[2, 0]])
    assert part.denoise.rows == [2, 0]
    assert (part.grid, part.num_steps, part.batch_size) == (whole.grid, whole.num_steps, whole.batch_size)
    x = normal(3, 2, *SHAPE)
    assert torch.equal(part.score(x[[2, 0]]), whole.score(x)[[2, 0]])
    assert make().subset([1]).reference is None


def test_a_subset_s_noise_goes_on_where_it_stands() -> None:
    whole, alone = make(), make()
    whole.noise.draw(1, SHAPE), alone.noise.draw(1, SHAPE)
    later = alone.noise.draw(1, SHAPE)
    assert torch.equal(whole.subset([1]).start(), later[[1]])  # this has drawn sample 1's second
    expected = alone.noise.draw(1, SHAPE)
    again = whole.noise.draw(1, SHAPE)
    assert torch.equal(again[[0, 2]], later[[0, 2]]) and torch.equal(again[1], expected[1])


def test_the_subset_of_all_is_the_problem_itself() -> None:
    problem = make()
    assert problem.subset([0, 1, 2]) is problem
    assert problem.subset([0, 2, 1]) is not problem


# Crops


@pytest.mark.parametrize("reduction", ["mean", "best"])
@pytest.mark.parametrize("size", [1, 2, 4, 5, 11, 100])
def test_crops_are_scored_as_pictures_of_their_own(size: int, reduction: str) -> None:
    """Against a loop over samples, particles and crops; at most so many at once, of pictures that are decoded once."""
    square, log, decoded = (2, 4, 4), [], []
    boxes = torch.rand(3, 2, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_0 = normal(3, 2, *square)
    problem = dataclasses.replace(
        make(batch_size=size, log=log), latent_shape=square, decode=lambda x: decoded.append(len(x)) or x / 2
    )
    rewards, gradient = problem.score_and_gradient(x_0, Crops(boxes=boxes, smallest=0.5, reduction=reduction))
    assert max(map(len, log)) <= size and sum(map(len, log)) == 30
    assert sum(decoded) == 6 and max(decoded) <= max(1, size // 5)
    for i in range(3):
        for k in range(2):
            z = x_0[i, k].clone().requires_grad_()
            views = images.crop((z / 2)[None], boxes[i, k][None], 0.5)[0]
            values = torch.stack([(i + 1) * view.sin().sum() for view in views])
            expected = values.mean() if reduction == "mean" else values.max()
            (by_z,) = torch.autograd.grad(expected, z)
            torch.testing.assert_close(rewards[i, k], expected.detach())
            torch.testing.assert_close(gradient[i, k], by_z)


@pytest.mark.parametrize("size", [1, 2, 100])
def test_the_best_of_crops_of_which_one_is_no_number_is_none(size: int) -> None:
    """As the largest of numbers in torch, however many of them are scored at once."""
    square, scored = (2, 4, 4), []

    def reward(pictures: Tensor, tasks) -> Tensor:
        scored.append(len(pictures))
        third = torch.arange(sum(scored) - len(pictures), sum(scored)) == 2
        return torch.where(third, torch.nan, pictures.flatten(1).sum(1))

    problem = dataclasses.replace(make(1, batch_size=size), latent_shape=square, reward=reward)
    boxes = torch.rand(1, 1, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rewards, _ = problem.score_and_gradient(normal(1, 1, *square), Crops(boxes=boxes, smallest=0.5, reduction="best"))
    assert rewards.isnan().all()
