"""Which class or function a config node may name by `_target_`: one of the kind that its key asks for, defined in a module of
guidedgen for such classes, or in a package that `allow_targets` adds. What such a module merely imports is not accepted: it could
be anything.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from guidedgen.basics.errors import UsageError
from guidedgen.basics.tasks import Dataset
from guidedgen.gradients import GradientEngine
from guidedgen.methods import Method
from guidedgen.process import Scheduler
from guidedgen.rewards import Reward
from guidedgen.runs import older

TARGETS = ("guidedgen.",)  # whose code a config may call; `allow_targets` adds to it
# Networks and other parts, which constructors ask for by the types of their options.
_PARTS = ("guidedgen.zoo", "guidedgen.lab.answers", "guidedgen.lab.classes")
_MODULES = {
    Method: ("guidedgen.methods",),
    Reward: ("guidedgen.rewards", "guidedgen.metrics", "guidedgen.lab.judge"),
    Dataset: ("guidedgen.datasets",),
    Scheduler: ("guidedgen.process.schedulers",),
    GradientEngine: ("guidedgen.gradients",),
}
# Packages in which each file holds one class, named as the file.
_ONE_EACH = ("guidedgen.methods.", "guidedgen.rewards.", "guidedgen.datasets.")


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a key asks for: where guidedgen defines such, and what each of them has."""

    what: str
    modules: tuple[str, ...]
    methods: tuple[str, ...] = ()  # that its class has
    members: tuple[str, ...] = ()  # that it has once it is built
    base: type | None = None  # that its class is derived from


_ANY = Kind(
    "part of a run", (*(module for modules in _MODULES.values() for module in modules), *_PARTS, "guidedgen.basics.augment")
)
_KEYS: Mapping[str, Any] = {
    "method": Method,
    "reward": Reward,
    "dataset": Dataset,
    "scheduler": Scheduler,
    "model": Kind("model", ("guidedgen.models",), ("denoiser", "check"), ("schedule", "latent_shape")),
    "tracker": Kind("tracker", ("guidedgen.runs.tracker",), ("log",)),
    "metrics.scorers": Reward,
    "metrics.distances": Kind("distance", ("guidedgen.metrics",), ("__call__",), ("name", "features")),
    "metrics.per_class": Kind("distance class by class", ("guidedgen.metrics.classes",), ("__call__",), ("features", "pictures")),
}  # fmt: skip


def at(key: str) -> Kind:
    """What a key of the composed config asks for; any part of a run where that is not known."""
    found = _KEYS.get(key, _KEYS.get(key.rpartition(".")[0]) if key.startswith("metrics.") else None)
    return found if isinstance(found, Kind) else of(found)


