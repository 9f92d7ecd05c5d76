"""What has to go together: a method with its scheduler, its tasks and the machine's memory."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

from omegaconf import DictConfig

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Task
from guidedgen.methods import Method, StepGuide
from guidedgen.models.latent import LatentModel
from guidedgen.process import Scheduler
from guidedgen.process.grid import Grid
from guidedgen.process.schedulers import Ddim, Euler, Flow
from guidedgen.runs import config

_FLOW_STEPS = 5


def combination(cfg: DictConfig, method: Method, scheduler: Scheduler, tasks: Sequence[Task]) -> None:
    """Raises UsageError where a method lacks a reward, references or the kind of scheduler that it needs."""
    name = config.module_of(cfg.method)
    if method.needs.reward and not cfg.reward:
        raise UsageError(f"method={name} needs a reward: choose one, as in reward=aesthetic")
    if method.needs.sampler == "stochastic" and not scheduler.stochastic:
        raise UsageError(f"method={name} needs a stochastic scheduler: scheduler=ddpm, or scheduler=ddim scheduler.eta=1")
    if method.needs.sampler == "deterministic" and scheduler.stochastic:
        raise UsageError(f"method={name} needs a deterministic scheduler: scheduler=ddim scheduler.eta=0")
    if method.needs.sampler == "deterministic" and scheduler.multistep:
        raise UsageError(f"method={name} walks the whole chain by DDIM's steps, and no multistep solver: scheduler=ddim, or euler")
    if method.needs.reference == "inverted" and not all(task.reference for task in tasks):
        raise UsageError(f"method={name} inverts pictures: give them with dataset=image_to_image dataset.images=[FILE,FOLDER]")
    if method.needs.reference == "required" and not all(task.noise_ratio for task in tasks):
        raise UsageError(
            f"method={name} starts from reference images: give them with dataset=image_to_image, at a dataset.noise_ratio below 1"
        )


def ends(cfg: DictConfig, method: Method, grid: Grid) -> None:
    """Raises UsageError where a method cannot start or end where the chain does."""
    name = f"method={config.module_of(cfg.method)}"
    if method.needs.signal_at_start and not grid[0].alpha:
        raise UsageError(
            f"{name}: with these options it cannot start at pure noise, as this model does: method.reparameterise=true"
        )
    if method.needs.noisy_end and not grid[-1].sigma:
        raise UsageError(f"{name}: with these options it ends where noise is left: scheduler.end=first")


def kind(cfg: DictConfig, method: Method, model: LatentModel) -> None:
    """Raises UsageError where a method needs another kind of model: one with prompts, or one that clips nothing."""
    name = f"method={config.module_of(cfg.method)}"
    if method.needs.prompted and not getattr(model, "CONDITIONED", True):
        ways = [way for way in ("method.mode=referee_only", "method.what=noise") if hasattr(method, way[7:].partition("=")[0])]
        hint = f": {' or '.join(ways)}" if ways else ""
        raise UsageError(f"{name}: with these options it needs a model with prompts, which model={cfg.model.name} is not{hint}")
    if method.needs.flow and getattr(model, "clips", False):
        raise UsageError(f"{name} follows the flow of a model that does not clip what it predicts: model.clip_sample=false")


def mixing(cfg: DictConfig, method: Method, scheduler: Scheduler, model: LatentModel) -> None:
    """Raises UsageError where a variant of classifier-free guidance moves x_0 and eps apart, and the method or the sampler needs
    them to be of one x_t.
    """
    variant = getattr(model, "guidance", None)
    if variant is None or not variant.decouples:
        return
    if method.needs.flow:
        raise UsageError(f"guidance=cfg_pp: not with method={config.module_of(cfg.method)}, which follows the flow: guidance=cfg")
    if not isinstance(scheduler, Ddim | Euler) and not (isinstance(scheduler, Flow) and scheduler.sde is None):
        name = type(scheduler).__name__
        raise UsageError(
            f"guidance=cfg_pp: needs a sampler that noises with what is predicted, not {name}: scheduler=ddim or euler"
        )


def guidance(cfg: DictConfig, method: Method, grid: Grid) -> None:
    """Raises UsageError where a method that is to follow the reward's gradient would do so at no step of the chain."""
    steps = len(grid) - 1
    if not isinstance(method, StepGuide) or not method.needs.gradient or not getattr(method, "strength", True):
        return
    if not any(method.guides(i, steps, (steps - i) / steps) for i in range(steps)):
        ways = [f"method.{name}" for name in ("gradient_block_size", "window") if hasattr(method, name)]
        hint = f"change {' or '.join([*ways, 'scheduler.num_steps'])}"
        raise UsageError(f"method={config.module_of(cfg.method)} guides at none of the chain's {steps} steps: {hint}")


def flow(cfg: DictConfig, method: Method, grid: Grid) -> None:
    """Raises UsageError where a gradient is that of the continuous flow and the chain's steps are too few for it: of how bright
    the lab model's pictures are, its cosine with the picture's own gradient is 0.98 at 20 steps, 0.9 at 10 and about 0 at 4.
    """
    steps, engine = len(grid) - 1, getattr(method, "gradients", None)
    if engine is None or engine.exact or getattr(engine, "solver", None) == "dopri5" or not method.needs.gradient:
        return
    if steps < _FLOW_STEPS:
        raise UsageError(
            f"method={config.module_of(cfg.method)}: its gradient is that of a continuous flow, and {steps} steps are too "
            f"few for it (at least {_FLOW_STEPS}): method/gradients=checkpoint"
        )


def memory(method: Method, model: LatentModel) -> None:
    """Raises UsageError where the latents of one sample's particles alone would not fit into this machine's memory."""
    particles = getattr(method, "num_particles", 1)
    most = max(particles) if isinstance(particles, Sequence) else particles
    needed, there = 4 * most * math.prod(model.latent_shape), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UsageError(
            f"method.num_particles={particles}: their latents take {needed >> 30} GiB; this machine has {there >> 30} GiB of memory"
        )
