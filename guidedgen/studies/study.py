"""The runs of a study, read from their folders. Nothing is written, and a study that is still running can be read."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from guidedgen.basics.errors import UsageError
from guidedgen.runs import config, contents, shapes
from guidedgen.runs.store import Record, RunFolder

_SHOWN = 2  # options that a name may hold to distinguish runs of one label
# Of the config, what makes the samples.
_MAKES = ("method", "reward", "model", "dataset", "scheduler", "seed", "samples_per_prompt", "batch_size", "device", "dtype")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder. `metrics` is empty until it is judged; of an unguided run that was made for others to be measured against,
    it holds what their metrics say of it, and `from_guided` is true.
    """

    folder: Path
    name: str  # unique in its study
    metrics: Mapping[str, Any]
    records: Sequence[Record]  # in the order they were finished
    failures: Mapping[str, str]  # why others have none, by the sample's name
    environment: Mapping[str, Any]
    config: Mapping[str, Any]  # resolved; empty where the folder has none
    setting: str  # equal of runs that differ in no more than method and reward, so that their samples are pairs
    done: bool  # and marked so, whatever samples failed
    damaged_lines: int = 0  # lines of its records that are none
    text: str = ""  # of its config
    from_guided: bool = False

    @property
    def judged(self) -> bool:
        """Whether it has metrics of its own."""
        return bool(self.metrics) and not self.from_guided

    @property
    def unguided(self) -> bool:
        """Whether its method is plain sampling."""
        return config.module_of(self.config["method"]) == "base" if self.config else self.metrics.get("label") == "base"

    @property
    def reward(self) -> str | None:
        """The scorer that guides, or would."""
        return self.metrics.get("reward")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A folder of runs: unguided ones first, then by cost."""

    folder: Path
    runs: Sequence[Run]
    damaged: Mapping[str, str] = dataclasses.field(default_factory=dict)  # runs that cannot be read, by their folders' names: why

    @property
    def rows(self) -> list[Run]:
        """The runs that have figures."""
        return [run for run in self.runs if run.metrics]

    @property
    def drawn(self) -> list[Run]:
        """The runs whose pictures belong side by side: all but unguided ones that nothing is measured against."""
        paired = {run.setting for run in self.runs if not run.unguided}
        return [run for run in self.runs if run.judged or not run.unguided or run.setting in paired]


def read_study(folder: Path) -> Study:
    """The runs in a study's folder.

    A run that is damaged is left out of the runs and reported, so that it does not hide the others.

    Raises:
        UsageError: the folder holds no run, or none that can be read.
    """
    found = folders(folder)
    if not found:
        raise UsageError(f"{folder}: holds no run with metrics or a config; give a study's folder, as in outputs/default")
    read: list[Run] = []
    damaged: dict[str, str] = {}
    for path in found:
        try:
            read.append(_read(path))
        except UsageError as error:
            damaged[path.name] = str(error).replace(f"{path}/", "")
    if not read:
        name, why = next(iter(damaged.items()))
        raise UsageError(f"{folder}: holds no run that can be read, of {len(found)}: {name}/{why}")
    return Study(folder=folder, runs=sorted(_named(_with_base_metrics(read)), key=_sort_key), damaged=damaged)


def folders(study: Path) -> list[Path]:
    """The folders of a study's runs: those that hold a config.yaml or metrics.json. A run may be linked from elsewhere."""
    return sorted(path for path in study.glob("*") if any(os.path.lexists(path / name) for name in ("config.yaml", "metrics.json")))


def _read(path: Path) -> Run:
    stored = RunFolder(path)
    stored.check_plain()
    plain, text = _config(path / "config.yaml")
    recorded, environment = stored.recorded(), stored.read_json("environment.json")
    return Run(
        folder=path,
        name=path.name,
        metrics=stored.read_json("metrics.json"),
        records=list(recorded.records.values()),
        failures=recorded.failures,
        environment=environment,
        config=plain,
        setting=_setting(plain, contents.recorded(environment)) if plain else path.name,
        done=stored.finished,
        damaged_lines=recorded.damaged_lines,
        text=text,
    )


def _config(file: Path) -> tuple[dict[str, Any], str]:
    """A run's config and its text; nothing where the run has none."""
    if not os.path.lexists(file):
        return {}, ""
    plain, text = config.read_plain(file)
    if wrong := shapes.CONFIG(plain, ""):
        raise UsageError(f"{file}: not a run's config ({wrong}); remove it, and the run's own command writes it anew")
    return plain, text


def _setting(plain: Mapping[str, Any], parts: contents.Parts | None) -> str:
    """What an unguided run shares with those measured against it: all sampling options except the method and its reward, and the
    contents of the files that they name.
    """
    theirs = ("method", "reward")
    held = {part: digests for part, digests in (parts or {}).items() if part not in theirs}
    return config.identity({key: value for key, value in plain.items() if key not in theirs}, held)


