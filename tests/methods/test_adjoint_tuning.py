"""AdjointTuning against the optimum of closed form, plain autograd, its costs, and itself after an interruption."""

import copy
import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.noise import Noise
from guidedgen.basics.tasks import Task
from guidedgen.gradients.adjoint import Adjoint
from guidedgen.gradients.backprop import Backprop
from guidedgen.gradients.checkpoint import Checkpoint
from guidedgen.gradients.reversible import Reversible
from guidedgen.methods.adjoint_tuning import AdjointTuning
from guidedgen.methods.base import Base
from guidedgen.methods.problem import Problem
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process.schedulers import Ddim

Make = Callable[..., Problem]
SHAPE = (2, 1, 1)
TARGET = torch.tensor([0.4, -0.9], dtype=torch.float64).view(SHAPE)
LESSONS = 6


class Prompts:
    def tasks(self) -> Sequence[Task]:
        return [Task(id="a", prompt="a")]


def tuning(**options) -> AdjointTuning:
    return AdjointTuning(
        **{
            "gradients": Backprop(), "prompts": Prompts(), "what": "weights", "num_updates": 3, "samples_per_update": 2,
            "weight_decay": 0.0, **options,
        }
    )  # fmt: skip


def closeness(rows: Tensor) -> Tensor:
    return -(rows - TARGET).square().sum((1, 2, 3))


def curved(rows: Tensor) -> Tensor:
    return rows.flatten(1).sin().sum(1) - 0.1 * rows.flatten(1).square().sum(1)


@pytest.fixture
def lessons(make_problem: Make) -> Callable[..., tuple[Tensor, Callable[[Sequence[int]], Problem]]]:
    """What is tuned, the shift of a Gaussian's (or the mixture's) mean, and problems of some of six samples that share it."""

    def make(reward=closeness, *, mixed: bool = False) -> tuple[Tensor, Callable[[Sequence[int]], Problem]]:
        whole = make_problem(LESSONS, reward=reward, scheduler=Ddim(num_steps=8))
        model = whole.denoise.denoiser.cond
        if not mixed:
            model = GaussianMixture(means=model.means[:1], std=0.6, weights=torch.ones(1, dtype=torch.float64))
        free = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)

        def problem_of(indices: Sequence[int]) -> Problem:
            with torch.enable_grad():
                shift = free.expand(len(indices), *SHAPE)
            counting = copy.copy(whole.denoise)
            counting.denoiser = GaussianDenoiser(cond=model, uncond=model, shift=shift)
            counting.conditioning = shift
            posed.append(list(indices))
            made.append(counting)
            return dataclasses.replace(
                whole, tasks=[whole.tasks[index] for index in indices], denoise=counting,
                noise=Noise([f"sample-{index}" for index in indices], dtype=torch.float64),
            )  # fmt: skip

        posed: list[list[int]] = []
        made: list = []
        problem_of.posed, problem_of.made = posed, made
        return free, problem_of

    return make


def at_once(problem_of: Callable[[Sequence[int]], Problem], size: int = LESSONS) -> Callable:
    """Computes on so many lessons at a time."""
    return lambda indices, compute: (compute(problem_of(indices[i : i + size])) for i in range(0, len(indices), size))


def pictures(problem_of: Callable[[Sequence[int]], Problem]) -> Tensor:
    with torch.no_grad():
        return tuning()(problem_of(range(LESSONS)))


def nothing(state: object) -> None:
    """A checkpoint that is not kept."""


def test_drawing_is_the_unguided_ddim_chain(make_problem: Make) -> None:
    scheduler = Ddim(num_steps=7)
    torch.testing.assert_close(
        tuning()(make_problem(scheduler=scheduler)), Base()(make_problem(scheduler=scheduler)), rtol=0, atol=1e-12
    )


