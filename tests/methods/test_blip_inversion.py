"""Inversion of a referee against a plain loop of Algorithm 1, its null settings, its average by hand, and its stated costs."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from nonlinear import by_task, decode, nonlinear, rated
from torch import Tensor

from guidedgen.basics.augment import Augmentations, Copies
from guidedgen.basics.errors import BadValue
from guidedgen.basics.noise import Noise, stream
from guidedgen.methods.blip_inversion import BlipInversion, balanced, cosine
from guidedgen.methods.problem import Problem
from guidedgen.methods.views import RandomCopies
from guidedgen.process.formulas import add_noise
from guidedgen.process.grid import FlowSchedule

Make = Callable[..., Problem]
AS_IT_IS = Augmentations(count=0)
I = 12  # noqa: E741 - the paper's name


def inversion(**options) -> BlipInversion:
    quick = {
        "num_iterations": I,
        "distill_iterations": 3,
        "distill_weight": (0.8, 0.4),
        "distill_scale": 3.0,
        "ema_start": 4,
        "ema_restart": 3,
    }
    return BlipInversion(**{"augmentations": AS_IT_IS, **quick, **options})


class Adam:
    """Kingma and Ba 2015, Algorithm 1, of one tensor."""

    def __init__(self) -> None:
        self.m, self.v, self.t = 0.0, 0.0, 0

    def step(self, g: Tensor) -> Tensor:
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2
        return self.m / (1 - 0.9**self.t) / ((self.v / (1 - 0.999**self.t)) ** 0.5 + 1e-8)


def plain_inversion(problem: Problem, b: int, o: BlipInversion, task: float = 1.0) -> Tensor:
    """One sample by Algorithm 1 and appendix C."""
    names = ("", "/distillation", "/latent noise", "/gradient noise")
    start, eps_noise, z_noise, g_noise = (Noise([f"sample-{b}{name}"], dtype=torch.float64) for name in names)
    times = stream("score distillation", *([o.distill_seed] if o.distill_seed else [])).integers(
        int(1000 * o.distill_window[0]), int(1000 * o.distill_window[1]), size=o.num_iterations
    )
    shape, networks, adam = problem.latent_shape, problem.denoise.denoiser, Adam()
    z = start.draw(1, shape)
    ema = z
    for i in range(o.num_iterations):
        decay = 0.5 * (1 + math.cos(math.pi * i / o.num_iterations))
        lr = o.lr[1] + (o.lr[0] - o.lr[1]) * decay
        w2 = o.distill_weight[1] + (o.distill_weight[0] - o.distill_weight[1]) * decay
        g_s = torch.zeros_like(z)
        if o.mode != "referee_only":
            point, eps = problem.schedule.at(int(times[i])), eps_noise.draw(1, shape)
            z_t = point.alpha * z + point.sigma * eps
            u, c = networks.uncond(z_t, point).eps, networks.cond(z_t, point).eps
            g_s = w2 * 2 * (u + o.distill_scale * (c - u) - eps)  # of latents 1 x 1
        last = i >= o.num_iterations - o.distill_iterations
        refereed = o.mode == "referee_only" or (o.mode == "full" and o.weight and not last)
        for _ in range(o.referee_steps if refereed else 0):
            leaf = z.clone().requires_grad_()
            loss = -task * rated(decode(leaf[0])).sum()
            (g,) = torch.autograd.grad(loss, leaf)
            norm = g_s.norm() if o.mode == "full" else w2 * 2 * math.sqrt(z.numel())
            g_r = o.weight * norm * g / g.norm()
            if o.noise_twice:
                g_r = g_r + o.noise * g_noise.draw(1, shape)
            step = adam.step(g_r) if o.optimizer == "adam" else g_r
            if i < o.warmup:
                step = step * o.lr[0] * (i + 1) / o.warmup
            else:
                late = 0.5 * (1 + math.cos(math.pi * (i - o.warmup) / (o.num_iterations - o.warmup)))
                step = step * (o.lr[1] + (o.lr[0] - o.lr[1]) * late)
            z = z - step
        z = z - (lr if o.distill_lr == "scheduled" else o.lr[0]) * g_s
        z = z + (o.last_noise if last else o.noise) * z_noise.draw(1, shape)
        ema = z if i == 0 and o.ema_initial == "first" else o.ema_decay * ema + (1 - o.ema_decay) * z
        done = i + 1
        if (
            o.ema_start is not None
            and done <= o.num_iterations - o.distill_iterations
            and done in range(o.ema_start, 1000, o.ema_restart)
        ):
            z = ema
    return z[0, 0]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"optimizer": "adam"}, {"mode": "referee_only"}, {"mode": "distill_only"}, {"ema_start": None},
        {"distill_lr": "constant", "lr": (0.7, 0.2)},
        {"warmup": 4}, {"weight": 0.5, "lr": (0.7, 0.2), "noise": 0.05}, {"distill_iterations": 0}, {"distill_scale": 1.0},
        {"distill_window": (0.3, 0.6)}, {"ema_initial": "first"}, {"referee_steps": 2}, {"noise_twice": True}, {"distill_seed": 7},
        {"referee_steps": 3, "noise_twice": True, "optimizer": "adam"},
    ],
    ids=str,
)  # fmt: skip
def test_it_equals_a_plain_loop_of_the_algorithm(make_problem: Make, options: dict) -> None:
    method = inversion(**options)
    made = method(nonlinear(make_problem))
    plain = torch.stack([plain_inversion(nonlinear(make_problem), b, method) for b in range(2)])
    torch.testing.assert_close(made, plain, rtol=0, atol=1e-9)


def test_the_options_of_the_plain_loop_make_a_difference(make_problem: Make) -> None:
    base = inversion()(nonlinear(make_problem))
    for options in (
        {"optimizer": "adam"},
        {"mode": "referee_only"},
        {"mode": "distill_only"},
        {"ema_start": None},
        {"warmup": 4},
        {"ema_initial": "first"},
        {"referee_steps": 2},
        {"noise_twice": True},
        {"distill_seed": 1},
    ):
        assert (inversion(**options)(nonlinear(make_problem)) - base).abs().max() > 1e-3, options


def test_without_iterations_it_is_the_noise(make_problem: Make) -> None:
    made = inversion(num_iterations=0, distill_iterations=0)(nonlinear(make_problem))
    assert torch.equal(made, Noise(["sample-0", "sample-1"], dtype=torch.float64).draw(1, (2, 1, 1))[:, 0])


def test_a_flow_is_distilled_by_its_velocity(make_problem: Make) -> None:
    """eps' - eps of a flow's x = (1 - u) x_0 + u eps is (1 - u) times the velocity's residual, which is what its network predicts."""
    problem = make_problem(2, guidance_scale=3.0)
    flow = dataclasses.replace(problem, schedule=FlowSchedule())
    method, z = (
        BlipInversion(augmentations=Augmentations(count=0), weight=0.0),
        torch.randn(2, 1, *problem.latent_shape, dtype=torch.float64),
    )
    for t in (100, 500, 900):
        point = flow.schedule.at(t)
        found = method._distillation(flow, z, t, flow.noise.fork(f"{t}"))
        eps = flow.noise.fork(f"{t}").draw(1, flow.latent_shape)
        residual = flow.denoise(add_noise(z, eps, point), point, method.distill_scale).eps - eps
        expected = 2 * residual / (1 - t / 1000) / (z.shape[-1] * z.shape[-2])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_without_weight_it_is_distillation_alone(make_problem: Make) -> None:
    none = nonlinear(make_problem)
    assert torch.equal(inversion(weight=0.0)(none), inversion(mode="distill_only")(nonlinear(make_problem)))
    assert none.reward.calls == 0 and not inversion(weight=0.0).needs.reward


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_batch_is_batches_of_one(make_problem: Make, optimizer: str) -> None:
    method = inversion(optimizer=optimizer)
    together = method(by_task(nonlinear(make_problem, 3), (1.0, -2.0, 3.0)))
    for b, factor in enumerate((1.0, -2.0, 3.0)):
        torch.testing.assert_close(together[b], plain_inversion(nonlinear(make_problem), b, method, factor), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("optimizer", "same"), [("sgd", False), ("adam", True)])
