"""AdjointDPM against hand-written updates and the optima of closed form, its null setting, independence of samples and costs."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.basics.noise import Noise
from guidedgen.gradients.adjoint import Adjoint
from guidedgen.gradients.backprop import Backprop
from guidedgen.gradients.checkpoint import Checkpoint
from guidedgen.gradients.reversible import Reversible
from guidedgen.methods.adjoint_dpm import AdjointDpm
from guidedgen.methods.base import Base
from guidedgen.methods.problem import Problem
from guidedgen.methods.views import draw_crops
from guidedgen.models.gaussian import GaussianDenoiser, GaussianMixture
from guidedgen.process import Prediction
from guidedgen.process.grid import Point
from guidedgen.process.schedulers import Ddim
from guidedgen.runs import config

Make = Callable[..., Problem]
ENGINES = {"adjoint": Adjoint(), "dopri5": Adjoint(solver="dopri5"), "checkpoint": Checkpoint(), "backprop": Backprop()}
WHATS = ("noise", "trajectory", "embedding")
STEPS, STD = 8, 0.6
SHAPE = (2, 1, 1)
TARGET = torch.tensor([0.4, -0.9], dtype=torch.float64).view(SHAPE)


class Counted:
    """A denoiser with conditioning that counts its rows, and those whose gradient is taken; its copies count together."""

    def __init__(self, denoiser: GaussianDenoiser, counts: dict[str, int] | None = None) -> None:
        self.denoiser, self.counts = denoiser, {"rows": 0, "backward": 0} if counts is None else counts

    @property
    def conditioning(self) -> Tensor:
        return self.denoiser.conditioning

    def conditioned_on(self, conditioning: Tensor) -> "Counted":
        return Counted(self.denoiser.conditioned_on(conditioning), self.counts)

    def subset(self, rows: Sequence[int]) -> "Counted":
        return Counted(self.denoiser.subset(rows), self.counts)

    def __call__(self, x_t: Tensor, t: Point) -> Prediction:
        prediction, rows = self.denoiser(x_t, t), 2 * x_t.shape[0] * x_t.shape[1]
        self.counts["rows"] += rows
        if prediction.eps.requires_grad:  # from which the chains of these tests go on
            prediction.eps.register_hook(lambda _: self.counts.update(backward=self.counts["backward"] + rows))
        return prediction


def closeness(rows: Tensor) -> Tensor:
    return -(rows - TARGET).square().sum((1, 2, 3))


def rated(rows: Tensor) -> Tensor:
    a, b = rows.flatten(1).unbind(1)
    return (2 * a).sin() + a * b


@pytest.fixture
def gaussian(make_problem: Make) -> Make:
    """A problem on one Gaussian, or with `mixed` on the mixture of three, whose means the conditioning shifts."""

    def make(b: int = 3, *, reward=closeness, mixed: bool = False, scheduler: Ddim | None = None) -> Problem:
        problem = make_problem(b, reward=reward, scheduler=Ddim(num_steps=STEPS) if scheduler is None else scheduler)
        model = problem.denoise.denoiser.cond
        if not mixed:
            model = GaussianMixture(means=model.means[:1], std=STD, weights=torch.ones(1, dtype=torch.float64))
        shift = 0.1 * torch.arange(1, b + 1, dtype=torch.float64).view(b, 1, 1, 1).expand(b, *SHAPE)
        return dataclasses.replace(problem, denoise=Counted(GaussianDenoiser(cond=model, uncond=model, shift=shift)))

    return make


def slopes(problem: Problem) -> list[float]:
    """What DDIM's steps multiply differences by on one Gaussian: from each point of the grid to the last."""
    factors = [1.0]
    for t, s in reversed(list(zip(problem.grid, problem.grid[1:], strict=False))):
        slope = t.sigma / ((t.alpha * STD) ** 2 + t.sigma**2)  # of eps
        factors.append(factors[-1] * (s.alpha / t.alpha + (s.sigma - s.alpha * t.sigma / t.alpha) * slope))
    return factors[::-1]


