"""Builds objects from a composed config: checks the types and names of every constructor's options, limits targets to known
packages, suggests similar names, and computes the identity of a run. Every mistake is reported in one line, before anything heavy
is imported or loaded.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import inspect
import json
import math
import os
import pickle
import re
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from guidedgen.basics.errors import BadValue, UsageError
from guidedgen.runs import figures, older, plain_yaml, synonyms, targets

CONF = Path(__file__).resolve().parents[2] / "conf"
# Keys of a node that are no options of its target, and the values that leave an object of its class with its parts built.
_OF_HYDRA = {"_target_": None, "_convert_": ("none", "partial", "object", "all"), "_partial_": (False,), "_recursive_": (True,)}
_WHOLE = 1_000_000  # largest count that an option may hold: what is larger is a slip, and would not fit into any memory
# What a stored config needs for a run to be built from it; what else there is now, older runs do not have.
_NODES = ("run", "zoo", "metrics", "metrics.scorers", "metrics.distances", "model", "method", "dataset", "scheduler")
_VALUES = ("seed", "samples_per_prompt", "batch_size", "device", "dtype", "reference", "allow_targets",
           "run.fresh", "run.profile", "model.name", "reward", "tracker")  # fmt: skip
# What does not change a sample: where it is stored, how it is shown and judged.
_NOT_IDENTITY = ("outputs", "study", "run", "tracker", "metrics", "zoo", "reference", "reference_seed", "allow_targets", "table",
                 "shard", "gpu_dtype", "zoo_dtype")  # fmt: skip


def groups(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Config groups, which are those of the first folder, and their options. An overlay's or a row's may be in a folder of its
    group, as in experiment=codex/aesthetic; other folders in a group are groups themselves, as method/gradients. What a method
    needs on a model (`settings`) is chosen with them, and no group.
    """
    found: dict[str, set[str]] = {}
    names = [directory.name for directory in folders[0].iterdir() if directory.is_dir()] if folders else []
    for folder in map(str, folders):
        for directory, _, files in (there for name in names for there in os.walk(os.path.join(folder, name))):
            parts = os.path.relpath(directory, folder).split(os.sep)
            options = [file.removesuffix(".yaml") for file in files if file.endswith(".yaml")]
            for depth in range(1, len(parts) + 1) if parts[0] in ("experiment", "row") else [len(parts)]:
                below = parts[depth:]
                found.setdefault("/".join(parts[:depth]), set()).update("/".join([*below, option]) for option in options)
    return {group: sorted(options) for group, options in found.items() if options and not group.startswith(("hydra", "settings"))}


