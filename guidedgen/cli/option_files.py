"""The files of a folder of options (--config-dir), checked before they are composed: files that would take all memory or time,
such as a few lines that aliases expand to billions of nodes, are refused.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path

import yaml

from guidedgen.basics.errors import UsageError

BYTES = 1 << 20  # of a file at most
NODES = 100_000  # that it stands for, aliases written out
DEPTH = 50  # of nested mappings and lists


def check_folder(folder: Path, groups: Collection[str]) -> None:
    """Raises UsageError where a folder has none of the groups of options, or a file of theirs is not to be read."""
    if not os.path.isdir(folder):
        raise UsageError(f"--config-dir={folder}: no such folder")
    there = [folder / group for group in sorted({group.split("/")[0] for group in groups}) if (folder / group).is_dir()]
    if not there:
        raise UsageError(f"--config-dir={folder}: has none of the folders {', '.join(sorted(groups))}")
    for file in (file for folder in there for file in folder.rglob("*.yaml")):
        check_file(file)


def check_file(file: Path) -> None:
    """Raises UsageError where a YAML file cannot be read, is too large or would grow too large or too deep."""
    try:
        if not file.is_file():
            raise UsageError(f"{file}: not a file")
        if file.stat().st_size > BYTES:
            raise UsageError(f"{file}: of {file.stat().st_size} bytes; options are at most {BYTES}")
        size, depth = _extent(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{file}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    if size > NODES or depth > DEPTH:
        raise UsageError(f"{file}: expands to more than {NODES} values, or to more than {DEPTH} nested ones")


@dataclasses.dataclass
class _Node:
    """A mapping or list that is being read: how many nodes it stands for so far, and how deep they are nested."""

    anchor: str | None = None
    size: int = 1
    depth: int = 0

    def take(self, size: int, depth: int) -> None:
        self.size, self.depth = min(self.size + size, NODES + 1), max(self.depth, depth + 1)


def _extent(text: str) -> tuple[int, int]:
    """How many nodes a text stands for with its aliases written out, and how deep they are nested."""
    known: dict[str, tuple[int, int]] = {}
    around = [_Node()]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.events.CollectionStartEvent):
            around.append(_Node(event.anchor))
            if len(around) > DEPTH + 2:
                break
        elif isinstance(event, yaml.events.AliasEvent):
            if event.anchor not in known:
                raise yaml.YAMLError(f"*{event.anchor} refers to nothing defined before it")
            around[-1].take(*known[event.anchor])
        elif isinstance(event, yaml.events.ScalarEvent):
            known |= {event.anchor: (1, 0)} if event.anchor else {}
            around[-1].take(1, 0)
        elif isinstance(event, yaml.events.CollectionEndEvent):
            closed = around.pop()
            known |= {closed.anchor: (closed.size, closed.depth)} if closed.anchor else {}
            around[-1].take(closed.size, closed.depth)
    return around[0].size, max(around[0].depth, len(around))
