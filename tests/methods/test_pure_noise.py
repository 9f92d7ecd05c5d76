"""Every method on a process that begins at pure noise, as that of a rectified flow or of a schedule with zero terminal SNR."""

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from nonlinear import nonlinear

from guidedgen.gradients.adjoint import Adjoint
from guidedgen.gradients.backprop import Backprop
from guidedgen.gradients.checkpoint import Checkpoint
from guidedgen.gradients.reversible import Reversible
from guidedgen.methods import Method
from guidedgen.methods.adjoint_dpm import AdjointDpm
from guidedgen.methods.base import Base
from guidedgen.methods.best_of_n import BestOfN
from guidedgen.methods.classifier_guidance import ClassifierGuidance
from guidedgen.methods.code import Code
from guidedgen.methods.codex import Codex
from guidedgen.methods.doodl import Doodl
from guidedgen.methods.freedom import FreeDom
from guidedgen.methods.mpgd import Mpgd
from guidedgen.methods.problem import Problem
from guidedgen.methods.universal import Universal
from guidedgen.process import Scheduler
from guidedgen.process.grid import FlowSchedule, NoiseSchedule, Schedule
from guidedgen.process.schedulers import Ddim, Ddpm, DpmSolver, Flow

Make = Callable[..., Problem]

SCHEDULE = NoiseSchedule.from_betas(0.00085, 0.012, 1000, "scaled_linear", zero_terminal_snr=True)
DETERMINISTIC = Ddim(num_steps=12, spacing="trailing", offset=0, end="clean")
STOCHASTIC = Ddpm(num_steps=12)
WHOLE = {"num_updates": 5, "num_crops": 0, "clip": None, "perturbation": 0.0, "lr": 0.05}
# Each with a scheduler, and the options that make it the unguided chain.
CASES: dict[str, tuple[Method, Scheduler, dict[str, object]]] = {
    "best_of_n": (BestOfN(num_particles=4), STOCHASTIC, {"num_particles": 1}),
    "code": (Code(num_particles=3, block_size=3), STOCHASTIC, {"num_particles": 1}),
    "codex": (Codex(num_particles=2, block_size=3, gradient_block_size=2, strength=0.1), STOCHASTIC, {"num_particles": 1, "strength": 0.0}),
    "codex, decoder": (Codex(num_particles=1, gradient_block_size=1, strength=0.1, through="decoder"), STOCHASTIC, {"strength": 0.0}),
    "codex, zero order": (Codex(num_particles=1, gradient_block_size=1, strength=0.1, zero_order_samples=20, zero_order_sigma=0.1), STOCHASTIC, {"strength": 0.0}),
    "classifier_guidance": (ClassifierGuidance(strength=0.5), STOCHASTIC, {"strength": 0.0}),
    "mpgd": (Mpgd(strength=0.1, window=(1, 0), num_repeats=2, repeat_window=(1, 0.5)), STOCHASTIC, {"strength": 0.0, "num_repeats": 1}),
    "mpgd, eps": (Mpgd(strength=0.1, window=(1, 0), keep_eps=False, rescale=False), DETERMINISTIC, {"strength": 0.0}),
    "freedom": (FreeDom(strength=0.1, window=(1, 0), num_repeats=2, repeat_window=(1, 0.5)), DETERMINISTIC, {"strength": 0.0, "num_repeats": 1}),
    "universal": (Universal(strength=0.5, num_repeats=2, backward_steps=2, backward_lr=0.1, window=(1, 0)), DETERMINISTIC, {"strength": 0.0, "num_repeats": 1, "backward_steps": 0}),
    "doodl, ddim": (Doodl(gradients=Checkpoint(), process="ddim", **WHOLE), DETERMINISTIC, {"num_updates": 0}),
    "doodl, adjoint": (Doodl(gradients=Adjoint(), process="ddim", **WHOLE), DETERMINISTIC, {"num_updates": 0}),
    "doodl, edict": (Doodl(gradients=Reversible(), process="edict", **WHOLE), DETERMINISTIC, {}),
    "adjoint_dpm": (AdjointDpm(gradients=Adjoint(solver="rk4"), num_updates=5, lr=0.05), DETERMINISTIC, {"num_updates": 0, "gradients": Adjoint()}),
    "adjoint_dpm, trajectory": (AdjointDpm(gradients=Backprop(), what="trajectory", num_updates=5, lr=0.02), DETERMINISTIC, {"num_updates": 0}),
}  # fmt: skip


