"""What a method learns before its samples are drawn: tuned on its lessons, kept in the run's folder, taken up again after a stop.

learned/                   what diffusers loads, see guidedgen.models.tuning     learned/learning.json   the curve, and what it cost
learned/checkpoint.pt      while it is learned; one that is damaged is learned again from the beginning
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidedgen import report
from guidedgen.jobs import Job
from guidedgen.models import tuning
from guidedgen.problem import Problem
from guidedgen.store import write_atomic
from guidedgen.types import Learner

FOLDER = "learned"


def spent(job: Job) -> Mapping[str, Any]:
    """What learning has cost."""
    told = job.folder.read_json(f"{FOLDER}/learning.json")
    return {name: value for name, value in told.items() if name != "curve"}


def learn(job: Job, pose: Callable[[Sequence[int]], Problem]) -> None:
    """Leaves the job's model tuned. `pose` gives the problem of some of the job's lessons, by their places."""
    method, folder = job.method, job.folder.path / FOLDER
    assert isinstance(method, Learner)
    if (folder / "learning.json").exists():
        tuning.load(job.model, folder, method.tuning.what, "run")
        return
    folder.mkdir(exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    before, started = job.model.ledger.counts(), time.perf_counter()
    tuned = tuning.tunable(job.model, method.tuning)
    saved = _saved(checkpoint, job.cfg.device, tuned.free) if checkpoint.exists() else {}
    curve, seconds = saved.get("curve", []), saved.get("seconds", 0.0)

    def so_far() -> dict[str, Any]:
        counts = {name: value - before[name] + saved.get(name, 0) for name, value in job.model.ledger.counts().items()}
        return {**counts, "seconds": seconds + time.perf_counter() - started}

    def save(state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({**so_far(), "curve": curve, "state": state}, buffer)
        write_atomic(checkpoint, buffer.getvalue())

    steps = len(job.grid) - 1
    with report.progress("learn", total=method.num_updates * steps) as advance:

        def observe(event: str, step: int, values: Mapping[str, Any]) -> None:
            if event == "step":
                advance()
            else:
                curve.append({"update": step, **{name: float(value) for name, value in values.items()}})

        method.learn(pose, len(job.lessons), tuned.free, saved.get("state", {}), save, observe)
    tuned.freeze()
    tuned.save(folder)
    job.folder.write_json(f"{FOLDER}/learning.json", {**so_far(), "lessons": len(job.lessons), "curve": curve})
    checkpoint.unlink(missing_ok=True)


def _saved(checkpoint: Path, device: str, free: Sequence[Tensor]) -> Mapping[str, Any]:
    """What had been learned when it was stopped; nothing, and a line on stderr, where the file is damaged or of something else."""
    try:
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        state, told = saved["state"], (saved["curve"], saved["seconds"])
        whole = isinstance(told[0], list) and isinstance(told[1], float) and isinstance(state["done"], int)
        shapes = [tuple(value.shape) for value in state["free"]]
        if not whole or shapes != [tuple(value.shape) for value in free] or "param_groups" not in state["optimizer"]:
            raise ValueError("it is of something else")
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the unpickler, of zip files, and of whatever else lies there in place of a checkpoint
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"guidedgen: {checkpoint}: damaged ({reason}); learning begins anew", file=sys.stderr)
        return {}
    return saved
