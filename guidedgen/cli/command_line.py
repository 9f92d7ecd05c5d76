"""From a command line to composed configs: every mistake is one line, found before anything heavy is imported or loaded.

Hydra composes; this module adds suggestions for misspelt keys and options, and checks every value of a sweep before its first
run. The nodes of a config are checked by `config`.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.cli import option_files
from guidedgen.runs import composition, config, hydra_settings

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

# Options of groups with few options of their own, which are left out where a class of the user's own replaces them.
_BARE = {"method": "base", "reward": "none", "dataset": "lab", "scheduler": "ddpm", "tracker": "none"}
# Nodes that objects are built of: what they hold is checked by what takes it, and may be added or left out.
_OPEN = ("method", "reward", "dataset", "scheduler", "model", "tracker", "metrics", "zoo")
# Options of Hydra's that come from another package: the package, and the extra that installs it.
_PLUGINS = {"hydra/launcher=slurm": ("submitit", "slurm"), "hydra/sweeper=optuna_maximize": ("optuna", "optuna"),
            "hydra/sweeper=optuna": ("optuna", "optuna")}  # fmt: skip


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra takes them: flags before overrides, with the default model that GUIDEDGEN_MODEL names. A model that
    the command line or its experiment chooses overrides it. A class of the user's own gets only the options that the user gives.

    A flag that is not supported ends the process with one line and exit code 2.
    """
    try:
        return _for_hydra(hydra_settings.parsed(arguments))
    except UsageError as error:
        _refuse(str(error))


def _for_hydra(parsed: argparse.Namespace) -> list[str]:
    if parsed.shell_completion:  # whose arguments are no overrides
        return [*hydra_settings.flags(parsed), *parsed.overrides]
    # Of an option that is null by default, +experiment=... would add a second one.
    overrides = [re.sub(r"^\+(experiment|row)=", r"\1=", override) for override in parsed.overrides]
    for group in _BARE:
        overrides = _of_own_class(group, overrides)
    model = os.environ.get("GUIDEDGEN_MODEL")
    if model and not any(map(_chooses_model, overrides)):
        if model not in (options := config.groups(composition.folders(_config_dir(parsed)))["model"]):
            raise UsageError(
                f"GUIDEDGEN_MODEL={model}: no such model{config.near(model, options)}; choose from {', '.join(options)}"
            )
        overrides = [f"model={model}", *overrides]
    return [*hydra_settings.flags(parsed), *overrides]


def _of_own_class(group: str, overrides: list[str]) -> list[str]:
    """The overrides, with what empties a group's node before a `_target_` for which no option of the group is chosen: the
    default's options are not those of another class. Those that are given are then added, whether the default has them or not.
    """
    named = re.compile(rf"\+{{0,2}}{group}\._target_=")
    if not any(map(named.match, overrides)) or any(override.startswith(f"{group}=") for override in overrides):
        return overrides
    option_file = OmegaConf.load(config.CONF / group / f"{_BARE[group]}.yaml")
    left_out = [f"~{group}.{key}" for key in map(str, option_file) if key != "_target_"]
    return [
        f"{group}={_BARE[group]}",
        *left_out,
        *(re.sub(rf"^\+{{0,2}}(?={group}\.[^=]+=)", "++", override) for override in overrides),
    ]


def _chooses_model(override: str) -> bool:
    key, _, value = override.partition("=")
    overlay = config.CONF / "experiment" / f"{value}.yaml"
    return key == "model" or (
        key == "experiment" and os.path.isfile(overlay) and "override /model:" in overlay.read_text(encoding="utf-8")
    )


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


def _config_dir(parsed: argparse.Namespace) -> Path | None:
    return Path(parsed.config_dir).absolute() if parsed.config_dir else None


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    try:
        return hydra_settings.parsed(arguments)
    except UsageError as error:
        _refuse(str(error))


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
    items = composition.parse(parsed.overrides)
    if config_dir:
        option_files.check_folder(config_dir, config.groups([config.CONF]).keys())
    known = config.groups(composition.folders(config_dir))
    hydra_settings.check_overrides(items)
    composition.check_options(items, known)
    own = [str(item.input_line) for item in items if not item.is_hydra_override()]
    if len(own) < len(items):
        composition.settings([str(item.input_line) for item in items if item.is_hydra_override()], config_dir)
    if parsed.multirun:
        given = {item.key_or_group for item in items}
        how, swept = composition.sweeper(items, config_dir)
        own += [override for override in swept if override.partition("=")[0] not in given]
        hydra_settings.check_overrides(composition.parse(own))
        _check_listed(own, how)
    for overrides in _alternatives(own, known, multirun=parsed.multirun):
        _check_names(overrides, known, config_dir)
        cfg = composition.composed(overrides, config_dir)
        if "table" in cfg and "name" not in cfg.table:
            row = next(item.split("=", 1)[1] for item in overrides if item.startswith("row="))
            tables = [f"experiment={name}" for name in known["experiment"] if name.startswith(row.split("/")[0] + "/")]
            raise UsageError(f"row={row}: is a row of a table; choose that too: {', '.join(tables)}")
        if parsed.cfg:
            _check_shown(cfg, parsed)
        prepare(cfg)


