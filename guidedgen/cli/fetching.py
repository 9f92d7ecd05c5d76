"""Finds and downloads the files that commands read and that guidedgen does not contain: models, networks and prompts, exactly the
files that a run looks for.

The classes that a config names list what they read (`zoo.needed`); nothing is loaded, and files that are there are not downloaded.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from guidedgen.basics.errors import UsageError
from guidedgen.cli import command_line
from guidedgen.datasets import downloads
from guidedgen.models import families
from guidedgen.runs import composition, config, targets
from guidedgen.zoo import hub
from guidedgen.zoo.needed import DOWNLOADS, OPEN_CLIP, PROCESSOR, CachedFile, Needed, Part, Survey, fetch_url, network

# What a run builds. The zoo is not: it has networks of rewards and metrics that the run may not have.
_NODES = ("model", "method", "dataset", "reward", "metrics.scorers", "metrics.distances", "metrics.per_class")
_GROUPS = {"reward": ("reward",), "metrics": _NODES[4:], "model": ("model",)}  # whose options are names, and what these stand for


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The released files of a benchmark, a name of `downloads.SOURCES`."""

    name: str

    def survey(self) -> Survey:
        """By their SHA-256."""
        files = downloads.SOURCES[self.name].files
        missing = [file for file in files if not self._there(file)]
        there = [downloads.kept(self.name) / file for file in files if file not in missing]
        size = sum(path.stat().st_size for path in there)
        return Survey(where=downloads.kept(self.name), files=len(there), size=size, missing=[(file, None) for file in missing])

    def _there(self, file: str) -> bool:
        path = downloads.kept(self.name) / file
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == downloads.SOURCES[self.name].files[file]

    def download(self) -> Path:
        """Downloads those that are missing; a file that is there stays until the released one has come. Raises UsageError."""
        source, folder = downloads.SOURCES[self.name], downloads.kept(self.name)
        for file, digest in source.files.items():
            if not self._there(file):
                fetch_url(f"data {self.name}", f"{source.url}/{file}", folder / file, sha256=digest)
        return folder


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A folder or a repository that no config names: what is read is decided by its contents."""

    name: str

    def survey(self) -> Survey:
        """As `Needed.survey`."""
        return _of_location(self.name).survey()

    def download(self) -> Path:
        """As `Needed.download`."""
        return _of_location(self.name).download()


@dataclasses.dataclass(frozen=True)
class Reader:
    """A node of a config, and what is read for it. Without a config it has no node."""

    parts: Sequence[Part]
    node: DictConfig | None = None
    allow: Sequence[str] = ()

    def check(self) -> None:
        """Builds what the node describes, which loads no weights. Raises UsageError as a run would."""
        if self.node is not None:
            config.build(self.node, str(self.node.get("key", "model")), self.allow)


def of_command(overrides: Sequence[str], config_dir: Path | None = None) -> list[Reader]:
    """What the command line of run.py with these overrides reads, with all its alternatives: those of a sweep, and all rows of a
    table. A wrong command line ends the process as in run.py.
    """
    found: list[Reader] = []
    arguments = composition.arguments(command_line.for_hydra(overrides), config_dir)
    command_line.preflight(["-m", *arguments], lambda cfg: found.extend(of_config(cfg)))
    return found


def of_config(cfg: DictConfig, keys: Sequence[str] = _NODES) -> Iterator[Reader]:
    """What a composed config reads, by the nodes that read something. Raises UsageError where it cannot be resolved."""
    cfg = cfg.copy()
    cfg.device, cfg.dtype = "cpu", "float32"
    if cfg.get("reward") is not None:
        cfg.reward = config.without_weightless(cfg.reward)
    _mark_missing(cfg)
    allow = tuple(cfg.allow_targets)
    for key in keys:
        node = OmegaConf.select(cfg, key)
        if OmegaConf.is_config(node):
            try:
                plain = OmegaConf.to_container(node, resolve=True)
            except Exception as error:  # OmegaConf's many errors
                raise UsageError(f"{key}: {' '.join(str(error).split())}") from error
            yield from _readers(plain, key, allow)


def of_name(name: str) -> list[Reader]:
    """What a name stands for: a file from elsewhere, a reward, metrics, a model, or a name on the hub.

    Raises UsageError where it can be none of these.
    """
    if name in DOWNLOADS:
        return [Reader([CachedFile(name)])]
    known = config.groups([config.CONF])
    for group, keys in _GROUPS.items():
        if name in known[group]:
            zoo = [] if group == "model" else ["zoo=hub"]
            return list(of_config(composition.checked_options([f"{group}={name}", *zoo]), keys))
    if Path(name).expanduser().is_dir():
        return [Reader([Unknown(name)])]
    if "/" not in name:
        close = difflib.get_close_matches(name, [*DOWNLOADS, *(option for group in _GROUPS for option in known[group])], 1)
        hint = f"; did you mean {close[0]}?" if close else "; python scripts/fetch.py --help has the names"
        raise UsageError(f"{name}: is no name of the hub (org/name), nor of guidedgen's{hint}")
    location = hub.parse(name, "fetch")
    parts = [part for part in _everything() if isinstance(part, Needed) and _is(part, location)]
    return [Reader([part]) for part in parts] or [Reader([Unknown(name)])]


def of_data(name: str) -> list[Reader]:
    """A benchmark's prompts."""
    return [Reader([Prompts(name)])]


