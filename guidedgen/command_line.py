"""From a command line to composed configs: every mistake is one line, found before anything heavy is imported or loaded.

Hydra composes; this module answers what Hydra leaves open: near misses for keys and options, and every value of a sweep checked
before its first run. What a node of the config says is checked by `config`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig

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
    if parsed.help or parsed.hydra_help or parsed.cfg or parsed.info or parsed.shell_completion:
        return
    try:
        check(parsed, prepare)
    except UsageError as error:
        _refuse(str(error))


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a command line holds --help."""
    return bool(_parsed(arguments).help)


def swept(arguments: Sequence[str]) -> list[str]:
    """The overrides of a command line that starts a sweep; none of another's."""
    parsed = _parsed(arguments)
    return list(parsed.overrides) if parsed.multirun and not (parsed.cfg or parsed.info or parsed.help or parsed.hydra_help) else []


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
    from hydra import compose, initialize_config_dir

    for override in _PLUGINS.keys() & set(parsed.overrides):
        package, extra = _PLUGINS[override]
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"{override}: {package} is not installed: pip install -c constraints.txt -e '.[{extra}]'")

    folder = str(Path(parsed.config_dir).absolute()) if parsed.config_dir else None
    search = [f"hydra.searchpath=[file://{folder}]"] if folder else []
    with initialize_config_dir(str(config.CONF), version_base="1.3"):
        swept = _swept(parsed.overrides, search) if parsed.multirun else []
        for overrides in _alternatives([*parsed.overrides, *swept], multirun=parsed.multirun):
            _check_names(overrides, search, [config.CONF, *([Path(folder)] if folder else [])])
            try:
                cfg = compose("config", overrides=[*search, *overrides])
            except Exception as error:  # Hydra's and OmegaConf's errors have no common base
                raise UsageError(f"{' '.join(overrides)}: {error}") from error
            if "table" in cfg and "name" not in cfg.table:
                raise UsageError(f"row={cfg.table.row}: is a row of a table; choose that too, as in experiment=codex/aesthetic")
            prepare(cfg)


def _swept(overrides: Sequence[str], search: Sequence[str]) -> list[str]:
    """What an experiment's own `hydra.sweeper.params` add to a sweep: the rows of its table, say."""
    from hydra import compose

    try:
        parsed = parse(overrides)
        plain = [str(item.input_line) for item in parsed if item.key_or_group == "experiment" and not item.is_sweep_override()]
        params = compose("config", overrides=[*search, *plain], return_hydra_config=True).hydra.sweeper.params or {}
    except Exception:  # what is wrong with the overrides is told when they are checked
        return []
    given = {item.key_or_group for item in parsed}
    return [f"{key}={value}" for key, value in params.items() if key not in given]


def _alternatives(overrides: Sequence[str], *, multirun: bool) -> Iterator[list[str]]:
    """The plain command lines to check. A sweep is checked value by value, not in all combinations: they may be thousands."""
    parsed = parse(overrides)
    sweeps = [i for i, item in enumerate(parsed) if item.is_sweep_override()]
    if sweeps and not multirun:
        raise UsageError(f"{overrides[sweeps[0]]}: several values need -m (a sweep), or quotes if it is one text")
    choices = {i: _values(parsed[i]) for i in sweeps}
    first = [f"{item.get_key_element()}={choices[i][0]}" if i in choices else overrides[i] for i, item in enumerate(parsed)]
    yield first
    for i, values in choices.items():
        for value in values[1:]:
            yield [*first[:i], f"{parsed[i].get_key_element()}={value}", *first[i + 1 :]]


def _values(sweep: Any) -> list[str]:
    """The values of a sweep, or the ends of an interval, from which a sweeper chooses as it goes."""
    return list(sweep.sweep_string_iterator()) if sweep.is_discrete_sweep() else [str(sweep.value().start), str(sweep.value().end)]


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them. Raises UsageError for the first that it cannot read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, found = OverridesParser.create(), []
    for override in overrides:
        try:
            found.append(parser.parse_override(override))
        except HydraException as error:
            raise UsageError(f"{override}: cannot be read as key=value; a text with spaces or commas needs two layers of quotes, "
                             "as in 'dataset.prompt=\"a red circle, and a square\"'") from error  # fmt: skip
    return found


def _check_names(overrides: Sequence[str], search: Sequence[str], folders: Sequence[Path]) -> None:
    """Raises UsageError where a key or an option of a group does not exist, naming the nearest that do."""
    from hydra import compose

    known = config.groups(folders)
    parsed = parse(overrides)
    chosen = [o for o, item in zip(overrides, parsed, strict=True) if item.key_or_group in known]
    for item in parsed:
        if item.key_or_group in known and not item.is_delete():
            options, value = known[item.key_or_group], str(item.value())
            if value not in options and item.value() is not None:
                raise UsageError(
                    f"{item.key_or_group}={value}: no such option{config.near(value, options)}; choose from {', '.join(options)}"
                )
    try:
        keys = set(_keys(compose("config", overrides=[*search, *chosen])))
    except Exception as error:
        raise UsageError(f"{' '.join(chosen)}: {error}") from error
    for item in parsed:
        key = item.key_or_group
        if key in known or key in keys or key.startswith("hydra"):
            continue
        raise UsageError(f"{item.input_line}: there is no key {key!r}{config.near(key, [*keys, *known])}")


def _keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in map(str, cfg):
        yield f"{prefix}{key}"
        child = cfg._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            yield from _keys(child, f"{prefix}{key}.")