def problem(make_problem: Make, scheduler: Scheduler, process: str) -> Problem:
    schedule: Schedule = SCHEDULE
    if process == "flow":
        schedule, scheduler = FlowSchedule(shift=2.0), Flow(num_steps=12, eta=float(scheduler.stochastic))
    grid = scheduler.grid(schedule)
    assert grid[0].alpha == 0
    return dataclasses.replace(nonlinear(make_problem, 3), scheduler=scheduler, grid=grid, schedule=schedule, num_steps=12)


processes = pytest.mark.parametrize("process", ["zero SNR", "flow"])


@processes
@pytest.mark.parametrize("name", CASES)
def test_it_guides(make_problem: Make, name: str, process: str) -> None:
    method, scheduler, _ = CASES[name]
    with torch.no_grad():
        made, plain = method(problem(make_problem, scheduler, process)), Base()(problem(make_problem, scheduler, process))
    posed = problem(make_problem, scheduler, process)
    assert made.isfinite().all()
    gained = posed.score(made[:, None]) - posed.score(plain[:, None])
    assert gained.mean() > 0.02, gained


@processes
@pytest.mark.parametrize("name", [name for name, (_, _, null) in CASES.items() if null])
def test_its_null_setting_is_the_unguided_chain(make_problem: Make, name: str, process: str) -> None:
    method, scheduler, null = CASES[name]
    with torch.no_grad():
        made = dataclasses.replace(method, **null)(problem(make_problem, scheduler, process))
        torch.testing.assert_close(made, Base()(problem(make_problem, scheduler, process)), rtol=0, atol=1e-12)


MULTISTEP = {
    "best_of_n": BestOfN(num_particles=1), "classifier_guidance": ClassifierGuidance(strength=0.0),
    "mpgd": Mpgd(strength=0.0, num_repeats=1), "freedom": FreeDom(strength=0.0, num_repeats=1),
    "universal": Universal(strength=0.0, num_repeats=1, backward_steps=0),
}  # fmt: skip


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_multistep_solver_is_given_its_past(make_problem: Make, name: str) -> None:
    """DPM-Solver++ needs the prediction before the last one; without it, it would be DDIM on the same grid."""
    solver = DpmSolver(num_steps=10)
    with torch.no_grad():
        made = MULTISTEP[name](nonlinear(make_problem, 3, scheduler=solver))
        posed = nonlinear(make_problem, 3, scheduler=solver)
        x, past = posed.start(), None
        for t, s in pairwise(posed.grid):
            prediction = posed.denoise(x, t).after(past)
            x, past = solver.transition(x, prediction, t, s)[0], (prediction, t)
        plain = Base()(dataclasses.replace(nonlinear(make_problem, 3), scheduler=Ddim(), grid=posed.grid))
    torch.testing.assert_close(made, x[:, 0], rtol=0, atol=1e-13)
    assert (made - plain).abs().max() > 1e-2
    with pytest.raises(ValueError, match="needs what was predicted before"):
        posed.step(x, posed.denoise(x, posed.grid[1]), posed.grid[1], posed.grid[2])
    guided = {"freedom": FreeDom(strength=0.1, window=(1, 0)), "mpgd": Mpgd(strength=0.1, window=(1, 0))}.get(name)
    if guided is not None:
        with torch.no_grad():
            better = guided(nonlinear(make_problem, 3, scheduler=solver))
            assert (posed.score(better[:, None]) - posed.score(made[:, None])).mean() > 0.02
