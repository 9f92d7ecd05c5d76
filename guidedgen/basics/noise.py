"""Randomness as an argument: one stream per sample and particle, so that no sample depends on the others.

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
    """Random draws for b samples. Particle 0 of a sample sees what the unguided run of that sample sees.

    What is not the chain's own noise is drawn from a `fork`, so that switching it off leaves the chain as it was.
    """

    def __init__(self, keys: Sequence[str], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self._keys = list(keys)
        self._device, self._dtype = device, dtype
        self._streams: dict[tuple[str, int], np.random.Generator] = {}

    def draw(self, particles: int, shape: Sequence[int]) -> Tensor:
        """The next standard normal draw of the first `particles` streams of every sample: b particles *shape."""
        shape = tuple(shape)
        rows = [[self._stream(key, k).standard_normal(shape, dtype=np.float32) for k in range(particles)] for key in self._keys]
        return torch.from_numpy(np.array(rows)).to(self._device, self._dtype)

    def uniform(self, particles: int) -> Tensor:
        """One number in [0, 1) of each of the first `particles` streams of every sample: b particles, float64."""
        rows = [[self._stream(key, k).random() for k in range(particles)] for key in self._keys]
        return torch.tensor(rows, dtype=torch.float64, device=self._device)

    def fork(self, purpose: str) -> Noise:
        """Streams of their own for the same samples, at their beginning; not to be forked twice for one purpose."""
        return Noise([f"{key}/{purpose}" for key in self._keys], device=self._device, dtype=self._dtype)

    def subset(self, rows: Sequence[int]) -> Noise:
        """The noise of some of the samples: what it draws, this one has drawn."""
        part = Noise([self._keys[row] for row in rows], device=self._device, dtype=self._dtype)
        part._streams = self._streams
        return part

    def _stream(self, key: str, particle: int) -> np.random.Generator:
        found = self._streams.get((key, particle))
        if found is None:
            found = self._streams[key, particle] = stream(key, particle)
        return found
