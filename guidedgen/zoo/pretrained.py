"""Loads networks of transformers and diffusers from their folders: safetensors or tensors alone, no remote code, nothing from the
network.

Every tensor of the files is used and every tensor of the network is in them, of its shape; else one line names what does not fit.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from guidedgen.basics.errors import UsageError
from guidedgen.zoo.weights import check_weights

# Tensors that older files hold and networks count out anew: they are the same numbers in every file.
_COUNTED = (r"(^|\.)position_ids$", r"(^|\.)rotary_emb\.inv_freq$")
# How keys begin that were saved from a wrapper, and the network inside it.
_WRAPPERS = {"_orig_mod.": ("torch.compile", "network._orig_mod"), "module.": ("DataParallel", "network.module")}
_WEIGHTS = {"diffusers": "diffusion_pytorch_model", "safetensors": "model", "bin": "pytorch_model"}


@contextlib.contextmanager
def readable(source: object, what: str, library: str = "transformers") -> Iterator[None]:
    """Makes a UsageError of whatever the library raises inside, which is reading `what` of `source`; nothing is logged by it.

    Its errors for files that are cut off or of another form have no class in common: OSError, TypeError, safetensors', plain
    Exception of the tokenizers.
    """
    try:
        with _silent():
            yield
    except (UsageError, torch.OutOfMemoryError):  # callers go on with less where memory is short
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". If you want")[0]
        raise UsageError(f"{source}: {library} cannot load {what} ({reason})") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The libraries log nothing and draw no bars: what is wrong with a file is reported once, by the error."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    loggers = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def weights_name(kind: Any, *, safetensors: bool) -> str:
    """The file in which a class of diffusers or transformers keeps its weights."""
    suffix = "safetensors" if safetensors else "bin"
    return f"{_WEIGHTS['diffusers' if _library(kind) == 'diffusers' else suffix]}.{suffix}"


@torch.inference_mode(False)
def load_pretrained(
    kind: Any,
    folder: Path,
    *,
    what: str,
    safetensors: bool,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    source: object = None,
    spare: Sequence[str] = (),
    quantization: Any = None,
    quantised: bool = False,
    channels_last: bool = False,
) -> Any:
    """The frozen network of a class of diffusers' or transformers' (or one of its Auto classes).

    Each tensor is put on the device in `dtype` as soon as it is read: neither there nor on the host is there ever a second copy.
    `what` is what messages call it, `source` (the folder, unless given) where it is from. Tensors whose names match one of the
    patterns in `spare` may be left over. Weights are quantised by `quantization`, diffusers' config of it, or are `quantised` in
    the folder; with `channels_last` those of other networks' convolutions are stored so. Loading may first happen inside inference
    mode, whose tensors could never be differentiated through afterwards: that is left. Raises UsageError where the folder holds
    another kind of network, or one that needs code of its own, or lacks tensors or has others, or cannot be read.
    """
    source, library = folder if source is None else source, _library(kind)
    check_weights(folder, weights_name(kind, safetensors=safetensors), str(source), quantised=quantised)
    options: dict[str, Any] = {
        "dtype": dtype, "local_files_only": True, "use_safetensors": safetensors, "output_loading_info": True,
    }  # fmt: skip
    if library == "transformers":  # diffusers has no code from elsewhere, and no other way of reading tensors
        options |= {"trust_remote_code": False, "weights_only": True, "ignore_mismatched_sizes": True}  # they are in the report
    if quantization is not None:
        options["quantization_config"] = quantization
    with readable(source, f"it as {what}", library):
        try:
            network, report = kind.from_pretrained(folder, device_map={"": device}, **options)
        except NotImplementedError:  # of diffusers, which would move the tensors that the files lack; without, it tells which
            network, report = kind.from_pretrained(folder, **options)
    _check_fit(report, f"{source}: the weights", what, (*_COUNTED, *spare))
    plain = quantization is None and not quantised
    if odd := [name for name, p in network.named_parameters() if p.is_meta or (plain and not p.is_floating_point())]:
        raise UsageError(f"{source}: the weights hold no floating-point numbers for {len(odd)} tensors of {what}, {odd[0]} first")
    network = network.eval().requires_grad_(False)
    if not plain:
        return network  # it may refuse to be moved, and is there already
    return network.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format)


def load_processor(kind: Any, folder: Path, *, source: object, what: str) -> Any:
    """The tokenizer or processor of a class of transformers'; messages say `what` of `source` cannot be loaded, as a UsageError."""
    with readable(source, what):
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _library(kind: Any) -> str:
    return kind.__module__.partition(".")[0]


def _check_fit(report: Mapping[str, Any], source: str, what: str, spare: Sequence[str]) -> None:
    """Raises UsageError where a loading report has tensors that are missing, left over (but for the spare) or of another shape."""
    missing = sorted(report["missing_keys"])
    left = sorted(key for key in report["unexpected_keys"] if not any(re.search(pattern, key) for pattern in spare))
    shapes = sorted({key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]})
    for prefix, (wrapper, inside) in _WRAPPERS.items():
        if left and all(key.startswith(prefix) for key in left):
            few = ", ".join(left[:3])
            raise UsageError(
                f"{source} of {what} were saved under {wrapper}: {len(left)} keys begin with {prefix} ({few}, ...); save {inside}"
            )
    faults = {f"lack {len(missing)} tensors of {what}": missing, f"hold {len(left)} tensors that {what} does not have": left}
    faults[f"have {len(shapes)} tensors of another shape than {what} by its config"] = shapes
    if reason := " and ".join(f"{fault}, {', '.join(keys[:3])} first" for fault, keys in faults.items() if keys):
        raise UsageError(f"{source} {reason}; {'they are of another network' if left or shapes else 'fetch them again'}")