def _check_shown(cfg: DictConfig, parsed: argparse.Namespace) -> None:
    """Raises UsageError where what --cfg asks for is not there, or does not resolve."""
    try:
        shown = cfg if parsed.package in (None, "_global_") or parsed.cfg != "job" else OmegaConf.select(cfg, parsed.package)
        if shown is None:
            raise UsageError(
                f"--package={parsed.package}: there is no such key{config.near(parsed.package, composition.keys(cfg))}"
            )
        if parsed.resolve:
            OmegaConf.to_container(cfg, resolve=True)
    except UsageError:
        raise
    except Exception as error:  # OmegaConf's many errors
        raise UsageError(f"--cfg={parsed.cfg}: {error}") from error


def _check_listed(overrides: Sequence[str], how: DictConfig) -> None:
    """Raises UsageError where a sweep has too many runs, or intervals without a sweeper that chooses from them."""
    swept = [item for item in composition.parse(overrides) if item.is_sweep_override()]
    intervals = [item for item in swept if not item.is_discrete_sweep()]
    if intervals and str(how._target_).endswith(".BasicSweeper"):
        raise UsageError(
            f"{intervals[0].input_line}: an interval needs a sweeper that chooses from it: hydra/sweeper=optuna_maximize"
        )
    if not intervals and (runs := math.prod(len(composition.values_of(item)) for item in swept)) > composition.RUNS:
        raise UsageError(f"{' '.join(str(item.input_line) for item in swept)}: are {runs} runs; {composition.RUNS} at most")


def _alternatives(overrides: Sequence[str], known: Container[str], *, multirun: bool) -> Iterator[list[str]]:
    """The plain command lines to check: of a sweep, its options of the `known` groups in all combinations, as not all go together,
    and its values one by one, whose combinations may be thousands.
    """
    items = composition.parse(overrides)
    swept = {i: composition.values_of(item) for i, item in enumerate(items) if item.is_sweep_override()}
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


def _check_names(overrides: Sequence[str], known: Mapping[str, Sequence[str]], config_dir: Path | None) -> None:
    """Raises UsageError where a key does not exist, naming the nearest that does, and for a node that is left out or no node."""
    items = composition.parse(overrides)
    cfg = composition.composed_options(
        tuple(str(item.input_line) for item in items if item.key_or_group in known and not item.is_delete()), config_dir
    )
    there = set(composition.keys(cfg))
    for item in items:
        key, root = item.key_or_group, item.key_or_group.split(".")[0]
        adds, inside = item.is_add() or item.is_force_add(), root in _OPEN and "." in key
        if key not in known and key not in there and not (adds and inside and _would_be_read(key, there)):
            addable = key.startswith(("metrics.scorers.", "metrics.distances.")) and not item.is_delete()
            hint = f"; +{key}=... adds it" if addable else config.near(key, [*there, *known])
            raise UsageError(f"{item.input_line}: there is no key {key!r}{hint}")
        if item.is_delete() and (not inside or key in known):
            raise UsageError(f"{item.input_line}: cannot be left out")
        if key in known:
            continue
        node = None if item.is_delete() or key not in there else _selected(cfg, item)
        if isinstance(node, DictConfig) and "_target_" not in node and not isinstance(item.value(), dict):
            raise UsageError(f"{item.input_line}: it has options of its own, as {key}.{next(map(str, node), '...')}")
        if isinstance(node, DictConfig) and root not in _OPEN and (strange := {*_named(key, item.value())} - there):
            raise UsageError(f"{item.input_line}: there is no key {min(strange)!r}{config.near(min(strange), there)}")
        there.update(_named(key, item.value()))


def _would_be_read(key: str, there: Container[str]) -> bool:
    """Whether what is added under a key would be looked at: an option of a node, a metric, a part of one of these."""
    root, name = key.split(".")[:2]
    if root == "metrics":
        return name in ("scorers", "distances", "per_class")
    return root != "zoo" or f"zoo.{name}" in there


def _selected(cfg: DictConfig, item: Override) -> Any:
    try:
        return OmegaConf.select(cfg, item.key_or_group)
    except Exception as error:  # OmegaConf's many errors
        raise UsageError(f"{item.input_line}: {error}") from error


def _named(key: str, value: object) -> Iterator[str]:
    """A key, those above it and those of a value in it."""
    parts = key.split(".")
    yield from (".".join(parts[: i + 1]) for i in range(len(parts)))
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from _named(f"{key}.{name}", inner)
