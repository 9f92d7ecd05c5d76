"""From a command line to composed configs: every mistake is one line, found before anything heavy is imported or loaded.

Hydra composes; this module answers what Hydra leaves open: near misses for keys and options, and every value of a sweep checked
before its first run. What a node of the config says is checked by `config`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, ListConfig, OmegaConf

from guidedgen import config
from guidedgen.types import UsageError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Options of Hydra's that a package of their own brings: it, and the extra that installs it.
_PLUGINS = {"hydra/launcher=slurm": ("submitit", "slurm"), "hydra/sweeper=optuna_maximize": ("optuna", "optuna"),
            "hydra/sweeper=optuna": ("optuna", "optuna")}  # fmt: skip


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: flags before overrides, with the default model that GUIDEDGEN_MODEL names. A model that
    the command line or its experiment chooses goes before it.

    A flag that is not Hydra's ends the process with one line and exit code 2.
    """
    given = _parsed(arguments).overrides
    flags = [argument for argument in arguments if argument not in given]
    # Of an option that is null by default, +experiment=... would add a second one.
    overrides = [re.sub(r"^\+(experiment|row)=", r"\1=", override) for override in given]
    model = os.environ.get("GUIDEDGEN_MODEL")
    if model and not any(map(_chooses_model, overrides)):
        overrides = [f"model={model}", *overrides]
    return [*flags, *overrides]


def _chooses_model(override: str) -> bool:
    key, _, value = override.partition("=")
    overlay = config.CONF / "experiment" / f"{value}.yaml"
    return key == "model" or (key == "experiment" and overlay.is_file() and "override /model:" in overlay.read_text())


def preflight(arguments: Sequence[str], prepare: Callable[[DictConfig], object]) -> None:
    """Checks a command line, every alternative of a sweep included; a wrong one ends the process with one line and exit code 2.

    `prepare` builds what is cheap to build from a composed config and raises UsageError where it cannot.
    """
    parsed = _parsed(arguments)
    if parsed.help or parsed.hydra_help or parsed.shell_completion:
        return
    shown = parsed.cfg or parsed.info  # which need not be one that can be run
    try:
        with config.sharing():
            check(parsed, (lambda _: None) if shown else prepare)
    except UsageError as error:
        _refuse(str(error))


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line holds --help."""
    return bool(_parsed(arguments).help)


def swept(arguments: Sequence[str]) -> tuple[list[str], Path | None] | None:
    """The overrides of a command line that starts a sweep, and its --config-dir; None of another's."""
    parsed = _parsed(arguments)
    starts = parsed.multirun and not (parsed.cfg or parsed.info or parsed.help or parsed.hydra_help)
    return (list(parsed.overrides), _config_dir(parsed)) if starts else None


def arguments(overrides: Sequence[str], config_dir: Path | None) -> list[str]:
    """Of run.py, for overrides and a folder of options."""
    return [*([f"--config-dir={config_dir}"] if config_dir else []), *overrides]


def _config_dir(parsed: argparse.Namespace) -> Path | None:
    return Path(parsed.config_dir).absolute() if parsed.config_dir else None


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(list(arguments))


def _refuse(message: str) -> NoReturn:
    print(f"guidedgen: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def check(parsed: argparse.Namespace, prepare: Callable[[DictConfig], object]) -> None:
    """Raises UsageError where a parsed command line is wrong."""
    for override in _PLUGINS.keys() & set(parsed.overrides):
        package, extra = _PLUGINS[override]
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"{override}: {package} is not installed: pip install -c constraints.txt -e '.[{extra}]'")

    config_dir = _config_dir(parsed)
    items = parse(parsed.overrides)
    known = config.groups(_folders(config_dir))
    _check_options(items, known)
    own = [str(item.input_line) for item in items if not item.is_hydra_override()]
    if len(own) < len(items):
        hydra_settings([str(item.input_line) for item in items if item.is_hydra_override()], config_dir)
    if parsed.multirun:
        given = {item.key_or_group for item in items}
        own += [override for override in sweeper(items, config_dir)[1] if override.partition("=")[0] not in given]
    for overrides in _alternatives(own, known, multirun=parsed.multirun):
        _check_names(overrides, known, config_dir)
        cfg = composed(overrides, config_dir)
        if "table" in cfg and "name" not in cfg.table:
            row = next(item.split("=", 1)[1] for item in overrides if item.startswith("row="))
            tables = [f"experiment={name}" for name in known["experiment"] if name.startswith(row.split("/")[0] + "/")]
            raise UsageError(f"row={row}: is a row of a table; choose that too: {', '.join(tables)}")
        prepare(cfg)


