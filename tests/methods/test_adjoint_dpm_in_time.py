"""AdjointDPM on the flow in time, against the reparameterised one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from guidedgen.gradients.adjoint import Adjoint
from guidedgen.gradients.backprop import Backprop
from guidedgen.gradients.checkpoint import Checkpoint
from guidedgen.methods.adjoint_dpm import AdjointDpm
from guidedgen.methods.problem import Problem
from guidedgen.process.chains import walk
from guidedgen.process.flow import TimeChain
from guidedgen.process.schedulers import Ddim

Make = Callable[..., Problem]


def closeness(rows: Tensor) -> Tensor:
    return -(rows - 0.3).square().sum((1, 2, 3))


def drawn(make_problem: Make, steps: int, end: str = "first", **options: object) -> Tensor:
    problem = make_problem(reward=closeness, scheduler=Ddim(num_steps=steps, spacing="linspace", end=end))
    return AdjointDpm(keep="last", **options)(problem)


def test_its_null_setting_is_its_solver_s_chain_in_time(make_problem: Make) -> None:
    x_0 = drawn(make_problem, 8, gradients=Adjoint(), num_updates=0, reparameterise=False)
    problem = make_problem(scheduler=Ddim(num_steps=8, spacing="linspace"))
    chain = TimeChain(denoise=problem.denoise, grid=problem.grid, schedule=problem.schedule)
    (expected,) = walk(chain, chain.start(problem.start()))
    torch.testing.assert_close(x_0, expected[:, 0], rtol=1e-12, atol=1e-12)
    ddim = drawn(make_problem, 8, gradients=Adjoint(), num_updates=0)
    assert (x_0 - ddim).norm() > 0.01 * ddim.norm()


@pytest.mark.parametrize("what", ["noise", "trajectory"])
def test_with_fine_steps_both_flows_are_optimised_alike(make_problem: Make, what: str) -> None:
    options = {
        "gradients": Adjoint(solver="rk4"),
        "what": what,
        "num_updates": 3,
        "optimizer": "sgd",
        "lr": 0.005,
        "weight_decay": 0.0,
    }
    plain, ours, other = (
        drawn(make_problem, 40, **{**options, **change})
        for change in ({"num_updates": 0}, {"reparameterise": False}, {"reparameterise": True})
    )
    assert (ours - other).norm() < 0.01 * (ours - plain).norm()
    assert (closeness(ours) > closeness(plain)).all()


def test_other_engines_differentiate_euler_s_steps_in_time(make_problem: Make) -> None:
    options = {"what": "trajectory", "num_updates": 3, "lr": 0.05, "reparameterise": False}
    checkpointed, kept = (drawn(make_problem, 12, gradients=engine, **options) for engine in (Checkpoint(), Backprop()))
    assert torch.equal(checkpointed, kept)
    plain = drawn(make_problem, 12, gradients=Checkpoint(), **{**options, "num_updates": 0})
    assert (closeness(kept) > closeness(plain)).all()


def test_it_says_that_it_may_not_end_clean() -> None:
    assert AdjointDpm(gradients=Adjoint(), reparameterise=False).needs.noisy_end
    assert not AdjointDpm(gradients=Adjoint()).needs.noisy_end