def test_adam_does_not_know_the_balance(make_problem: Make, optimizer: str, same: bool) -> None:
    """Why the default is not the paper's optimiser: with the distillation out of the way, w1 is lost in Adam's own scaling."""
    quiet = {"mode": "referee_only", "noise": 0.0, "ema_start": None, "distill_iterations": 0, "distill_weight": (0.1, 0.1)}
    made = [inversion(optimizer=optimizer, weight=weight, **quiet)(nonlinear(make_problem)) for weight in (1.0, 3.0)]
    assert ((made[0] - made[1]).abs().max() < 1e-5) == same


def test_the_average_by_hand(make_problem: Make) -> None:
    """Only noise moves z: z = 0.5 (n1 + ...) until it is set to its average after the second and the third iteration."""
    still = {"mode": "distill_only", "distill_weight": (0.0, 0.0), "noise": 1.0, "ema_decay": 0.5, "ema_start": 2, "ema_restart": 1}
    made = inversion(num_iterations=4, distill_iterations=1, last_noise=1.0, **still)(nonlinear(make_problem, 1))
    z = Noise(["sample-0"], dtype=torch.float64).draw(1, (2, 1, 1))[0]
    added = Noise(["sample-0/latent noise"], dtype=torch.float64)
    n = [added.draw(1, (2, 1, 1))[0] for _ in range(4)]
    z1 = z + n[0]
    average = (z + z1) / 2
    average = (average + z1 + n[1]) / 2
    average = (average + average + n[2]) / 2  # z was the average
    torch.testing.assert_close(made[0], (average + n[3])[0], rtol=0, atol=1e-12)  # the last one is not set back


