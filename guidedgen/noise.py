"""Randomness as an argument: one stream per sample and particle, so that no sample depends on its neighbours.

A stream is named by what it is for (the run's seed, the task, the image's seed, the particle) and not by where it stands in a
batch, a shard or a resumed run. Numbers are drawn on the CPU in float32, so that they are the same on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(*key: object) -> torch.Generator:
    """A CPU generator whose stream is a function of the key's text."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


class Noise:
    """Standard normal draws for b samples. Particle 0 of a sample sees what the unguided run of that sample sees."""

    def __init__(self, keys: Sequence[str], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self._keys = list(keys)
        self._device, self._dtype = device, dtype
        self._streams: dict[tuple[int, int], torch.Generator] = {}

    def draw(self, particles: int, shape: Sequence[int]) -> Tensor:
        """The next draw of the first `particles` streams of every sample: b particles *shape."""
        rows = [[self._next(i, k, shape) for k in range(particles)] for i in range(len(self._keys))]
        return torch.stack([torch.stack(row) for row in rows]).to(self._device, self._dtype)

    def _next(self, sample: int, particle: int, shape: Sequence[int]) -> Tensor:
        stream = self._streams.get((sample, particle))
        if stream is None:
            stream = self._streams[sample, particle] = generator(self._keys[sample], particle)
        return torch.randn(tuple(shape), generator=stream)
