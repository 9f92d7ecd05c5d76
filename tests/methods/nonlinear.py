"""Problems on which nothing is linear: a mixture, a decoder and a reward."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guidedgen.methods.problem import Problem

W = 2.0  # of classifier-free guidance


def decode(x: Tensor) -> Tensor:
    """A decoder: k 2 1 1 -> k 2 1 1."""
    return x.tanh() + 0.3 * x.flip(1)


def rated(rows: Tensor) -> Tensor:
    """A reward: k 2 1 1 -> k."""
    a, b = rows.flatten(1).unbind(1)
    return (2 * a).sin() + a * b


def nonlinear(make_problem: Callable[..., Problem], b: int = 2, **options) -> Problem:
    """A problem of `make_problem`. Its chain forgets little, so that what was done early shows at its end."""
    problem = make_problem(b, **{"reward": rated, "guidance_scale": W, **options})
    exact = problem.denoise.denoiser
    wide = dataclasses.replace(exact, cond=dataclasses.replace(exact.cond, std=0.9))
    return dataclasses.replace(problem, decode=decode, denoise=type(problem.denoise)(wide))


def by_task(problem: Problem, factors: Sequence[float]) -> Problem:
    """Task i's reward times factors[i]."""
    plain = problem.reward.function

    def reward(rows: Tensor, tasks) -> Tensor:
        return plain(rows) * torch.tensor([factors[int(task.id)] for task in tasks], dtype=torch.float64)

    return dataclasses.replace(problem, reward=reward)
