"""Finds weights: a local path, the local hub cache, the hub; in this order, and never more than the files asked for.

The cache comes first so that a run does not change when a repository does. No pickled object is read: safetensors, or state
dicts through torch's `weights_only` unpickler.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guidedgen.basics.errors import UsageError
from guidedgen.zoo.needed import Needed, again, digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SAFE = ("*.safetensors", "*.json", "*.txt")


def locate(
    name_or_path: str | Path,
    *,
    key: str,
    files: Sequence[str] = SAFE,
    required: Sequence[str] = (),
    one_of: Sequence[Sequence[str]] = (),
) -> Path:
    """The folder of a local model, or of the snapshot of a hub repository: see `Needed`."""
    groups = tuple(map(tuple, one_of))
    return Needed(name=str(name_or_path), key=key, files=tuple(files), required=tuple(required), one_of=groups).locate()


def read_config(folder: Path, *, source: str, kind: str | None = None) -> dict[str, Any]:
    """The config.json of a network in transformers' format; `source` is what messages call the folder.

    Raises UsageError where it is no JSON object as transformers reads them, or the model is of another type than `kind`.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: its config.json cannot be read ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("vision_config") or {}, dict):
        raise UsageError(f"{source}: its config.json does not describe a network")
    if kind is not None and config.get("model_type") != kind:
        article = "an" if kind[0] in "aeiou" else "a"
        raise UsageError(f"{source}: holds a model of type {config.get('model_type')}; {article} {kind} is needed")
    return config


def locate_file(repo_or_path: str | Path, filename: str, *, key: str, sha256: str | None = None) -> Path:
    """One file: `repo_or_path` is the file itself, a folder that holds `filename`, or a hub repository that does.

    Raises UsageError as `Needed.locate` does, and where the content's SHA-256 (hexadecimal) is not `sha256`.
    """
    name = str(repo_or_path)
    path = Needed(name=name, key=key, weights=((filename,),)).locate_weights()
    if sha256 is not None and (found := digest(path)) != sha256.lower():
        raise UsageError(f"{key}={name}: {path.name} has SHA-256 {found}, expected {sha256.lower()}; fetch it again")
    return path


def locate_lab(filename: str, *, key: str, part: str) -> Path:
    """A file of the weights that come with the lab. `part` is its name in `scripts/train_lab.py`. Raises UsageError."""
    from guidedgen.lab.networks import WEIGHTS

    path = WEIGHTS / filename
    if not path.is_file():
        raise UsageError(f"{key}: {path} is missing; make it with: python scripts/train_lab.py --parts {part}")
    return path


def read_state(path: Path, *, key: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The state dict in a safetensors file, or in a file of torch.save: alone, or under "state_dict" or "model" as in training
    checkpoints.

    Raises UsageError where the file is neither. On the device "meta", shapes are read and numbers are not.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return {name: tensor.to(device) for name, tensor in load_file(path).items()}
        state = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, SafetensorError) as error:  # OSError: cut off in its middle
        raise UsageError(
            f"{key}={path}: not a state dict of tensors ({type(error).__name__}); pickled objects are refused{again(path)}"
        ) from error
    if isinstance(state, dict):
        state = next((state[holder] for holder in ("state_dict", "model") if isinstance(state.get(holder), dict)), state)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UsageError(f"{key}={path}: not a state dict of tensors")
    return state
