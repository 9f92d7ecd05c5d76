"""Files of tensors from elsewhere, read without running code: safetensors, or torch.save's by its weights_only unpickler."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from guidedgen.basics.errors import UsageError
from guidedgen.zoo.weights import is_pointer

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "BOOL": torch.bool,
}  # fmt: skip  others are no type of a weight


def read_tensors(file: Path, source: str, *, values: bool = True) -> tuple[Any, dict[str, str]]:
    """What a file holds (of safetensors, tensors by name; of torch.save, whatever was saved) and its metadata (safetensors' only).

    Without `values`, tensors of safetensors that have more than one number are on the device "meta": only the header is read.
    Raises UsageError, which begins with `source`: damaged, no file of tensors, or it holds more than tensors and plain values.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise UsageError(f"{source}: {file.name} cannot be read ({error.strerror})") from error
    if not start:
        raise UsageError(f"{source}: {file.name} is an empty file")
    if is_pointer(start):
        raise UsageError(f"{source}: {file.name} is a pointer of Git LFS, not the file it stands for; get that with: git lfs pull")
    try:
        if file.suffix == ".safetensors":
            return _read_safetensors(file, values)
        with torch.serialization.safe_globals([torch.nn.ParameterDict]):  # of the first textual inversions
            return torch.load(file, map_location="cpu", weights_only=True), {}
    except torch.OutOfMemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise UsageError(f"{source}: {file.name} is damaged or holds more than tensors: no pickled code is run") from error
    except Exception as error:  # safetensors', zip files', and whatever an unpickler meets in other bytes
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UsageError(f"{source}: {file.name} is damaged or no file of tensors ({reason})") from error


def _read_safetensors(file: Path, values: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    found: dict[str, Tensor] = {}
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118  it is no dictionary
            part = opened.get_slice(name)
            shape = part.get_shape()
            if values or torch.Size(shape).numel() <= 1:
                found[name] = opened.get_tensor(name)
            else:
                found[name] = torch.empty(shape, dtype=_TYPES.get(part.get_dtype(), torch.int8), device="meta")
        return found, dict(opened.metadata() or {})


def check_numbers(tensors: dict[str, Tensor], source: str) -> None:
    """Raises UsageError where one is not of finite floating-point numbers; numbers on the device "meta" are not looked at."""
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise UsageError(f"{source}: {name} holds {str(value.dtype).removeprefix('torch.')}, not floating-point numbers")
        if not value.is_meta and not bool(value.isfinite().all()):
            raise UsageError(f"{source}: {name} holds numbers that are not finite")


def first(names: Iterable[object], count: int = 3) -> str:
    """The first few of many names, for a message."""
    every = [str(name) for name in names]
    return ", ".join(every[:count]) + (f" and {len(every) - count} more" if len(every) > count else "")
