"""`run.objective`: the number that a sweeper maximises, and by which it chooses the next run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from guidedgen.basics.errors import UsageError
from guidedgen.runs import config

if TYPE_CHECKING:
    from guidedgen.runs.job import Job


def check(job: Job) -> None:
    """Raises UsageError where `run.objective` or a limit names a score or a distance that the job does not have."""
    known = [*(f"scores.{name}" for name in job.scorers), *(f"distances.{name}" for name in job.distances)]
    for name in filter(None, [job.cfg.run.objective, *(job.cfg.run.objective_limit or ())]):
        path = str(name).removeprefix("-")
        if (path.startswith(("scores.", "distances.")) or "." not in path) and ".".join(path.split(".")[:2]) not in known:
            choices = ", ".join(f"{entry}.value" for entry in known)
            raise UsageError(f"run.objective: there is no {path}{config.near(path, known)}; choose from {choices}")


def of(job: Job, metrics: Mapping[str, Any]) -> float | None:
    """The number of metrics.json that `run.objective` names, negated where that begins with a minus.

    -inf where the run has no such number or breaks a limit; None without an objective, and where other processes have a share of
    the run to finish.
    """
    name, limits = job.cfg.run.objective, job.cfg.run.objective_limit or {}
    if not name or not metrics:
        return None
    value = _number(metrics, name.removeprefix("-"))
    measured = {key: _number(metrics, key) for key in limits}
    if value is None or any(found is None or found > limits[key] for key, found in measured.items()):
        return -math.inf
    return -value if name.startswith("-") else value


def _number(metrics: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path; None where the run has measured none, as where a scorer applies to no prompt."""
    found: Any = metrics
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            raise UsageError(f"run.objective: there is no {path} in metrics.json{config.near(key, found)}")
        found = found[key]
    return None if found is None or math.isnan(found) else float(found)