@pytest.mark.parametrize(("iterations", "last"), [(160, 10), (16, 1), (3, 0), (0, 0)])
def test_the_last_iterations_follow_the_number_of_all(iterations: int, last: int) -> None:
    """So that one of the two can be changed alone."""
    method = BlipInversion(augmentations=AS_IT_IS, num_iterations=iterations)
    assert method._refereed == iterations - last
    assert BlipInversion(augmentations=AS_IT_IS, num_iterations=iterations, distill_iterations=iterations)._refereed == 0


def test_gradients_are_balanced_sample_by_sample() -> None:
    gradient = torch.randn(4, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient[2], gradient[3, 0, 0, 0, 0] = 0, torch.nan
    size = torch.tensor([1e-3, 5.0, 1.0, 1.0], dtype=torch.float64).view(4, 1, 1, 1, 1)
    found = balanced(gradient, size)
    assert found.flatten(1).norm(dim=1).tolist() == pytest.approx([1e-3, 5, 0, 0], rel=1e-12)
    directions = torch.nn.functional.cosine_similarity(found[:2].flatten(1), gradient[:2].flatten(1))
    torch.testing.assert_close(directions, torch.ones(2, dtype=torch.float64))


def test_the_cosine_runs_from_one_end_to_the_other() -> None:
    assert [cosine((8.0, 4.0), i, 160) for i in (0, 80, 160)] == pytest.approx([8, 6, 4])


@pytest.mark.parametrize(
    ("options", "rows", "refereed"),
    [
        ({}, 2 * I, I - 3), ({"mode": "referee_only"}, 0, I), ({"mode": "distill_only"}, 2 * I, 0), ({"distill_scale": 1.0}, I, I - 3),
        ({"distill_iterations": I}, 2 * I, 0), ({"referee_steps": 3}, 2 * I, 3 * (I - 3)),
    ],
    ids=str,
)  # fmt: skip
def test_costs_are_those_of_the_docstring(make_problem: Make, options: dict, rows: int, refereed: int) -> None:
    problem, decoded = nonlinear(make_problem, 2), []
    problem = dataclasses.replace(problem, decode=lambda x: decoded.append(len(x)) or decode(x))
    steps = []
    inversion(**options)(problem, lambda event, step, _values: steps.append(step) if event == "step" else None)
    assert (problem.denoise.rows, problem.denoise.backward) == (2 * rows, 0)
    assert (sum(decoded), problem.reward.calls) == (2 * refereed, 2 * refereed)
    assert steps == list(range(I)) and inversion(**options).needs.steps == I


class Shifted(Augmentations):
    """Copies of pictures 2 x 1 x 1: each adds its own number."""

    def draw(self, noise: Noise, height: int, width: int) -> Copies:
        assert height == width == 1
        return self  # type: ignore[return-value]

    def __call__(self, pictures: Tensor, samples: Tensor, copies: Tensor) -> Tensor:
        return pictures + 0.1 * (samples + 10 * copies).to(pictures)[:, None, None, None]


class Darker(Shifted):
    """The same within [0, 1]."""

    def __call__(self, pictures: Tensor, samples: Tensor, copies: Tensor) -> Tensor:
        return super().__call__(0.5 * pictures, samples / 10, copies / 10)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_copies_are_scored_in_chunks_and_decoded_once(make_problem: Make, size: int) -> None:
    problem, decoded = by_task(nonlinear(make_problem, 3, batch_size=size), (1.0, -2.0, 3.0)), []
    inner, shown = problem.reward, []
    problem = dataclasses.replace(
        problem,
        decode=lambda x: decoded.append(len(x)) or decode(x),
        reward=lambda x, tasks: shown.append(len(x)) or inner(x, tasks),
    )
    z = problem.noise.draw(1, problem.latent_shape)
    rewards, gradient = problem.score_and_gradient(z, RandomCopies(Shifted(count=4), problem.noise))
    leaf = z.clone().requires_grad_()
    pictures = decode(leaf[:, 0])
    expected = torch.stack(
        [
            factor * torch.stack([rated(pictures[b : b + 1] + 0.1 * (b + 10 * k)) for k in range(4)]).mean()
            for b, factor in enumerate((1.0, -2.0, 3.0))
        ]
    )
    torch.testing.assert_close(rewards[:, 0], expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), leaf)[0], rtol=0, atol=1e-12)
    assert sum(decoded) == 3 and max(decoded) <= max(1, size // 4)  # no more than whose copies are shown at once
    assert sum(shown) == 12 and max(shown) <= size


def test_the_best_is_the_one_that_the_referee_gave_most(make_problem: Make) -> None:
    method, seen = inversion(keep="best", noise=0.5), []
    problem = nonlinear(make_problem, 2)
    made = method(problem, lambda event, _step, values: seen.append(values["rewards"]) if event == "update" else None)
    best = torch.stack(seen).amax(0)
    torch.testing.assert_close(rated(decode(made)), best, rtol=0, atol=1e-12)
    assert (rated(decode(inversion(noise=0.5)(nonlinear(make_problem, 2)))) < best).any()


def test_the_picture_that_is_not_chosen_is_kept_as_an_extra_image(make_problem: Make) -> None:
    def both(**options) -> tuple[Tensor, dict[str, Tensor]]:
        extra: dict[str, Tensor] = {}
        method = inversion(noise=0.5, **options)
        chosen = method(
            nonlinear(make_problem, 2), lambda event, _step, values: extra.update(values) if event == "extra_images" else None
        )
        return chosen, extra

    last, of_last = both()
    best, of_best = both(keep="best")
    assert not torch.equal(last, best)
    assert of_last.keys() == {"best"} and torch.equal(of_last["best"], best)
    assert of_best.keys() == {"last"} and torch.equal(of_best["last"], last)
    assert both(mode="distill_only")[1] == both(weight=0.0)[1] == both(num_iterations=0, distill_iterations=0)[1] == {}


def test_sheets_show_how_it_went_and_change_nothing(make_problem: Make) -> None:
    """Pictures of one pixel; in the last three of twelve iterations there is no referee."""
    sheets: dict[str, Tensor] = {}
    decoded: list[int] = []

    def picture(x: Tensor) -> Tensor:
        decoded.append(len(x))
        return decode(x).sigmoid()[:, [0, 1, 0]]

    def made(**options) -> Tensor:
        problem = nonlinear(make_problem, 2, reward=lambda rows: rated(rows[:, :2]))
        problem, method = dataclasses.replace(problem, decode=picture), inversion(augmentations=Darker(count=4), **options)
        return method(problem, lambda event, _step, values: sheets.update(values) if event == "sheets" else None)

    plain = made()
    before = len(decoded)
    assert not sheets
    shown = made(show=[1, 5, I])
    assert torch.equal(shown, plain)
    assert len(decoded) - before == before + 2 + 2 + 2
    assert {kind: tuple(sheet.shape) for kind, sheet in sheets.items()} == {
        "evolution": (2, 3, 1, 3), "copies": (2, 3, 2, 4), "gradients": (2, 3, 3, 3),
    }  # fmt: skip
    assert torch.equal(sheets["evolution"][..., -1:], picture(shown))
    for row in sheets["copies"].split(1, -2):
        rewards = torch.stack([rated(copy[:, :2]) for copy in row.split(1, -1)])
        assert (rewards.diff(dim=0) <= 0).all() and (rewards.diff(dim=0) < 0).any()
    _, referee, distillation = sheets["gradients"].unbind(-2)
    assert (referee[..., -1] == 0.5).all() and not (referee[..., :-1] == 0.5).any()
    assert not (distillation == 0.5).any()


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": -1}, {"show": [0]}, {"show": [I + 1]}, {"distill_prompt": "a {word}"}, {"distill_iterations": I + 1}, {"lr": (1.0,)}, {"distill_window": (0.9, 0.1)}, {"ema_decay": 1.5},
        {"ema_restart": 0}, {"ema_start": 0}, {"keep": "best", "mode": "distill_only"}, {"weight": 0.0, "mode": "referee_only"},
        {"weight": -1.0}, {"weight": math.nan}, {"noise": math.inf}, {"last_noise": -0.1}, {"distill_scale": math.nan},
        {"lr": (math.nan, 1.0)}, {"lr": (1.0, -1.0)}, {"distill_weight": (math.inf, 1.0)},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(BadValue, match=next(iter(options))):
        inversion(**options)
