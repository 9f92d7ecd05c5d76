"""Which share of a run a process takes, where several processes make one run: tasks of a SLURM array or job, or of torchrun."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypeVar

from guidedgen.types import UsageError

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One of `count` shares, the `index`-th from 0. `local` is the process's place among those of its machine."""

    index: int = 0
    count: int = 1
    local: int | None = None

    @property
    def part(self) -> str:
        """What the files of this share are named by; empty where there is one share."""
        return f"{self.index}-of-{self.count}" if self.count > 1 else ""

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th of the items, from the `index`-th on: shares that differ by one item at most."""
        return items[self.index :: self.count]


def find_shard(count: int | str, index: int | str, environ: Mapping[str, str]) -> Shard:
    """The share that the options `shard.count` and `shard.index` name; `auto` is what the process was started as:

    count    torchrun's WORLD_SIZE, or the tasks of an srun step; else 1. An array is not taken for one run: its tasks may be many.
    index    torchrun's RANK, the task's place in an srun step, or that in an array from its first index on

    Raises UsageError for a count or an index that cannot be, and where a share is asked for that nothing says the index of.
    """
    torchrun, step = "TORCHELASTIC_RUN_ID" in environ, int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    local = environ.get("LOCAL_RANK") if torchrun else environ.get("SLURM_LOCALID") if step else None
    size = int(environ["WORLD_SIZE"] if torchrun else environ["SLURM_STEP_NUM_TASKS"] if step else 1)
    found = size if count == "auto" else _whole("shard.count", count, 1)
    if index != "auto":
        place = _whole("shard.index", index, 0)
    elif torchrun or step:
        place = int(environ["RANK" if torchrun else "SLURM_PROCID"])
    elif found > 1 and "SLURM_ARRAY_TASK_ID" in environ:
        place = int(environ["SLURM_ARRAY_TASK_ID"]) - int(environ.get("SLURM_ARRAY_TASK_MIN", 0))
    elif found > 1:
        way_out = f"give shard.index=0..{found - 1}, or start the shares as tasks of torchrun, srun or a SLURM array"
        raise UsageError(f"shard.count={count}: which share is this? {way_out}")
    else:
        place = 0
    if not 0 <= place < found:
        raise UsageError(f"shard.index={place}: shard.count={found} has shares 0..{found - 1}")
    return Shard(index=place, count=found, local=None if local is None else int(local))


def _whole(key: str, value: int | str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{key}={value}: expected auto, or a whole number of at least {least}")
    return value
