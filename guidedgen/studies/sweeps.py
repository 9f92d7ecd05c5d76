"""Sweeps: the runs that a list of values stands for, each with its overrides and its folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guidedgen.basics.errors import UsageError
from guidedgen.runs import composition, config, identity

_SETTLED = ("device", "dtype", "allow_targets")  # keys whose values are not taken as they are given, or say how others are


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a sweep."""

    overrides: list[str]  # plain ones
    config_dir: Path | None = None

    @property
    def arguments(self) -> list[str]:
        """`python run.py *arguments` makes it."""
        return composition.arguments(self.overrides, self.config_dir)

    @functools.cached_property
    def folder(self) -> Path:
        """The folder of its files. Raises UsageError where its config is wrong.

        The device is part of a run's name: that of `device=auto` is the one of the machine this is asked on.
        """

        return identity.folder_of_run(composition.composed(self.overrides, self.config_dir))


def runs(overrides: Sequence[str], config_dir: Path | None = None) -> list[Run]:
    """Every combination of `a=1,2 b=3,4`, with what an experiment sweeps by itself, in the order in which Hydra runs them.

    Overrides of `hydra.` say how runs are started and are no part of them. Raises UsageError for overrides that cannot be read,
    and for sweeps that cannot be listed: intervals, from which a sweeper chooses while it runs.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    sweeper, own = composition.sweeper(composition.parse(overrides), config_dir)
    if not sweeper._target_.endswith(".BasicSweeper"):
        raise UsageError("hydra/sweeper: it chooses the next run by the results of those before: python run.py -m runs it")
    items = [item for item in composition.parse([*own, *overrides]) if not item.is_hydra_override()]
    for item in items:
        if item.is_sweep_override() and not item.is_discrete_sweep():
            raise UsageError(f"{item.input_line}: no list of values; give one, as in {item.get_key_element()}=0.1,0.2")
    (batch,) = BasicSweeper.split_arguments(items, max_batch_size=None)
    return [Run(overrides=run, config_dir=config_dir) for run in batch]


def folders(runs: Sequence[Run]) -> list[Path]:
    """The folder of each run, as in `Run.folder`. Runs that differ only in values of free keys are composed once.

    Raises UsageError where a config is wrong.
    """

    groups: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
    for i, run in enumerate(runs):
        free = composition.free_values(run.overrides, run.config_dir)
        kept = {key: value for key, value in free.items() if key not in _SETTLED}
        rest = tuple(override for override in run.overrides if override.partition("=")[0] not in kept)
        groups.setdefault((rest, tuple(sorted(kept)), run.config_dir), []).append((i, kept))
    found: dict[int, Path] = {}
    with config.sharing():
        for members in groups.values():
            first = runs[members[0][0]]
            cfg = composition.composed(first.overrides, first.config_dir)
            folders = identity.folders_of_runs(cfg, [values for _, values in members])
            found |= {i: folder for (i, _), folder in zip(members, folders, strict=True)}
    return [found[i] for i in range(len(runs))]


def composed_once() -> None:
    """Lets Hydra start a sweep whose runs have all been composed and checked without composing each of them twice more."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    BasicSweeper.validate_batch_is_legal = lambda *_: None  # type: ignore[method-assign]


def listed(overrides: Sequence[str], config_dir: Path | None = None) -> list[Run]:
    """The runs of a sweep that can be listed before it starts; none where a sweeper chooses them while it runs."""
    try:
        return runs(overrides, config_dir)
    except UsageError:
        return []