def test_drawing_is_by_the_solver_of_the_lessons(make_problem: Make) -> None:
    """Euler's method is DDIM; one of a higher order comes nearer to the flow's exact solution, for which 500 steps of rk4 stand."""

    def drawn(num_steps: int, **engine) -> Tensor:
        return tuning(gradients=Adjoint(**engine))(make_problem(scheduler=Ddim(num_steps=num_steps)))

    exact, ddim = drawn(500, solver="rk4"), Base()(make_problem(scheduler=Ddim(num_steps=20)))
    torch.testing.assert_close(drawn(20), ddim, rtol=0, atol=1e-12)
    for solver, factor in {"midpoint": 4, "rk4": 10}.items():
        assert (drawn(20, solver=solver) - exact).abs().max() < (ddim - exact).abs().max() / factor


def test_without_updates_nothing_changes(lessons) -> None:
    free, problem_of = lessons()
    tuning(num_updates=0).learn(at_once(problem_of), LESSONS, [free], {}, nothing)
    assert not free.any() and not problem_of.posed
    assert not tuning(num_updates=0).needs.gradient


@pytest.mark.parametrize("what", ["weights", "token"])
@pytest.mark.parametrize("engine", [Checkpoint(), Adjoint(), Backprop()])
def test_the_optimum_over_all_noises_is_reached(lessons, what: str, engine) -> None:
    """The flow of a Gaussian is affine, so the mean squared distance is least where the pictures' mean is the target."""
    free, problem_of = lessons()
    before = pictures(problem_of)
    tuning(gradients=engine, what=what, samples_per_update=LESSONS, num_updates=150, lr=0.03, max_norm=None).learn(
        at_once(problem_of), LESSONS, [free], {}, nothing
    )
    after = pictures(problem_of)
    torch.testing.assert_close(after.mean(0), TARGET, rtol=0, atol=2e-3)
    torch.testing.assert_close(after - after.mean(0), before - before.mean(0), rtol=0, atol=1e-10)  # the mean alone has moved


@pytest.mark.parametrize("what", ["weights", "token"])
def test_updates_are_adam_s_on_the_mean_reward(lessons, what: str) -> None:
    """Three updates on a mixture, the gradient by autograd through a chain written out."""
    free, problem_of = lessons(curved, mixed=True)
    tuning(what=what, lr=0.05, samples_per_update=LESSONS, max_norm=0.3).learn(at_once(problem_of), LESSONS, [free], {}, nothing)

    by_hand, posed = lessons(curved, mixed=True)
    mean, square = torch.zeros_like(by_hand), torch.zeros_like(by_hand)
    for k in range(1, 4):
        problem = posed(range(LESSONS))
        with torch.enable_grad():
            x = problem.start()
            for t, s in zip(problem.grid, problem.grid[1:], strict=False):
                a = s.alpha / t.alpha
                x = a * x + (s.sigma - a * t.sigma) * problem.denoise(x, t).eps
            loss = -curved(x.flatten(0, 1)).mean()
        (gradient,) = torch.autograd.grad(loss, by_hand)
        gradient = gradient * min(1.0, 0.3 / (gradient.norm().item() + 1e-6))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        with torch.no_grad():
            by_hand -= 0.05 * (mean / (1 - 0.9**k)) / ((square / (1 - 0.999**k)).sqrt() + 1e-8)
    torch.testing.assert_close(free, by_hand, rtol=0, atol=1e-10)


