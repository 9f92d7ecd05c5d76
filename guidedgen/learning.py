"""What a method learns before its samples are drawn: tuned on its lessons, kept in the run's folder, taken up again after a stop.

learned/                   what diffusers loads, see guidedgen.models.tuning     learned/learning.json   the curve, and what it cost
learned/checkpoint.pt      while it is learned
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from guidedgen import report
from guidedgen.jobs import Job
from guidedgen.models import tuning
from guidedgen.problem import Problem
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
        tuning.load(job.model, folder, "run")
        return
    job.folder.make_folder(FOLDER)
    checkpoint, saved, curve = folder / "checkpoint.pt", {}, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=job.cfg.device)
        curve = saved["curve"]
    seconds = saved.get("seconds", 0.0)
    before, started = job.model.ledger.counts(), time.perf_counter()

    def so_far() -> dict[str, Any]:
        counts = {name: value - before[name] + saved.get(name, 0) for name, value in job.model.ledger.counts().items()}
        return {**counts, "seconds": seconds + time.perf_counter() - started}

    def save(state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({**so_far(), "curve": curve, "state": state}, buffer)
        job.folder.write(f"{FOLDER}/checkpoint.pt", buffer.getvalue())

    steps = len(job.grid) - 1
    with report.progress("learn", total=method.num_updates * steps) as advance:

        def observe(event: str, step: int, values: Mapping[str, Any]) -> None:
            if event == "step":
                advance()
            else:
                curve.append({"update": step, **{name: float(value) for name, value in values.items()}})

        tuned = tuning.tunable(job.model, method.tuning)
        method.learn(pose, len(job.lessons), tuned.free, saved.get("state", {}), save, observe)
    tuned.freeze()
    with job.folder.assembled(FOLDER) as place:
        tuned.save(place)
    job.folder.write_json(f"{FOLDER}/learning.json", {**so_far(), "lessons": len(job.lessons), "curve": curve})
    checkpoint.unlink(missing_ok=True)