def by_shift(problem: Problem) -> float:
    """What they multiply a difference of the mean by: a picture and its mean that move together keep their noise."""
    return problem.grid[-1].alpha - slopes(problem)[0] * problem.grid[0].alpha


def unguided(problem: Problem) -> Tensor:
    return Base()(problem)


# Null setting


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("engine", ["adjoint", "checkpoint", "backprop"])
def test_without_updates_it_is_the_unguided_ddim_chain(gaussian: Make, what: str, engine: str) -> None:
    method = AdjointDpm(gradients=ENGINES[engine], what=what, num_updates=0)
    made, problem = method(gaussian(mixed=True)), gaussian(mixed=True)
    torch.testing.assert_close(made, unguided(problem), rtol=0, atol=1e-12)
    assert not method.needs.gradient


@pytest.mark.parametrize("what", WHATS)
def test_without_a_step_it_is_too(gaussian: Make, what: str) -> None:
    for options in ({"lr": 0.0}, {"optimizer": "sgd", "lr": 0.0, "keep": "last"}):
        made = AdjointDpm(gradients=Checkpoint(), what=what, num_updates=3, **options)(gaussian(mixed=True))
        torch.testing.assert_close(made, unguided(gaussian(mixed=True)), rtol=0, atol=1e-12)


# Closed forms on one Gaussian


@pytest.mark.parametrize("what", WHATS)
def test_gradient_steps_move_the_picture_by_the_chain_s_slopes(gaussian: Make, what: str) -> None:
    """With a linear reward a . x_0, k steps of size lr move x_0 by k lr a times the sum of the squared slopes of what is moved."""
    a, lr = torch.tensor([0.3, -0.7], dtype=torch.float64), 0.05
    method = AdjointDpm(gradients=Backprop(), what=what, num_updates=4, lr=lr, optimizer="sgd", weight_decay=0.0)
    problem = gaussian(reward=lambda rows: rows.flatten(1) @ a)
    every = slopes(problem)
    squares = {"noise": every[0] ** 2, "trajectory": sum(s**2 for s in every[:-1]), "embedding": by_shift(problem) ** 2}[what]
    moved = method(problem) - unguided(gaussian())
    torch.testing.assert_close(moved.flatten(1), (4 * lr * squares * a).expand(3, 2), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("engine", ["adjoint", "checkpoint"])
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_optimum_is_reached(gaussian: Make, engine: str, what: str, optimizer: str) -> None:
    """x_0 at the target; x_T and the embedding are then what the inverse of the chain says, as the chain is one to one."""
    problem = gaussian()
    lr = {"noise": 0.4, "trajectory": 0.2, "embedding": 0.4}[what] if optimizer == "sgd" else 0.2
    updates = 200 if optimizer == "adam" or what == "noise" else 40
    method = AdjointDpm(gradients=ENGINES[engine], what=what, num_updates=updates, lr=lr, optimizer=optimizer, weight_decay=0.0)
    made = method(problem)
    torch.testing.assert_close(made, TARGET.expand_as(made), rtol=0, atol=1e-3)
    assert (unguided(gaussian()) - TARGET).abs().max() > 0.3


def test_weight_decay_draws_the_noise_towards_zero(gaussian: Make) -> None:
    """AdamW without a gradient multiplies x_T by 1 - lr decay, k times."""
    method = AdjointDpm(gradients=Checkpoint(), num_updates=5, lr=0.5, weight_decay=0.2, keep="last")
    made, problem = method(gaussian(reward=lambda rows: 0 * rows[:, 0, 0, 0])), gaussian()
    x = gaussian().start()[:, 0]
    expected = unguided(problem) + slopes(problem)[0] * (0.9**5 - 1) * x
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)


# The ball