def near(word: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" where a known word is a slip away, means the same, is close, or is the last part of one that is, as in
    row=full; else nothing.
    """
    words = list(known)
    lasts = {name.rpartition("/")[2]: name for name in reversed(words)}
    close = difflib.get_close_matches(word, words, 1, cutoff=0.88)
    if not close and (other := synonyms.meant(word, words)):
        close = [other]
    close = close or difflib.get_close_matches(word, words, 1, cutoff=0.6)
    close = close or [lasts[last] for last in difflib.get_close_matches(word, lasts, 1, cutoff=0.6)]
    return f"; did you mean {close[0]}?" if close else ""


def identity(config: DictConfig | Mapping[str, Any], contents: Mapping[str, Any] | None = None) -> str:
    """Twelve hex digits that name what is sampled: a hash of the resolved config less storage, display and judgement, and of the
    `contents` of the files it names.
    """
    kept = deciding(config)
    return digest({**kept, "contents": contents} if contents else kept)


def deciding(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that decides samples, as plain values."""
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    assert isinstance(plain, Mapping)
    return older.first({str(key): value for key, value in plain.items() if key not in _NOT_IDENTITY})


def copied(config: DictConfig) -> DictConfig:
    """A copy of a whole config, made several times as fast as by `copy.deepcopy`."""
    return pickle.loads(pickle.dumps(config, pickle.HIGHEST_PROTOCOL))


def resolved(config: DictConfig) -> DictConfig:
    """A copy with every interpolation replaced by its value. A "${" that remains is text and stays escaped, so that the
    copy stays the same however often it is read, stored or resolved again.

    Raises OmegaConf's errors where an interpolation has no value.
    """
    copy = OmegaConf.create(escaped(OmegaConf.to_container(config, resolve=True)))
    OmegaConf.set_struct(copy, OmegaConf.is_struct(config))
    return copy


def escaped(value: Any) -> Any:
    """A plain value for a config that is to give back the same: an interpolation begins with "${", a text with that in it has a
    backslash before it, and two for each that was there.
    """
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def published(config: DictConfig) -> dict[str, Any]:
    """The published figures of a run, from the source of its table; empty where the run's setting is not the published one.

    It is the published one if the table's overlay and row alone make the same samples. The device, its dtype, the batch size and
    the keys that the table lists as `given` by the user may differ: they say where files lie, or which `cell` of the table it is,
    where a row has several. A figure is left out where the run measures it in another way. What the source quotes of other
    systems is in "quoted".
    """
    table = config.get("table")
    if not table or not table.get("published") or not table.published.get(_cell(table)):
        return {}
    try:
        composed = _composed(f"experiment={table.name}", f"row={table.name.split('/')[0]}/{table.row}")
        for key in ("device", "dtype", "batch_size", *composed.table.given):
            OmegaConf.update(composed, key, escaped(OmegaConf.select(config, key)))
        same = identity(composed) == identity(config)
    except Exception:  # Hydra's and OmegaConf's: a table that is no longer there
        return {}
    if not same:
        return {}
    table = composed.table
    shown = {name: figure for name, figure in table.published[_cell(table)].items() if _as_measured(config, composed, name)}
    column = table.get("quoted_for")
    quoted = {name: row[column] for name, row in (table.get("quoted") or {}).items() if row.get(column) is not None}
    return {"source": table.source, **shown, **({"quoted": quoted} if quoted else {})}


def _cell(table: DictConfig) -> str | None:
    """The name of a run's published figures: of its row, or of one of several that the row has."""
    found = table.get("cell") or table.get("row")
    return found if found is None else str(found)


def _as_measured(config: DictConfig, composed: DictConfig, name: str) -> bool:
    """Whether a run's figure, by its published name, is measured as its table has it: by the same node of the metrics, and for a
    distance to the same images. What is no metric is the reward or the cost.
    """
    own = figures.OWN_NAMES.get(name, name)
    for group, keys in {"scorers": (), "distances": ("reference", "reference_seed")}.items():
        # The longest name that the figure's begins with: what follows is a category.
        measures = [key for key in map(str, composed.metrics[group]) if own == key or own.startswith(f"{key}_")]
        if measures:
            node = f"metrics.{group}.{max(measures, key=len)}"
            return all(as_text(_selected(config, key)) == as_text(_selected(composed, key)) for key in (node, *keys))
    return True


def _selected(config: DictConfig, key: str) -> Any:
    """What is at a key, all interpolations resolved; None where there is nothing."""
    found = OmegaConf.select(config, key)
    return OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found


def _composed(*overrides: str) -> DictConfig:
    """A config from the folders of the running process, or from the project's own where Hydra does not run."""
    from hydra.core.global_hydra import GlobalHydra

    search_path = None
    if GlobalHydra.instance().is_initialized():
        search_path = tuple(str(source.path) for source in GlobalHydra.instance().config_loader().get_search_path().get_path())
    return copied(_composed_once(overrides, search_path))


@functools.lru_cache(maxsize=100)
def _composed_once(overrides: tuple[str, ...], search_path: tuple[str, ...] | None) -> DictConfig:
    """The result is cached and must not be changed: a table's row is the same for all seeds of a sweep."""
    from hydra import compose, initialize_config_dir

    with contextlib.nullcontext() if search_path else initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def shown(value: Any) -> str:
    """A value as written on a command line."""
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
    """The result of `make`; inside `sharing`, its earlier result for the same name."""
    made = _made.get()
    if made is None:
        return make()
    known = name()
    if known not in made:
        made[known] = make()
    return made[known]


def as_text(node: Any) -> str:
    """A node or a value, resolved, as one text: a name for `once`."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return json.dumps(plain, default=repr)


# From a config node to an object


def build(node: DictConfig, key: str, allow: Sequence[str] = ()) -> Any:
    """The object a node with `_target_` describes, with every name and type checked first; inside `sharing`, one for all equal
    nodes. Options are plain values, lists and dictionaries: Hydra's `instantiate` would resolve their texts several times, and so
    change one that holds "${" itself.

    Raises:
        UsageError: the target is not allowed, does not exist or is not what the key asks for; an option is unknown, missing or of
            the wrong type or value; a constructor of the user's own raises.
    """
    return once(lambda: _build(node, key, allow), lambda: ("object", key, tuple(allow), as_text(node)))


def _build(node: DictConfig, key: str, allow: Sequence[str]) -> Any:
    check_node(node, key, allow)
    built = _built(node, key)
    targets.check_built(built, str(node["_target_"]), key, targets.at(key))
    return built


def _built(value: Any, key: str) -> Any:
    """A config's value with every interpolation resolved, once, and every node with `_target_` built."""
    if isinstance(value, ListConfig):
        return [_built(value[i], f"{key}.{i}") for i in range(len(value))]
    if not isinstance(value, DictConfig):
        return value
    names: list[Any] = list(value)
    if "_target_" not in value:
        return {name: _built(value[name], f"{key}.{name}") for name in names}
    options = {str(name): _built(value[name], f"{key}.{name}") for name in names if name not in _OF_HYDRA}
    try:
        return targets.load(str(value["_target_"]))(**options)
    except BadValue as error:
        raise UsageError(f"{key}.{error.name}={error.value}: {error.rule}") from error
    except Exception as error:
        path = str(value["_target_"])
        if isinstance(error, UsageError) or path.startswith(targets.TARGETS):
            raise
        raise UsageError(f"{key}: {path} cannot be made: {targets.raised(error)}") from error


def check_node(node: DictConfig, key: str, allow: Sequence[str] = (), kind: targets.Kind | None = None) -> None:
    """Raises UsageError where `build` would not get as far as calling the targets of the node and of those inside it.

    `kind` is what the target has to make; what the key asks for unless given.
    """
    target = target_of(node, key, allow, kind)
    parameters = inspect.signature(target).parameters
    hints, own = targets.hints(target), str(node["_target_"]).startswith(targets.TARGETS)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    there = set(map(str, node))  # to ask a node for a key that it has not takes OmegaConf long
    for name in map(str, node):
        if name in _OF_HYDRA:
            continue
        if name.startswith("_") or not (name in parameters or takes_all):  # `_args_` would hide options from the checks
            hint = near(name, parameters) or f"; an experiment's, it may be: '~{key}.{name}' leaves it out"
            raise UsageError(f"{key}.{name}: {node['_target_']} has no such option{hint}")
        _check_value(node[name], hints.get(name, Any), f"{key}.{name}", allow)
        if own:
            _check_sizes(node[name], f"{key}.{name}")
    for name, parameter in parameters.items():
        fills_up = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if parameter.default is parameter.empty and name not in there and not fills_up:
            raise UsageError(f"{key}.{name}: missing; {node['_target_']} needs it")
    for name, values in _OF_HYDRA.items():
        if values is not None and name in there and node[name] not in values:
            raise UsageError(f"{key}.{name}={shown(node[name])}: expected {' or '.join(map(str, values))}")


def _check_value(value: Any, hint: Any, key: str, allow: Sequence[str]) -> None:
    """Raises UsageError for a value of the wrong type, or a wrong node inside it at any depth: Hydra would build that too."""
    if isinstance(value, DictConfig) and "_target_" in value:
        check_node(value, key, allow, targets.of(hint))
        return
    _check_type(value, hint, key)
    inner = typing.get_args(hint)[-1] if typing.get_origin(hint) in (dict, list, Mapping, Sequence) else Any
    if isinstance(value, DictConfig):
        for name in map(str, value):
            _check_value(value[name], inner, f"{key}.{name}", allow)
    elif isinstance(value, ListConfig):
        for i, item in enumerate(value):
            _check_value(item, inner, f"{key}.{i}", allow)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key}={value}: has to be a finite number")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UsageError(f"{key}={value}: has to fit into 64 bits")