def sweeper(items: Sequence[Override], config_dir: Path | None = None) -> tuple[Any, list[str]]:
    """The `hydra.sweeper` node of a sweep, and what its `params` add to it: the rows of an experiment's table, say.

    Raises UsageError where it does not compose, and for several experiments that each bring a sweep.
    """
    asked = [item for item in items if item.is_hydra_override() or item.key_or_group == "experiment"]
    settings = hydra_settings([str(item.input_line) for item in asked if not item.is_sweep_override()], config_dir).sweeper
    for item in asked:
        for value in _values(item) if item.is_sweep_override() else ():
            if hydra_settings([f"{item.get_key_element()}={value}"], config_dir).sweeper.get("params"):
                raise UsageError(f"{item.input_line}: {value} is a sweep of its own; run one after the other")
    return settings, [f"{key}={values}" for key, values in (settings.get("params") or {}).items()]


def _alternatives(overrides: Sequence[str], known: Container[str], *, multirun: bool) -> Iterator[list[str]]:
    """The plain command lines to check: of a sweep, its options of the `known` groups in all combinations, as not all go together,
    and its values one by one, whose combinations may be thousands.
    """
    items = parse(overrides)
    swept = {i: _values(item) for i, item in enumerate(items) if item.is_sweep_override()}
    if swept and not multirun:
        raise UsageError(f"{overrides[min(swept)]}: several values need -m (a sweep), or quotes if it is one text")

    def line(chosen: Mapping[int, str]) -> list[str]:
        return [f"{item.get_key_element()}={chosen[i]}" if i in chosen else overrides[i] for i, item in enumerate(items)]

    first = {i: values[0] for i, values in swept.items()}
    options = {i: values for i, values in swept.items() if items[i].key_or_group in known}
    for choice in itertools.product(*options.values()):
        yield line(first | dict(zip(options, choice, strict=True)))
    for i, values in swept.items():
        if i not in options:
            yield from (line(first | {i: value}) for value in values[1:])


def _values(sweep: Any) -> list[str]:
    """The values of a sweep, or the ends of an interval, from which a sweeper chooses as it goes."""
    return list(sweep.sweep_string_iterator()) if sweep.is_discrete_sweep() else [str(sweep.value().start), str(sweep.value().end)]


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them. Raises UsageError for the first that it cannot read."""
    from hydra.errors import HydraException

    found = []
    for override in overrides:
        try:
            found.append(_parse(override))
        except HydraException as error:
            raise UsageError(f"{override}: cannot be read as key=value; a text with spaces or commas needs two layers of quotes, "
                             "as in 'dataset.prompt=\"a red circle, and a square\"'") from error  # fmt: skip
    return found


@functools.lru_cache(maxsize=10_000)
def _parse(override: str) -> Override:
    """Kept, and so not to be changed: the runs of a sweep have most in common."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override)


def _check_options(items: Sequence[Override], known: Mapping[str, Sequence[str]]) -> None:
    """Raises UsageError where one of the `known` groups has no such option, naming the nearest that it has."""
    for item in items:
        if item.key_or_group not in known or item.is_delete():
            continue
        options = known[item.key_or_group]
        for value in _values(item) if item.is_sweep_override() else [item.get_value_element_as_str()]:
            if value.strip("'\"") not in options:
                raise UsageError(
                    f"{item.key_or_group}={value}: no such option{config.near(value, options)}; choose from {', '.join(options)}"
                )


