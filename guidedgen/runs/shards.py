"""Which share of a run a process takes, where several processes make one run: tasks of a SLURM array or job, or of torchrun."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from guidedgen.basics.errors import UsageError

Item = TypeVar("Item")
_MOST = 100_000  # shares


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One of `count` shares, the `index`-th from 0. `local` is the process's index among those of its machine."""

    index: int = 0
    count: int = 1
    local: int | None = None

    @property
    def part(self) -> str:
        """The name of this share in file names; empty where there is one share."""
        return f"{self.index}-of-{self.count}" if self.count > 1 else ""

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th of the items, from the `index`-th on: shares that differ by one item at most."""
        return items[self.index :: self.count]


def find_shard(count: int | str, index: int | str, environ: Mapping[str, str]) -> Shard:
    """The share that the options `shard.count` and `shard.index` name; `auto` is read from the environment:

    count    torchrun's WORLD_SIZE, or the tasks of an srun step; else 1. An array is not taken as one run: it may hold several.
    index    torchrun's RANK, the task's index in an srun step, or in an array, counted from its first index

    Raises UsageError for a count or an index that cannot be, and where a share has no index.
    """
    torchrun = "TORCHELASTIC_RUN_ID" in environ
    step = not torchrun and _number(environ, "SLURM_STEP_NUM_TASKS", 1, "1") > 1
    local = _number(environ, "LOCAL_RANK" if torchrun else "SLURM_LOCALID", 0, "-1") if torchrun or step else -1
    size = _number(environ, "WORLD_SIZE", 1) if torchrun else _number(environ, "SLURM_STEP_NUM_TASKS", 1) if step else 1
    found = size if count == "auto" else _whole("shard.count", count, 1)
    if index != "auto":
        rank = _whole("shard.index", index, 0)
    elif torchrun or step:
        rank = _number(environ, "RANK" if torchrun else "SLURM_PROCID", 0)
    elif found > 1 and "SLURM_ARRAY_TASK_ID" in environ:
        rank = _number(environ, "SLURM_ARRAY_TASK_ID", 0) - _number(environ, "SLURM_ARRAY_TASK_MIN", 0, "0")
    elif found > 1:
        hint = f"give shard.index=0..{found - 1}, or start the shares as tasks of torchrun, srun or a SLURM array"
        raise UsageError(f"shard.count={count}: which share is this? {hint}")
    else:
        rank = 0
    if not 0 <= rank < found:
        raise UsageError(f"shard.index={rank}: shard.count={found} has shares 0..{found - 1}")
    return Shard(index=rank, count=found, local=None if local < 0 else local)


def _whole(key: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
        bounds = f"at least {least}" if isinstance(value, int) and value < least else f"{least} to {_MOST}"
        raise UsageError(f"{key}={value}: expected auto, or a whole number of {bounds}")
    return value


def _number(environ: Mapping[str, str], name: str, least: int, default: str | None = None) -> int:
    """A number that a launcher has set. Raises UsageError where that is no number, or is missing without a default."""
    value = environ.get(name, default)
    if value is None:
        raise UsageError(f"{name}: is missing, which the launcher that started this process sets; give shard.count and shard.index")
    if name in environ and not (re.fullmatch(r"\d{1,9}", value) and int(value) >= least):
        raise UsageError(
            f"{name}={value}: in the environment, expected a whole number of at least {least}; unset it, or correct it"
        )
    return int(value)
