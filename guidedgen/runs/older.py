"""What makes runs and plug-ins of older versions work: the names that classes, modules and runs had, and keys that configs lack."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import types
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, open_dict

# First names of classes that configs name. A run's identity is a hash of its config, in which a class has its first name for ever.
_CLASSES = {
    "guidedgen.augment.Augmentations": "guidedgen.basics.augment.Augmentations",
    "guidedgen.tracker.Wandb": "guidedgen.runs.tracker.Wandb",
}
_FIRST = {now: first for first, now in _CLASSES.items()}
# Modules that a method, reward or data set of the user's own may import (version 0.1), and where what they held is now.
_MODULES = {
    "guidedgen.types": (
        "guidedgen.basics.errors", "guidedgen.basics.tasks", "guidedgen.process", "guidedgen.gradients", "guidedgen.methods",
        "guidedgen.rewards", "guidedgen.zoo", "guidedgen.basics.images",
    ),
    "guidedgen.problem": ("guidedgen.methods.problem",),
    "guidedgen.augment": ("guidedgen.basics.augment",),
    "guidedgen.images": ("guidedgen.basics.images",),
    "guidedgen.noise": ("guidedgen.basics.noise",),
}  # fmt: skip
# Former names of what those modules held.
_NAMES = {"Pose": "MakeProblems"}
# Former names of keys of metrics.json, and of events that a method reports to its observer.
_METRICS = {"beside": "extra_images"}
_EVENTS = {"beside": "extra_images"}
# What stored configs may lack: none of it decides a sample.
_MISSING = {
    "shard": {"count": 1, "index": 0},
    "run.show_flagged": False,
    "run.trace_images": 0,
    "run.objective": None,
    "run.objective_limit": None,
    "gpu_dtype": "float16",
    "zoo_dtype": "float32",
    "reference_seed": None,
}
# Keys that configs did not have at first, with what that meant: a run with this value is named as one without the key.
_LATER: dict[str, Any] = {
    "model.size": None, "model.embedded_guidance": None, "model.offload": False, "model.vae_tiling": False,
    "model.vae_slicing": False, "model.quantization": None, "model.weaker": None, "model.guidance": None, "model.clip_sample": None,
    "scheduler.variance": "small",
    "method.referee_steps": 1, "method.distill_seed": 0, "method.noise_twice": False, "method.distill_prompt": "{prompt}",
    "method.show": [],
    "reward.edit": None,
    "method.invert": False, "method.guide": "all",
}  # fmt: skip
# Networks that were always in float32: a run that has them in it is named as one without their `dtype`.
_IN_FLOAT32 = (
    "guidedgen.zoo.clip.HubClip", "guidedgen.zoo.clip.LabClip", "guidedgen.zoo.openclip.OpenClip", "guidedgen.zoo.blip2.HubBlip2",
    "guidedgen.zoo.blip2.LabBlip2", "guidedgen.zoo.vqa.BlipVqa", "guidedgen.zoo.vqa.LabVqa",
)  # fmt: skip
# Runs whose samples have changed: where a config has these values, what is new about them goes into the run's name.
_CHANGED: tuple[tuple[Mapping[str, tuple[str, ...]], str], ...] = (
    (
        {
            "scheduler": ("guidedgen.process.schedulers.DpmSolver",),
            "model": ("guidedgen.models.stable_diffusion_3.StableDiffusion3", "guidedgen.models.families.any_model"),
        },
        "a flow's network reads whole times, as in diffusers",
    ),
    (
        {
            "method": ("guidedgen.methods.adjoint_tuning.AdjointTuning",),
            "method.gradients": ("guidedgen.gradients.adjoint.Adjoint",),
        },
        "drawn by the solver that it was learned with",
    ),
)


def event_now(event: str) -> str:
    """The name that an observer's event has now, by that or a former one."""
    return _EVENTS.get(event, event)


def metrics_now(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a metrics.json with the keys that it has now. Keys of its own win."""
    return {_METRICS.get(key, key): value for key, value in metrics.items() if _METRICS.get(key) not in metrics}


def class_now(name: str) -> str:
    """The name that a class has now, by that or a former one."""
    return _CLASSES.get(name, name)


def current(value: Any) -> Any:
    """The plain values of a stored config with the names that classes have now."""
    return _renamed(value, _CLASSES)


def first(config: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values of a config with the names that classes had at first, without keys that say what was always so, and with
    what has changed about the samples since.
    """
    kept: dict[str, Any] = _renamed(_without_float32(dict(config)), _FIRST)
    for key, value in _LATER.items():
        above, _, name = key.rpartition(".")
        if isinstance(kept.get(above), dict) and name in kept[above] and kept[above][name] == value:
            kept[above] = {other: item for other, item in kept[above].items() if other != name}
    changed = [what for classes, what in _CHANGED if all(_class_of(_at(kept, part)) in names for part, names in classes.items())]
    return {**kept, "changed": changed} if changed else kept


def _without_float32(value: Any) -> Any:
    if isinstance(value, dict):
        always = _class_of(value) in _IN_FLOAT32 and value.get("dtype") == "float32"
        return {key: _without_float32(item) for key, item in value.items() if not (always and key == "dtype")}
    return [_without_float32(item) for item in value] if isinstance(value, list) else value


def _at(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, None where there is none."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _class_of(node: Any) -> str | None:
    return node.get("_target_") if isinstance(node, Mapping) else None


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: names.get(item, item) if key == "_target_" and isinstance(item, str) else _renamed(item, names)
            for key, item in value.items()
        }
    return [_renamed(item, names) for item in value] if isinstance(value, list) else value


def completed(config: DictConfig) -> DictConfig:
    """A stored config with the keys that it lacks."""
    with open_dict(config):
        for key, value in _MISSING.items():
            above, _, name = key.rpartition(".")
            node = config[above] if above else config
            if name not in node:
                node[name] = value
    return config


def run_id(deciding: Mapping[str, Any]) -> str:
    """The hash that named a run before the contents of files and the values of numbers entered it, of what decides its samples."""
    return hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()[:12]


def know_modules() -> None:
    """Lets code of the user's import what is needed for methods, rewards and data sets by the names of older versions."""
    for name, modules in _MODULES.items():
        if name not in sys.modules:
            sys.modules[name] = _Former(name, modules)


class _Former(types.ModuleType):
    """A module that is no longer there; what it held is looked up where it is now."""

    def __init__(self, name: str, modules: tuple[str, ...]) -> None:
        super().__init__(name, f"The former name of {', '.join(modules)}.")
        self._modules = modules

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for module in self._modules:
                found = vars(importlib.import_module(module)).get(_NAMES.get(name, name))
                if found is not None:
                    return found
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
