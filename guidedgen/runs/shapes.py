"""What a run's stored files hold. Whatever is read from one is checked against this first: it may have been edited or cut.

A shape is a check: it takes a value, and where that is (dotted), and returns what is wrong with it, or None.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Shape = Callable[[Any, str], str | None]
DEPTH = 50  # of nested lists and mappings, in any file
_HUGE = 1e100  # no figure has more; what is drawn and added up must not overflow


def parsed(content: bytes) -> dict[str, Any] | None:
    """The JSON object that some bytes are; None where they are none, or nested deeper than anything that guidedgen writes."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and not _is_deep(value) else None


def _is_deep(value: Any, depth: int = 0) -> bool:
    if not isinstance(value, (dict, list)):
        return False
    return depth == DEPTH or any(_is_deep(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value))


# Shapes


def number(value: Any, where: str) -> str | None:
    """A finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _HUGE:  # NaN is not less
        return None
    return f"{where} is no number"


def count(value: Any, where: str) -> str | None:
    """A whole number, of 0 or more."""
    return None if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else f"{where} is no count"


def integer(value: Any, where: str) -> str | None:
    """A whole number."""
    return None if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else f"{where} is no whole number"


def text(value: Any, where: str) -> str | None:
    """Text."""
    return None if isinstance(value, str) else f"{where} is no text"


def flag(value: Any, where: str) -> str | None:
    """True or false."""
    return None if isinstance(value, bool) else f"{where} is neither true nor false"


def anything(value: Any, where: str) -> None:
    """Anything: it is not read."""


def maybe(shape: Shape) -> Shape:
    """This shape, or null."""
    return lambda value, where: None if value is None else shape(value, where)


def several(shape: Shape, length: int | None = None) -> Shape:
    """A list of values of this shape."""

    def check(value: Any, where: str) -> str | None:
        if not isinstance(value, list) or (length is not None and len(value) != length):
            return f"{where} is no list" + (f" of {length}" if length is not None else "")
        return next((wrong for i, item in enumerate(value) if (wrong := shape(item, f"{where}.{i}"))), None)

    return check


def each(shape: Shape) -> Shape:
    """A mapping of names to values of this shape."""

    def check(value: Any, where: str) -> str | None:
        if not isinstance(value, dict):
            return f"{where} is no mapping"
        return next((wrong for name, item in value.items() if (wrong := shape(item, f"{where}.{name}"))), None)

    return check


def fields(needed: Mapping[str, Shape], optional: Mapping[str, Shape] | None = None) -> Shape:
    """A mapping with these names; others in it are not read."""

    def check(value: Any, where: str) -> str | None:
        if not isinstance(value, dict):
            return f"{where or 'all of it'} is no mapping"
        for name, shape in {**needed, **(optional or {})}.items():
            path = f"{where}.{name}" if where else name
            if name not in value:
                if name in needed:
                    return f"{path} is missing"
            elif wrong := shape(value[name], path):
                return wrong
        return None

    return check


def together(one: Shape, other: Shape) -> Shape:
    """Both shapes."""
    return lambda value, where: one(value, where) or other(value, where)


def _interval(value: Any, where: str) -> str | None:
    """Both ends of an interval, or none."""
    return None if (value.get("low") is None) == (value.get("high") is None) else f"{where} has one end of an interval"


# Files

_COST = together(fields({"nfe": number}), each(maybe(number)))
_SLIPPED = fields({"ratio": number, "low": number, "high": number, "slipped": count, "flagged": count})
_PART = fields({"value": maybe(number)}, {"low": maybe(number), "high": maybe(number), "prompts": count})
_SCORE = together(
    fields(
        {"value": maybe(number)},
        {
            **dict.fromkeys(("low", "high", "base", "win_rate"), maybe(number)), "prompts": count, "shares_guide": flag,
            "described": text, "slipped": maybe(_SLIPPED), "categories": each(together(_PART, _interval)),
        },
    ),
    _interval,
)  # fmt: skip
_DISTANCE = together(
    fields(
        {"value": maybe(number)},
        {"low": maybe(number), "high": maybe(number), "prompts": count, "features": text, "shares_guide": flag},
    ),
    _interval,
)
_PER_CLASS = fields(
    {
        "classes": count, "shares_guide": flag,
        **dict.fromkeys(("fid", "base", "mean_of_percent", "percent_of_means"), maybe(number)),
    }
)  # fmt: skip


def _name(value: Any, where: str) -> str | None:
    """Text, or a number that YAML has read as one."""
    return None if isinstance(value, str) else number(value, where)


def _or_nothing(shape: Shape) -> Shape:
    """This shape, or an empty mapping or null where it was not measured."""
    return lambda value, where: shape(value, where) if value or not (value is None or isinstance(value, dict)) else None


def _published(value: Any, where: str) -> str | None:
    """Figures by what the source calls them, the source, and what it quotes of other systems."""
    wrong = fields({"source": text}, {"quoted": each(number)})(value, where)
    return wrong or each(maybe(number))({name: value[name] for name in value if name not in ("source", "quoted")}, where)


_LEARNING = {"nfe": number, "nfe_backward": number, "seconds": number, "lessons": count}
METRICS = fields(
    {"samples": count, "scores": each(_SCORE), "cost": _COST},
    {
        "prompts": count,
        "title": _name, "label": maybe(_name), "reward": maybe(text), "judged_by": text, "base_cost": _COST,
        "distances": each(_DISTANCE), "reference_samples": count, "compared": several(count, 2),
        "per_class": _or_nothing(_PER_CLASS), "published": _or_nothing(_published),
        "failures": each(text), "failed": count, "missing": count, "blurred": count, "learning": _or_nothing(fields(_LEARNING)),
        "extra_images": each(fields({"samples": count, "scores": each(_SCORE)})),
    },
)  # fmt: skip
ENVIRONMENT = fields(
    {},
    {
        "command": several(text), "samples": count, "commit": maybe(text), "python": text, "packages": each(text), "platform": text,
        "device": text,
    },
)  # fmt: skip
LEARNING = fields(_LEARNING, {"curve": several(together(fields({"update": count}), each(maybe(number))))})
RECORD = fields(
    {
        "task": text, "prompt": text, "category": text, "seed": integer, "image": text, "scores": each(maybe(number)),
        **dict.fromkeys(("nfe", "nfe_backward", "decodes", "reward_calls"), count), "seconds": number, "peak_memory_mib": number,
    },
    {"blurred": flag, "failed": maybe(text)},
)  # fmt: skip


def _node(value: Any, where: str) -> str | None:
    """What is built by its target: a class of a file."""
    wrong = fields({"_target_": text})(value, where)
    return wrong or (None if "." in value["_target_"] else f"{where}._target_ is no class of a file")


# Of config.yaml, what is read before a run is built from it.
CONFIG = fields(
    {"method": _node},
    {"reward": _or_nothing(_node), "model": _or_nothing(each(anything)), "table": _or_nothing(each(anything))},
)


def figure(value: Any) -> bool:
    """Whether something that was traced is a figure: a number, one per particle, or none where it was not finite."""
    return not (several(maybe(number)) if isinstance(value, list) else maybe(number))(value, "")


FILES = {"metrics.json": METRICS, "environment.json": ENVIRONMENT, "learned/learning.json": LEARNING}