def distinct(readers: Iterable[Reader]) -> list[Part]:
    """Their parts, each once."""
    found: dict[object, Part] = {}
    for part in (part for reader in readers for part in reader.parts):
        same = dataclasses.replace(part, key="") if isinstance(part, Needed) else part.name
        found.setdefault(same, part)
    return list(found.values())


def _mark_missing(cfg: DictConfig, prefix: str = "") -> None:
    """Gives each value that the user is to give, which is ??? so far, the text <its.key>."""
    for name in map(str, cfg):
        child = cfg._get_node(name)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            _mark_missing(child, f"{prefix}{name}.")
        elif OmegaConf.is_missing(cfg, name):
            cfg[name] = f"<{prefix}{name}>"


def _readers(node: Any, key: str, allow: Sequence[str], kind: targets.Kind | None = None) -> Iterator[Reader]:
    """Those of a plain node and of the nodes in it; what those in it have to be is checked where a run builds them."""
    if isinstance(node, list):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        made = OmegaConf.create(node)
        target = config.target_of(made, key, allow, kind)
        if parts := _parts(target, node):
            yield Reader(parts, made if hasattr(target, "reads") else None, allow)
        kind = targets.of(None)
    for name, child in node.items():
        yield from _readers(child, f"{key}.{name}", allow, kind)


def _parts(target: Any, node: dict[str, Any]) -> Sequence[Part]:
    if target.__module__.startswith(f"{downloads.__package__}."):
        name = config.module_of(node)
        return (Prompts(name),) if name in downloads.SOURCES and node.get("path") is None else ()
    if not hasattr(target, "reads"):
        return ()
    options = {name: value for name, value in node.items() if not name.startswith("_")}
    for name in inspect.signature(target.reads).parameters:
        value = options.get(name)
        if isinstance(value, str) and value.startswith("<") and value.endswith(">"):
            raise UsageError(f"{value[1:-1]}: missing; give it as {value[1:-1]}=...")
    try:
        return target.reads(**options)
    except TypeError as error:
        raise UsageError(f"{node.get('key', node['_target_'])}: {error}") from error


@functools.cache
def _everything() -> list[Part]:
    """All that conf/zoo/hub.yaml and the models name. Not to be changed."""
    found: list[Reader] = []
    for model in config.groups([config.CONF])["model"]:
        cfg = composition.checked_options([f"model={model}", "zoo=hub", "reward=aesthetic_v1"])
        if not OmegaConf.is_missing(cfg.model, "path"):  # that of model=diffusers is the user's to give
            found += of_config(cfg, ("model", "zoo", "reward"))
    return distinct(found)


def _is(part: Needed, location: hub.Location) -> bool:
    """Whether this is the part at a location; the revision is guidedgen's unless another is given."""
    own = hub.parse(part.name, part.key)
    return (own.repository, own.folder) == (location.repository, location.folder) and location.revision in (own.revision, hub.MAIN)


def _of_location(name: str) -> Needed:
    """What would be read from a folder or a repository that no config names, by its contents."""
    folder = Path(name).expanduser()
    location = None if folder.is_dir() else hub.parse(name, "fetch")
    if location is None:
        files: Iterable[str] = [path.name for path in folder.iterdir()]
    elif not hub.offline():
        files = hub.listing(location, name=name, key="fetch").files or _file(location, name)
    elif there := hub.cached(location):
        files = [path.name for path in there.iterdir()]
    else:
        raise UsageError(f"{name}: not on this machine and the hub is offline (HF_HUB_OFFLINE)")
    if "model_index.json" in files:
        return families.reads(path=name)[0]
    if location is not None and list(files) == [location.folder.rpartition("/")[2]]:
        above = dataclasses.replace(location, folder=location.folder.rpartition("/")[0])
        return Needed(name=str(above), key="fetch", weights=(tuple(files),))
    if "config.json" in files:
        kinds = [file for file in files if "/" not in file and any(fnmatch(file, kind) for kind in PROCESSOR)]
        return network(name, key="fetch", files=kinds)
    if any(file in files for file in OPEN_CLIP):
        return Needed(name=name, key="fetch", weights=(OPEN_CLIP,))
    raise UsageError(f"{name}: holds no model that can be read: neither model_index.json nor config.json, nor weights")


def _file(location: hub.Location, name: str) -> list[str]:
    """The file at a location that is no folder. Raises UsageError where it is neither."""
    above, _, file = location.folder.rpartition("/")
    if file and file in hub.listing(dataclasses.replace(location, folder=above), name=name, key="fetch").files:
        return [file]
    raise UsageError(f"{name}: {location.repository} has no {location.folder or 'files'} at {hub.endpoint()}")
