"""The runs of a study, read from their folders. Nothing is written, and a study that is still running can be read."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from guidedgen import config, contents
from guidedgen.store import Record, RunFolder
from guidedgen.types import UsageError

_TOLD = 2  # options that a name may hold to tell runs of one label apart
# Of the config, what makes the samples.
_MAKES = ("method", "reward", "model", "dataset", "scheduler", "seed", "samples_per_prompt", "batch_size", "device", "dtype")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder. `metrics` is empty until it is judged; of an unguided run that was made for others to be measured against,
    it holds what they say of it, and `lent` is true.
    """

    folder: Path
    name: str  # unique in its study
    metrics: Mapping[str, Any]
    records: Sequence[Record]  # in the order they were finished
    failures: Mapping[str, str]  # why others have none, by the sample's name
    environment: Mapping[str, Any]
    config: Mapping[str, Any]  # resolved; empty where the folder has none
    setting: str  # equal of runs that differ in no more than method and reward, so that their samples are pairs
    done: bool  # and told so; failed samples aside
    lent: bool = False

    @property
    def judged(self) -> bool:
        """Whether it has metrics of its own."""
        return bool(self.metrics) and not self.lent

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

    Raises:
        UsageError: the folder holds no run.
    """
    found = sorted(path for path in folder.glob("*") if any((path / name).exists() for name in ("config.yaml", "metrics.json")))
    if not found:
        raise UsageError(f"{folder}: holds no run with metrics or a config; give a study's folder, as in outputs/default")
    runs = _named(_with_lent([_read(path) for path in found]))
    return Study(folder=folder, runs=sorted(runs, key=_place))


def _read(path: Path) -> Run:
    stored = RunFolder(path)
    cfg = config.read(path / "config.yaml") if (path / "config.yaml").exists() else None
    plain = OmegaConf.to_container(cfg) if cfg is not None else {}
    assert isinstance(plain, dict)
    environment = stored.read_json("environment.json")
    return Run(
        folder=path,
        name=path.name,
        metrics=stored.read_json("metrics.json"),
        records=list(stored.records().values()),
        failures=stored.failures(),
        environment=environment,
        config={str(key): value for key, value in plain.items()},
        setting=_setting(cfg, contents.recorded(environment)) if cfg is not None else path.name,
        done=(path / "DONE").exists(),
    )


def _setting(cfg: DictConfig, parts: contents.Parts | None) -> str:
    """What an unguided run shares with those measured against it: all that is sampled from but the method and its reward, and what
    of that the files held.
    """
    kept = cfg.copy()
    for key in ("method", "reward"):
        kept.pop(key, None)
    return config.identity(kept, {part: digests for part, digests in (parts or {}).items() if part not in ("method", "reward")})


def _with_lent(runs: Sequence[Run]) -> list[Run]:
    """The runs, with metrics lent to unguided ones that were never judged, from the `base` columns of those measured against them.

    Intervals are not lent: the guided run's metrics have none of the unguided one. Nor is a score of which they say different
    things, as it is not the same in all of them: a sum of other weights, say.
    """
    found = []
    for run in runs:
        guided = [other.metrics for other in runs if other.setting == run.setting and _against_base(other)]
        if run.metrics or not run.unguided or not guided:
            found.append(run)
            continue
        rewards = {metrics.get("reward") for metrics in guided}
        lent = {
            "title": run.folder.name, "label": "base", "reward": rewards.pop() if len(rewards) == 1 else None,
            "samples": len(run.records), "prompts": len({record.task for record in run.records}),
            "scores": {name: {"value": value, "shares_guide": False} for name, value in _agreed(guided).items()},
            "cost": guided[0]["base_cost"],
        }  # fmt: skip
        found.append(dataclasses.replace(run, metrics=lent, lent=True))
    return found


def _agreed(guided: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the metrics of guided runs say of the unguided one, by score, where they do not contradict each other."""
    told: dict[str, list[float]] = {}
    for metrics in guided:
        for name, entry in metrics["scores"].items():
            if entry.get("base") is not None:
                told.setdefault(name, []).append(entry["base"])
    # Rounding differs between devices and batch sizes.
    return {
        name: first
        for name, (first, *others) in told.items()
        if all(math.isclose(value, first, rel_tol=1e-3, abs_tol=1e-6) for value in others)
    }


def _against_base(run: Run) -> bool:
    """Whether it was measured against the unguided run, not against a folder of pictures."""
    return run.judged and not run.unguided and run.config.get("reference") == "base" and "base_cost" in run.metrics


def _place(run: Run) -> tuple[Any, ...]:
    """Unguided first, those with metrics of their own before others; then by cost, unjudged runs last."""
    cost = run.metrics.get("cost", {}).get("nfe", float("inf"))
    return (not run.unguided, not run.judged, cost, str(run.metrics.get("label")), run.metrics.get("title", run.folder.name))


# Names


def _named(runs: Sequence[Run]) -> list[Run]:
    """The runs with names that tell them apart: a label alone where it is one run's, else with the options that differ."""
    labels = [_label(run, runs) for run in runs]
    groups: dict[str, list[Run]] = {}
    for label, run in zip(labels, runs, strict=True):
        groups.setdefault(label, []).append(run)
    names = [f"{label}{_difference(run, groups[label])}" for label, run in zip(labels, runs, strict=True)]
    counts = collections.Counter(names)
    digits = [run.metrics.get("title", run.folder.name).rsplit("-", 1)[-1] for run in runs]
    return [
        dataclasses.replace(run, name=name if counts[name] == 1 else f"{label} {own}")
        for run, name, label, own in zip(runs, names, labels, digits, strict=True)
    ]


def _label(run: Run, runs: Sequence[Run]) -> str:
    """What the run's table calls it, else its method's file; of an unguided run beside others whom it serves."""
    if run.judged:
        return str(run.metrics.get("label") or run.metrics["title"])
    if not run.unguided:
        return str((run.config.get("table") or {}).get("row") or config.module_of(run.config["method"]))
    served = sorted({_label(other, ()) for other in runs if other.setting == run.setting and not other.unguided})
    if not served or sum(other.unguided for other in runs) == 1:
        return "base"
    return f"base of {', '.join(served[:3])}{', ...' if len(served) > 3 else ''}"


def _difference(run: Run, group: Sequence[Run]) -> str:
    """The options in which a run differs from most of its group, with their values; nothing where they are none or too many."""
    if len(group) == 1:
        return ""
    flat = [dict(options({key: other.config.get(key) for key in _MAKES})) for other in group]
    own = flat[[other.folder for other in group].index(run.folder)]
    usual = {key: collections.Counter(str(other.get(key)) for other in flat).most_common(1)[0][0] for key in own}
    told = [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in own.items() if str(value) != usual[key]]
    return " ".join(["", *told]) if len(told) <= _TOLD else ""


def options(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a config."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
