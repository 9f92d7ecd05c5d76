"""From a composed config to objects: the types and names of every constructor's options, targets limited to known packages, near
misses, and the identity of a run. Every mistake is one line, found before anything heavy is imported or loaded.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from guidedgen.types import BadValue, UsageError

CONF = Path(__file__).resolve().parent.parent / "conf"
TARGETS = ("guidedgen.",)  # whose code a config may call; `allow_targets` adds to it
_OF_HYDRA = ("_target_", "_convert_", "_partial_", "_recursive_")  # keys of a node that are no options of its target
# What a stored config needs for a run to be built from it; what else there is now, older runs do not have.
_NODES = ("run", "zoo", "metrics", "metrics.scorers", "metrics.distances", "model", "method", "dataset", "scheduler")
_VALUES = ("seed", "samples_per_prompt", "batch_size", "device", "dtype", "reference", "allow_targets", "run.fresh", "run.profile",
           "model.name", "reward", "tracker")  # fmt: skip
# What does not change a sample: where it is stored, how it is shown and judged.
_NOT_IDENTITY = ("outputs", "study", "run", "tracker", "metrics", "zoo", "reference", "allow_targets", "table", "shard")


def groups(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Config groups and their options. An overlay's or a row's may lie in a folder of its group, as in experiment=codex/aesthetic;
    other folders in a group are groups themselves, as method/gradients.
    """
    found: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.rglob("*.yaml"):
            option = file.relative_to(folder).with_suffix("")
            nested = option.parts[0] in ("experiment", "row")
            for parent in option.parents[:-1] if nested else option.parents[:-1][:1]:
                found.setdefault(parent.as_posix(), set()).add(option.relative_to(parent).as_posix())
    return {group: sorted(options) for group, options in found.items() if not group.startswith("hydra")}


