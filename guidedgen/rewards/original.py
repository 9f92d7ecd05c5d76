"""Shared by rewards that compare a picture with its original: the one that the unguided model draws of the same sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from guidedgen.basics import images
from guidedgen.basics.tasks import Task


def against_originals(compare: Callable[[Tensor, Tensor], Tensor], seen: Tensor, side: int, tasks: Sequence[Task]) -> Tensor:
    """compare(seen, originals) -> b, of what is seen of b pictures (b ...) and the originals of their tasks (b 3 `side` `side`, in
    [0, 1]); NaN where a task has none, as unguided ones have.
    """
    indices = [i for i, task in enumerate(tasks) if task.original is not None]
    values = torch.full((len(tasks),), torch.nan, dtype=seen.dtype, device=seen.device)
    if not indices:
        return values
    files = (Path(str(tasks[i].original)) for i in indices)
    originals = torch.cat([images.resize(images.read(file), side) for file in files]).to(seen)
    return values.index_put((torch.tensor(indices, device=seen.device),), compare(seen[indices], originals))
