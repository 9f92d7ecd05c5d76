"""A stored config as plain values. It was written by OmegaConf: whatever OmegaConf does not write is treated as damage."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from guidedgen.runs import inside, shapes

_MOST = 2**23  # bytes: a config with every prompt of a large set in it
_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")  # OmegaConf's, not escaped
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, ten times as fast, where PyYAML was built with it


class Damaged(Exception):
    """The file is not one that OmegaConf has written; the message says why in a line."""


def read(file: Path) -> tuple[dict[str, Any], str]:
    """A stored config as plain values, and its text. Raises Damaged for anything but a mapping of names to values, for aliases,
    tags and interpolations, which let a few lines fill any memory, and for deeper nesting than any config has.
    """
    try:
        text = inside.read(file.parent, file.name, _MOST).decode()
        _check_events(text)
        found = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise Damaged(" ".join(reason.split())) from error
    if found is None:
        found = {}
    if not isinstance(found, dict):
        raise Damaged("a list" if isinstance(found, list) else "no mapping")
    _check_values(found, "")
    return found, text


def _check_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_PARSER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > shapes.DEPTH:
            raise Damaged(f"nested deeper than {shapes.DEPTH}")
        if isinstance(event, yaml.AliasEvent):
            raise Damaged("an alias, which a stored config has none of")
        if getattr(event, "tag", None) is not None:
            raise Damaged("a tag, which a stored config has none of")


class _Loader(_PARSER):  # type: ignore[misc, valid-type]
    """Reads numbers as OmegaConf does, and refuses a key that is there twice."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
        if len(set(keys)) < len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a key that is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _check_values(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise Damaged(f"{where}{key}: a key that is no text")
            _check_values(item, f"{where}{key}.")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _check_values(item, f"{where}{i}.")
    elif isinstance(value, str) and _INTERPOLATION.search(value):
        raise Damaged(f"{where.rstrip('.')}={value[:60]}: refers to another key, and all of a stored config's are values")
