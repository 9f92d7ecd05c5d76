"""The lab's few-step generator: its UNet taught to tell where the guided generator ends, from any point on the way.

A student predicts x_0 at a noise level as the end of the probability-flow ODE of the generator under classifier-free guidance from
there (consistency distillation with the solved ODE as the target, Song et al. 2023 and Luo et al. 2023, whose sampler it is for:
predict, noise anew, predict). Half of the points are pure noise. The others are where that sampler comes to, the student's own
prediction noised anew, so that it learns to put its own faults right. It predicts v (Salimans and Ho 2022), from which x_0 follows
well at every level, and needs no guidance of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from guidedgen.lab.levels import Levels

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

TIMES = 50  # that the sampler chooses from: 19, 39, ..., 999
GUIDANCE = 5.0  # of the teacher
SOLVER_STEPS = (8, 4)  # from pure noise, and from the sampler's later times
_WITHIN = 2  # points on the way of a solution that are taught too, besides its start


def build_student(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet of the generator's class with its weights, but for the last layer: it predicts something else, nothing at first."""
    from diffusers import UNet2DConditionModel

    student: UNet2DConditionModel = UNet2DConditionModel.from_config(teacher.config)
    student.load_state_dict(teacher.state_dict())
    nn.init.zeros_(student.conv_out.weight)
    nn.init.zeros_(student.conv_out.bias)
    return student


def predict(student: UNet2DConditionModel, levels: Levels, x_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """The student's x_0 (b 4 16 16) at x_t and times t (b)."""
    alpha, sigma = levels.scales(levels.half_log_snr(t))
    return alpha * x_t - sigma * student(x_t, t, text).sample.float()


@torch.no_grad()
def solve(
    teacher: UNet2DConditionModel, levels: Levels, x_t: Tensor, t: Tensor, text: Tensor, empty: Tensor, steps: int
) -> list[tuple[Tensor, Tensor]]:
    """The guided ODE from x_t (b 4 16 16) at times t (b) to time 0 by DPM-Solver++ 2M (Lu et al. 2022) in steps of equal
    log-SNR: every point on the way (x, its times), the start first, and the x_0 at the end, whose time is 0.
    """
    first, last = levels.half_log_snr(t), levels.half_log_snr(torch.zeros_like(t))
    h = (last - first) / steps
    both, path, before = torch.cat([empty.expand_as(text), text]), [(x_t, t)], None
    for i in range(steps):
        now = first + i * h
        (alpha, sigma), (alpha_s, sigma_s) = levels.scales(now), levels.scales(now + h)
        uncond, cond = teacher(torch.cat([x_t, x_t]), levels.time(now).repeat(2), both).sample.float().chunk(2)
        x_0 = (x_t - sigma * (uncond + GUIDANCE * (cond - uncond))) / alpha
        ahead = x_0 if before is None else 1.5 * x_0 - 0.5 * before  # two points an equal step apart
        x_t = sigma_s / sigma * x_t - alpha_s * torch.expm1(-h)[:, None, None, None] * ahead
        before = x_0
        path.append((x_t, levels.time(now + h)))
    return [*path[:-1], (x_t, torch.zeros_like(t))]


@torch.no_grad()
def noised_anew(
    student: UNet2DConditionModel, levels: Levels, noise: Tensor, text: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the student makes of pure noise (b 4 16 16), noised anew to times (b): half the time that of the second of two steps,
    else any of the sampler's.
    """
    own = predict(student, levels, noise, noise.new_full((len(noise),), 999.0), text)
    steps = torch.randint(2, TIMES, (len(own),), generator=generator)
    steps = torch.where(torch.rand(len(own), generator=generator) < 0.5, TIMES // 2, steps)
    t = (steps * (1000 // TIMES) - 1).float().to(noise.device)
    alpha, sigma = levels.scales(levels.half_log_snr(t))
    return alpha * own + sigma * torch.randn(own.shape, generator=generator).to(noise.device), t


def draw_points(path: list[tuple[Tensor, Tensor]], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Points of solutions (n 4 16 16), their times (n), and where each ends (n 4 16 16)."""
    chosen = [0, *(1 + torch.randperm(len(path) - 2, generator=generator)[:_WITHIN]).tolist()]
    points, times = (torch.cat(parts) for parts in zip(*(path[i] for i in chosen), strict=True))
    return points, times, path[-1][0].repeat(len(chosen), 1, 1, 1)


def distance(predicted: Tensor, target: Tensor, width: float = 0.1) -> Tensor:
    """Pseudo-Huber loss (Song and Dhariwal 2023): less drawn to the mean of possible pictures than the square."""
    return ((predicted - target).square() + width**2).sqrt().mean() - width
