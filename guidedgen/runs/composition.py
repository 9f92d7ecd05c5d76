"""Parses overrides as Hydra does and composes configs from them; each config is read from files once."""

from __future__ import annotations

import functools
import itertools
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from guidedgen.basics.errors import UsageError
from guidedgen.runs import config, hydra_settings

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

RUNS = 10_000  # of a sweep at most
_LETTERS, _NESTED = 20_000, 30  # of an override at most; brackets in each other


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them. Raises UsageError for the first that it cannot read."""
    from hydra.errors import HydraException

    found = []
    for override in overrides:
        key = override.partition("=")[0][:100]
        if any(unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\r\t" for letter in override):
            raise UsageError(f"{ascii(key)[1:-1]}: has characters in it that cannot be printed; dataset=jsonl takes them")
        if len(override) > _LETTERS or _nesting(override) > _NESTED:
            raise UsageError(f"{key}: is longer than {_LETTERS} letters, or has more than {_NESTED} nested brackets")
        try:
            found.append(_parse(override))
        except (HydraException, RecursionError) as error:
            raise UsageError(f"{override}: cannot be read as key=value; a text with spaces or commas needs two layers of quotes, "
                             "as in 'dataset.prompt=\"a red circle, and a square\"'") from error  # fmt: skip
    return found


def _nesting(text: str) -> int:
    """The largest depth of brackets, those in quotes included."""
    depth = itertools.accumulate((letter in "([{") - (letter in ")]}") for letter in text)
    return max(depth, default=0)


@functools.lru_cache(maxsize=10_000)
def _parse(override: str) -> Override:
    """The result is cached and must not be changed: the runs of a sweep have most in common."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override)


def sweeper(items: Sequence[Override], config_dir: Path | None = None) -> tuple[Any, list[str]]:
    """The `hydra.sweeper` node of a sweep, and what its `params` add to it: the rows of an experiment's table, say.

    Raises UsageError where it does not compose, and for several experiments that each define a sweep.
    """
    asked = [item for item in items if item.is_hydra_override() or item.key_or_group == "experiment"]
    how = settings([str(item.input_line) for item in asked if not item.is_sweep_override()], config_dir).sweeper
    for item in asked:
        for value in values_of(item) if item.is_sweep_override() else ():
            if settings([f"{item.get_key_element()}={value}"], config_dir).sweeper.get("params"):
                raise UsageError(f"{item.input_line}: {value} is a sweep of its own; run one after the other")
    return how, [f"{key}={values}" for key, values in (how.get("params") or {}).items()]


def values_of(sweep: Any) -> list[str]:
    """The values of a sweep, or the ends of an interval, from which a sweeper chooses while it runs. Raises UsageError where it has
    none, or more than could be run.
    """
    if not sweep.is_discrete_sweep():
        return [str(sweep.value().start), str(sweep.value().end)]
    if type(sweep.value()).__name__ == "Glob":
        raise UsageError(f"{sweep.input_line}: name the options, as in {sweep.key_or_group}=a,b")
    found = list(itertools.islice(sweep.sweep_string_iterator(), RUNS + 1))
    if not found or len(found) > RUNS:
        raise UsageError(f"{sweep.input_line}: has {f'more than {RUNS}' if found else 'no'} values")
    return found


def check_options(items: Sequence[Override], known: Mapping[str, Sequence[str]]) -> None:
    """Raises UsageError where one of the `known` groups has no such option, naming the nearest that it has."""
    for item in items:
        if item.key_or_group not in known or item.is_delete():
            continue
        options = known[item.key_or_group]
        for value in values_of(item) if item.is_sweep_override() else [item.get_value_element_as_str()]:
            if value.strip("'\"") not in options:
                raise UsageError(
                    f"{item.key_or_group}={value}: no such option{config.near(value, options)}; choose from {', '.join(options)}"
                )


