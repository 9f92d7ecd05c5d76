"""HTML and SVG elements. Text is escaped unless it is markup already, so that nothing a user has named can become markup."""

from __future__ import annotations

import html
import os
from urllib.parse import quote

_VOID = ("img", "input", "meta", "br", "link")


class Markup(str):
    """Text that is markup."""


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Children that are None are left out; attributes too, or False, and those that are True stand alone.

    Names of attributes are written with hyphens for underscores; a last underscore, as in `class_`, is dropped.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def address(path: str) -> str:
    """A path as a link has it; one that is no UTF-8 too."""
    return quote(os.fsencode(path))


def join(*children: object) -> Markup:
    """Children one after another."""
    return Markup(
        "".join(child if isinstance(child, Markup) else html.escape(str(child)) for child in children if child is not None)
    )


def _attribute(key: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