def near(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" where a known word is close, or the last part of one, as in row=full; else nothing."""
    words = list(known)
    lasts = {name.rpartition("/")[2]: name for name in reversed(words)}
    close = difflib.get_close_matches(word, words, 1, cutoff=0.6)
    close = close or [lasts[last] for last in difflib.get_close_matches(word, lasts, 1, cutoff=0.6)]
    return f"; did you mean {close[0]}?" if close else ""


def identity(config: DictConfig | Mapping[str, Any], contents: Mapping[str, Any] | None = None) -> str:
    """Twelve hex digits that name what is sampled: a hash of the resolved config less storage, display and judgement, and of the
    `contents` of the files it names.
    """
    kept = _deciding(config)
    return digest({**kept, "contents": contents} if contents else kept)


def identity_without_contents(config: DictConfig) -> str:
    """The name that a run was given before the contents of files and the values of numbers entered it."""
    return hashlib.sha256(json.dumps(_deciding(config), sort_keys=True, default=str).encode()).hexdigest()[:12]


def _deciding(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    assert isinstance(plain, Mapping)
    return {str(key): value for key, value in plain.items() if key not in _NOT_IDENTITY}


def published(config: DictConfig) -> dict[str, Any]:
    """What the source of its table prints of a run; empty where the run's setting is not the printed one.

    It is where the table's overlay and row alone make the same samples. The device, its dtype, the batch size and the keys that
    the table lists as `given` by the user may differ.
    """
    table = config.get("table")
    if not table or not table.get("published") or table.get("row") not in table.published:
        return {}
    names = [f"experiment={table.name}", f"row={table.name.split('/')[0]}/{table.row}"]
    free = [f"{key}={config[key]}" for key in ("device", "dtype", "batch_size")]
    try:
        composed = _composed([*names, *free])
        for key in composed.table.given:
            OmegaConf.update(composed, key, OmegaConf.select(config, key))
        same = identity(composed) == identity(config)
    except Exception:  # Hydra's and OmegaConf's: a table that is no longer there
        return {}
    return {"source": composed.table.source, **composed.table.published[composed.table.row]} if same else {}


def _composed(overrides: list[str]) -> DictConfig:
    """A config from the folders of the running process, or from the project's own where Hydra does not run."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return compose("config", overrides=overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=overrides)


def shown(value: Any) -> str:
    """A value as a command line has it."""
    return "null" if value is None else str(value)


def digest(values: Mapping[str, Any]) -> str:
    """Twelve hex digits that change with any of the values; 2 and 2.0 are one, true and "2" are others."""
    plain = {key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in values.items()}
    return hashlib.sha256(json.dumps(_by_value(plain), sort_keys=True, default=str).encode()).hexdigest()[:12]


def _by_value(value: Any) -> Any:
    """The value with every number spelled in one way: a whole one as an integer, so that -0.0 is 0 too."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {str(key): _by_value(item) for key, item in value.items()}
    return [_by_value(item) for item in value] if isinstance(value, list | tuple) else value


# What many runs share

_Made = TypeVar("_Made")
_made: ContextVar[dict[Hashable, Any] | None] = ContextVar("made", default=None)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Inside, what `once` makes is made once: for checks of many runs that have most in common, none of which is run."""
    token = None if _made.get() is not None else _made.set({})
    try:
        yield
    finally:
        if token is not None:
            _made.reset(token)


def once(make: Callable[[], _Made], name: Callable[[], Hashable]) -> _Made:
    """What `make` gives; inside `sharing`, what it gave for the same name before."""
    made = _made.get()
    if made is None:
        return make()
    known = name()
    if known not in made:
        made[known] = make()
    return made[known]


def spelled(node: Any) -> str:
    """All that a node or a value says, resolved, in one text: a name for `once`."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return json.dumps(plain, default=repr)


# From a config node to an object


def build(node: DictConfig, key: str, allow: Sequence[str] = ()) -> Any:
    """The object a node with `_target_` describes, with every name and type checked first; inside `sharing`, one for all equal
    nodes.

    Raises:
        UsageError: the target is not allowed or does not exist, an option is unknown, missing or of the wrong type or value.
    """
    return once(lambda: _build(node, key, allow), lambda: ("object", key, tuple(allow), spelled(node)))


def _build(node: DictConfig, key: str, allow: Sequence[str]) -> Any:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    check_node(node, key, allow)
    try:
        return instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, BadValue):
            inner = re.search(r"^full_key: (\S+)$", str(error), re.MULTILINE)  # of a node inside this one, it may be
            raise UsageError(f"{inner[1] if inner else key}.{cause.name}={cause.value}: {cause.rule}") from error
        if isinstance(cause, UsageError):
            raise cause from error
        raise (cause or error) from error


def check_node(node: DictConfig, key: str, allow: Sequence[str] = ()) -> None:
    """Raises UsageError where `build` would not get as far as calling the targets of the node and of those inside it."""
    target = target_of(node, key, allow)
    parameters = inspect.signature(target).parameters
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for name in map(str, node):
        if name in _OF_HYDRA:
            continue
        if name not in parameters or name.startswith("_"):  # `_args_` would hide options from the checks
            way_out = near(name, parameters) or f"; an experiment's, it may be: '~{key}.{name}' leaves it out"
            raise UsageError(f"{key}.{name}: {node['_target_']} has no such option{way_out}")
        _check_value(node[name], hints.get(name, Any), f"{key}.{name}", allow)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in node:
            raise UsageError(f"{key}.{name}: missing; {node['_target_']} needs it")


def _check_value(value: Any, hint: Any, key: str, allow: Sequence[str]) -> None:
    """Raises UsageError for a value of the wrong type, or a wrong node inside it at any depth: Hydra would build that too."""
    if isinstance(value, DictConfig) and "_target_" in value:
        check_node(value, key, allow)
        return
    _check_type(value, hint, key)
    if isinstance(value, DictConfig):
        inner = typing.get_args(hint)[1] if typing.get_origin(hint) in (dict, Mapping) else Any
        for name in map(str, value):
            _check_value(value[name], inner, f"{key}.{name}", allow)
    elif isinstance(value, ListConfig):
        for i, item in enumerate(value):
            _check_value(item, Any, f"{key}.{i}", allow)


def without_weightless(node: DictConfig) -> DictConfig:
    """A weighted sum (`rewards` and `weights` by name) without the rewards of weight 0: they are not built, nor their weights
    looked for. Any other node as it is.
    """
    if not isinstance(node, DictConfig):  # which `build` refuses
        return node
    if not isinstance(node.get("rewards"), DictConfig) or not isinstance(node.get("weights"), DictConfig):
        return node
    kept = node.copy()
    with open_dict(kept):
        for name in [name for name in node.rewards if node.weights.get(name) == 0]:
            del kept.rewards[name]
    return kept


def module_of(node: Mapping[str, Any] | DictConfig) -> str:
    """The file a node's target lives in: one method, reward or dataset, one file."""
    return str(node["_target_"]).split(".")[-2]


def target_of(node: DictConfig, key: str, allow: Sequence[str] = ()) -> Callable[..., Any]:
    """The class or function a node names. Raises UsageError where it is not allowed or does not exist."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UsageError(f"{key}={shown(node)}: expected a mapping with the _target_ it is built by")
    path = str(node["_target_"])
    prefixes = (*TARGETS, *allow)
    if not path.startswith(prefixes):
        raise UsageError(f"{key}._target_={path}: only {', '.join(prefixes)} may be called; add its package to allow_targets=[...]")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{key}._target_={path}: {error}") from error
    if not callable(found):
        raise UsageError(f"{key}._target_={path}: not a class or function")
    return found


def _check_type(value: Any, hint: Any, key: str) -> None:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if not _fits(value, hint):
        if typing.get_origin(hint) is typing.Literal:
            options = [str(option) for option in typing.get_args(hint)]
            raise UsageError(f"{key}={shown(value)}: no such choice{near(str(value), options)}; choose from {', '.join(options)}")
        expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("collections.abc.Sequence", "list")
        got = "null" if value is None else type(value).__name__
        way_out = f"""; as a text: '{key}="{value}"'""" if hint is str and value is not None else ""
        raise UsageError(f"{key}={shown(value)}: expected {expected}, got {got}{way_out}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return value in arguments
    if value is None:  # a node that is left out is no object of its class
        return hint in (Any, object, type(None)) or isinstance(hint, typing.TypeVar)
    if hint is type(None):
        return False
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if origin in (list, tuple, Sequence):
        if not isinstance(value, list):
            return False
        each = arguments if origin is tuple and Ellipsis not in arguments else arguments[:1] * len(value)
        return all(_fits(item, wanted) for item, wanted in zip(value, each, strict=False))
    return True  # a type that YAML cannot spell: the constructor's business


def read(file: Path) -> DictConfig:
    """A stored config. Raises UsageError where there is none that can be read."""
    try:
        config = OmegaConf.load(file)
    except Exception as error:  # the system's, PyYAML's and OmegaConf's
        raise UsageError(f"{file}: not a run's config ({' '.join(str(error).split())})") from error
    if not isinstance(config, DictConfig):
        raise UsageError(f"{file}: not a run's config (a list)")
    return config


def read_whole(file: Path) -> DictConfig:
    """A stored config that a run can be built from. Raises UsageError where there is none, or no more than a part of it."""
    config = read(file)
    try:
        OmegaConf.resolve(config)  # as it was stored: nothing changes unless somebody has written into it
    except Exception as error:  # OmegaConf's many errors
        raise UsageError(f"{file}: not a run's config ({' '.join(str(error).split())})") from error
    for key in (*_NODES, *_VALUES):
        parent, _, name = key.rpartition(".")
        if name not in (OmegaConf.select(config, parent) if parent else config):
            raise UsageError(f"{file}: not a whole run's config: it has no {key}")
        if key in _NODES and not isinstance(found := OmegaConf.select(config, key), DictConfig):
            raise UsageError(f"{file}: not a run's config ({key}={shown(found)}: expected a mapping)")
    return config
