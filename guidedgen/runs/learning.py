"""What a method learns before its samples are drawn: tuned on its lessons, kept in the run's folder, taken up again after a stop.

learned/                   what diffusers loads, see guidedgen.models.tuning     learned/learning.json   the curve, and what it cost
learned/checkpoint.pt      while it is learned; one that is damaged is learned again from the beginning
"""

from __future__ import annotations

import collections
import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from guidedgen.basics import cost
from guidedgen.methods import Learner
from guidedgen.methods.problem import Problem
from guidedgen.models import tuning
from guidedgen.models.stable_diffusion import StableDiffusion
from guidedgen.runs import report, sampling
from guidedgen.runs.job import Job

FOLDER = "learned"
_Found = TypeVar("_Found")


def spent(job: Job) -> Mapping[str, Any]:
    """What learning has cost."""
    learning = job.folder.read_json(f"{FOLDER}/learning.json")
    return {name: value for name, value in learning.items() if name != "curve"}


def learn(job: Job) -> None:
    """Leaves the job's model tuned."""
    method, folder = job.method, job.folder.path / FOLDER
    assert isinstance(method, Learner) and isinstance(job.model, StableDiffusion)
    if (folder / "learning.json").exists():
        tuning.load(job.model, folder, method.tuning.what, "run")
        return
    job.folder.make_folder(FOLDER)
    checkpoint = folder / "checkpoint.pt"
    before, started = job.model.ledger.counts(), time.perf_counter()
    tuned = tuning.tunable(job.model, method.tuning)
    saved = _saved(checkpoint, job.cfg.device, tuned.free) if checkpoint.exists() else {}
    curve, seconds = saved.get("curve", []), saved.get("seconds", 0.0)

    def so_far() -> dict[str, Any]:
        counts = {name: value - before[name] + saved.get(name, 0) for name, value in job.model.ledger.counts().items()}
        cost.wait_for(job.cfg.device)
        return {**counts, "seconds": seconds + time.perf_counter() - started}

    def save(state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({**so_far(), "curve": curve, "state": state}, buffer)
        job.folder.write(f"{FOLDER}/checkpoint.pt", buffer.getvalue())

    with report.progress("learn", total=method.num_updates) as advance:

        def observe(event: str, step: int, values: Mapping[str, Any]) -> None:
            assert event == "learn"
            curve.append({"update": step, **{name: float(value) for name, value in values.items()}})
            advance()

        method.learn(LessonProblems(job), len(job.lessons), tuned.free, saved.get("state", {}), save, observe)
    tuned.freeze()
    with job.folder.assembled(FOLDER) as target:
        tuned.save(target)
    job.folder.write_json(f"{FOLDER}/learning.json", {**so_far(), "lessons": len(job.lessons), "curve": curve})
    checkpoint.unlink(missing_ok=True)


def _saved(checkpoint: Path, device: str, free: Sequence[Tensor]) -> Mapping[str, Any]:
    """What had been learned when it was stopped; nothing, and a line on stderr, where the file is damaged or of something else."""
    try:
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        state = saved["state"]
        whole = isinstance(saved["curve"], list) and isinstance(saved["seconds"], float) and isinstance(state["done"], int)
        shapes = [tuple(value.shape) for value in state["free"]]
        if not whole or shapes != [tuple(value.shape) for value in free] or "param_groups" not in state["optimizer"]:
            raise ValueError("it is of something else")
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of the unpickler, of zip files, and of whatever else the file is instead of a checkpoint
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"guidedgen: {checkpoint}: damaged ({reason}); learning starts again", file=sys.stderr)
        return {}
    return saved


class LessonProblems:
    """Makes problems of a job's lessons (see `guidedgen.methods.MakeProblems`), `batch_size` at once.

    Where a device's memory is too small for so many, they are taken again, with what torch keeps of it given back, and then in
    halves, as all that follow: the same comes out, to the rounding of batched kernels. An attempt that fails costs nothing.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._small = job, False

    def __call__(self, indices: Sequence[int], compute: Callable[[Problem], _Found]) -> Iterator[_Found]:
        """Raises RunFailed where memory is too small for one."""
        queue, again = collections.deque(self._parts([indices])), False
        while queue:
            part, found, before = queue[0], [], self._job.model.ledger.counts()
            # Handled below, where its traceback does not keep the memory alive any more.
            with contextlib.suppress(torch.OutOfMemoryError):
                found.append(compute(self._problem(part)))
            if found:
                again = False
                queue.popleft()
                yield found.pop()
                continue
            self._job.model.ledger.forget(before)
            torch.cuda.empty_cache()
            if again:
                self._halve()
                queue = collections.deque(self._parts(queue))
            again = True

    def _parts(self, parts: Iterable[Sequence[int]]) -> list[Sequence[int]]:
        size = self._job.cfg.batch_size
        return [part[i : i + size] for part in parts for i in range(0, len(part), size)]

    def _problem(self, indices: Sequence[int]) -> Problem:
        return sampling.problem(self._job, [self._job.lessons[index] for index in indices], self._job.originals)

    def _halve(self) -> None:
        if not self._small:
            rows = self._job.cfg.batch_size
            print(f"guidedgen: batch_size={rows} needs too much memory to learn; going on with less", file=sys.stderr)
        self._small, self._job = True, sampling.halved(self._job)
