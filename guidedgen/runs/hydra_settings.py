"""Which of Hydra's flags and settings a command line and its overlays may give: those that choose what is run, how a sweep goes and
what is shown. The others would run arbitrary code, or move files that guidedgen keeps.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from omegaconf import DictConfig, ListConfig, OmegaConf

from guidedgen.basics.errors import UsageError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_REFUSED = {
    "experimental_rerun": "--experimental-rerun: would run a stored file's code; the same command again resumes a run",
    "config_path": "--config-path: the options are guidedgen's own; a folder of further ones joins by --config-dir",
    "config_name": "--config-name: there is one config; an overlay is chosen by experiment=",
}
_MODES = ("run", "multirun", "cfg", "info", "shell_completion")  # of which a command line has one at most
_GROUPS = ("hydra/launcher", "hydra/sweeper")
_HINT = "of Hydra's settings, hydra/launcher=, hydra/sweeper= and their options can be set, as in hydra.launcher.partition=gpu"
# What Hydra starts, as its own options and those of its plug-ins name it: nothing that a module merely imports.
_TARGETS = (
    r"(hydra\._internal\.core_plugins|hydra_plugins\.\w+)\.[a-z_]+\.[A-Z]\w*(Launcher|Sweeper)|optuna\.samplers\.[A-Z]\w*Sampler"
)
# What Hydra itself writes into its settings.
_WRITTEN = ("launcher", "sweeper", "overrides", "runtime", "searchpath")
_JOB = ("override_dirname", "id", "num", "name", "config_name", "config")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Flags and overrides. Raises UsageError for an unknown or unsupported flag, and for flags that do not go together."""
    found = _parser().parse_intermixed_args(list(arguments))
    for name, why in _REFUSED.items():
        if getattr(found, name) is not None:
            raise UsageError(why)
    given = [name for name in _MODES if getattr(found, name) not in (None, False)]
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(f'--{name}' for name in given)}: only one of them; nothing is run where something is shown"
        )
    if (found.resolve or found.package is not None) and not (found.cfg or found.help):
        raise UsageError(f"--{'resolve' if found.resolve else 'package'}: goes with --cfg job")
    if found.shell_completion:
        _check_completion(found.overrides)
    for override in found.overrides:
        if override.startswith("-"):
            raise UsageError(f"{override}: no such flag")
    return found


@functools.cache
def _parser() -> argparse.ArgumentParser:
    """Hydra's own parser."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.allow_abbrev = False
    parser.error = _refuse  # type: ignore[method-assign]
    return parser


def _refuse(message: str) -> NoReturn:
    raise UsageError(message)


def _check_completion(overrides: Sequence[str]) -> None:
    """Of --shell-completion, which Hydra answers itself."""
    if len(overrides) != 1 or not re.fullmatch("(install|uninstall|query)=(bash|fish|zsh)", overrides[0]):
        raise UsageError("--shell-completion: takes install=bash, uninstall=bash or query=bash; or of fish, zsh")
    if overrides[0].startswith("query=") and not {"COMP_LINE", "COMP_POINT"} <= os.environ.keys():
        raise UsageError(f"--shell-completion {overrides[0]}: is asked by the shell, which sets COMP_LINE and COMP_POINT")


def flags(found: argparse.Namespace) -> list[str]:
    """A parsed command line's flags, as Hydra reads them in one way only."""
    switches = ("help", "hydra_help", "resolve", "run", "multirun", "shell_completion")
    given = [f"--{name.replace('_', '-')}" for name in switches if getattr(found, name)]
    values = ("cfg", "package", "config_dir", "info")
    return given + [f"--{name.replace('_', '-')}={getattr(found, name)}" for name in values if getattr(found, name) is not None]


def concerns(item: Override) -> bool:
    """Whether an override is of Hydra's settings."""
    return any(re.match(r"hydra\b", name) for name in (item.key_or_group, item.package or ""))


def check_overrides(items: Sequence[Override]) -> None:
    """Raises UsageError for an override of a setting that may not be set."""
    for item in filter(concerns, items):
        key = item.key_or_group
        plain = item.package is None and not item.is_delete() and "_target_" not in key.split(".")
        if not plain or not (key in _GROUPS or key.startswith(("hydra.launcher.", "hydra.sweeper."))):
            raise UsageError(f"{item.input_line}: may not be set; {_HINT}")


def check_composed(settings: DictConfig, own: DictConfig) -> None:
    """Raises UsageError where composed settings differ from guidedgen's `own` in what may not be set, or start what is no
    launcher, sweeper or sampler: an overlay may have set them.
    """
    for name in sorted({*map(str, settings), *map(str, own)} - {*_WRITTEN}):
        if _raw(settings, name) != _raw(own, name):
            raise UsageError(f"hydra.{name}: may not be set, not even by an overlay; {_HINT}")
    for name in ("launcher", "sweeper"):
        for key, value in _plain_values(settings[name], f"hydra.{name}"):
            last = key.rpartition(".")[2]
            if last == "_target_" and not re.fullmatch(_TARGETS, str(value)):
                raise UsageError(f"{key}={value}: no launcher, sweeper or sampler")
            if last == "custom_search_space" and value is not None:
                raise UsageError(f"{key}={value}: calls code by its name, which is not allowed here")


def _raw(settings: DictConfig, name: str) -> Any:
    """A setting as it is written, less what Hydra writes of the run itself."""
    if name not in settings:
        return None
    node = settings._get_node(name)
    value = OmegaConf.to_container(node) if isinstance(node, DictConfig | ListConfig) and not node._is_none() else str(node)
    return {key: held for key, held in value.items() if key not in _JOB} if name == "job" and isinstance(value, dict) else value


def _plain_values(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The values inside a node, those that it refers to as well; what cannot be resolved yet is left to Hydra."""
    for name in range(len(node)) if isinstance(node, ListConfig) else list(node):
        if OmegaConf.is_missing(node, name):
            continue
        try:
            value = node[name]
        except Exception:  # OmegaConf's many errors: an interpolation that only a run can resolve
            value = str(node._get_node(name))
        if isinstance(value, DictConfig | ListConfig):
            yield from _plain_values(value, f"{key}.{name}")
        else:
            yield f"{key}.{name}", value