@pytest.mark.parametrize("what", ["weights", "token"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_lessons_in_parts_teach_the_same(lessons, what: str, size: int) -> None:
    """Of five an update, the curve too: to rounding, and to the byte where they are one part."""
    found = []
    for at in (size, 5):
        free, problem_of = lessons(curved, mixed=True)
        told: list[tuple[float, float]] = []
        tuning(what=what, lr=0.05, samples_per_update=5, max_norm=0.3).learn(
            at_once(problem_of, at), LESSONS, [free], {}, nothing,
            lambda event, _i, values, told=told: told.append((float(values["reward"]), float(values["gradient"]))),
        )  # fmt: skip
        assert len(told) == 3 and max(map(len, problem_of.posed)) == min(at, 5)
        found.append((free.detach(), torch.tensor(told)))
    for ours, whole in zip(*found, strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=0 if size >= 5 else 1e-6)


@pytest.mark.parametrize(("count", "k"), [(6, 2), (6, 4), (5, 3), (2, 3)])
def test_every_lesson_has_its_turn_before_one_comes_again(count: int, k: int) -> None:
    method = tuning(samples_per_update=k)
    drawn = [method._drawn(i, count) for i in range(count)]  # k * count places: k times each
    assert all(sorted(set(indices)) == indices for indices in drawn)
    if count % k == 0:
        each = count // k
        for epoch in range(k):
            assert sorted(index for indices in drawn[epoch * each : (epoch + 1) * each] for index in indices) == list(range(count))
        assert drawn[:each] != drawn[each : 2 * each]  # in another order
    assert {index for indices in drawn for index in indices} == set(range(count))


@pytest.mark.parametrize("stop", [2, 4])
def test_an_interruption_changes_nothing(lessons, stop: int) -> None:
    method = tuning(num_updates=6, lr=0.05, save_every=2, samples_per_update=4)
    whole, problem_of = lessons(curved, mixed=True)
    method.learn(at_once(problem_of), LESSONS, [whole], {}, nothing)

    class Interrupted(Exception):
        pass

    saved: list = []

    def save(state) -> None:
        saved.append(copy.deepcopy(dict(state)))
        if state["done"] == stop:
            raise Interrupted

    broken, posed = lessons(curved, mixed=True)
    with pytest.raises(Interrupted):
        method.learn(at_once(posed), LESSONS, [broken], {}, save)
    again, posed_again = lessons(curved, mixed=True)
    method.learn(at_once(posed_again), LESSONS, [again], saved[-1], nothing)
    assert torch.equal(again, whole)
    assert posed.posed + posed_again.posed == problem_of.posed


@pytest.mark.parametrize(("engine", "passes"), [(Checkpoint(), 2), (Adjoint(), 2), (Backprop(), 1)])
def test_it_costs_what_it_says(lessons, engine, passes: int) -> None:
    """S = 8 steps, m = 3 updates of k = 2: 4Skm rows forward where steps are computed twice, 2Skm backward."""
    free, problem_of = lessons(curved, mixed=True)
    tuning(gradients=engine).learn(at_once(problem_of), LESSONS, [free], {}, nothing)
    rows = sum(counting.rows for counting in problem_of.made)
    backward = sum(counting.backward for counting in problem_of.made)
    one = 1  # the Gaussian problem is without guidance: one row, not two
    assert (rows, backward) == (passes * one * 8 * 2 * 3, one * 8 * 2 * 3)


def test_an_update_that_is_not_finite_is_left_out(lessons) -> None:
    calls = iter(range(100))

    def sometimes(rows: Tensor) -> Tensor:
        return curved(rows) * (torch.nan if next(calls) == 1 else 1)

    free, problem_of = lessons(sometimes, mixed=True)
    totals: list[float] = []
    tuning(num_updates=3, lr=0.05).learn(
        at_once(problem_of),
        LESSONS,
        [free],
        {},
        nothing,
        lambda event, i, values: totals.append(free.sum().item()) if event == "learn" else None,
    )
    assert free.isfinite().all()
    assert totals[1] == totals[2] != totals[0]  # what the second update, reported before it is made, did not move


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"noises_per_prompt": 0}, "noises_per_prompt"),
        ({"num_updates": -1}, "num_updates"),
        ({"max_norm": 0.0}, "max_norm"),
        ({"token": "two words"}, "token"),
        ({"rank": 0}, "rank"),
    ],
)
def test_bad_options_are_refused(options: dict, name: str) -> None:
    with pytest.raises(BadValue) as refused:
        tuning(**options)
    assert refused.value.name == name


def test_reversible_is_refused() -> None:
    with pytest.raises(UsageError, match="checkpoint or adjoint"):
        tuning(gradients=Reversible())
