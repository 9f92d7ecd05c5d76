"""What methods have logged on the way, as curves: means over a run's samples by step or update.

trace.jsonl holds lines {task, seed, event, step, quantity: value of the sample, or one per particle}; learned/learning.json, of
methods that learn first, {"curve": [{update, quantity: value}]}.
"""

from __future__ import annotations

import fnmatch
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guidedgen.basics.errors import UsageError
from guidedgen.runs import inside, shapes
from guidedgen.runs.store import RunFolder
from guidedgen.studies.plots import Curve, Style
from guidedgen.studies.study import Run

# Quantities that are values of the guided reward, with the words for them.
REWARDS = {
    ("update", "rewards"): "reward by update",
    ("guide", "rewards"): "reward that guides, by step",
    ("select", "scores"): "reward of the best stream, by step",
    ("learn", "reward"): "reward while learning, by update",
}
_WHO = ("task", "seed", "event", "step")


def curves(run: Run, style: Style) -> dict[tuple[str, str], Curve]:
    """A run's curves by event and quantity; those of fewer than two steps are left out."""
    values: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for event in _events(run.folder):
        for quantity, value in event.items():
            if quantity not in _WHO and shapes.figure(value) and (figure := _one(value)) is not None:
                values[event["event"], quantity][event["step"]].append(figure)
    return {which: _curve(run.name, style, by_step) for which, by_step in values.items() if len(by_step) > 1}


def _events(folder: Path) -> Iterator[Mapping[str, Any]]:
    yield from traced(folder)
    try:
        learned = RunFolder(folder).read_json("learned/learning.json")
    except UsageError:
        return
    for point in learned.get("curve", ()):
        yield {"event": "learn", "step": point["update"], **{key: value for key, value in point.items() if key != "update"}}


def traced(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Whatever a run has traced so far, of each sample (task, seed) event by event; a line that is being written is not there yet,
    one that is damaged is left out.
    """
    for log in inside.names(folder):
        if fnmatch.fnmatchcase(log, "trace*.jsonl"):
            yield from _logged(folder, log)


def _logged(folder: Path, log: str) -> Iterator[Mapping[str, Any]]:
    try:
        for line in inside.lines(folder, log):
            event = shapes.parsed(line)
            if event is not None and _is_event(event):
                yield event
    except OSError:  # it cannot be read
        return


def _is_event(line: Mapping[str, Any]) -> bool:
    return isinstance(line.get("event"), str) and shapes.count(line.get("step"), "") is None


def _one(value: float | list[float | None] | None) -> float | None:
    """A sample's value: of its particles, the largest, which is what a search keeps. None where there is none."""
    return max((item for item in value if item is not None), default=None) if isinstance(value, list) else value


def _curve(name: str, style: Style, by_step: Mapping[int, Sequence[float]]) -> Curve:
    steps = sorted(by_step)
    ranges = [_middle(by_step[step]) for step in steps]
    return Curve(
        name=name, style=style, steps=steps, means=[statistics.fmean(by_step[step]) for step in steps],
        lows=[low for low, _ in ranges], highs=[high for _, high in ranges],
    )  # fmt: skip


def _middle(values: Sequence[float]) -> tuple[float, float]:
    """The bounds of the middle 80 % of the values."""
    if len(values) == 1:
        return values[0], values[0]
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    return deciles[0], deciles[-1]
