"""Quantised weights: which kinds there are, and what each needs. Gradients by latents go through all of them.

bnb_nf4, bnb_int8   bitsandbytes (Dettmers et al. 2022, arXiv:2208.07339; 2023, arXiv:2305.14314): 4.5 or 8 bits a weight; on a GPU
torchao_int8        torchao's 8 bits with a scale per output; activations are not quantised
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

from guidedgen.basics.errors import BadValue, UsageError

_PACKAGES = {"bnb_nf4": "bitsandbytes", "bnb_int8": "bitsandbytes", "torchao_int8": "torchao"}  # of each kind
_ON_GPU = ("bitsandbytes",)


def check(kind: object, device: str, dtype: str) -> None:
    """Raises BadValue or UsageError where weights cannot be quantised like this, there or in this dtype."""
    if kind is None:
        return
    if kind not in _PACKAGES:
        raise BadValue("quantization", kind, f"choose from {', '.join(_PACKAGES)}, or null for none")
    if dtype == "float64":
        raise BadValue("quantization", kind, "must be null with dtype=float64")
    check_package(_PACKAGES[str(kind)], device, f"model.quantization={kind}")


def check_package(package: str, device: str, source: str) -> None:
    """Raises UsageError where a package is missing, or cannot compute on the device."""
    if not installed(package):
        raise UsageError(f"{source}: needs the package {package}, which is not installed: pip install {package}")
    if package in _ON_GPU and torch.device(device).type == "cpu":
        raise UsageError(f"{source}: {package} computes on a GPU alone, and this is device=cpu")


def installed(package: str) -> bool:
    """Whether there is a package."""
    return importlib.util.find_spec(package) is not None


def config_of(kind: str | None, dtype: torch.dtype) -> Any:
    """What diffusers is told of a kind that `check` has passed."""
    if kind is None:
        return None
    from diffusers import BitsAndBytesConfig, TorchAoConfig

    if kind == "bnb_nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if kind == "bnb_int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def package_of(stored: Any) -> str:
    """The package that weights are quantised with which a config says so of (`quantization_config`); empty where none can read
    them, or differentiate through them.
    """
    method = stored.get("quant_method") if isinstance(stored, Mapping) else None
    if method == "torchao":
        types = stored.get("quant_type")
        kind = types.get("default", {}).get("_type", "") if isinstance(types, Mapping) else ""
        # Others quantise activations, through which torchao has no gradients.
        return "torchao" if isinstance(kind, str) and kind.endswith("WeightOnlyConfig") else ""
    return "bitsandbytes" if method == "bitsandbytes" else ""