def _with_base_metrics(runs: Sequence[Run]) -> list[Run]:
    """The runs; unguided ones that were never judged get metrics from the `base` values of the guided runs measured against them.

    Intervals are not taken over: the guided run's metrics have none for the unguided one. Nor is a score on which they differ,
    because it is not the same score in all of them: a sum with other weights, for example.
    """
    found = []
    against: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if _against_base(run):
            against.setdefault(run.setting, []).append(run.metrics)
    for run in runs:
        guided = against.get(run.setting, [])
        if run.metrics or not run.unguided or not guided:
            found.append(run)
            continue
        rewards = {metrics.get("reward") for metrics in guided}
        reported = {
            "title": run.folder.name, "label": "base", "reward": rewards.pop() if len(rewards) == 1 else None,
            "samples": len(run.records), "prompts": len({record.task for record in run.records}),
            "scores": {name: {"value": value, "shares_guide": False} for name, value in _agreed(guided).items()},
            "cost": guided[0]["base_cost"],
        }  # fmt: skip
        found.append(dataclasses.replace(run, metrics=reported, from_guided=True))
    return found


def _agreed(guided: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the metrics of guided runs say of the unguided one, by score, where they do not contradict each other."""
    values: dict[str, list[float]] = {}
    for metrics in guided:
        for name, entry in metrics["scores"].items():
            if entry.get("base") is not None:
                values.setdefault(name, []).append(entry["base"])
    # Rounding differs between devices and batch sizes.
    return {
        name: first
        for name, (first, *others) in values.items()
        if all(math.isclose(value, first, rel_tol=1e-3, abs_tol=1e-6) for value in others)
    }


def _against_base(run: Run) -> bool:
    """Whether it was measured against the unguided run, not against a folder of pictures."""
    return run.judged and not run.unguided and run.config.get("reference") == "base" and "base_cost" in run.metrics


def _sort_key(run: Run) -> tuple[Any, ...]:
    """Unguided first, those with metrics of their own before others; then by cost, unjudged runs last."""
    cost = run.metrics.get("cost", {}).get("nfe", float("inf"))
    return (not run.unguided, not run.judged, cost, str(run.metrics.get("label")), str(run.metrics.get("title", run.folder.name)))


# Names


def _named(runs: Sequence[Run]) -> list[Run]:
    """The runs with distinct names: a label alone where only one run has it, else with the options that differ."""
    labels = _labels(runs)
    groups: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(label, []).append(i)
    names = list(labels)
    for group in groups.values():
        for i, difference in zip(group, _differences([runs[i] for i in group]), strict=True):
            names[i] += difference
    digits = [str(run.metrics.get("title", run.folder.name)).rsplit("-", 1)[-1] for run in runs]
    names = _made_distinct(names, [f"{label} {own}" for label, own in zip(labels, digits, strict=True)])
    names = _made_distinct(names, [run.folder.name for run in runs])
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _made_distinct(names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The names, replaced by the `others` where several runs have the same."""
    counts = collections.Counter(names)
    return [name if counts[name] == 1 else other for name, other in zip(names, others, strict=True)]


def _labels(runs: Sequence[Run]) -> list[str]:
    """A run's name in its table, else its method's file; of an unguided run, next to others that are measured against it."""
    labels = [_label(run) for run in runs]
    served: dict[str, set[str]] = {}
    for run, label in zip(runs, labels, strict=True):
        if not run.unguided:
            served.setdefault(run.setting, set()).add(label)
    if sum(run.unguided for run in runs) == 1:
        return labels
    for i, run in enumerate(runs):
        if run.unguided and not run.judged and (whom := sorted(served.get(run.setting, ()))):
            labels[i] = f"base of {', '.join(whom[:3])}{', ...' if len(whom) > 3 else ''}"
    return labels


def _label(run: Run) -> str:
    if run.judged:
        return str(run.metrics.get("label") or run.metrics.get("title") or run.folder.name)
    if run.unguided:
        return "base"
    if not run.config:
        return run.folder.name
    return str((run.config.get("table") or {}).get("row") or config.module_of(run.config["method"]))


def _differences(group: Sequence[Run]) -> list[str]:
    """The options in which each run differs from most of its group, with their values; nothing where they are none or too many."""
    if len(group) == 1:
        return [""]
    flat = [{key: str(value) for key, value in options({key: run.config.get(key) for key in _MAKES})} for run in group]
    counts: dict[str, collections.Counter[str]] = {key: collections.Counter() for own in flat for key in own}
    for own in flat:
        for key, counted in counts.items():
            counted[own.get(key, "None")] += 1
    usual = {key: counted.most_common(1)[0][0] for key, counted in counts.items()}
    found = []
    for own in flat:
        shown = [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in own.items() if value != usual[key]]
        found.append(" ".join(["", *shown]) if len(shown) <= _SHOWN else "")
    return found


def options(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a config."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