def checked_options(overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """The config that options of groups compose to. Raises UsageError where there is no such option, or no such folder."""
    check_options(parse(overrides), config.groups(folders(config_dir)))
    return composed(overrides, config_dir)


def keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a config, those of its inner nodes too."""
    for key in map(str, cfg):
        yield f"{prefix}{key}"
        child = cfg._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from keys(child, f"{prefix}{key}.")


def composed(overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """The config of one run, as Hydra composes it with --config-dir; the runs of a sweep that differ by values alone are read from
    files once.

    Raises UsageError where they do not compose.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    items = parse(overrides)
    choices = [item for item in items if any(os.path.isdir(folder / item.key_or_group) for folder in folders(config_dir))]
    values = [item for item in items if item not in choices]
    cfg = config.copied(composed_options(tuple(str(item.input_line) for item in choices), config_dir))
    try:
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    except Exception as error:  # Hydra's and OmegaConf's errors have no common base
        raise UsageError(f"{' '.join(overrides)}: {error}") from error
    return cfg


def free_values(overrides: Sequence[str], config_dir: Path | None = None) -> dict[str, Any]:
    """The overrides of a run that only set one key, by dotted key: numbers, texts and null for keys that neither the config nor
    another override refers to.
    """
    items = parse(overrides)
    choices = [item for item in items if any((folder / item.key_or_group).is_dir() for folder in folders(config_dir))]
    composed = composed_options(tuple(str(item.input_line) for item in choices), config_dir)
    referred = _referred(tuple(str(item.input_line) for item in choices), config_dir)
    given = [str(item.input_line) for item in items]
    if referred is None or any("${" in override for override in given):
        return {}
    free = {}
    for item in items:
        key, plain = item.key_or_group, item not in choices and item.package is None
        if not plain or item.is_sweep_override() or item.is_delete() or item.is_add() or item.is_force_add():
            continue
        value = item.value()
        if value is not None and (not isinstance(value, int | float | str) or value == "???"):
            continue
        above, _, name = key.rpartition(".")
        parent = OmegaConf.select(composed, above, throw_on_resolution_failure=False) if above else composed
        if not isinstance(parent, DictConfig) or isinstance(parent._get_node(name), DictConfig | ListConfig):
            continue
        if not any(f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in referred):
            free[key] = value
    return free


@functools.lru_cache(maxsize=1000)
def _referred(overrides: tuple[str, ...], config_dir: Path | None) -> frozenset[str] | None:
    """The keys that a composed config's interpolations name; None where one is of another kind than ${a.b}."""
    plain = OmegaConf.to_container(composed_options(overrides, config_dir), resolve=False)
    inside = [text for value in _plain_values(plain) if isinstance(value, str) for text in re.findall(r"\$\{([^}]*)", value)]
    named = {text for text in inside if re.fullmatch(r"\w+(\.\w+)*", text)}
    others = [text for text in inside if text not in named and not re.fullmatch(r"oc\.env:[^$]*", text)]
    return None if others else frozenset(named)


def _plain_values(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _plain_values(item)
    else:
        yield value


def settings(overrides: Sequence[str], config_dir: Path | None = None) -> Any:
    """The `hydra` node that plain overrides compose to. Raises UsageError where they do not compose, or set what may not be set."""
    return _compose_whole(tuple(overrides), config_dir).hydra


def arguments(overrides: Sequence[str], config_dir: Path | None) -> list[str]:
    """The arguments of run.py for overrides and a folder of options."""
    return [*([f"--config-dir={config_dir}"] if config_dir else []), *overrides]


@functools.lru_cache(maxsize=1000)
def composed_options(overrides: tuple[str, ...], config_dir: Path | None) -> DictConfig:
    """The result is cached and must not be changed: to read the files takes thirty times as long as all that follows."""
    cfg = _compose_whole(overrides, config_dir).copy()
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@functools.lru_cache(maxsize=1000)
def _compose_whole(overrides: tuple[str, ...], config_dir: Path | None) -> DictConfig:
    """The same with Hydra's settings, which are checked: an overlay may have set them."""
    from hydra import compose, initialize_config_dir

    search = [f"hydra.searchpath=['file://{own}']" for own in folders(config_dir)[1:]]
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        try:
            cfg = compose("config", overrides=[*search, *overrides], return_hydra_config=True)
        except Exception as error:  # Hydra's and OmegaConf's errors have no common base
            raise UsageError(f"{' '.join(overrides)}: {error}") from error
    if overrides or config_dir:
        hydra_settings.check_composed(cfg.hydra, _compose_whole((), None).hydra)
    return cfg


def folders(config_dir: Path | None) -> list[Path]:
    """The folders of options: the project's, and --config-dir's. Raises UsageError where that is no folder."""
    if config_dir and not os.path.isdir(config_dir):
        raise UsageError(f"--config-dir={config_dir}: no such folder")
    return [config.CONF, *([config_dir] if config_dir else [])]