def _check_sizes(value: Any, key: str) -> None:
    """Raises UsageError where a count, or one in a list, is absurdly large. Seeds are not counts."""
    for each in value if isinstance(value, ListConfig) else [value]:
        if isinstance(each, int) and abs(each) > _WHOLE and not key.endswith("seed"):
            raise UsageError(f"{key}={each}: has to be at most {_WHOLE}")


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
    """What a node is called in names of runs and of scores: the file its target lives in, as one method, reward or data set is one
    file; for other targets, of the user's own too, with its class.
    """
    return targets.called(str(node["_target_"]))


def target_of(node: DictConfig, key: str, allow: Sequence[str] = (), kind: targets.Kind | None = None) -> Callable[..., Any]:
    """The class or function a node names. Raises UsageError where it is not allowed, does not exist or is not of the kind."""
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise UsageError(f"{key}={shown(node)}: expected a mapping with the _target_ it is built by")
    return targets.named(node, key, allow, targets.at(key) if kind is None else kind)


def _check_type(value: Any, hint: Any, key: str) -> None:
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    if not _fits(value, hint):
        if typing.get_origin(hint) is typing.Literal:
            options = [str(option) for option in typing.get_args(hint)]
            raise UsageError(f"{key}={shown(value)}: no such choice{near(str(value), options)}; choose from {', '.join(options)}")
        expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("collections.abc.Sequence", "list")
        got = "null" if value is None else type(value).__name__
        advice = f"""; as a text: '{key}="{value}"'""" if hint is str and value is not None else ""
        raise UsageError(f"{key}={shown(value)}: expected {expected}, got {got}{advice}")


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
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    if origin in (list, tuple, Sequence):
        if not isinstance(value, list):
            return False
        each = arguments if origin is tuple and Ellipsis not in arguments else arguments[:1] * len(value)
        return all(_fits(item, wanted) for item, wanted in zip(value, each, strict=False))
    # A part of a run is a node. Another type that YAML cannot spell is the constructor's business.
    return not (inspect.isclass(hint) and hint.__module__.startswith(targets.TARGETS))


def read_plain(file: Path) -> tuple[dict[str, Any], str]:
    """A stored config as plain values, and its text. Raises UsageError where there is none that can be read."""
    try:
        plain, text = plain_yaml.read(file)
        return older.current(plain), text
    except plain_yaml.Damaged as error:
        hint = "; remove it, and the run's own command writes it anew"
        raise UsageError(f"{file}: not a run's config ({error}){hint}") from error


def read(file: Path) -> DictConfig:
    """A stored config. Raises UsageError where there is none that can be read."""
    return OmegaConf.create(read_plain(file)[0])


def read_whole(file: Path) -> DictConfig:
    """A stored config that a run can be built from. Raises UsageError where there is none, or no more than a part of it."""
    config = read(file)
    config = resolved(config)  # it has no interpolations, but for texts that are escaped
    for key in (*_NODES, *_VALUES):
        parent, _, name = key.rpartition(".")
        if name not in (OmegaConf.select(config, parent) if parent else config):
            raise UsageError(f"{file}: not a whole run's config: it has no {key}")
        if key in _NODES and not isinstance(found := OmegaConf.select(config, key), DictConfig):
            raise UsageError(f"{file}: not a run's config ({key}={shown(found)}: expected a mapping)")
    return older.completed(config)
