"""The one loop that trains every part of the lab, and its checkpoints.

A part's data depends on (seed, part, step) alone, so a run that was stopped goes on exactly where it was. The learning rate
warms up, stays, and falls linearly over the last 40 % of the steps; what is shipped is the running average of the weights.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from guidedgen.basics.errors import UsageError
from guidedgen.basics.noise import generator as stream

if TYPE_CHECKING:
    from rich.progress import Progress

_Stateful = nn.Module | torch.optim.Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Where and how the training runs. The shipped weights: seed 0, scale 1, bf16 on a CPU."""

    folder: Path  # checkpoints, one per part
    device: str = "cpu"
    bf16: bool = True
    seed: int = 0
    scale: float = 1.0  # on the number of steps of every part


@dataclasses.dataclass(kw_only=True)
class Part:
    """A network and how it is trained. `loss(step, generator)` draws its own batch and returns named losses, "loss" first."""

    name: str
    network: Any  # an nn.Module
    loss: Callable[[int, torch.Generator], dict[str, Tensor]]
    steps: int
    lr: float
    weight_decay: float = 0.01
    warm_up: int = 100
    average: float = 0.999


def fit(part: Part, settings: Settings, progress: Progress) -> Any:
    """Trains a part, or goes on with it, and returns its averaged network in evaluation mode on the CPU."""
    steps = max(1, round(part.steps * settings.scale))
    network = part.network.to(settings.device).train()
    average = AveragedModel(
        network,
        avg_fn=lambda mean, new, seen: torch.lerp(new.float(), mean.float(), min(part.average, 1 - 1 / (float(seen) / 8 + 2))).to(
            mean.dtype
        ),
        use_buffers=True,
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=part.lr, betas=(0.9, 0.99), weight_decay=part.weight_decay)
    state: dict[str, _Stateful] = {"network": network, "average": average, "optimiser": optimiser}
    checkpoint = settings.folder / f"{part.name}.pt"
    kind = f"seed {settings.seed}, {steps} steps, {'bf16' if settings.bf16 else 'fp32'}"
    first, spent = _resume(checkpoint, state, kind)
    task = progress.add_task(part.name, total=steps, completed=first, note="")
    started = saved = shown = time.monotonic()
    for step in range(first, steps):
        decay = min(1.0, (steps - step) / (0.4 * steps))
        for group in optimiser.param_groups:
            group["lr"] = part.lr * min(1.0, (step + 1) / part.warm_up, max(decay, 0.02))
        with torch.autocast(torch.device(settings.device).type, torch.bfloat16, enabled=settings.bf16):
            losses = part.loss(step, stream(settings.seed, part.name, step))
        optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(network)
        now = time.monotonic()
        if now - shown > 2 or step + 1 == steps:
            note = " ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
            progress.update(task, completed=step + 1, note=note)
            shown = now
        if now - saved > 60 or step + 1 == steps:
            _save(
                checkpoint, {"step": step + 1, "seconds": spent + now - started, "kind": kind, "loss": losses["loss"].item()}, state
            )
            saved = now
            if not progress.console.is_terminal:  # a log file gets a line a minute instead of a bar
                note = " ".join(f"{name} {value.item():.4f}" for name, value in losses.items())
                print(f"{part.name} {step + 1}/{steps} {note}", flush=True)
    progress.update(task, completed=steps)
    return average.module.cpu().eval()


def _resume(checkpoint: Path, state: Mapping[str, _Stateful], kind: str) -> tuple[int, float]:
    """The step to go on from and the seconds spent so far. Raises UsageError for a checkpoint of other settings, or none."""
    if not checkpoint.exists():
        return 0, 0.0
    way_out = "move it away or train into another --folder"
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
        of, step, seconds = stored["kind"], int(stored["step"]), float(stored["seconds"])
        for name, holder in state.items() if of == kind else ():
            holder.load_state_dict(stored[name])
    except Exception as error:  # whatever torch makes of a file that is none of its own, or of another network
        raise UsageError(f"{checkpoint}: no checkpoint of {kind} ({type(error).__name__}); {way_out}") from error
    if of != kind:
        raise UsageError(f"{checkpoint} is of {of}, not {kind}; {way_out}")
    return step, seconds


def trained(network: Any, name: str, settings: Settings) -> Any:
    """The network with the averaged weights of a part's checkpoint. Raises UsageError where there is none, or it is of another
    network.
    """
    checkpoint = settings.folder / f"{name}.pt"
    if not checkpoint.exists():
        raise UsageError(f"{checkpoint}: is missing; train it first: python scripts/train_lab.py --parts {name}")
    try:
        average = torch.load(checkpoint, map_location="cpu", weights_only=True)["average"]
        prefix = "module."
        network.load_state_dict({key.removeprefix(prefix): value for key, value in average.items() if key.startswith(prefix)})
    except Exception as error:  # whatever torch makes of a file that is none of its own, or of another network
        raise UsageError(
            f"{checkpoint}: no checkpoint of {name} ({type(error).__name__}); move it away and train it again"
        ) from error
    return network


def _save(checkpoint: Path, note: Mapping[str, int | float | str], state: Mapping[str, _Stateful]) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    torch.save({**note, **{name: holder.state_dict() for name, holder in state.items()}}, partial)
    partial.replace(checkpoint)


def spent_on(part: Part, settings: Settings) -> tuple[float, float]:
    """The seconds the training of a part has taken and its last loss, by its checkpoint; NaN where there is none."""
    checkpoint = settings.folder / f"{part.name}.pt"
    if not checkpoint.exists():
        return float("nan"), float("nan")
    stored = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return stored["seconds"], stored["loss"]
