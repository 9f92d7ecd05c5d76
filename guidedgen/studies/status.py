"""States of the runs of a study or a sweep: done, running, stopped, failed and why, or missing."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from guidedgen.basics.errors import UsageError, printable
from guidedgen.runs.store import RunFolder
from guidedgen.studies import sweeps
from guidedgen.studies.sweeps import Run

STATES = ("done", "running", "partial", "failed", "damaged", "missing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """How far a run is. `state` is one of STATES: partial means that it was stopped, or killed, and the same command goes on;
    damaged, that one of its files is not what was written.
    """

    name: str
    state: str
    samples: int = 0  # that are finished
    wanted: int | None = None  # of so many; None: not known
    reason: str = ""  # why it failed or ended


def of_folder(path: Path) -> State:
    """The state of one run, by its folder, which need not be there."""
    folder = RunFolder(path)
    if not os.path.lexists(path / "config.yaml"):
        return State(name=path.name, state="missing")
    try:
        recorded, wanted = folder.recorded(), folder.read_json("environment.json").get("samples")
        folder.check_plain()
    except UsageError as error:
        return State(name=path.name, state="damaged", reason=str(error).replace(f"{path}/", ""))
    last, why = folder.last_note, ""
    if recorded.failures:
        name, reason = next(iter(recorded.failures.items()))
        why = f"{len(recorded.failures)} failed, as {name}: {reason}"
    if folder.busy:
        state = "running"
    elif folder.finished and len(recorded.records) + len(recorded.failures) >= (wanted or 0):
        state = "done"
    elif last.startswith("failed: "):
        state, why = "failed", last.removeprefix("failed: ")
    else:
        state, why = "partial", last if last.startswith(("stopped", "interrupted")) else why
    return State(name=path.name, state=state, samples=len(recorded.records), wanted=wanted, reason=why)


def of_study(folder: Path) -> list[State]:
    """The states of all runs in a study's folder. Raises UsageError where there is none."""
    found = [of_folder(path) for path in sorted(folder.glob("*")) if os.path.lexists(path / "config.yaml")]
    if not found:
        raise UsageError(f"{folder}: holds no run; give a study's folder, as in outputs/default, or a sweep's overrides")
    return found


def of_sweep(runs: Sequence[Run]) -> list[State]:
    """The states of a sweep's runs, named by those overrides that not all of them have.

    Raises UsageError where one cannot be made.
    """
    shared = set.intersection(*(set(run.overrides) for run in runs)) if len(runs) > 1 else set()
    names = [shlex.join(override for override in run.overrides if override not in shared) for run in runs]
    folders = sweeps.folders(runs)
    return [dataclasses.replace(of_folder(folder), name=name) for folder, name in zip(folders, names, strict=True)]


def show(states: Sequence[State]) -> None:
    """Prints a table of them."""
    table = Table(Column("run", overflow="fold"), "state", "samples", "")  # a name is there to be copied
    for state in states:
        samples = f"{state.samples}/{state.wanted}" if state.wanted is not None else str(state.samples or "")
        table.add_row(escape(printable(state.name)), state.state, samples, escape(printable(state.reason)))
    Console().print(table)


def summary(states: Sequence[State]) -> str:
    """One line that counts them."""
    counts = Counter(state.state for state in states)
    return f"{len(states)} runs: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
