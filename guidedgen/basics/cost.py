"""What a run spends: network rows, decodes, reward calls, and the seconds in each."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


@dataclasses.dataclass
class Ledger:
    """Counts since it was made.

    `nfe` counts denoiser rows, a classifier-free guidance pair being two; `nfe_backward` the rows whose gradient was taken;
    `decodes` images decoded; `reward_calls` images scored while guiding. `seconds` is wall time by kind of work, of a block inside
    another one to its own kind alone, so that they add up to no more than the time that has passed. On a GPU, where calls return
    early, that is exact only where `device` is waited for, which keeps it from working ahead.
    """

    device: torch.device | str | None = None  # waited for wherever the kind of work changes; None: none
    nfe: int = 0
    nfe_backward: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    _kinds: list[str] = dataclasses.field(default_factory=list, repr=False)  # of the blocks that are open, one in the other
    _changed: float = dataclasses.field(default=0.0, repr=False)  # when the last of them was opened or closed

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Adds the wall time of the block, less that of blocks inside it, to `seconds[kind]`.

        Blocks may be opened on several threads if one waits for the other, as a backward pass does for the threads that work on it.
        """
        self._change()
        self._kinds.append(kind)
        try:
            yield
        finally:
            self._change()
            self._kinds.pop()

    def _change(self) -> None:
        """Adds the time since the last change to the kind of the innermost block."""
        if self.device is not None:
            wait_for(self.device)
        now = time.perf_counter()
        if self._kinds:
            self.seconds[self._kinds[-1]] += now - self._changed
        self._changed = now

    def count_backward(self, output: Tensor, rows: int) -> None:
        """Counts `rows` once the gradient of a network's output is taken."""
        if output.requires_grad:
            output.register_hook(lambda _gradient: self._took(rows))

    def _took(self, rows: int) -> None:
        self.nfe_backward += rows

    def forget(self, counts: Mapping[str, int]) -> None:
        """Sets the counters back, as after work that has to be done again."""
        for name, value in counts.items():
            setattr(self, name, value)

    def counts(self) -> dict[str, int]:
        """The four counters by name."""
        names = ("nfe", "nfe_backward", "decodes", "reward_calls")
        return {name: getattr(self, name) for name in names}


def wait_for(device: torch.device | str) -> None:
    """Returns when a GPU has done all that was asked of it, so that the clock can be read. A CPU is never behind."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak_memory(device: torch.device | str) -> None:
    """Begins a GPU's peak anew; that of a process cannot be."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device | str) -> float:
    """Peak memory in MiB: allocated by torch on a GPU, resident for the whole process on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB on Linux
