"""A diffusers pipeline that the user has loaded, as a model: its configs go to a folder, its networks are used as they are.

While a pipeline is lent, `model.path=FOLDER` is that pipeline. Its networks are frozen for that time, and afterwards are what they
were before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guidedgen.basics.errors import UsageError

_LENT: dict[str, Mapping[str, nn.Module]] = {}


def networks(path: str) -> Mapping[str, nn.Module] | None:
    """The networks of the pipeline that is lent as this folder, by part; None where none is."""
    return _LENT.get(path)


@contextlib.contextmanager
def lent(pipeline: Any, folder: Path, *, hashed: bool) -> Iterator[str]:
    """Lends a pipeline as a folder inside `folder`, and yields its path. Where `hashed`, the digests of all weights are written
    there too, so that runs are named by them. Raises UsageError for a pipeline that cannot be used as it is.
    """
    parts = _networks(pipeline)
    digests = {name: _digest(network) if hashed else "" for name, network in parts.items()}
    label = hashlib.sha256(json.dumps([type(pipeline).__name__, digests, _configs(parts)]).encode()).hexdigest()[:12]
    path = folder / f"{type(pipeline).__name__}-{label}"
    _write(pipeline, path, digests)
    with contextlib.ExitStack() as stack:
        for network in parts.values():
            stack.enter_context(_as_before(network))
        if str(path) in _LENT:
            raise UsageError(f"{type(pipeline).__name__}: this pipeline is in use already")
        _LENT[str(path)] = parts
        stack.callback(_LENT.pop, str(path))
        yield str(path)


def _networks(pipeline: Any) -> dict[str, nn.Module]:
    name = type(pipeline).__name__
    parts = {part: found for part, found in pipeline.components.items() if isinstance(found, nn.Module)}
    parts.pop("safety_checker", None)
    for part, network in parts.items():
        if any(hasattr(module, "_hf_hook") for module in network.modules()):
            rule = 'without enable_model_cpu_offload or device_map; use pipeline.to("cuda")'
            raise UsageError(f"{name}: its {part} is moved by accelerate's hooks; load the pipeline {rule}")
        if any(parameter.is_meta for parameter in network.parameters()):
            raise UsageError(f"{name}: its {part} holds no weights (device meta)")
    places = {str(parameter.device) for network in parts.values() for parameter in network.parameters()}
    if len(places) > 1:
        raise UsageError(f"{name}: its networks are on several devices ({', '.join(sorted(places))}); use pipeline.to(device)")
    return parts


def _configs(parts: Mapping[str, nn.Module]) -> dict[str, str]:
    return {name: str(getattr(network, "config", "")) for name, network in parts.items()}


def _digest(network: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return found.hexdigest()


def _write(pipeline: Any, path: Path, digests: Mapping[str, str]) -> None:
    """The folder that diffusers would save, without weights."""
    path.mkdir(parents=True, exist_ok=True)
    pipeline.save_config(path)
    for name, component in pipeline.components.items():
        folder = path / name
        if isinstance(component, nn.Module):
            if name not in digests:
                continue
            folder.mkdir(exist_ok=True)
            (folder / "weights.sha256").write_text(digests[name])
            network: Any = component
            if hasattr(network, "save_config"):  # diffusers'
                network.save_config(folder)
            else:
                network.config.save_pretrained(folder)
        elif hasattr(component, "save_pretrained") and name != "feature_extractor":
            component.save_pretrained(folder)


@contextlib.contextmanager
def _as_before(network: nn.Module) -> Iterator[None]:
    """Freezes a network, and puts everything back that was changed in it: what learns, what is a part of what, how it attends."""
    learns = {parameter: parameter.requires_grad for parameter in network.parameters()}
    modes = {module: module.training for module in network.modules()}
    children = [(module, name, child) for module in network.modules() for name, child in module.named_children()]
    processors = {module: module.processor for module in network.modules() if hasattr(module, "processor")}
    network.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, name, child in children:
            setattr(module, name, child)
        for module, processor in processors.items():
            module.processor = processor
        for parameter, learned in learns.items():
            parameter.requires_grad_(learned)
        for module, training in modes.items():
            module.training = training