def checked_options(overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """What options of groups compose to. Raises UsageError where there is no such option, or no such folder."""
    _check_options(parse(overrides), config.groups(_folders(config_dir)))
    return composed(overrides, config_dir)


def _check_names(overrides: Sequence[str], known: Mapping[str, Sequence[str]], config_dir: Path | None) -> None:
    """Raises UsageError where a key does not exist, naming the nearest that does, and for a node that is left out or no node."""
    items = parse(overrides)
    cfg = _compose(tuple(str(item.input_line) for item in items if item.key_or_group in known and not item.is_delete()), config_dir)
    there = set(keys(cfg))
    for item in items:
        key = item.key_or_group
        if key not in known and key not in there:
            raise UsageError(f"{item.input_line}: there is no key {key!r}{config.near(key, [*there, *known])}")
        if item.is_delete() and "." not in key:
            raise UsageError(f"{item.input_line}: cannot be left out")
        node = None if item.is_delete() or key in known else OmegaConf.select(cfg, key)
        if isinstance(node, DictConfig) and "_target_" not in node and not isinstance(item.value(), dict):
            raise UsageError(f"{item.input_line}: it has options of its own, as {key}.{next(map(str, node), '...')}")


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
    choices = [item for item in items if any((place / item.key_or_group).is_dir() for place in _folders(config_dir))]
    values = [item for item in items if item not in choices]
    cfg = copy.deepcopy(_compose(tuple(str(item.input_line) for item in choices), config_dir))
    try:
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
    except Exception as error:  # Hydra's and OmegaConf's errors have no common base
        raise UsageError(f"{' '.join(overrides)}: {error}") from error
    return cfg


def free_values(overrides: Sequence[str], config_dir: Path | None = None) -> dict[str, Any]:
    """Those of a run's overrides that do no more than to set one key: numbers, texts and null of keys that neither the config nor
    another override refers to. By dotted key.
    """
    items = parse(overrides)
    choices = [item for item in items if any((place / item.key_or_group).is_dir() for place in _folders(config_dir))]
    composed = _compose(tuple(str(item.input_line) for item in choices), config_dir)
    referred = _referred(tuple(str(item.input_line) for item in choices), config_dir)
    told = [str(item.input_line) for item in items]
    if referred is None or any("${" in override for override in told):
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
    plain = OmegaConf.to_container(_compose(overrides, config_dir), resolve=False)
    inside = [text for value in _leaves(plain) if isinstance(value, str) for text in re.findall(r"\$\{([^}]*)", value)]
    named = {text for text in inside if re.fullmatch(r"\w+(\.\w+)*", text)}
    others = [text for text in inside if text not in named and not re.fullmatch(r"oc\.env:[^$]*", text)]
    return None if others else frozenset(named)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


def hydra_settings(overrides: Sequence[str], config_dir: Path | None = None) -> Any:
    """The `hydra` node that plain overrides compose to. Raises UsageError where they do not compose."""
    return _compose(tuple(overrides), config_dir, return_hydra_config=True).hydra


@functools.lru_cache(maxsize=1000)
def _compose(overrides: tuple[str, ...], config_dir: Path | None, **how: bool) -> DictConfig:
    """Kept, and so not to be changed: to read the files takes thirty times as long as all that follows."""
    from hydra import compose, initialize_config_dir

    search = [f"hydra.searchpath=['file://{own}']" for own in _folders(config_dir)[1:]]
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        try:
            return compose("config", overrides=[*search, *overrides], **how)
        except Exception as error:  # Hydra's and OmegaConf's errors have no common base
            raise UsageError(f"{' '.join(overrides)}: {error}") from error


def _folders(config_dir: Path | None) -> list[Path]:
    """Where options are: the project's, and --config-dir's. Raises UsageError where that is no folder."""
    if config_dir and not config_dir.is_dir():
        raise UsageError(f"--config-dir={config_dir}: no such folder")
    return [config.CONF, *([config_dir] if config_dir else [])]
