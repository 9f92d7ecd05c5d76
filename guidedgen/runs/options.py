"""The options that are plain values: counts, names, switches, device and dtype, settled before anything is built."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from guidedgen.basics import precision
from guidedgen.basics.errors import UsageError
from guidedgen.runs import config, targets
from guidedgen.runs.shards import Shard

SAMPLES = 1_000_000  # of a run at most
# Least and largest. A seed is limited too: those of the images after it are larger.
_COUNTS = {"seed": (0, 2**62), "reference_seed": (0, 2**62), "samples_per_prompt": (1, SAMPLES), "batch_size": (1, SAMPLES)}
_FRAMES = 100  # of a sample
_DEVICES = r"cpu|cuda(:\d{1,4})?"
_NAME = 100  # bytes of a name that becomes a folder's, or a part of one's: there are other parts, and 255 in all


def settled(cfg: DictConfig, shard: Shard, *, elsewhere: bool = False) -> DictConfig:
    """A resolved copy in which device and dtype are real ones and the plain options are checked. It holds for the whole run.

    `elsewhere`: a device that is named need not be on this machine. Raises UsageError for what is wrong with it.
    """
    cfg = config.copied(cfg)
    OmegaConf.update(cfg, "shard", {"count": 1, "index": 0}, force_add=True)
    for key in _COUNTS:
        if (found := value(cfg, key)) is not None or key != "reference_seed":
            _check_count(key, found)
    _check_run(cfg)
    _check_name("study", value(cfg, "study"), "folder name")
    for key, wanted in {"outputs": "a folder", "reference": "base, none or a folder of pictures"}.items():
        if not isinstance(found := value(cfg, key), str) or not found or not _printable(found):
            raise UsageError(f"{key}={_shown(found)}: expected {wanted}")
    targets.packages(value(cfg, "allow_targets"))
    device = value(cfg, "device")
    if not elsewhere or device == "auto":
        cfg.device = real_device(device, shard.local)
    if value(cfg, "dtype") == "auto":
        cfg.dtype = "float32" if cfg.device == "cpu" else value(cfg, "gpu_dtype")
    cfg.zoo_dtype = precision.settled(value(cfg, "zoo_dtype"), cfg.device)
    cfg = _resolved(cfg)
    # Those of the zoo first, which other nodes refer to.
    for key, found in sorted(_devices(cfg), key=lambda pair: not pair[0].startswith("zoo.")):
        if not elsewhere:
            real_device(found, key=key)
        elif not re.fullmatch(_DEVICES, str(found)):
            raise UsageError(_not_here(key, found, 0))
    if isinstance(cfg.model, DictConfig):
        _check_name("model.name", cfg.model.get("name"), "name, which its runs' folders have in theirs")
    for key in ("metrics", "metrics.scorers", "metrics.distances", "zoo"):
        if not isinstance(found := OmegaConf.select(cfg, key), DictConfig):
            raise UsageError(f"{key}={_shown(found)}: expected a mapping")
    return cfg


def value(cfg: DictConfig, key: str) -> Any:
    """An option's value. Raises UsageError where it refers to a missing key, to itself or to a value that is not given yet."""
    try:
        return OmegaConf.select(cfg, key, throw_on_missing=True)
    except Exception as error:  # OmegaConf's many errors, and RecursionError
        reason = "refers to itself" if isinstance(error, RecursionError) else _one_line(error)
        raise UsageError(f"{key}: {reason}") from error


def _held(node: DictConfig, key: str) -> Any:
    """The value of a key with dots in it."""
    try:
        return node[key]
    except Exception as error:  # OmegaConf's many errors, and RecursionError
        raise UsageError(f"{key}: {_one_line(error)}") from error


def _check_count(key: str, found: Any) -> None:
    least, most = _COUNTS[key]
    if not isinstance(found, int) or isinstance(found, bool):
        raise UsageError(f"{key}={_shown(found)}: expected a whole number")
    if not least <= found <= most:
        bound = f"at least {least}" if found < least else f"at most {most}"
        raise UsageError(f"{key}={_shown(found)}: must be {bound}")