def watched(method: AdjointDpm, problem: Problem) -> tuple[Tensor, list[list[Tensor]]]:
    """What it makes, and what is optimised whenever a picture is drawn from it."""
    seen, drawn = [], AdjointDpm._drawn

    def watch(self: AdjointDpm, problem: Problem, x_t: Tensor, free: Sequence[Tensor]) -> Tensor:
        seen.append([value.detach().clone() for value in free])
        return drawn(self, problem, x_t, free)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdjointDpm, "_drawn", watch)
        return method(problem), seen


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_no_update_leaves_the_ball_and_its_edge_is_reached(gaussian: Make, what: str, optimizer: str) -> None:
    """Around where everything began, element by element; one step would lead far out of it."""
    epsilon, a = 0.07, torch.tensor([0.3, -0.7], dtype=torch.float64)
    method = AdjointDpm(gradients=Checkpoint(), what=what, num_updates=4, lr=3.0, optimizer=optimizer, epsilon=epsilon)
    _, seen = watched(method, gaussian(reward=lambda rows: rows.flatten(1) @ a))
    assert len(seen) == 5
    for values in seen[1:]:
        for value, start in zip(values, seen[0], strict=True):
            assert (value - start).abs().max() <= epsilon + 1e-12
            assert ((value - start).abs() > epsilon - 1e-12).all()
    start = gaussian().start()
    torch.testing.assert_close(seen[0][0], gaussian().denoise.conditioning if what == "embedding" else start)
    assert all((moves == 0).all() for moves in seen[0][1:])


def test_inside_the_ball_it_is_not_noticed(gaussian: Make) -> None:
    options = {"gradients": Checkpoint(), "num_updates": 3, "lr": 0.05}
    free, within = (AdjointDpm(**options, epsilon=epsilon)(gaussian(mixed=True, reward=rated)) for epsilon in (None, 10.0))
    assert torch.equal(free, within)


@pytest.mark.parametrize("engine", ["adjoint", "checkpoint"])
@pytest.mark.parametrize("what", WHATS)
def test_the_optimum_in_the_ball_is_reached(gaussian: Make, engine: str, what: str) -> None:
    """Of a linear reward a . x_0 on one Gaussian: everything an epsilon along the sign of its gradient, x_T + epsilon sign(a)."""
    epsilon, a = 0.2, torch.tensor([0.3, -0.7], dtype=torch.float64)
    method = AdjointDpm(gradients=ENGINES[engine], what=what, num_updates=30, lr=0.05, weight_decay=0.0, epsilon=epsilon)
    problem = gaussian(reward=lambda rows: rows.flatten(1) @ a)
    every = slopes(problem)
    assert min(every) > 0
    length = {"noise": every[0], "trajectory": sum(every[:-1]), "embedding": abs(by_shift(problem))}[what]
    moved = method(problem) - unguided(gaussian())
    torch.testing.assert_close(moved.flatten(1), (epsilon * length * a.sign()).expand(3, 2), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("what", WHATS)
def test_in_a_ball_of_no_radius_it_is_the_unguided_chain(gaussian: Make, what: str) -> None:
    method = AdjointDpm(gradients=Checkpoint(), what=what, num_updates=2, lr=1.0, epsilon=0.0, keep="last")
    torch.testing.assert_close(method(gaussian(mixed=True)), unguided(gaussian(mixed=True)), rtol=0, atol=1e-12)


# Crops


def test_crops_are_squares_of_all_sizes_large_ones_favoured() -> None:
    options = {"count": 16, "power": 0.3, "smallest": 0.25, "reduction": "best"}
    noise = Noise([f"{i}" for i in range(50)], dtype=torch.float64)
    crops, again = draw_crops(noise, 2, **options), draw_crops(noise, 2, **options)
    assert crops.boxes.shape == (50, 2, 16, 3) and (crops.smallest, crops.reduction) == (0.25, "best")
    side, place = crops.boxes[..., 0], crops.boxes[..., 1:]
    assert 0.25 <= side.min() < 0.4 and 0.99 < side.max() <= 1
    assert side.mean().item() == pytest.approx(0.25 + 0.75 / 1.3, abs=0.01)  # of U^p: 1 / (1 + p)
    assert place.mean((0, 1, 2)).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert not (crops.boxes == again.boxes).any()
    assert torch.equal(draw_crops(Noise(["7"], dtype=torch.float64), 2, **options).boxes[0], crops.boxes[7])
    assert draw_crops(noise, 2, **{**options, "count": 0}) is None


def test_crops_that_are_the_whole_picture_change_nothing(gaussian: Make) -> None:
    options = {"gradients": Checkpoint(), "num_updates": 3, "lr": 0.1}
    whole = AdjointDpm(**options)(gaussian(mixed=True, reward=rated))
    for reduction in ("mean", "best"):
        crops = AdjointDpm(**options, num_crops=3, smallest_crop=1.0, crop_reduction=reduction)
        torch.testing.assert_close(crops(gaussian(mixed=True, reward=rated)), whole, rtol=0, atol=1e-12)


def pictured(problem: Problem) -> Problem:
    """Its latents as pictures of 8 px, each channel a ramp, so that a crop tells where it is."""
    ramp = torch.linspace(0, 1, 64, dtype=torch.float64).view(1, 1, 8, 8)
    return dataclasses.replace(problem, decode=lambda x: x * ramp)


def spread(rows: Tensor) -> Tensor:
    return -(rows - 0.3).square().sum((1, 2, 3))


def test_the_reward_sees_crops_and_the_best_whole_picture_is_kept(gaussian: Make) -> None:
    """Of all pictures on the way, ranked by the whole picture's reward, in steps that are far too long."""
    method = AdjointDpm(gradients=Checkpoint(), num_updates=5, lr=1.0, num_crops=4)
    seen, drawn = [], AdjointDpm._drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdjointDpm, "_drawn", lambda *inputs: (seen.append(drawn(*inputs)), seen[-1])[1])
        made = method(pictured(gaussian(reward=spread)))
    problem = pictured(gaussian(reward=spread))
    rewards = torch.cat([problem.score(x_0.detach()) for x_0 in seen], 1)
    torch.testing.assert_close(problem.score(made[:, None]), rewards.amax(1, keepdim=True), rtol=0, atol=1e-12)
    plain = dataclasses.replace(method, num_crops=0)(pictured(gaussian(reward=spread)))
    assert not torch.equal(made, plain)


