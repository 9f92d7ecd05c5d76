"""Loads a network of transformers from its folder: safetensors or tensors alone, no remote code, nothing from the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from guidedgen.types import UsageError


@torch.inference_mode(False)
def load_pretrained(
    kind: Any, folder: Path, *, what: str, safetensors: bool, device: torch.device, dtype: torch.dtype = torch.float32
) -> Any:
    """The frozen network of a class of transformers' (or one of its Auto classes); `what` is what messages call it.

    Loading may first happen inside inference mode, whose tensors could never be differentiated through afterwards: that is left.
    Raises UsageError where the folder holds another kind of network, or one that needs code of its own, or lacks tensors.
    """
    try:
        loaded = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=safetensors,
            weights_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{folder}: transformers cannot load it as {what} ({reason})") from error
    network, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UsageError(f"{folder}: the weights lack {len(missing)} tensors of {what}, {missing[0]} first; fetch them again")
    return network.eval().requires_grad_(False).to(device)