def _check_run(cfg: DictConfig) -> None:
    """The node `run`, of which older runs lack some keys."""
    for key in ("fresh", "profile", "show_flagged"):
        if not isinstance(found := value(cfg, f"run.{key}"), bool) and (key != "show_flagged" or found is not None):
            raise UsageError(f"run.{key}={_shown(found)}: expected true or false")
    frames = value(cfg, "run.trace_images") or 0
    if not isinstance(frames, int) or isinstance(frames, bool) or not 0 <= frames <= _FRAMES:
        raise UsageError(f"run.trace_images={_shown(frames)}: expected a whole number from 0 to {_FRAMES}")
    objective, limits = value(cfg, "run.objective"), value(cfg, "run.objective_limit")
    if not isinstance(objective, str | None):
        raise UsageError(f"run.objective={_shown(objective)}: expected a number of metrics.json, as scores.taste.value, or null")
    if limits is None:
        return
    if not isinstance(limits, DictConfig):
        raise UsageError(f"run.objective_limit={_shown(limits)}: expected a mapping, as in {{distances.cmmd.value: 0.5}}, or null")
    for key in map(str, limits):
        if not _is_number(found := _held(limits, key)):
            raise UsageError(f"run.objective_limit.{key}={_shown(found)}: expected a finite number")


def _is_number(found: Any) -> bool:
    return isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)


def _check_name(key: str, found: Any, what: str) -> None:
    """Raises UsageError where a text cannot be part of a file name."""
    plain = isinstance(found, str) and found and "/" not in found and not found.startswith(".") and _printable(found)
    if not plain or len(found.encode()) > _NAME:
        hint = f"; as a text: '{key}=\"{found}\"'" if isinstance(found, int | float) else ""
        raise UsageError(f"{key}={_shown(found)}: expected a plain {what}, of at most {_NAME} bytes{hint}")


def _printable(text: str) -> bool:
    """Whether a text has neither control characters nor halves of characters."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text)


def _shown(found: object) -> str:
    """A value as shown in a message: in one line, cut where it is too long."""
    text = str(found)
    text = text if _printable(text) else ascii(text)[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}..."


def _devices(node: DictConfig | ListConfig, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every device that a resolved config names, at any depth, by its key."""
    for name in range(len(node)) if isinstance(node, ListConfig) else list(node):
        inner = f"{key}.{name}" if key else str(name)
        if name == "device":
            yield inner, node[name]
        elif isinstance(node[name], DictConfig | ListConfig):
            yield from _devices(node[name], inner)


def real_device(name: object, local: int | None = None, key: str = "device") -> str:
    """The device that a name stands for, auto too; of several GPUs the one at index `local`, the process's local rank.

    Raises UsageError where it is not on this machine, or of an unsupported kind.
    """
    count = torch.cuda.device_count()  # which every process of a machine may see
    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{local % count}" if local is not None and count > 1 else "cuda"
    try:
        if re.fullmatch(_DEVICES, str(name)):
            torch.empty(0, device=str(name))
            return str(torch.device(str(name)))
    except (RuntimeError, AssertionError) as error:
        raise UsageError(_not_here(key, name, count)) from error
    raise UsageError(_not_here(key, name, count))


def _not_here(key: str, name: object, count: int) -> str:
    return (
        f"{key}={_shown(name)}: not on this machine; choose from auto, {', '.join(['cpu', *(f'cuda:{i}' for i in range(count))])}"
    )


def _resolved(cfg: DictConfig) -> DictConfig:
    """The config with references resolved. Raises UsageError where one cannot be, and for values that the user has to give."""
    try:
        cfg = config.resolved(cfg)
        missing = sorted(OmegaConf.missing_keys(cfg))
    except InterpolationKeyError as error:
        wanted = str(error).split("'")[1]
        if wanted.startswith("table."):
            raise UsageError(f"row={cfg.table.row}: no row of experiment={cfg.table.name}, which has no {wanted}") from error
        hint = rf"for the text itself write \${{{wanted}}}, or read it from a file: dataset=text"
        raise UsageError(f"${{{wanted}}}: no such key; {hint}") from error
    except Exception as error:  # OmegaConf's many errors
        referred = re.search(r"Missing mandatory value: (\S+)", str(error))  # by an interpolation
        if referred is None:
            raise UsageError("an option refers to itself" if isinstance(error, RecursionError) else _one_line(error)) from error
        missing = [referred[1]]
    if missing:
        raise UsageError(f"{missing[0]}: missing; give it as {missing[0]}=...")
    return cfg


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
