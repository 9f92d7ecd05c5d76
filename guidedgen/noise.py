"""Randomness as an argument: one stream per sample and particle, so that no sample depends on its neighbours.

A stream is named by what it is for (the run's seed, the task, the image's seed, the particle) and not by where it stands in a
batch, a shard or a resumed run. Numbers are drawn on the CPU in float32, so that they are the same on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def stream(*key: object) -> np.random.Generator:
    """A stream that is a function of the key's text, through 128 bits of its hash: no two keys will ever share one."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(key)[:16], "big")))


def generator(*key: object) -> torch.Generator:
    """The same for torch's functions; its CPU generator keeps 32 bits of a seed, so among 10,000 keys some 1 % share a stream."""
    return torch.Generator().manual_seed(int.from_bytes(_digest(key)[:7], "big"))


def _digest(key: Sequence[object]) -> bytes:
    return hashlib.sha256("/".join(map(str, key)).encode()).digest()


class Noise:
    """Standard normal draws for b samples. Particle 0 of a sample sees what the unguided run of that sample sees."""

    def __init__(self, keys: Sequence[str], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self._keys = list(keys)
        self._device, self._dtype = device, dtype
        self._streams: dict[tuple[int, int], np.random.Generator] = {}

    def draw(self, particles: int, shape: Sequence[int]) -> Tensor:
        """The next draw of the first `particles` streams of every sample: b particles *shape."""
        rows = [[self._next(i, k, shape) for k in range(particles)] for i in range(len(self._keys))]
        return torch.from_numpy(np.array(rows)).to(self._device, self._dtype)

    def _next(self, sample: int, particle: int, shape: Sequence[int]) -> np.ndarray:
        found = self._streams.get((sample, particle))
        if found is None:
            found = self._streams[sample, particle] = stream(self._keys[sample], particle)
        return found.standard_normal(tuple(shape), dtype=np.float32)
