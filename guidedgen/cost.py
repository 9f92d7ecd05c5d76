"""What a run spends: network rows, decodes, reward calls, and the seconds in each."""

from __future__ import annotations

import contextlib
import dataclasses
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor


@dataclasses.dataclass
class Ledger:
    """Counts since it was made.

    `nfe` counts denoiser rows, a classifier-free guidance pair being two; `nfe_backward` the rows whose gradient was taken;
    `decodes` images decoded; `reward_calls` images scored while guiding. `seconds` is wall time by kind of work: on a GPU,
    where calls return early, it is exact only with `synchronise`.
    """

    synchronise: bool = False
    nfe: int = 0
    nfe_backward: int = 0
    decodes: int = 0
    reward_calls: int = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Adds the wall time of the block to `seconds[kind]`."""
        start = time.perf_counter()
        try:
            yield
            if self.synchronise:
                torch.cuda.synchronize()
        finally:
            self.seconds[kind] += time.perf_counter() - start

    def count_backward(self, output: Tensor, rows: int) -> None:
        """Counts `rows` once the gradient of a network's output is taken."""
        if output.requires_grad:
            output.register_hook(lambda _gradient: self._took(rows))

    def _took(self, rows: int) -> None:
        self.nfe_backward += rows

    def counts(self) -> dict[str, int]:
        """The four counters by name."""
        names = ("nfe", "nfe_backward", "decodes", "reward_calls")
        return {name: getattr(self, name) for name in names}


def peak_memory_mib(device: torch.device | str) -> float:
    """Peak memory in MiB: allocated by torch on a GPU, resident for the whole process on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB on Linux
