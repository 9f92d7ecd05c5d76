"""What computations keep, in bytes: what autograd would save for one, and how much is alive at once while one runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary


def saved_bytes(compute: Callable[[], object]) -> int:
    """Bytes that autograd would keep for a computation, weights not counted; nothing is kept while it is measured."""
    total = 0
    # Weak, and by object: what is freed meanwhile is counted all the same, and its address may serve the next tensor.
    seen = WeakIdKeyDictionary()

    def weigh(tensor: Tensor) -> None:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage not in seen and not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            seen[storage] = None
            total += storage.nbytes()

    def never(_: None) -> Tensor:
        raise RuntimeError("nothing was kept")

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(weigh, never):
        compute()
    return total


class Alive(TorchDispatchMode):
    """Inside `with Alive() as alive`, `alive.peak` is the most bytes that tensors made inside held at once.

    Counted tensor by tensor, without an allocator's rounding or a kernel's workspace; what was there before (weights, inputs) is
    not counted. Slow: not for timing. On a CPU alone: a GPU's backward passes run in a thread of their own, which is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        for storage in _storages([*args, *(kwargs or {}).values()]):
            self._known[storage] = None
        result = func(*args, **(kwargs or {}))
        for storage in _storages([result]):
            if storage not in self._known:
                self._known[storage] = None
                self.now += self.size(storage)
                weakref.finalize(storage, self._freed, self.size(storage))
        self.peak = max(self.peak, self.now)
        return result

    def size(self, storage: torch.UntypedStorage) -> int:
        """What it is counted as."""
        return storage.nbytes()

    def _freed(self, size: int) -> None:
        self.now -= size


def _storages(values: Iterable[object]) -> Iterator[torch.UntypedStorage]:
    for value in values:
        if isinstance(value, Tensor):
            yield value.untyped_storage()
        elif isinstance(value, list | tuple):
            yield from _storages(value)
