"""Loads a network of transformers from its folder: safetensors or tensors alone, no remote code, nothing from the network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from guidedgen.types import UsageError


@contextlib.contextmanager
def readable(source: object, what: str) -> Iterator[None]:
    """Makes a UsageError of whatever transformers raises inside, which is reading `what` of `source`.

    Its errors for files that are cut off or of another form have no class in common: OSError, TypeError, safetensors', plain
    Exception of the tokenizers.
    """
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):  # callers go on with less where memory is short
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{source}: transformers cannot load {what} ({reason})") from error


@torch.inference_mode(False)
def load_pretrained(
    kind: Any, folder: Path, *, what: str, safetensors: bool, device: torch.device, dtype: torch.dtype = torch.float32
) -> Any:
    """The frozen network of a class of transformers' (or one of its Auto classes); `what` is what messages call it.

    Loading may first happen inside inference mode, whose tensors could never be differentiated through afterwards: that is left.
    Raises UsageError where the folder holds another kind of network, or one that needs code of its own, or lacks tensors, or cannot
    be read.
    """
    with readable(folder, f"it as {what}"):
        network, report = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=safetensors,
            weights_only=True,
            output_loading_info=True,
        )
    if missing := sorted(report["missing_keys"]):
        raise UsageError(f"{folder}: the weights lack {len(missing)} tensors of {what}, {missing[0]} first; fetch them again")
    return network.eval().requires_grad_(False).to(device)


def load_processor(kind: Any, folder: Path, *, source: object, what: str) -> Any:
    """The tokenizer or processor of a class of transformers'; messages say `what` of `source` cannot be loaded, as a UsageError."""
    with readable(source, what):
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