def of(hint: Any) -> Kind:
    """What an option of this type asks for."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [of(option) for option in options]
        return kinds[0] if len(kinds) == 1 else dataclasses.replace(_ANY, modules=sum((kind.modules for kind in kinds), ()))
    if hint is None or hint in (Any, object, inspect.Parameter.empty) or isinstance(hint, typing.TypeVar):
        return _ANY
    if not inspect.isclass(hint) or hint.__module__ == "builtins":
        return Kind(str(getattr(hint, "__name__", hint)), ())  # a number, a text, a list: no object
    modules = _MODULES.get(hint, (hint.__module__, *_PARTS))
    if not getattr(hint, "_is_protocol", False):
        return Kind(hint.__name__, modules, base=hint)
    members = {name: getattr(base, name, None) for base in hint.__mro__[:-1] if base.__module__ != "typing" for name in
               {**vars(base), **_annotated(base)} if name == "__call__" or not name.startswith("_")}  # fmt: skip
    methods = tuple(name for name, member in members.items() if inspect.isfunction(member))
    return Kind(hint.__name__, modules, methods, tuple(members.keys() - {*methods}))


def packages(value: object) -> tuple[str, ...]:
    """The packages that the option `allow_targets` adds. Raises UsageError where it is no list of them."""
    if not isinstance(value, ListConfig | list | tuple):
        raise UsageError(f"allow_targets={value}: expected a list, as in allow_targets=[my_lab.]")
    for entry in value:
        if not isinstance(entry, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*\.?", entry):
            raise UsageError(f"allow_targets: {entry!a} is no name of a package, as in allow_targets=[my_lab.]")
        if entry.split(".")[0] in sys.stdlib_module_names:
            raise UsageError(f"allow_targets: {entry} is Python's own, which makes no part of a run; give a package of yours")
    return tuple(value)


def named(node: DictConfig, key: str, allow: Sequence[str], kind: Kind) -> Callable[..., Any]:
    """The class or function that a node names.

    Raises:
        UsageError: it is not allowed, does not exist, is no class and no function that says what it makes, or is of another kind.
    """
    path = node["_target_"]
    path = older.class_now(path) if isinstance(path, str) else path
    prefixes = (*TARGETS, *(f"{entry.rstrip('.')}." for entry in allow))
    if not isinstance(path, str) or not path.startswith(prefixes):
        raise UsageError(f"{key}._target_={path}: only {', '.join(prefixes)} may be called; add its package to allow_targets=[...]")
    module = path.rpartition(".")[0]
    own = path.startswith(TARGETS)
    given = f"{key}._target_={path}"
    if own and not _within(module, kind.modules):
        asked = f"a class of {' or '.join(kind.modules)}, or of a package in allow_targets" if kind.modules else "no object"
        raise UsageError(f"{given}: {key} takes {asked}")
    try:
        found = load(path)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{given}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a module of the user's may raise
        raise UsageError(f"{given}: {raised(error)}") from error
    if not (inspect.isclass(found) or inspect.isfunction(found)) or getattr(found, "_is_protocol", False):
        raise UsageError(f"{given}: not a class or function that makes something")
    defined = str(found.__module__)
    if (own and defined != module) or not (own or _within(defined, [entry.rstrip(".") for entry in allow])):
        raise UsageError(f"{given}: is defined in {defined}, and only imported there; name it where it is defined")
    if (why := _misfit(found, kind, own)) is not None:
        raise UsageError(f"{given}: {key} takes a {kind.what}; {why}")
    return found


def load(path: str) -> Any:
    """What a path names. Raises ImportError, AttributeError, and whatever its module raises."""
    module, _, name = older.class_now(path).rpartition(".")
    if not path.startswith(TARGETS):
        older.know_modules()
    return getattr(importlib.import_module(module), name)


def check_built(built: object, path: str, key: str, kind: Kind) -> None:
    """Raises UsageError where what a target has made lacks something that its kind has."""
    lacking = [name for name in (*kind.methods, *kind.members) if not (hasattr(type(built), name) or hasattr(built, name))]
    if lacking:
        raise UsageError(f"{key}._target_={path}: {key} takes a {kind.what}; this one has no {', '.join(sorted(lacking))}")


def hints(target: Callable[..., Any]) -> dict[str, Any]:
    """The types of a target's options; none where they cannot be found, as those that only a type checker imports."""
    try:
        if dataclasses.is_dataclass(target):  # of whose fields each is read in the module of the class that has it
            return typing.get_type_hints(target)
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # whatever an annotation of the user's may raise
        return {}


def called(path: str) -> str:
    """A target's name in names of runs and of scores: its file, where a file holds one class, else its file and its class."""
    module, _, name = path.rpartition(".")
    file = module.rpartition(".")[2]
    return file if module.startswith(_ONE_EACH) else "_".join(filter(None, [file, name]))


def _misfit(target: Any, kind: Kind, own: bool) -> str | None:
    """Why a class, or what a function says that it returns, is not of the kind; None where it is."""
    made = target if inspect.isclass(target) else hints(target).get("return")
    if made is typing.NoReturn and own:  # it says what is missing
        return None
    if made is None:
        return "a function has to say what it returns, as in def make() -> Reward"
    if not inspect.isclass(made):
        return None  # a union, say: what it makes is looked at once it is made
    if kind.base is not None and not issubclass(made, kind.base):
        return f"{made.__name__} is no {kind.base.__name__}"
    # Others may set their members as they are made.
    wanted = [*kind.methods, *(kind.members if own and kind.modules in _MODULES.values() else ())]
    lacking = [name for name in wanted if not any(name in {**vars(base), **_annotated(base)} for base in made.__mro__)]
    return f"{made.__name__} has no {', '.join(lacking)}" if lacking else None


def _annotated(base: type) -> Mapping[str, Any]:
    return inspect.get_annotations(base)


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def raised(error: BaseException) -> str:
    """What the user's code has raised, and where, in one line."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(last[0].filename).name}, line {last[0].lineno})" if last else ""
    return " ".join(f"{type(error).__name__}: {error}{where}".split())