# Against a hand-written loop


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("keep", ["best", "last"])
def test_it_equals_a_plain_loop(gaussian: Make, what: str, keep: str) -> None:
    """AdamW written out, every sample alone, one autograd graph; states of the trajectory as free variables of their own."""
    lr, decay, updates = 0.3, 0.1, 5
    method = AdjointDpm(gradients=Checkpoint(), what=what, num_updates=updates, lr=lr, weight_decay=decay, keep=keep)
    made, problem = method(gaussian(mixed=True, reward=rated)), gaussian(mixed=True, reward=rated)
    x_T, model = problem.start(), problem.denoise.denoiser.cond  # noqa: N806
    for b in range(3):
        shift = problem.denoise.conditioning[b]
        free = {"noise": [x_T[b]], "trajectory": [x_T[b]] + [torch.zeros(1, *SHAPE, dtype=torch.float64)] * (STEPS - 1)}.get(
            what, [shift]
        )
        first, second, pictures = [0.0] * len(free), [0.0] * len(free), []
        for k in range(updates + 1):
            leaves = [value.clone().requires_grad_() for value in free]
            x = x_T[b] if what == "embedding" else leaves[0]
            m = leaves[0] if what == "embedding" else shift
            for i, (t, s) in enumerate(zip(problem.grid, problem.grid[1:], strict=False)):
                eps = model((x - t.alpha * m)[None], t).eps[0]
                x = s.alpha * (x - t.sigma * eps) / t.alpha + s.sigma * eps
                if what == "trajectory" and i < STEPS - 1:
                    x = x + leaves[i + 1]
            value = rated(x)[0]
            pictures.append((float(value.detach()), x.detach()[0]))
            for j, g in enumerate(torch.autograd.grad(-value, leaves)):
                first[j], second[j] = 0.9 * first[j] + 0.1 * g, 0.999 * second[j] + 0.001 * g**2
                step = first[j] / (1 - 0.9 ** (k + 1)) / ((second[j] / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
                free[j] = free[j] * (1 - lr * decay) - lr * step
        expected = max(pictures, key=lambda p: p[0])[1] if keep == "best" else pictures[-1][1]
        torch.testing.assert_close(made[b], expected, rtol=0, atol=1e-9)


def test_the_continuous_adjoint_s_updates_come_close_to_the_exact_ones(gaussian: Make) -> None:
    """At 200 steps of the chain."""
    scheduler = Ddim(num_steps=200)
    options = {"num_updates": 3, "lr": 0.1, "optimizer": "sgd", "weight_decay": 0.0, "keep": "last"}
    for what in WHATS:
        adjoint, exact = (
            AdjointDpm(gradients=engine, what=what, **options)(gaussian(mixed=True, scheduler=scheduler))
            for engine in (Adjoint(), Backprop())
        )
        moved = exact - unguided(gaussian(mixed=True, scheduler=scheduler))
        assert (adjoint - exact).norm() < 0.1 * moved.norm(), what


# What is kept


def test_the_best_picture_is_kept_and_the_last_one_is_a_candidate(gaussian: Make) -> None:
    """Steps that are far too long; and short ones, each better than the one before."""
    for lr, last_is_best in ((2.0, False), (0.05, True)):
        seen, options = [], {"gradients": Checkpoint(), "lr": lr, "num_updates": 6}
        best = AdjointDpm(**options)(gaussian(), lambda event, _, values, to=seen: to.append(values) if event == "update" else None)
        last = AdjointDpm(**options, keep="last")(gaussian())
        values = torch.stack([*(value["rewards"] for value in seen), closeness(last)], 1)
        torch.testing.assert_close(closeness(best), values.max(1).values, rtol=0, atol=1e-12)
        assert (best == last).all() == last_is_best
        assert seen[0]["gradient"].shape == (3,) and (seen[0]["gradient"] > 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("engine", ["adjoint", "checkpoint"])
def test_a_sample_without_gradients_stays_and_the_others_do_not_notice(gaussian: Make, bad: float, what: str, engine: str) -> None:
    method = AdjointDpm(gradients=ENGINES[engine], what=what, num_updates=3, weight_decay=0.0)

    def reward(rows: Tensor) -> Tensor:
        return rated(rows) * torch.tensor([1.0, bad, 1.0], dtype=torch.float64)

    made = method(gaussian(mixed=True, reward=reward))
    torch.testing.assert_close(made[1], unguided(gaussian(mixed=True))[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(made[[0, 2]], method(gaussian(mixed=True, reward=rated))[[0, 2]], rtol=0, atol=1e-12)


# Independence


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_of_three_is_three_batches_of_one(gaussian: Make, engine: str, what: str, optimizer: str) -> None:
    method = AdjointDpm(gradients=ENGINES[engine], what=what, num_updates=2, lr=0.1, optimizer=optimizer)
    together = method(gaussian(mixed=True, reward=rated))
    for b in range(3):
        alone = method(gaussian(mixed=True, reward=rated).subset([b]))
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-10)


@pytest.mark.parametrize("what", WHATS)
def test_so_it_is_in_a_ball_and_with_crops(gaussian: Make, what: str) -> None:
    method = AdjointDpm(gradients=Checkpoint(), what=what, num_updates=3, lr=0.1, epsilon=0.15, num_crops=2)
    together = method(pictured(gaussian(mixed=True, reward=spread)))
    for b in range(3):
        alone = method(pictured(gaussian(mixed=True, reward=spread)).subset([b]))
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-10)


# Costs


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize(("engine", "again"), [("adjoint", True), ("checkpoint", True), ("backprop", False)])
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("scheduler", [Ddim(num_steps=STEPS), Ddim(num_steps=STEPS + 1, offset=0, spacing="linspace")])
def test_it_costs_what_it_says(gaussian: Make, what: str, engine: str, again: bool, keep: str, scheduler: Ddim) -> None:
    """8 steps that go somewhere, on both grids; guidance pairs count two rows."""
    problem, m = gaussian(2, scheduler=scheduler), 3
    decoded = []
    problem = dataclasses.replace(problem, decode=lambda x: (decoded.append(len(x)), x)[1])
    AdjointDpm(gradients=ENGINES[engine], what=what, num_updates=m, keep=keep)(problem)
    forward = 2 * STEPS * (2 * m + 1 if again else m + 1)
    assert problem.denoise.counts == {"rows": 2 * forward, "backward": 2 * 2 * STEPS * m}
    assert sum(decoded) == problem.reward.calls == 2 * (m if keep == "last" else m + 1)


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("reparameterise", [True, False])
@pytest.mark.parametrize(
    ("solver", "forward", "back"),
    [
        ("euler", STEPS, STEPS), ("midpoint", 2 * STEPS, 2 * STEPS), ("rk4", 4 * STEPS, 4 * STEPS),
        ("explicit_adams", STEPS + 6, 4 * STEPS),
    ],
)  # fmt: skip
def test_other_solvers_cost_what_their_engine_says(
    gaussian: Make, what: str, reparameterise: bool, solver: str, forward: int, back: int
) -> None:
    """Whatever is optimised: a trajectory's moves change no solver."""
    problem, m = gaussian(2), 2
    AdjointDpm(gradients=Adjoint(solver=solver), what=what, reparameterise=reparameterise, num_updates=m)(problem)
    rows = 2 * 2 * ((m + 1) * forward + m * back)
    assert problem.denoise.counts == {"rows": rows, "backward": 2 * 2 * m * back}


@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4", "explicit_adams"])
def test_before_an_update_a_trajectory_is_that_of_its_noise(gaussian: Make, solver: str) -> None:
    """The moves are zero: the same solver draws the same picture."""
    made = [
        AdjointDpm(gradients=Adjoint(solver=solver), what=what, num_updates=1, lr=0.0, keep="last")(
            gaussian(mixed=True, reward=rated)
        )
        for what in ("noise", "trajectory")
    ]
    torch.testing.assert_close(*made, rtol=0, atol=1e-10)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_crops_cost_what_they_say(gaussian: Make, keep: str) -> None:
    problem, m, crops = gaussian(2), 3, 5
    decoded = []
    problem = dataclasses.replace(problem, decode=lambda x: (decoded.append(len(x)), x)[1])
    AdjointDpm(gradients=Checkpoint(), num_updates=m, num_crops=crops, smallest_crop=1.0, keep=keep, epsilon=0.1)(problem)
    assert problem.denoise.counts == {"rows": 2 * 2 * STEPS * (2 * m + 1), "backward": 2 * 2 * STEPS * m}
    assert sum(decoded) == 2 * (m if keep == "last" else 2 * m + 1)
    assert problem.reward.calls == 2 * (crops * m if keep == "last" else crops * m + m + 1)


def test_the_observer_is_called_for_every_walk_through_the_chain(gaussian: Make) -> None:
    events, method = [], AdjointDpm(gradients=Checkpoint(), num_updates=3)
    method(gaussian(), lambda event, *_: events.append(event))
    assert events.count("step") == method.needs.chains * STEPS
    assert events.count("update") == 3


# Options


def test_wrong_options_are_named() -> None:
    for name in ("num_updates", "lr", "weight_decay", "epsilon", "num_crops", "crop_power", "smallest_crop"):
        with pytest.raises(BadValue, match=f"^{name}=-1"):
            AdjointDpm(gradients=Adjoint(), **{name: -1})
    with pytest.raises(UsageError, match="method/gradients=reversible.*adjoint_dpm"):
        AdjointDpm(gradients=Reversible())


def test_the_leaves_build_what_they_say() -> None:
    for engine, kind in (("adjoint", Adjoint), ("checkpoint", Checkpoint), ("backprop", Backprop)):
        node = OmegaConf.load(config.CONF / "method" / "adjoint_dpm.yaml")
        del node["defaults"]
        node.gradients = OmegaConf.load(config.CONF / "method" / "gradients" / f"{engine}.yaml")
        method = config.build(node, "method")
        assert method == AdjointDpm(gradients=kind())
        assert method.needs.sampler == "deterministic"
